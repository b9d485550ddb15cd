"""Hints from a feature map: ``fitnet``."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from outgrow.features import middle_pair
from outgrow.losses.base import Fixture, ImageLoss
from outgrow.outputs import Outputs, Target, lift


def fitnet_loss(
    student: Float[Tensor, "images channels height width"],
    teacher: Float[Tensor, "images channels height width"],
) -> Float[Tensor, " images"]:
    r"""Mean squared difference of two feature maps of one shape, one value an image.

    .. math:: \tfrac{1}{CHW} \sum (r(f^s) - f^t)^2

    The connector :math:`r` belongs to :class:`FitNet`. Zero where the maps agree.

    Reference: Romero et al. (ICLR 2015), https://arxiv.org/abs/1412.6550, equation 3.

    >>> import torch
    >>> fitnet_loss(torch.zeros(1, 1, 1, 2), torch.tensor([[[[1.0, 3.0]]]]))
    tensor([5.])
    """
    return (lift(student) - lift(teacher)).square().flatten(1).mean(dim=1)


class FitNet(ImageLoss):
    """:func:`fitnet_loss` through a connector: 1x1 convolution, batch norm, ReLU.

    ``student`` and ``teacher`` are the paths of the tapped modules; without them, the middle one of
    each network's taps. The connector is built by :meth:`setup`, trained with the student, and never
    exported. The authors train this term first and alone; here it is one term of many.
    """

    zero_at_match = False  # the connector stands between

    def __init__(self, student: str | None = None, teacher: str | None = None) -> None:
        super().__init__()
        self.student_path, self.teacher_path = student, teacher
        self.connector: nn.Module | None = None

    def setup(self, fixture: Fixture) -> None:
        self.student_path, self.teacher_path = middle_pair(
            fixture.student, fixture.teacher, self.student_path, self.teacher_path, what="fitnet"
        )
        student = fixture.student.features[self.student_path]
        teacher = fixture.teacher.features[self.teacher_path]
        for whose, path, value in (
            ("student", self.student_path, student),
            ("teacher", self.teacher_path, teacher),
        ):
            if value.dim() != 4:
                raise ValueError(
                    f"fitnet: needs feature maps (images, channels, height, width), got {tuple(value.shape)} from "
                    f"the {whose}'s {path!r}; tap a convolutional stage."
                )
        self.connector = nn.Sequential(
            nn.Conv2d(student.shape[1], teacher.shape[1], kernel_size=1, bias=False),
            nn.BatchNorm2d(teacher.shape[1]),
            nn.ReLU(),
        )

    def images(self, student: Outputs, teacher: Outputs, target: Target) -> Float[Tensor, " images"]:
        if self.connector is None or self.student_path is None or self.teacher_path is None:
            raise ValueError(
                "fitnet: needs its connector, got none; call objective.setup(student, teacher, num_samples=...) "
                "with the outputs of one dry run before the first step."
            )
        own = student.features[self.student_path]
        hint = teacher.features[self.teacher_path]
        if not len(own):
            return own.flatten(1).sum(dim=1)
        own = self.connector(own)
        if own.shape[2:] != hint.shape[2:]:
            own = F.interpolate(own, size=hint.shape[2:], mode="bilinear", align_corners=False)
        return fitnet_loss(own, hint)
