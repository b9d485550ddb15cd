"""Put the label first and shift the classes that led it down by one rank."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from outgrow.knowledge.base import BaseRule


def sort(logits: Float[Tensor, "rows classes"], label: Int[Tensor, " rows"]) -> Float[Tensor, "rows classes"]:
    """The label takes the largest logit; every class that led it takes the next smaller one.

    The row keeps its set of values, and the other classes keep their order. Classes behind the label do
    not change.

    Reference: https://arxiv.org/abs/2508.16544.

    >>> import torch
    >>> sort(torch.tensor([[1.0, 5.0, 3.0, 0.0]]), torch.tensor([0]))
    tensor([[5., 3., 1., 0.]])
    """
    values, order = logits.sort(dim=1, descending=True, stable=True)
    is_label = order == label[:, None]
    led = is_label.cumsum(dim=1) == 0  # the ranks before the label's
    shifted = values.where(~led, values.roll(-1, dims=1))
    shifted = values[:, :1].where(is_label, shifted)
    return logits.scatter(1, order, shifted)


@dataclass(frozen=True)
class Sort(BaseRule):
    """:func:`sort` as a rule."""

    name: ClassVar[str] = "sort"

    def __call__(
        self,
        logits: Float[Tensor, "rows classes"],
        label: Int[Tensor, " rows"],
        *,
        temperature: float,
    ) -> Float[Tensor, "rows classes"]:
        return sort(logits, label)
