"""A correction as three numbers a row, and what they do to ``KL`` and to its gradient.

The belief of a corrected row is ``q = c t`` but for the label, ``q_a = u``, and the top class,
``q_b = v``. Against the plain teacher's ``KL(t || p)`` only two classes change:

    KL(q || p) = c (KL(t || p) - sum_ab t log(t / p)) + c log c (1 - t_a - t_b) + sum_ab q log(q / p)

and the gradient of ``T^2 KL`` in the student's logits is ``T (p - q)``. Pairs stand as two rows here:
the label first, the top class second.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from outgrow.knowledge.boost import Boost
from outgrow.knowledge.lead import Lead
from outgrow.knowledge.pair import Pair
from outgrow.knowledge.swap import Swap
from outgrow.outputs import Rule

Pairs = Float[Tensor, "2 rows"]
Scale = Float[Tensor, " rows"] | None
"""``c``; None is 1."""


def _pair(rule: Rule, t: Tensor, temperature: float) -> tuple[Tensor | None, Tensor]:
    mass = t.sum(dim=0)
    share = mass / (1 + mass)
    q = t * share
    q[0] += share
    return None, q


def _swap(rule: Rule, t: Tensor, temperature: float) -> tuple[Tensor | None, Tensor]:
    return None, t.flip(0)


def _lead(rule: Rule, t: Tensor, temperature: float) -> tuple[Tensor | None, Tensor]:
    assert isinstance(rule, Lead)
    c = (1 - rule.margin) / (1 - t[0] + t[1])
    q = t * c
    q[0] += 1 - c
    return c, q


def _boost(rule: Rule, t: Tensor, temperature: float) -> tuple[Tensor | None, Tensor]:
    assert isinstance(rule, Boost)
    raised = t[0] * math.exp(rule.delta / temperature)
    c = 1 / (1 - t[0] + raised)
    return c, torch.stack((c * raised, c * t[1]))


COMPACT: dict[type, Callable[[Rule, Tensor, float], tuple[Tensor | None, Tensor]]] = {
    Pair: _pair,
    Swap: _swap,
    Lead: _lead,
    Boost: _boost,
}
"""From the teacher's two probabilities to ``c`` and the two believed ones."""
SCALING = (Lead, Boost)
"""The rules whose ``c`` is not 1."""


def compact(rule: Rule, t: Pairs, temperature: float) -> tuple[Scale, Pairs]:
    """``c`` and ``(u, v)`` from the teacher's probabilities of label and top class."""
    return COMPACT[type(rule)](rule, t, temperature)


def corrected(
    rule: Rule, temperature: float, kl: Float[Tensor, " rows"], log_t: Pairs, log_p: Pairs
) -> tuple[Float[Tensor, " rows"], Pairs, Scale]:
    """``KL`` against the corrected belief from that against the plain one; also ``c t - q`` and ``c``.

    ``c t - q`` is what the two classes still have too much of in ``p - c t``, which is the gradient
    of all other classes.
    """
    t = log_t.exp()
    c, q = compact(rule, t, temperature)
    believed = torch.xlogy(q, q) - q * log_p  # xlogy: nothing is lost where nothing is believed
    plain = t * (log_t - log_p)
    if c is None:
        return kl + (believed - plain).sum(dim=0), t - q, c
    rest = c * (kl - plain.sum(dim=0)) + torch.xlogy(c, c) * (1 - t.sum(dim=0))
    return rest + believed.sum(dim=0), c * t - q, c
