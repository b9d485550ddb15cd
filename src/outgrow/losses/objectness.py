"""Which places of an image have an object, by the teacher: ``objectness``."""

from collections.abc import Collection

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from outgrow.losses.base import Fixture, ImageLoss
from outgrow.models.taps import OBJECTNESS
from outgrow.outputs import Outputs, Target, lift


def objectness_loss(
    student: Float[Tensor, "images anchors"], teacher: Float[Tensor, "images anchors"]
) -> Float[Tensor, " images"]:
    r"""KL between the probabilities of an object at each anchor, by the number of objects that the teacher expects.

    .. math:: \frac{\sum_a t_a \log\frac{t_a}{s_a} + (1 - t_a) \log\frac{1 - t_a}{1 - s_a}}{\max(1, \sum_a t_a)}

    :math:`t` and :math:`s` are the sigmoids of the two networks' logits. There is no temperature. The gradient in a logit is
    that of binary cross-entropy with soft labels. Zero where the logits are equal.

    Reference: the soft labels are those of Chen et al. (NeurIPS 2017), *Learning efficient object detection models with
    knowledge distillation*. They weight the two classes. The divisor is ours, after the number of positive anchors in Lin et
    al. (2017), https://arxiv.org/abs/1708.02002, section 4.1.

    >>> import torch
    >>> objectness_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 100.0]])).item()  # log 2 by 1.5 objects
    0.4620981216430664
    """
    student, teacher = lift(student), lift(teacher)
    there, absent = teacher.sigmoid(), (-teacher).sigmoid()
    found = there * (F.logsigmoid(teacher) - F.logsigmoid(student))
    empty = absent * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
    return (found + empty).sum(dim=1) / there.sum(dim=1).clamp_min(1.0)


class Objectness(ImageLoss):
    """:func:`objectness_loss` on the outputs of two detectors with the same anchors.

    Reads the feature ``objectness`` of both networks: for each anchor of an image the logit of there being an object. Of
    Faster R-CNN it is that of the region proposals, of a dense detector the score of the best class.
    """

    def __init__(self) -> None:
        super().__init__()

    def setup(self, fixture: Fixture) -> None:
        """Checks the anchors, so that networks without them raise before the first step."""
        _pair(fixture.student, fixture.teacher)

    def teacher_taps(self, features: Collection[str]) -> frozenset[str]:
        return frozenset({OBJECTNESS})

    def student_taps(self, features: Collection[str]) -> frozenset[str]:
        return frozenset({OBJECTNESS})

    def images(self, student: Outputs, teacher: Outputs, target: Target) -> Float[Tensor, " images"]:
        return objectness_loss(*_pair(student, teacher))


def _pair(student: Outputs, teacher: Outputs) -> tuple[Tensor, Tensor]:
    for whose, outputs in (("student", student), ("teacher", teacher)):
        if OBJECTNESS not in outputs.features:
            raise ValueError(
                f"objectness: needs the {whose}'s score of each anchor (feature {OBJECTNESS!r}), got "
                f"{', '.join(outputs.features) or 'no features'}; it is for Faster R-CNN, RetinaNet, FCOS and SSDLite "
                "(--data coco:...), in a loop of your own with FrozenDetector(..., regions=True)."
            )
    own, other = student.features[OBJECTNESS], teacher.features[OBJECTNESS]
    if own.shape != other.shape:
        raise ValueError(
            f"objectness: needs the same anchors in both networks, got {own.shape[1]:,} of an image in the student and "
            f"{other.shape[1]:,} in the teacher; give both the same size, levels and anchors."
        )
    return own, other
