"""The rules, written from the papers one row and one number at a time. Slow on purpose.

Each takes a teacher's *probabilities* (a list of floats) and the label, and returns probabilities:
another route than the library's, which works on logits in log space.
"""

import math


def softmax(logits, temperature):
    powers = [math.exp((z - max(logits)) / temperature) for z in logits]
    return [p / sum(powers) for p in powers]


def top(t, label):
    best = max(t)
    return label if t[label] == best else t.index(best)


def identity(t, label):
    return list(t)


drop = identity


def pair(t, label):
    a, b = label, top(t, label)
    m = t[a] + t[b]
    moved_a, moved_b = (t[a] + 1) / 2, t[b] / 2  # towards the one-hot label, and away from the top
    q = list(t)
    q[a], q[b] = moved_a * m / (moved_a + moved_b), moved_b * m / (moved_a + moved_b)
    return q


def swap(t, label):
    q = list(t)
    b = top(t, label)
    q[label], q[b] = t[b], t[label]
    return q


def label_smooth(t, label, confidence=0.9):
    return [confidence if c == label else (1 - confidence) / (len(t) - 1) for c in range(len(t))]


def lead(t, label, margin=0.2):
    best = max(p for c, p in enumerate(t) if c != label)
    if t[label] - best >= margin:
        return list(t)
    scale = (1 - margin) / (1 - t[label] + best)
    return [scale * p + (1 - scale) * (c == label) for c, p in enumerate(t)]


def sort(t, label):
    order = sorted(range(len(t)), key=lambda c: -t[c])
    shifted = [label] + [c for c in order if c != label]
    values = sorted(t, reverse=True)
    return [values[shifted.index(c)] for c in range(len(t))]


def project(t, label, margin=0.0):
    """Try every size of the merged set and keep the feasible belief with the smallest KL."""
    others = sorted((c for c in range(len(t)) if c != label), key=lambda c: -t[c])
    best, best_kl = None, math.inf
    for size in range(len(t)):
        merged = others[:size]
        q = list(t)
        q[label] = (t[label] + sum(t[c] for c in merged)) / (1 + size * math.exp(-margin))
        for c in merged:
            q[c] = q[label] * math.exp(-margin)
        feasible = all(q[label] * math.exp(-margin) >= q[c] - 1e-12 for c in others)
        kl = sum(p * math.log(p / s) for p, s in zip(t, q, strict=True) if p > 0)
        if feasible and kl < best_kl - 1e-15:
            best, best_kl = q, kl
    return best


def boost(t, label, temperature, delta=2.0):
    raised = [p * math.exp(delta / temperature * (c == label)) for c, p in enumerate(t)]
    return [p / sum(raised) for p in raised]


def posterior(t, label, temperature, noise=0.1):
    """Bayes at temperature 1, softened. ``noise`` is a share of wrong labels, or a matrix of rows ``[true][given]``."""
    rest = noise / (len(t) - 1) if isinstance(noise, float) else None
    evidence = [
        ((1 - noise) if c == label else rest) if rest is not None else noise[c][label] for c in range(len(t))
    ]
    joint = [p * e ** (1 / temperature) for p, e in zip(t, evidence, strict=True)]
    return [p / sum(joint) for p in joint]


RULES = {
    "identity": identity,
    "drop": drop,
    "pair": pair,
    "swap": swap,
    "label_smooth": label_smooth,
    "lead": lead,
    "revise": lead,
    "calibrate": lead,
    "threshold": lead,
    "sort": sort,
    "project": project,
    "boost": boost,
    "posterior": posterior,
}
