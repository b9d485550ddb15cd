"""KL at a temperature for each row, from the deviation of its logits: ``normkd``."""

import torch
from jaxtyping import Float
from torch import Tensor

from outgrow.losses.base import RowLoss, positive
from outgrow.losses.kd import divergence, softened
from outgrow.losses.standardize import deviation
from outgrow.outputs import Outputs, Target, lift


def normkd_loss(
    student: Float[Tensor, "rows classes"],
    teacher: Float[Tensor, "rows classes"],
    *,
    temperature: float = 2.0,
) -> Float[Tensor, " rows"]:
    r"""KL divergence at temperatures that depend on the row, one for the teacher and one for the student.

    .. math:: (T \sigma_z)^2\ KL\big(\sigma(z / (T \sigma_z)) \,\|\, \sigma(s / (T \sigma_s))\big)

    with :math:`\sigma_z, \sigma_s` the (unbiased) standard deviation of that row's logits. Zero where the
    student's logits are a positive multiple of the teacher's, up to a shift: their scales may differ. The
    gradient flows through :math:`\sigma_s`. If all student logits of a row are equal, the row uses the
    teacher's temperature. If all teacher logits are equal, the value is 0, since its factor is 0. A logit of minus
    infinity (a class that is ruled out) takes no part in the deviation.

    Reference: Chi et al. (2023), https://arxiv.org/abs/2308.00520, "Normalized Knowledge Distillation".
    The unbiased deviation, and the factor from the teacher's temperature, are from the authors' code.

    >>> import torch
    >>> z = torch.tensor([[1.0, 2.0, 6.0]])
    >>> normkd_loss(torch.tensor([[1.0, 0.0, 0.0]]), z), normkd_loss(2 * z, z)
    (tensor([8.0355]), tensor([0.]))
    """
    student, teacher = lift(student), lift(teacher)
    deviation_s, student_varies = deviation(student)
    deviation_t, teacher_varies = deviation(teacher)
    deviation_s = torch.where(student_varies, deviation_s, deviation_t)
    log_p = softened(student, temperature * deviation_s).log_softmax(dim=1)
    log_t = softened(teacher, temperature * deviation_t).log_softmax(dim=1)
    return (teacher_varies * (temperature * deviation_t).square())[:, 0] * divergence(log_t, log_p)


class NormKD(RowLoss):
    """:func:`normkd_loss` with its factor fixed. Declares no temperature, as each row has its own."""

    def __init__(self, temperature: float = 2.0) -> None:
        super().__init__()
        self.norm_temperature = positive(temperature, what="normkd: temperature")

    def rows(self, student: Outputs, teacher: Outputs, target: Target) -> Float[Tensor, " rows"]:
        return normkd_loss(student.logits, teacher.logits, temperature=self.norm_temperature)

    def extra_repr(self) -> str:
        return f"temperature={self.norm_temperature}"
