"""Box regression towards the teacher's boxes where they are better: ``box``."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from outgrow.losses.base import RowLoss, positive
from outgrow.models.taps import BOX, BOX_IOU
from outgrow.outputs import UNLABELLED, Outputs, Target, lift


def box_loss(
    student: Float[Tensor, "rows 4"],
    teacher: Float[Tensor, "rows 4"],
    better: Bool[Tensor, " rows"],
    *,
    beta: float = 1 / 9,
) -> Float[Tensor, " rows"]:
    r"""Smooth L1 distance of two box regressions, on the rows in which the teacher's box is ``better``.

    .. math:: [\mathrm{IoU}_t > \mathrm{IoU}_s] \sum_{i=1}^4 \ell_\beta(s_i - t_i)

    Both regress the same proposal for the class of its label (offsets divided by the proposal's size, times
    the box coder's weights). On the other rows the value is zero, with a zero gradient. ``beta`` is where the
    loss changes from quadratic to linear; Faster R-CNN uses 1/9.

    Reference: Girshick (ICCV 2015), https://arxiv.org/abs/1504.08083, equation 3, for the distance. The
    comparison of both with the ground truth follows the idea of Chen et al. (NeurIPS 2017), *Learning
    efficient object detection models with knowledge distillation*, section 3.3. They use the teacher's error
    as a bound on the student's instead.

    >>> box_loss(torch.zeros(2, 4), torch.ones(2, 4), torch.tensor([True, False]), beta=1.0)
    tensor([2., 0.])
    """
    teacher = torch.where(better[:, None], lift(teacher), lift(student).detach())
    return F.smooth_l1_loss(lift(student), teacher, beta=beta, reduction="none").sum(dim=1)


def on_object(target: Target) -> Bool[Tensor, " rows"]:
    """The rows that may have an object: those without a label do if their ``box_iou`` is above 0."""
    return (target.label > 0) | (target.label == UNLABELLED)


class Box(RowLoss):
    """:func:`box_loss` on the outputs of two detectors.

    Reads two features of both networks. ``box`` (rows x 4) is the regression for the row's class. ``box_iou``
    (rows) is the IoU of that box with the object that the row is matched to, 0 on background. The value of
    background rows is 0. In an image without annotations the objects are those that the teacher finds.
    """

    reads = frozenset({"features"})

    def __init__(self, beta: float = 1 / 9) -> None:
        super().__init__()
        self.beta = positive(beta, what="box: beta")

    def rows(self, student: Outputs, teacher: Outputs, target: Target) -> Float[Tensor, " rows"]:
        for whose, outputs in (("student", student), ("teacher", teacher)):
            if BOX not in outputs.features or BOX_IOU not in outputs.features:
                raise ValueError(
                    f"box: needs the {whose}'s boxes (features {BOX!r} and {BOX_IOU!r}), got "
                    f"{', '.join(outputs.features) or 'no features'}; it is for detectors (--data coco:...)."
                )
        better = on_object(target) & (teacher.features[BOX_IOU] > student.features[BOX_IOU])
        return box_loss(student.features[BOX], teacher.features[BOX], better, beta=self.beta)

    def extra_repr(self) -> str:
        return f"beta={self.beta:g}"
