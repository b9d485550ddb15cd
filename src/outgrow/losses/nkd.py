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
    r"""Cross-entropy on the label, weighted by the teacher's probability of it, plus cross-entropy in the rest.

    .. math:: -t_y \log p_y - \gamma\, T^2 \sum_{c \ne y} \hat t_c \log \hat p_c

    with :math:`t, p` at temperature 1 and :math:`\hat t, \hat p` the rest at temperature T,
    renormalised. Both terms are cross-entropies, not divergences. The gradient of the second is that of a
    KL; its value is larger by the teacher's entropy. So the loss is not zero where the two agree. It is zero
    only where both put probability 1 on the label and, within the rest, on the same class.

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
    # at the label, and where both networks rule a class out, the product is 0 times -inf, NaN: its probability is 0
    non_target = (rest_t * log_rest_p.masked_fill(rest_t == 0, 0.0)).sum(dim=1)
    return -target_class - gamma * temperature**2 * non_target


class NKD(RowLoss):
    """:func:`nkd_loss` with its constants fixed. Needs at least two classes.

    On a row without a label the value is 0, with a zero gradient.
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
