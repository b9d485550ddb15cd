"""Plain distillation with a first-order correction by the label: ``semiparametric``."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from outgrow.knowledge.split import safe_label
from outgrow.losses.base import RowLoss, positive
from outgrow.losses.kd import divergence
from outgrow.outputs import Outputs, Target, lift


def semiparametric_loss(
    student: Float[Tensor, "rows classes"],
    teacher: Float[Tensor, "rows classes"],
    observed: Float[Tensor, "rows classes"],
    *,
    temperature: float = 2.0,
    floor: float = 0.01,
) -> Float[Tensor, " rows"]:
    r"""``kd``, plus its derivative in the teacher's probabilities in the direction of the observed label.

    .. math:: T^2 \Big(KL(t \| p) - \sum_c d_c \log p_c\Big), \quad
              d_c = \tfrac1T\, t_c \Big(r_c - \sum_j t_j r_j\Big), \quad r_c = \frac{y_c}{\max(q_c, \epsilon)} - 1

    with :math:`t, p` at temperature T and :math:`q` the teacher at temperature 1. ``observed`` is :math:`y`: one-hot, a
    blend of two labels, or zeros for a row without a label, where :math:`d` is 0. The student so matches
    :math:`t + d`, which sums to 1 but may be negative. To first order the expectation of :math:`t + d` is what a teacher
    with the true class probabilities would say, so that an error of the teacher enters squared. At temperature 1, and without
    the floor, it is the cross-entropy on the label, up to a constant.

    Reference: Dao et al. (ICLR 2021), https://arxiv.org/abs/2104.09732; the formula at a temperature, and the floor
    (``eps`` there), are from the authors' code.

    >>> y = torch.tensor([[1.0, 0.0]])
    >>> semiparametric_loss(torch.zeros(1, 2), torch.tensor([[0.0, 4.0]]), y)
    tensor([1.3113])
    >>> semiparametric_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 4.0]]), y)
    tensor([-3.6409])
    """
    student, teacher = lift(student), lift(teacher)
    log_p = (student / temperature).log_softmax(dim=1)
    log_t = (teacher / temperature).log_softmax(dim=1)
    q, t = teacher.softmax(dim=1), log_t.exp()
    residual = observed / q.clamp_min(floor) - 1
    residual = residual * (observed > 0).any(dim=1, keepdim=True)
    moved = t * (residual - (t * residual).sum(dim=1, keepdim=True)) / temperature
    return temperature**2 * (divergence(log_t, log_p) - (moved * log_p.masked_fill(t == 0, 0.0)).sum(dim=1))


class Semiparametric(RowLoss):
    """:func:`semiparametric_loss` with its constants fixed. On a row without a label it is ``kd``."""

    softens = True
    zero_at_match = False

    def __init__(self, temperature: float = 2.0, floor: float = 0.01) -> None:
        super().__init__()
        self.temperature: float = positive(temperature, what="semiparametric: temperature")
        self.floor: float = positive(floor, what="semiparametric: floor")

    def rows(self, student: Outputs, teacher: Outputs, target: Target) -> Float[Tensor, " rows"]:
        return semiparametric_loss(
            student.logits,
            teacher.logits,
            _observed(target, lift(teacher.logits)),
            temperature=self.temperature,
            floor=self.floor,
        )

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, floor={self.floor}"


def _observed(target: Target, like: Float[Tensor, "rows classes"]) -> Float[Tensor, "rows classes"]:
    """The label as a distribution; zeros where there is none."""

    def one_hot(label: Int[Tensor, " rows"]) -> Float[Tensor, "rows classes"]:
        return torch.zeros_like(like).scatter(1, safe_label(label, like.shape[1])[:, None], 1.0)

    label = one_hot(target.label)
    if target.partner is not None and target.mix is not None:
        mix = target.mix[:, None].to(like.dtype)
        label = mix * label + (1 - mix) * one_hot(target.partner)
    return label * target.valid[:, None]
