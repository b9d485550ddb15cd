"""What several teachers, several views and noisy labels say together, one row and one number at a time. Slow on purpose."""

import math

from tests.reference.rules import softmax


def mixture(rows, weights):
    """The weighted mean of the probabilities of several teachers, whose logits for one row are ``rows``."""
    beliefs = [softmax(row, 1.0) for row in rows]
    return [sum(w * t[c] for w, t in zip(weights, beliefs, strict=True)) for c in range(len(rows[0]))]


def mixture_likelihood(teachers, weights, labels, noise=None):
    """The mean log-likelihood of the labels under the mixture. ``noise[true][given]`` is how labels come about."""
    total = 0.0
    for i, label in enumerate(labels):
        true = mixture([teacher[i] for teacher in teachers], weights)
        given = (
            true
            if noise is None
            else [sum(p * row[k] for p, row in zip(true, noise, strict=True)) for k in range(len(true))]
        )
        total += math.log(given[label])
    return total / len(labels)
