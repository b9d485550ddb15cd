"""Transformed teacher matching: ``ttm``."""

from jaxtyping import Float
from torch import Tensor

from outgrow.losses.base import RowLoss, positive
from outgrow.losses.kd import divergence
from outgrow.outputs import Outputs, Target, lift


def ttm_loss(
    student: Float[Tensor, "rows classes"],
    teacher: Float[Tensor, "rows classes"],
    *,
    exponent: float = 0.2,
) -> Float[Tensor, " rows"]:
    r"""KL from the teacher's probabilities to a power, renormalised, to the student at temperature 1.

    .. math:: \sum_c q_c (\log q_c - \log p_c), \quad
              q_c = t_c^\gamma / \sum_j t_j^\gamma,\ t = \sigma(z),\ p = \sigma(s)

    The power is a temperature of :math:`1 / \gamma` for the teacher alone. The student is not softened, and
    there is no factor :math:`T^2`. The loss is zero where the student's logits are ``exponent`` times the
    teacher's, up to a shift. It is not zero where the two agree.

    Reference: Zheng, Yang (ICLR 2024), https://arxiv.org/abs/2402.11148, section 3.

    >>> import torch
    >>> ttm_loss(torch.zeros(1, 2), torch.tensor([[0.0, 5.0]]))
    tensor([0.1109])
    """
    log_p = lift(student).log_softmax(dim=1)
    log_q = (exponent * lift(teacher)).log_softmax(dim=1)
    return divergence(log_q, log_p)


class TTM(RowLoss):
    """:func:`ttm_loss` with its exponent fixed. Declares the temperature ``1 / exponent``."""

    zero_at_match = False

    def __init__(self, exponent: float = 0.2) -> None:
        super().__init__()
        self.exponent = positive(exponent, what="ttm: exponent")
        self.temperature: float = 1.0 / self.exponent

    def rows(self, student: Outputs, teacher: Outputs, target: Target) -> Float[Tensor, " rows"]:
        return ttm_loss(student.logits, teacher.logits, exponent=self.exponent)

    def extra_repr(self) -> str:
        return f"exponent={self.exponent}"
