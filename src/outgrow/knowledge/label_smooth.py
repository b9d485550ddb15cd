"""Replace the teacher's row by a smoothed label."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from outgrow.knowledge.base import BaseRule, replace_logit


def label_smooth(
    logits: Float[Tensor, "rows classes"],
    label: Int[Tensor, " rows"],
    *,
    temperature: float,
    confidence: float = 0.9,
) -> Float[Tensor, "rows classes"]:
    """``confidence`` on the label, the rest spread evenly, at ``temperature``.

    The teacher's logits of the row are not used.

    Reference: Wen, Lai, Qian (2019), https://arxiv.org/abs/1911.07471, section 3.2 (0.9).

    >>> z = label_smooth(torch.zeros(1, 3), torch.tensor([1]), temperature=4.0)
    >>> (z / 4).softmax(dim=1)
    tensor([[0.0500, 0.9000, 0.0500]])
    """
    rest = (1 - confidence) / max(logits.shape[1] - 1, 1)
    base = torch.full_like(logits, temperature * math.log(rest))
    return replace_logit(base, label, torch.full_like(logits[:, 0], temperature * math.log(confidence)))


@dataclass(frozen=True)
class LabelSmooth(BaseRule):
    """:func:`label_smooth` as a rule. ``confidence`` lies strictly between 0 and 1."""

    name: ClassVar[str] = "label_smooth"
    uses_temperature: ClassVar[bool] = True
    confidence: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise ValueError(
                f"label_smooth: needs a confidence between 0 and 1, got {self.confidence}; the paper uses 0.9."
            )

    def __call__(
        self,
        logits: Float[Tensor, "rows classes"],
        label: Int[Tensor, " rows"],
        *,
        temperature: float,
    ) -> Float[Tensor, "rows classes"]:
        return label_smooth(logits, label, temperature=temperature, confidence=self.confidence)
