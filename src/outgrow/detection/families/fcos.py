"""FCOS: a row is a point and a class.

A point is the centre of a square with the side of its level's stride, which torchvision has as an anchor. Scores of
detections are those of classes times that of the centre. Rows have the scores of classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from outgrow.detection.families import published
from outgrow.detection.families.dense import NEGATIVES, DenseDetector, recorded_match
from outgrow.detection.families.family import Family
from outgrow.detection.families.pyramid import build_pyramid

GROUPS = 32
"""Groups of the group norms in the heads."""


@dataclass(frozen=True)
class Shape:
    """The size of an FCOS. The defaults are the paper's and torchvision's, for images like COCO's."""

    family: ClassVar[str] = "fcos"

    size: int = 800
    """Pixels of the short side after resizing."""
    max_size: int | None = None
    """The most pixels of the long side; None is ``size`` * 1333 / 800."""
    levels: tuple[int, int] = (3, 5)
    """The finest and the coarsest map taken from the backbone, as log2 of the stride. Two more are convolutions."""
    channels: int = 256
    """Channels of each level of the pyramid and of the heads: a multiple of 32, at least 64."""
    negatives: int = NEGATIVES
    """Negatives of an image that are rows for distillation."""


class FCOSDetector(DenseDetector):
    """A detector whose rows are points, each with one class."""

    family = "fcos"

    def __init__(self, net: Any, *, name: str, classes: tuple[str, ...], negatives: int = NEGATIVES) -> None:
        outputs = net.head.classification_head.num_classes
        super().__init__(net, name=name, classes=classes, outputs=outputs, negatives=negatives)

    def losses(
        self,
        targets: list[dict[str, Tensor]],
        heads: dict[str, Tensor],
        anchors: list[Tensor],
        maps: Sequence[Tensor],
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        points = [one.shape[2] * one.shape[3] for one in maps]
        with recorded_match(self.net.head) as seen:
            return self.net.compute_loss(targets, heads, anchors, points), seen[0]

    def decode(
        self, regression: Float[Tensor, "rows 4"], anchors: Float[Tensor, "rows 4"]
    ) -> Float[Tensor, "rows 4"]:
        return self.net.box_coder.decode(regression, anchors)


def _build(backbone: str, shape: Shape, arguments: dict[str, Any], outputs: int, pretrained: bool) -> Any:
    from torchvision.models.detection import FCOS
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    if (
        shape.channels % GROUPS or shape.channels == GROUPS
    ):  # a group of one value has no variance on a map of one place
        raise ValueError(
            f"fcos:{backbone}: needs a multiple of {GROUPS} for channels, at least {2 * GROUPS}, as its heads have {GROUPS} "
            f"groups in their norms, got {shape.channels}; set ?channels={2 * GROUPS}."
        )
    pyramid, spec = build_pyramid(
        "fcos",
        backbone,
        levels=shape.levels,
        channels=shape.channels,
        pretrained=pretrained,
        arguments=arguments,
        convolved=True,
    )
    return FCOS(
        pyramid,
        outputs,
        anchor_generator=AnchorGenerator(
            tuple((stride,) for stride in pyramid.strides), ((1.0,),) * len(pyramid.strides)
        ),
        min_size=shape.size,
        max_size=shape.max_size or round(shape.size * published.LONGEST),
        image_mean=list(spec.mean),
        image_std=list(spec.std),
    )


FAMILY = Family(
    name="fcos",
    shape=Shape,
    build=_build,
    wrap=lambda net, shape, name, classes: FCOSDetector(
        net, name=name, classes=classes, negatives=shape.negatives
    ),
    heads="head.",
    class_layers=r"head\.classification_head\.cls_logits\.",
    outputs=lambda state: len(state.get(published.DENSE_SCORES, ())),
)
