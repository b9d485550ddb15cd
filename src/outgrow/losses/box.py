"""Box regression from a teacher that draws better: ``box``."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from outgrow.losses.base import RowLoss, positive
from outgrow.models.taps import BOX, BOX_IOU
from outgrow.outputs import Outputs, Target, lift


def box_loss(
    student: Float[Tensor, "rows 4"],
    teacher: Float[Tensor, "rows 4"],
    better: Bool[Tensor, " rows"],
    *,
    beta: float = 1 / 9,
) -> Float[Tensor, " rows"]:
    r"""Smooth L1 distance of two box regressions, on the rows in which the teacher's box is ``better``.

    .. math:: [\mathrm{IoU}_t > \mathrm{IoU}_s] \sum_{i=1}^4 \ell_\beta(s_i - t_i)

    Both regress the same proposal (offsets over its size, times the coder's weights), for the class that
    it has been given. A teacher that draws worse than the student teaches nothing here: elsewhere the
    value is zero, with a zero gradient. ``beta`` is where the square ends; 1/9 is Faster R-CNN's.

    Reference: Girshick (ICCV 2015), https://arxiv.org/abs/1504.08083, equation 3, for the distance. The
    comparison with the truth is in the spirit of Chen et al. (NeurIPS 2017), *Learning efficient object
    detection models with knowledge distillation*, section 3.3, which bounds the student by the teacher's
    error instead.

    >>> box_loss(torch.zeros(2, 4), torch.ones(2, 4), torch.tensor([True, False]), beta=1.0)
    tensor([2., 0.])
    """
    teacher = torch.where(better[:, None], lift(teacher), lift(student).detach())
    return F.smooth_l1_loss(lift(student), teacher, beta=beta, reduction="none").sum(dim=1)


class Box(RowLoss):
    """:func:`box_loss` where a detector says what it needs.

    Reads the features ``box`` (rows x 4: the regression for the row's class) and ``box_iou`` (rows: how
    well the box so drawn overlaps the object that the row was matched to; 0 on background) of both
    networks. Background rows have no box and count nothing.
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
        better = (target.label > 0) & (teacher.features[BOX_IOU] > student.features[BOX_IOU])
        return box_loss(student.features[BOX], teacher.features[BOX], better, beta=self.beta)

    def extra_repr(self) -> str:
        return f"beta={self.beta:g}"
