"""Raise the label's logit by a constant: a baseline that papers do not report."""

import math
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from outgrow.knowledge.base import BaseRule, replace_logit
from outgrow.knowledge.split import label_logit


def boost(
    logits: Float[Tensor, "rows classes"], label: Int[Tensor, " rows"], *, delta: float = 2.0
) -> Float[Tensor, "rows classes"]:
    """Add ``delta`` to the label's logit, before the temperature divides it.

    The same ``delta`` is added however far the label trails, so the label need not lead afterwards. Not
    idempotent. No source: our own baseline, to measure what the cheapest correction does.

    >>> import torch
    >>> boost(torch.tensor([[1.0, 5.0]]), torch.tensor([0]))
    tensor([[3., 5.]])
    """
    return replace_logit(logits, label, label_logit(logits, label) + delta)


@dataclass(frozen=True)
class Boost(BaseRule):
    """:func:`boost` as a rule."""

    name: ClassVar[str] = "boost"
    delta: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.delta < math.inf:
            raise ValueError(
                f"boost: needs a finite delta of at least 0, got {self.delta}; 2 is the default."
            )

    def __call__(
        self,
        logits: Float[Tensor, "rows classes"],
        label: Int[Tensor, " rows"],
        *,
        temperature: float,
    ) -> Float[Tensor, "rows classes"]:
        return boost(logits, label, delta=self.delta)
