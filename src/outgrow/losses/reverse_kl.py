"""Kullback-Leibler divergence with student and teacher exchanged: ``reverse_kl``."""

from jaxtyping import Float
from torch import Tensor

from outgrow.losses.base import RowLoss, positive
from outgrow.losses.kd import divergence
from outgrow.outputs import Outputs, Target, lift


def reverse_kl_loss(
    student: Float[Tensor, "rows classes"],
    teacher: Float[Tensor, "rows classes"],
    *,
    temperature: float = 4.0,
) -> Float[Tensor, " rows"]:
    r"""KL(student || teacher) of the softened distributions, one value per row.

    .. math:: T^2 \sum_c p_c (\log p_c - \log t_c), \quad t = \sigma(z / T),\ p = \sigma(s / T)

    It penalises the student's probability on classes that the teacher excludes, and lets the student drop
    classes that the teacher supports. So it is mode-seeking, and :func:`kd_loss` is mode-covering. Where the
    distributions agree both are zero, and near there they are equal to second order.

    Reference: Gu et al. (ICLR 2024), https://arxiv.org/abs/2306.08543, section 2.1; the factor
    :math:`T^2` is that of :func:`kd_loss`.

    >>> import torch
    >>> reverse_kl_loss(torch.zeros(1, 2), torch.tensor([[0.0, 4.0]]))
    tensor([1.9218])
    """
    log_p = (lift(student) / temperature).log_softmax(dim=1)
    log_t = (lift(teacher) / temperature).log_softmax(dim=1)
    return temperature**2 * divergence(log_p, log_t)


class ReverseKL(RowLoss):
    """:func:`reverse_kl_loss` with its temperature fixed."""

    softens = True

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__()
        self.temperature: float = positive(temperature, what="reverse_kl: temperature")

    def rows(self, student: Outputs, teacher: Outputs, target: Target) -> Float[Tensor, " rows"]:
        return reverse_kl_loss(student.logits, teacher.logits, temperature=self.temperature)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"
