"""Weighted soft labels: ``wsl``."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from outgrow.knowledge.split import label_logit, safe_label
from outgrow.losses.base import RowLoss, positive
from outgrow.outputs import Outputs, Target, lift


def wsl_loss(
    student: Float[Tensor, "rows classes"],
    teacher: Float[Tensor, "rows classes"],
    label: Int[Tensor, " rows"],
    *,
    temperature: float = 2.0,
) -> Float[Tensor, " rows"]:
    r"""Soft cross-entropy, with less weight where the student predicts the label better than the teacher.

    .. math:: T^2\, w \Big(-\sum_c t_c \log p_c\Big), \quad
              w = 1 - \exp\Big(-\frac{\log \sigma(s)_y}{\log \sigma(z)_y}\Big)

    with :math:`t, p` at temperature T and the weight at temperature 1. The weight is detached. It is a
    cross-entropy, not a divergence, so it is not zero where the two agree; the weight is :math:`1 - 1/e`
    there. It is zero only where the student's probability of the label is 1.

    Reference: Zhou et al. (ICLR 2021), https://arxiv.org/abs/2102.00650, "weighted soft labels". The 1e-7
    in the weight's denominator is from the authors' code.

    >>> wsl_loss(torch.zeros(1, 2), torch.tensor([[0.0, 4.0]]), torch.tensor([1]))
    tensor([2.7726])
    >>> wsl_loss(torch.zeros(1, 2), torch.tensor([[0.0, 4.0]]), torch.tensor([0]))
    tensor([0.4393])
    """
    own = -label_logit(lift(student).detach().log_softmax(dim=1), label)
    theirs = -label_logit(lift(teacher).detach().log_softmax(dim=1), label)
    weight = -torch.expm1(-own / (theirs + 1e-7))
    t = (lift(teacher) / temperature).softmax(dim=1)
    log_p = (lift(student) / temperature).log_softmax(dim=1)
    return temperature**2 * weight * -(t * log_p.masked_fill(t == 0, 0.0)).sum(dim=1)


class WSL(RowLoss):
    """:func:`wsl_loss` with its temperature fixed.

    On a row without a label the value is 0, with a zero gradient.
    """

    softens = True
    needs_label = True
    zero_at_match = False
    detaches = True

    def __init__(self, temperature: float = 2.0) -> None:
        super().__init__()
        self.temperature: float = positive(temperature, what="wsl: temperature")

    def rows(self, student: Outputs, teacher: Outputs, target: Target) -> Float[Tensor, " rows"]:
        label = safe_label(target.dominant, student.num_classes)
        return wsl_loss(student.logits, teacher.logits, label, temperature=self.temperature)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"
