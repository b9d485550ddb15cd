"""Ours: the nearest distribution, in KL, in which the label leads."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from outgrow.knowledge.base import BaseRule, replace_logit
from outgrow.knowledge.split import label_logit


def project(
    logits: Float[Tensor, "rows classes"],
    label: Int[Tensor, " rows"],
    *,
    temperature: float,
    margin: float = 0.0,
) -> Float[Tensor, "rows classes"]:
    r"""The ``q`` with the smallest :math:`KL(t \| q)` in which the label leads by ``margin``.

    .. math:: \min_q \sum_c t_c \log (t_c / q_c) \quad\text{with}\quad
              \log q_y \ge \log q_c + \text{margin} \;\; \forall c \ne y

    The classes S that would otherwise lead are merged with the label; the rest keep their probability:
    :math:`q_y = (t_y + \sum_S t) / (1 + |S| e^{-\text{margin}})`, :math:`q_c = q_y e^{-\text{margin}}`
    on S. S is a prefix of the other classes in descending order. At margin 0 the label ties with S,
    and a tie counts as right. A row in which the label already leads does not change. Idempotent. The
    derivation is in docs/methods/project.md.

    >>> q = project(torch.tensor([[0.1, 0.5, 0.4]]).log(), torch.tensor([0]), temperature=1.0)
    >>> q.softmax(dim=1)
    tensor([[0.3333, 0.3333, 0.3333]])
    """
    num_classes = logits.shape[1]
    if num_classes < 2:
        return logits
    soft = logits / temperature
    own = label_logit(soft, label)
    others = soft.scatter(1, label[:, None], -math.inf)
    led, order = others.sort(dim=1, descending=True, stable=True)  # the label comes last
    # merged[:, n]: the label's soft logit once the first n of the others are merged with it
    mass = torch.cat([own[:, None], led[:, :-1]], dim=1).logcumsumexp(dim=1)
    count = torch.arange(num_classes, device=logits.device, dtype=soft.dtype)
    merged = mass - torch.log1p(count * math.exp(-margin))
    joins = led > merged - margin  # class n + 1 still leads once n are merged
    joins = joins.cumprod(dim=1).bool()  # a prefix; rounding must not break it
    size = joins.sum(dim=1)
    value = temperature * label_logit(merged, size.clamp(max=num_classes - 1))
    in_set = torch.zeros_like(joins).scatter(1, order, joins)
    level = (value - temperature * margin)[:, None].expand_as(logits)
    corrected = replace_logit(torch.where(in_set, level, logits), label, value)
    return torch.where((size == 0)[:, None], logits, corrected)


@dataclass(frozen=True)
class Project(BaseRule):
    """:func:`project` as a rule. ``margin`` is a difference of log-probabilities, at least 0."""

    name: ClassVar[str] = "project"
    uses_temperature: ClassVar[bool] = True
    margin: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.margin < math.inf:
            raise ValueError(
                f"project: needs a finite margin of at least 0, got {self.margin}; "
                "it is a difference of log-probabilities, 0 for a tie."
            )

    def __call__(
        self,
        logits: Float[Tensor, "rows classes"],
        label: Int[Tensor, " rows"],
        *,
        temperature: float,
    ) -> Float[Tensor, "rows classes"]:
        return project(logits, label, temperature=temperature, margin=self.margin)
