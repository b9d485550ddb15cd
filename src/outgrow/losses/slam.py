"""Student-label mixing, for teachers that are often wrong: ``slam``."""

import torch
from jaxtyping import Float
from torch import Tensor

from outgrow.knowledge.trust import Reliability
from outgrow.losses.base import RowLoss
from outgrow.outputs import Outputs, Target, lift


def slam_loss(
    student: Float[Tensor, "rows classes"],
    teacher: Float[Tensor, "rows classes"],
    accuracy: Float[Tensor, " rows"],
    *,
    top: int | None = None,
) -> Float[Tensor, " rows"]:
    r"""Cross-entropy from the teacher's label to what the student would expect this teacher to say.

    .. math:: -\sum_c t_c \log m_c, \quad m_c = \alpha\, p_c + \frac{1 - \alpha}{k - 1} (1 - p_c)\, [c \in \text{top}_k(t)]

    with :math:`\alpha` the ``accuracy``, how likely the teacher is right on the row, and k = ``top`` the number of the
    teacher's best classes among which its errors fall (None: all classes). The student's own :math:`p` is so fitted to the true
    label and not to the noise. The accuracy is at least :math:`1 / k`: at that value the teacher says nothing of its best k,
    and the gradient is 0, but for what the teacher gives to other classes. At accuracy 1 it is the cross-entropy with the
    teacher. With k below the number of classes :math:`m` sums to more than 1 by what the student gives to the others, times
    :math:`(1 - \alpha) / (k - 1)`. No temperature.

    Reference: Kontonis et al. (NeurIPS 2023), https://arxiv.org/abs/2302.03806, the mixing operation.

    >>> student, teacher = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 4.0]])
    >>> slam_loss(student, teacher, torch.ones(1))
    tensor([0.3312])
    >>> slam_loss(student, teacher, torch.full((1,), 0.5))
    tensor([0.6931])
    """
    num_classes = student.shape[1]
    k = num_classes if top is None else min(top, num_classes)
    log_p, t = lift(student).log_softmax(dim=1), lift(teacher).softmax(dim=1)
    alpha = accuracy.to(log_p.dtype).clamp(1 / max(k, 1), 1.0)[:, None]
    best = torch.zeros_like(t).scatter(1, t.topk(k, dim=1).indices, 1.0)
    # m is linear in p: spread + (alpha - spread) p
    spread = best * (1 - alpha) / max(k - 1, 1)
    log_m = torch.logaddexp(spread.log(), (alpha - spread).clamp_min(0).log() + log_p)
    return -(t * log_m).sum(dim=1)


class SLaM(RowLoss):
    """:func:`slam_loss` with the accuracy of each row from ``reliability``, which a run fits on its labelled rows.

    Until it is fitted (``loss.reliability.fit(teacher_logits, label)``) all rows have the constant ``accuracy``.
    """

    zero_at_match = False

    def __init__(self, accuracy: float = 0.5, top: int | None = None) -> None:
        super().__init__()
        if not 0 < accuracy <= 1:
            raise ValueError(
                f"slam: needs an accuracy in (0, 1], got {accuracy}; it is the share of rows on which the teacher is right."
            )
        if top is not None and top < 2:
            raise ValueError(f"slam: top needs at least 2 classes, got {top}; leave it out for all.")
        self.accuracy, self.top = accuracy, top
        self.reliability = Reliability()

    def rows(self, student: Outputs, teacher: Outputs, target: Target) -> Float[Tensor, " rows"]:
        if self.reliability.is_fitted:
            accuracy = self.reliability.probability(teacher.logits, target.index)
        else:
            accuracy = lift(student.logits).new_full((len(student.logits),), self.accuracy)
        return slam_loss(student.logits, teacher.logits, accuracy, top=self.top)

    def extra_repr(self) -> str:
        return f"accuracy={self.accuracy}, top={self.top}"
