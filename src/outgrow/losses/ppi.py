"""Prediction-powered difference, for rows with and without a label: ``ppi``."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from outgrow.losses.base import BatchLoss, positive
from outgrow.losses.kd import kd_loss
from outgrow.outputs import Outputs, Target


def ppi_loss(
    student: Float[Tensor, "rows classes"],
    teacher: Float[Tensor, "rows classes"],
    labelled: Bool[Tensor, " rows"],
    weight: Float[Tensor, " rows"],
    *,
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    r"""What the teacher says of rows without a label, minus what it says of rows with one.

    .. math:: \bar w \Big(\frac{\sum_U w_i \ell_i}{\sum_U w_i} - \frac{\sum_L w_i \ell_i}{\sum_L w_i}\Big),
              \quad \ell_i = T^2\, KL(t_i \| p_i)

    with L and U the rows with and without a label, and :math:`\bar w` the mean weight. Beside the cross-entropy on L it
    is the prediction-powered loss, :math:`\ell_L(y) + \lambda\,(\ell_U(t) - \ell_L(t))`, where :math:`\lambda` is the
    weight of the term: where both kinds of rows are drawn alike the difference is 0 on average, whatever the teacher's
    errors. KL and cross-entropy have the same gradient. Zero where student and teacher agree, and where the
    batch lacks one of the two kinds. It can be negative, and is not bounded from below.

    Reference: Angelopoulos, Duchi, Zrnic (2023), https://arxiv.org/abs/2311.01453.

    >>> student, teacher = torch.zeros(2, 2), torch.tensor([[0.0, 4.0], [0.0, 0.0]])
    >>> ppi_loss(student, teacher, torch.tensor([False, True]), torch.ones(2))
    tensor(0.6031)
    """
    value = kd_loss(student, teacher, temperature=temperature)
    weight = weight.to(value.dtype)
    value = weight * value
    ours, others = weight * labelled, weight * ~labelled
    both = (ours.sum() > 0) & (others.sum() > 0)
    tiny = torch.finfo(value.dtype).tiny
    difference = (value * ~labelled).sum() / others.sum().clamp_min(tiny)
    difference = difference - (value * labelled).sum() / ours.sum().clamp_min(tiny)
    return both * weight.sum() / max(len(weight), 1) * difference


class PPI(BatchLoss):
    """:func:`ppi_loss` with its temperature fixed.

    Which rows are without a label decides the value; which label the others have does not.
    """

    softens = True
    needs_unlabelled = True

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature: float = positive(temperature, what="ppi: temperature")

    def batch(
        self, student: Outputs, teacher: Outputs, target: Target, weight: Float[Tensor, " rows"]
    ) -> Float[Tensor, ""]:
        return ppi_loss(student.logits, teacher.logits, target.valid, weight, temperature=self.temperature)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"
