"""Refined logit distillation: ``rld``."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from outgrow.knowledge.split import label_logit, safe_label, top_class
from outgrow.losses.base import RowLoss, positive
from outgrow.losses.kd import divergence
from outgrow.outputs import Outputs, Target, lift


def rld_loss(
    student: Float[Tensor, "rows classes"],
    teacher: Float[Tensor, "rows classes"],
    label: Int[Tensor, " rows"],
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Float[Tensor, " rows"]:
    r"""KL of the teacher's top probability to the student's label, plus KL within the classes below the label.

    .. math:: T^2 (\alpha\, KL(b^t \| b^p) + \beta\, KL(\hat t \| \hat p)), \quad
              b^t = (t_{max}, 1 - t_{max}),\ b^p = (p_y, 1 - p_y)

    and :math:`\hat t, \hat p` the classes whose teacher logit is below the label's, renormalised. If no
    other class has the label's logit or more, this is :func:`dkd_loss`. On a wrong row the first term
    compares the teacher's *top* class with the student's *label*. The second leaves out the label and every
    class that leads it; it is 0 if the label is ranked last, or the teacher rules out all classes below it. At equal outputs
    the loss is zero on right rows only.

    Both terms use ``temperature``. The authors' code has temperature 1 for the first on CIFAR-100. That is
    ``rld(alpha=1, beta=0, temperature=1) + rld(alpha=0, beta=8, temperature=4)``.

    Reference: Sun et al. (ICCV 2025), https://arxiv.org/abs/2408.07703, sample confidence and
    masked correlation distillation.

    >>> import torch
    >>> z = torch.tensor([[4.0, 8.0, 0.0, -4.0]])
    >>> rld_loss(torch.zeros(1, 4), z, torch.tensor([0])), rld_loss(torch.zeros(1, 4), z, torch.tensor([3]))
    (tensor([19.7042]), tensor([5.5034]))
    """
    student, teacher = lift(student), lift(teacher)
    log_p = _against_the_rest(student / temperature, label)
    log_t = _against_the_rest(teacher / temperature, top_class(teacher, label))
    confidence = divergence(log_t, log_p)
    leads = teacher >= label_logit(teacher, label)[:, None]
    # of classes that the teacher rules out nothing says how they compare
    some_behind = (~leads & (teacher > -math.inf)).any(dim=1)
    # if no class is below the label all are kept, to stay finite, and the value is not used
    removed = leads & some_behind[:, None]
    log_rest_p = (student / temperature).masked_fill(removed, -math.inf).log_softmax(dim=1)
    log_rest_t = (teacher / temperature).masked_fill(removed, -math.inf).log_softmax(dim=1)
    correlation = divergence(log_rest_t, log_rest_p)  # at a removed class the probability is 0
    correlation = torch.where(some_behind, correlation, torch.zeros_like(correlation))
    return temperature**2 * (alpha * confidence + beta * correlation)


def _against_the_rest(soft: Tensor, chosen: Tensor) -> Tensor:
    """Log-probabilities of (a row's chosen class, all others together)."""
    rest = soft.masked_fill(F.one_hot(chosen, soft.shape[1]).bool(), -math.inf)
    return torch.stack([label_logit(soft, chosen), rest.logsumexp(dim=1)], dim=1).log_softmax(dim=1)


class RLD(RowLoss):
    """:func:`rld_loss` with its constants fixed. Needs at least two classes.

    On a row without a label the value is 0, with a zero gradient.
    """

    softens = True
    needs_label = True
    zero_at_match = False

    def __init__(self, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0) -> None:
        super().__init__()
        self.alpha, self.beta = alpha, beta
        self.temperature: float = positive(temperature, what="rld: temperature")

    def rows(self, student: Outputs, teacher: Outputs, target: Target) -> Float[Tensor, " rows"]:
        return rld_loss(
            student.logits,
            teacher.logits,
            safe_label(target.dominant, student.num_classes),
            alpha=self.alpha,
            beta=self.beta,
            temperature=self.temperature,
        )

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, beta={self.beta}, temperature={self.temperature}"
