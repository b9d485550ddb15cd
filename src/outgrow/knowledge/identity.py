"""The teacher unchanged: plain distillation, the baseline of every comparison."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float, Int
from torch import Tensor

from outgrow.knowledge.base import BaseRule


@dataclass(frozen=True)
class Identity(BaseRule):
    """Leaves every row unchanged.

    Reference: Hinton, Vinyals, Dean (2015), https://arxiv.org/abs/1503.02531.
    """

    name: ClassVar[str] = "identity"
    effect: ClassVar[Literal["none", "rewrite", "remove"]] = "none"

    def __call__(
        self,
        logits: Float[Tensor, "rows classes"],
        label: Int[Tensor, " rows"],
        *,
        temperature: float,
    ) -> Float[Tensor, "rows classes"]:
        return logits
