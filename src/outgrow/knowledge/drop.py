"""Bias elimination alone: wrong rows are not distilled."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float, Int
from torch import Tensor

from outgrow.knowledge.base import BaseRule


@dataclass(frozen=True)
class Drop(BaseRule):
    """Gives wrong rows weight zero; their logits stay as they are.

    Reference: Zhang et al. (AAAI 2025), https://arxiv.org/abs/2412.09874, "bias elimination".
    """

    name: ClassVar[str] = "drop"
    effect: ClassVar[Literal["none", "rewrite", "remove"]] = "remove"

    def __call__(
        self,
        logits: Float[Tensor, "rows classes"],
        label: Int[Tensor, " rows"],
        *,
        temperature: float,
    ) -> Float[Tensor, "rows classes"]:
        return logits
