"""Kullback-Leibler divergence the other way round: ``reverse_kl``."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from outgrow.losses.base import RowLoss, positive
from outgrow.outputs import Outputs, Target, lift


def reverse_kl_loss(
    student: Float[Tensor, "rows classes"],
    teacher: Float[Tensor, "rows classes"],
    *,
    temperature: float = 4.0,
) -> Float[Tensor, " rows"]:
    r"""KL divergence from the softened teacher to the softened student, one value a row.

    .. math:: T^2 \sum_c p_c (\log p_c - \log t_c), \quad t = \sigma(z / T),\ p = \sigma(s / T)

    It punishes mass where the teacher has none, and lets the student leave out classes that the
    teacher believes in: it seeks one mode, where :func:`kd_loss` covers all. The two agree to second
    order near agreement, where both are zero.

    Reference: Gu et al. (ICLR 2024), https://arxiv.org/abs/2306.08543, section 2.1; the factor
    :math:`T^2` is that of :func:`kd_loss`.

    >>> import torch
    >>> reverse_kl_loss(torch.zeros(1, 2), torch.tensor([[0.0, 4.0]]))
    tensor([1.9218])
    """
    log_p = (lift(student) / temperature).log_softmax(dim=1)
    log_t = (lift(teacher) / temperature).log_softmax(dim=1)
    return temperature**2 * F.kl_div(log_t, log_p, reduction="none", log_target=True).sum(dim=1)


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
