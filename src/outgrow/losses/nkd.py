"""Normalised knowledge distillation: ``nkd``."""

import math

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from outgrow.knowledge.split import label_logit, safe_label
from outgrow.losses.base import RowLoss, positive
from outgrow.outputs import Outputs, Target, lift


def nkd_loss(
    student: Float[Tensor, "rows classes"],
    teacher: Float[Tensor, "rows classes"],
    label: Int[Tensor, " rows"],
    *,
    gamma: float = 1.5,
    temperature: float = 1.0,
) -> Float[Tensor, " rows"]:
    r"""Cross-entropy on the label by the teacher's trust in it, plus cross-entropy among the rest.

    .. math:: -t_y \log p_y - \gamma\, T^2 \sum_{c \ne y} \hat t_c \log \hat p_c

    with :math:`t, p` at temperature 1 and :math:`\hat t, \hat p` the rest at temperature T,
    renormalised. Both terms are cross-entropies, not divergences: the gradient among the rest is that
    of a KL, the value is larger by the teacher's entropy. So it is not zero where the two agree; it is
    zero only where both are certain of the label and of one other class.

    Reference: Yang et al. (ICCV 2023), https://arxiv.org/abs/2303.13005, the NKD loss.

    >>> import torch
    >>> nkd_loss(torch.zeros(1, 3), torch.tensor([[4.0, 0.0, 4.0]]), torch.tensor([0]))
    tensor([1.5840])
    """
    is_label = F.one_hot(label, student.shape[1]).bool()
    target_class = label_logit(lift(teacher).softmax(dim=1), label) * label_logit(
        lift(student).log_softmax(dim=1), label
    )
    rest_t = (lift(teacher) / temperature).masked_fill(is_label, -math.inf).softmax(dim=1)
    log_rest_p = (lift(student) / temperature).masked_fill(is_label, -math.inf).log_softmax(dim=1)
    # at the label the product is 0 times -inf: it carries no mass, so it goes first
    non_target = (rest_t * log_rest_p.masked_fill(is_label, 0.0)).sum(dim=1)
    return -target_class - gamma * temperature**2 * non_target


class NKD(RowLoss):
    """:func:`nkd_loss` with its constants fixed. Needs at least two classes.

    A row without a label has nothing to take out of its classes: the value is 0, with a zero gradient.
    """

    softens = True
    needs_label = True
    zero_at_match = False

    def __init__(self, gamma: float = 1.5, temperature: float = 1.0) -> None:
        super().__init__()
        self.gamma = gamma
        self.temperature: float = positive(temperature, what="nkd: temperature")

    def rows(self, student: Outputs, teacher: Outputs, target: Target) -> Float[Tensor, " rows"]:
        return nkd_loss(
            student.logits,
            teacher.logits,
            safe_label(target.dominant, student.num_classes),
            gamma=self.gamma,
            temperature=self.temperature,
        )

    def extra_repr(self) -> str:
        return f"gamma={self.gamma}, temperature={self.temperature}"
