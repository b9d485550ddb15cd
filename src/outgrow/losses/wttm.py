"""Weighted transformed teacher matching: ``wttm``."""

from jaxtyping import Float
from torch import Tensor

from outgrow.losses.base import RowLoss, positive
from outgrow.losses.ttm import ttm_loss
from outgrow.outputs import Outputs, Target, lift


def wttm_loss(
    student: Float[Tensor, "rows classes"],
    teacher: Float[Tensor, "rows classes"],
    *,
    exponent: float = 0.2,
) -> Float[Tensor, " rows"]:
    r""":func:`ttm_loss`, with each row multiplied by the power sum of the teacher's probabilities.

    .. math:: \Big(\sum_c t_c^\gamma\Big)\ KL(q \| p), \quad q_c = t_c^\gamma / \sum_j t_j^\gamma

    The weight is 1 for a one-hot teacher and :math:`C^{1 - \gamma}` for a uniform one (40 with 100 classes
    at 0.2). So smooth rows count more, and the loss grows with the number of classes. The weight does not
    depend on other rows and is not normalised. Zero where :func:`ttm_loss` is zero.

    Reference: Zheng, Yang (ICLR 2024), https://arxiv.org/abs/2402.11148, section 4.

    >>> import torch
    >>> wttm_loss(torch.zeros(1, 2), torch.tensor([[0.0, 5.0]]))
    tensor([0.1516])
    """
    log_weight = (exponent * lift(teacher).log_softmax(dim=1)).logsumexp(dim=1)
    return log_weight.exp() * ttm_loss(student, teacher, exponent=exponent)


class WTTM(RowLoss):
    """:func:`wttm_loss` with its exponent fixed. Declares the temperature ``1 / exponent``."""

    zero_at_match = False

    def __init__(self, exponent: float = 0.2) -> None:
        super().__init__()
        self.exponent = positive(exponent, what="wttm: exponent")
        self.temperature: float = 1.0 / self.exponent

    def rows(self, student: Outputs, teacher: Outputs, target: Target) -> Float[Tensor, " rows"]:
        return wttm_loss(student.logits, teacher.logits, exponent=self.exponent)

    def extra_repr(self) -> str:
        return f"exponent={self.exponent}"
