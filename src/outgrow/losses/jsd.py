"""Jensen-Shannon divergence: ``jsd``."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from outgrow.losses.base import RowLoss, positive
from outgrow.losses.kd import divergence
from outgrow.outputs import Outputs, Target, lift


def jsd_loss(
    student: Float[Tensor, "rows classes"],
    teacher: Float[Tensor, "rows classes"],
    *,
    beta: float = 0.5,
    temperature: float = 4.0,
) -> Float[Tensor, " rows"]:
    r"""KL divergences of teacher and student from their mixture, one value per row.

    .. math:: T^2 \big(\beta\, KL(t \| m) + (1 - \beta)\, KL(p \| m)\big), \quad m = \beta t + (1 - \beta) p

    It is at most :math:`T^2` times the entropy of :math:`(\beta, 1 - \beta)`, so no single row can
    dominate. Near agreement it is :math:`\beta (1 - \beta)` times :func:`kd_loss` (a quarter at the
    default). Divided by beta it tends to :func:`kd_loss` as beta goes to 0; divided by 1 - beta it tends to
    :func:`reverse_kl_loss` as beta goes to 1. Zero where the two distributions agree.

    Reference: Lin (IEEE Transactions on Information Theory 1991); as a distillation loss Agarwal et al.
    (ICLR 2024), https://arxiv.org/abs/2306.13649, section 2. The factor :math:`T^2` is that of
    :func:`kd_loss`.

    >>> jsd_loss(torch.zeros(1, 2), torch.tensor([[0.0, 4.0]]))
    tensor([0.4566])
    """
    log_p = (lift(student) / temperature).log_softmax(dim=1)
    log_t = (lift(teacher) / temperature).log_softmax(dim=1)
    # a class that both rule out would have the gradient NaN there; what it gets instead counts for nothing below
    neither = (log_t == -math.inf) & (log_p == -math.inf)
    own, other = log_p.masked_fill(neither, 0.0), log_t.masked_fill(neither, 0.0)
    log_m = torch.logaddexp(other + math.log(beta), own + math.log1p(-beta))
    from_teacher = divergence(log_t, log_m)
    from_student = divergence(log_p, log_m)
    return temperature**2 * (beta * from_teacher + (1 - beta) * from_student)


class JSD(RowLoss):
    """:func:`jsd_loss` with its constants fixed."""

    softens = True

    def __init__(self, beta: float = 0.5, temperature: float = 4.0) -> None:
        super().__init__()
        if not 0 < beta < 1:
            raise ValueError(
                f"jsd: beta needs a number between 0 and 1, both excluded, got {beta}; at 0 and 1 the loss is "
                "zero everywhere; use kd or reverse_kl, its limits, instead."
            )
        self.beta = beta
        self.temperature: float = positive(temperature, what="jsd: temperature")

    def rows(self, student: Outputs, teacher: Outputs, target: Target) -> Float[Tensor, " rows"]:
        return jsd_loss(student.logits, teacher.logits, beta=self.beta, temperature=self.temperature)

    def extra_repr(self) -> str:
        return f"beta={self.beta}, temperature={self.temperature}"
