"""Plain distillation: ``kd``."""

import math

from jaxtyping import Float
from torch import Tensor

from outgrow.losses.base import RowLoss, positive
from outgrow.outputs import Outputs, Target, lift


def kd_loss(
    student: Float[Tensor, "rows classes"],
    teacher: Float[Tensor, "rows classes"],
    *,
    temperature: float = 4.0,
) -> Float[Tensor, " rows"]:
    r"""KL divergence from the softened student to the softened teacher, one value a row.

    .. math:: T^2 \sum_c t_c (\log t_c - \log p_c), \quad t = \sigma(z / T),\ p = \sigma(s / T)

    The factor :math:`T^2` keeps the size of the gradient nearly independent of the temperature.
    Zero where the two distributions agree. Half-precision logits are computed in float32.

    Reference: Hinton, Vinyals, Dean (2015), https://arxiv.org/abs/1503.02531, section 2.

    >>> import torch
    >>> kd_loss(torch.zeros(1, 2), torch.tensor([[0.0, 4.0]]))
    tensor([1.7751])
    """
    log_p = (lift(student) / temperature).log_softmax(dim=1)
    log_t = (lift(teacher) / temperature).log_softmax(dim=1)
    return temperature**2 * divergence(log_t, log_p)


def divergence(
    log_q: Float[Tensor, "rows *classes"], log_p: Float[Tensor, "rows *classes"]
) -> Float[Tensor, "rows *rest"]:
    r""":math:`KL(q \| p)` over the last axis; a class with :math:`q = 0` counts for nothing.

    There :math:`\log q` may be minus infinity (a class that the teacher rules out), where
    ``F.kl_div(..., log_target=True)`` gives NaN.
    """
    q = log_q.exp()
    return (q * (log_q - log_p).masked_fill(q == 0, 0.0)).sum(dim=-1)


def softened(
    logits: Float[Tensor, "rows classes"], temperature: Float[Tensor, "*shape"]
) -> Float[Tensor, "rows classes"]:
    """``logits / temperature`` for a temperature with a gradient, which minus infinity would make NaN."""
    ruled_out = logits == -math.inf
    return (logits.masked_fill(ruled_out, 0.0) / temperature).masked_fill(ruled_out, -math.inf)


class KD(RowLoss):
    """:func:`kd_loss` with its temperature fixed."""

    softens = True

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__()
        self.temperature: float = positive(temperature, what="kd: temperature")

    @property
    def closed_form(self) -> bool:  # type: ignore[override]
        """Of this class alone: a subclass may compute something else."""
        return type(self) is KD

    def rows(self, student: Outputs, teacher: Outputs, target: Target) -> Float[Tensor, " rows"]:
        return kd_loss(student.logits, teacher.logits, temperature=self.temperature)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"
