"""RetinaNet: a row is an anchor and a class."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from outgrow.detection.families import published
from outgrow.detection.families.dense import NEGATIVES, DenseDetector, recorded_match
from outgrow.detection.families.family import Family
from outgrow.detection.families.pyramid import build_pyramid

STRIDE_TO_ANCHOR = 4.0
"""Side of a level's smallest anchors divided by its stride, in the paper and in torchvision."""
SCALES, RATIOS = (1.0, 2 ** (1 / 3), 2 ** (2 / 3)), (0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Shape:
    """The size of a RetinaNet. The defaults are the paper's and torchvision's, for images like COCO's."""

    family: ClassVar[str] = "retinanet"

    size: int = 800
    """Pixels of the short side after resizing."""
    max_size: int | None = None
    """The most pixels of the long side; None is ``size`` * 1333 / 800."""
    levels: tuple[int, int] = (3, 5)
    """The finest and the coarsest map taken from the backbone, as log2 of the stride. Two more are convolutions."""
    channels: int = 256
    """Channels of each level of the pyramid and of the heads."""
    anchors: float = STRIDE_TO_ANCHOR
    """Side of a level's smallest anchors divided by its stride; smaller for smaller objects."""
    negatives: int = NEGATIVES
    """Negatives of an image that are rows for distillation."""


class RetinaNetDetector(DenseDetector):
    """A detector whose rows are anchors, each with one class."""

    family = "retinanet"

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
        with recorded_match(self.net.head) as seen:
            return self.net.compute_loss(targets, heads, anchors), seen[0]


def _build(backbone: str, shape: Shape, arguments: dict[str, Any], outputs: int, pretrained: bool) -> Any:
    from torchvision.models.detection import RetinaNet
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    pyramid, spec = build_pyramid(
        "retinanet",
        backbone,
        levels=shape.levels,
        channels=shape.channels,
        pretrained=pretrained,
        arguments=arguments,
        convolved=True,
    )
    sides = [round(stride * shape.anchors) for stride in pyramid.strides]
    return RetinaNet(
        pyramid,
        outputs,
        anchor_generator=AnchorGenerator(
            tuple(tuple(int(side * scale) for scale in SCALES) for side in sides), (RATIOS,) * len(sides)
        ),
        min_size=shape.size,
        max_size=shape.max_size or round(shape.size * published.LONGEST),
        image_mean=list(spec.mean),
        image_std=list(spec.std),
    )


FAMILY = Family(
    name="retinanet",
    shape=Shape,
    build=_build,
    wrap=lambda net, shape, name, classes: RetinaNetDetector(
        net, name=name, classes=classes, negatives=shape.negatives
    ),
    heads="head.",
    class_layers=r"head\.classification_head\.cls_logits\.",
    outputs=lambda state: len(state.get(published.DENSE_SCORES, ())) // (len(SCALES) * len(RATIOS)),
    unseen=("anchors",),
)
