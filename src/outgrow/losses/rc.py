"""Review and correction: self-distillation from the student's corrected logits: ``rc``."""

from jaxtyping import Float, Int
from torch import Tensor

from outgrow.knowledge.base import replace_logit
from outgrow.knowledge.split import label_logit, safe_label
from outgrow.losses.base import RowLoss, positive
from outgrow.losses.kd import kd_loss
from outgrow.outputs import Outputs, Target, lift


def rc_loss(
    student: Float[Tensor, "rows classes"],
    label: Int[Tensor, " rows"],
    *,
    temperature: float = 4.0,
) -> Float[Tensor, " rows"]:
    r""":func:`kd_loss` to the student's own logits, with the largest logit added to the label's.

    .. math:: T^2\ KL(\sigma(\tilde s / T) \| \sigma(s / T)), \quad
              \tilde s_y = s_y + \max_c s_c,\ \tilde s_c = s_c \ (c \ne y)

    The corrected logits are detached, and no teacher is read. A constant added to all logits changes the
    correction. Where the largest logit is 0 there is no correction, and the loss is zero. Where all logits
    are negative the correction *lowers* the label.

    Reference: Cao et al. (IEEE Signal Processing Letters 2023), "Be an Excellent Student: Review,
    Preview, and Correction", as compared in https://arxiv.org/abs/2408.07703 and its code.

    >>> import torch
    >>> rc_loss(torch.tensor([[4.0, 0.0], [0.0, -4.0]]), torch.tensor([1, 1]))
    tensor([1.9218, 0.0000])
    """
    own = lift(student).detach()
    corrected = replace_logit(own, label, label_logit(own, label) + own.amax(dim=1))
    return kd_loss(student, corrected, temperature=temperature)


class RC(RowLoss):
    """:func:`rc_loss` with its temperature fixed.

    Declares no temperature, as it softens only the student's logits. On a row without a label the value is 0,
    with a zero gradient.
    """

    softens = True
    needs_label = True
    zero_at_match = False
    detaches = True
    shift_invariant = False
    inert = {"all": "reads no teacher"}

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__()
        self.own_temperature = positive(temperature, what="rc: temperature")

    def rows(self, student: Outputs, teacher: Outputs, target: Target) -> Float[Tensor, " rows"]:
        label = safe_label(target.dominant, student.num_classes)
        return rc_loss(student.logits, label, temperature=self.own_temperature)

    def extra_repr(self) -> str:
        return f"temperature={self.own_temperature}"
