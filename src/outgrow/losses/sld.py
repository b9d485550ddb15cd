"""Swapped logit distillation: ``sld``."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from outgrow.knowledge.split import safe_label
from outgrow.knowledge.swap import swap
from outgrow.losses.base import RowLoss, positive
from outgrow.losses.kd import kd_loss
from outgrow.outputs import Outputs, Target, lift


def sld_loss(
    student: Float[Tensor, "rows classes"],
    teacher: Float[Tensor, "rows classes"],
    label: Int[Tensor, " rows"],
    *,
    temperatures: Sequence[float | int] = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0),
) -> Float[Tensor, " rows"]:
    r""":func:`kd_loss`, summed over temperatures, to the teacher with label and top logit exchanged.

    .. math:: \sum_T T^2\ KL(\sigma(\bar z / T) \| \sigma(s / T)), \quad \bar z = swap(z, y)

    The sum is not divided by the number of temperatures. The method has two such terms. The second is
    ``sld_loss(student, student, label)``: the teacher is the student with its logits swapped, *not* detached,
    so that the gradient flows through both sides. Zero where the outputs agree and the label leads.

    Reference: Limantoro et al. (2025), https://arxiv.org/abs/2504.20108; temperatures and the
    gradient through the student's swapped logits as in the authors' code.

    >>> import torch
    >>> z = torch.tensor([[0.0, 4.0]])
    >>> sld_loss(z, z, torch.tensor([1])), sld_loss(z, z, torch.tensor([0]), temperatures=(4.0,))
    (tensor([0.]), tensor([7.3939]))
    """
    swapped = swap(lift(teacher), label)
    return torch.stack([kd_loss(student, swapped, temperature=float(t)) for t in temperatures]).sum(dim=0)


class SLD(RowLoss):
    """:func:`sld_loss` to the teacher and, from progress ``start`` on, to the student's own logits.

    :meth:`at` sets the progress; without a call both terms are on. A ``start`` above 1 leaves the second term
    out. Declares no temperature, as it has several. On a row without a label the teacher is not swapped and
    the second term is 0.
    """

    zero_at_match = False
    inert = {"swap": "makes the same exchange itself"}

    def __init__(
        self,
        temperatures: Sequence[float | int] = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0),
        start: float = 0.625,
    ) -> None:
        super().__init__()
        if not temperatures:
            raise ValueError("sld: temperatures needs at least one number, got none; the paper uses 1 to 6.")
        self.temperatures = tuple(positive(float(t), what="sld: temperatures") for t in temperatures)
        self.start = start
        self.own_teacher = True

    def at(self, progress: float) -> None:
        self.own_teacher = progress >= self.start

    def rows(self, student: Outputs, teacher: Outputs, target: Target) -> Float[Tensor, " rows"]:
        label = safe_label(target.dominant, student.num_classes)
        # exchanging the top class with itself changes nothing
        first = torch.where(target.valid, label, teacher.logits.argmax(dim=1))
        value = sld_loss(student.logits, teacher.logits, first, temperatures=self.temperatures)
        if self.own_teacher:
            own = sld_loss(student.logits, student.logits, label, temperatures=self.temperatures)
            value = value + torch.where(target.valid, own, torch.zeros_like(own))
        return value

    def extra_repr(self) -> str:
        return f"temperatures={self.temperatures}, start={self.start}"
