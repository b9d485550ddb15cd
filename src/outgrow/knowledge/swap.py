"""Exchange the label's logit with the top one."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from outgrow.knowledge.base import BaseRule, replace_logit
from outgrow.knowledge.split import label_logit, top_class


def swap(logits: Float[Tensor, "rows classes"], label: Int[Tensor, " rows"]) -> Float[Tensor, "rows classes"]:
    """The label gets the top class's logit and the top class the label's.

    Afterwards the label always leads, by as much as it trailed. A second application changes nothing,
    since the label is then the top class.

    Reference: Wen, Lai, Qian (2019), https://arxiv.org/abs/1911.07471, "probability shift"; the
    correction in the first code released for https://arxiv.org/abs/2412.09874.

    >>> import torch
    >>> swap(torch.tensor([[1.0, 5.0, 2.0]]), torch.tensor([0]))
    tensor([[5., 1., 2.]])
    """
    top = top_class(logits, label)
    largest, own = label_logit(logits, top), label_logit(logits, label)
    return replace_logit(replace_logit(logits, top, own), label, largest)


@dataclass(frozen=True)
class Swap(BaseRule):
    """:func:`swap` as a rule."""

    name: ClassVar[str] = "swap"

    def __call__(
        self,
        logits: Float[Tensor, "rows classes"],
        label: Int[Tensor, " rows"],
        *,
        temperature: float,
    ) -> Float[Tensor, "rows classes"]:
        return swap(logits, label)
