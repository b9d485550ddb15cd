"""Decoupled knowledge distillation: ``dkd``."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from outgrow.knowledge.split import safe_label
from outgrow.losses.base import RowLoss, positive
from outgrow.losses.kd import divergence
from outgrow.outputs import Outputs, Target, lift


def dkd_loss(
    student: Float[Tensor, "rows classes"],
    teacher: Float[Tensor, "rows classes"],
    label: Int[Tensor, " rows"],
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Float[Tensor, " rows"]:
    r"""KL of (label, rest) times ``alpha``, plus KL within the rest times ``beta``.

    .. math:: T^2 (\alpha\, KL(b^t \| b^p) + \beta\, KL(\hat t \| \hat p))

    with :math:`b = (t_y, 1 - t_y)` and :math:`\hat t` the teacher without the label, renormalised.
    With ``alpha = 1`` and ``beta = 1 - t_y`` it would be :func:`kd_loss`. Zero where the two distributions
    agree. The label is masked with -inf, not with a large constant, and all is computed in log space, so
    that confident rows stay finite.

    Reference: Zhao et al. (CVPR 2022), https://arxiv.org/abs/2203.08679, equation 7.

    >>> import torch
    >>> dkd_loss(torch.zeros(1, 3), torch.tensor([[4.0, 0.0, 4.0]]), torch.tensor([0]), beta=2.0)
    tensor([3.8248])
    """
    is_label = F.one_hot(label, student.shape[1]).bool()
    log_p, log_rest_p = _binary_and_rest(lift(student) / temperature, label, is_label)
    log_t, log_rest_t = _binary_and_rest(lift(teacher) / temperature, label, is_label)
    target_class = divergence(log_t, log_p)
    non_target = divergence(log_rest_t, log_rest_p)  # the label's probability is 0 there
    return temperature**2 * (alpha * target_class + beta * non_target)


def _binary_and_rest(soft: Tensor, label: Tensor, is_label: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of (label, rest) and, within the rest, of each class."""
    rest = soft.masked_fill(is_label, -math.inf)
    binary = torch.stack([soft.gather(1, label[:, None])[:, 0], rest.logsumexp(dim=1)], dim=1)
    return binary.log_softmax(dim=1), rest.log_softmax(dim=1)


class DKD(RowLoss):
    """:func:`dkd_loss` with its constants fixed. Needs at least two classes.

    On a row without a label the value is 0, with a zero gradient.
    """

    softens = True
    needs_label = True

    def __init__(self, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0) -> None:
        super().__init__()
        self.alpha, self.beta = alpha, beta
        self.temperature: float = positive(temperature, what="dkd: temperature")

    def rows(self, student: Outputs, teacher: Outputs, target: Target) -> Float[Tensor, " rows"]:
        return dkd_loss(
            student.logits,
            teacher.logits,
            safe_label(target.dominant, student.num_classes),
            alpha=self.alpha,
            beta=self.beta,
            temperature=self.temperature,
        )

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, beta={self.beta}, temperature={self.temperature}"
