"""SSDLite: a row is an anchor with the logits of all classes and the background.

The images are resized to a square. Two maps are the backbone's, four more are convolutions of the last. torchvision's
own, on MobileNetV3, takes the first map inside a block instead: ``ssdlite:torchvision/ssdlite320_mobilenet_v3_large``.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import box_iou

from outgrow.detection.boxes import Truth
from outgrow.detection.families import published
from outgrow.detection.families.dense import NEGATIVES, DenseDetector
from outgrow.detection.families.detector import TrainingOutputs
from outgrow.detection.families.family import Family
from outgrow.detection.families.pyramid import build_body

RATIOS, SMALLEST, LARGEST = [2, 3], 0.2, 0.95
"""Aspect ratios of anchors, and the sides of the smallest and largest as shares of the image, as in torchvision."""
CONVOLVED = 4
"""Maps after those of the backbone."""


@dataclass(frozen=True)
class Shape:
    """The size of an SSDLite. The defaults are the paper's and torchvision's, for images like COCO's."""

    family: ClassVar[str] = "ssdlite"

    size: int = 320
    """Pixels of each side of the square that images are resized to."""
    levels: tuple[int, int] = (4, 5)
    """The finest and the coarsest map taken from the backbone, as log2 of the stride. Four more are convolutions."""
    channels: int = 512
    """Channels of the first map that is a convolution. The next two have half as many, the last a quarter."""
    negatives: int = NEGATIVES
    """Negatives of an image that are rows for distillation."""


class SSDLiteDetector(DenseDetector):
    """A detector whose rows are anchors, each with all classes."""

    family = "ssdlite"
    one_class = False
    least = 2  # the last map is one place, and a batch norm needs two values

    def __init__(self, net: Any, *, name: str, classes: tuple[str, ...], negatives: int = NEGATIVES) -> None:
        outputs = net.head.classification_head.num_columns
        super().__init__(net, name=name, classes=classes, outputs=outputs, negatives=negatives)
        # levels of a few places do not show their stride, but each halves the one before
        first = int(next(iter(self.levels.values())).removeprefix("p"))
        self.levels = {key: f"p{first + at}" for at, key in enumerate(self.levels)}

    def places(self) -> tuple[Any, ...]:
        generator = self.net.anchor_generator
        return tuple(
            zip(generator.scales[:-1], generator.scales[1:], map(tuple, generator.aspect_ratios), strict=True)
        )

    def forward(
        self, images: Sequence[Tensor], truth: Sequence[Truth], *, rows: bool = True
    ) -> TrainingOutputs:
        if len(images) < self.least and any(
            module.training for module in self.modules() if isinstance(module, nn.BatchNorm2d)
        ):
            raise ValueError(
                f"Detector {self.name}: needs two images or more in a training step, as its last map is one place with a "
                f"batch norm, got {len(images)}; set a larger batch size, or add images."
            )
        return super().forward(images, truth, rows=rows)

    def losses(
        self,
        targets: list[dict[str, Tensor]],
        heads: dict[str, Tensor],
        anchors: list[Tensor],
        maps: Sequence[Tensor],
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        matched = [
            self.net.proposal_matcher(box_iou(target["boxes"], own))
            if len(target["boxes"])
            else torch.full((len(own),), -1, dtype=torch.int64, device=own.device)
            for target, own in zip(targets, anchors, strict=True)
        ]
        return self.net.compute_loss(targets, heads, anchors, matched), matched


class Extractor(nn.Module):
    """``body`` returns feature maps from fine to coarse; four more follow, each half as large as the one before."""

    def __init__(self, body: nn.Module, widths: list[int], first: int, channels: int) -> None:
        from torchvision.models.detection.ssdlite import _extra_block, _normal_init

        super().__init__()
        self.body = body
        self.widths = [*widths, channels, channels // 2, channels // 2, channels // 4]
        pairs = zip(self.widths[-CONVOLVED - 1 :], self.widths[-CONVOLVED:], strict=False)
        self.extra = nn.ModuleList(_extra_block(before, after, NORM) for before, after in pairs)
        _normal_init(self.extra)
        self.levels = tuple(f"p{first + at}" for at in range(len(self.widths)))

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> "OrderedDict[str, Tensor]":
        found = self.body(images)
        maps = list(found.values()) if isinstance(found, Mapping) else list(found)
        for block in self.extra:
            maps.append(block(maps[-1]))
        return OrderedDict(zip(self.levels, maps, strict=True))


NORM = partial(nn.BatchNorm2d, eps=0.001, momentum=0.03)
"""The batch norms of the heads, as in torchvision."""


def _build(backbone: str, shape: Shape, arguments: dict[str, Any], outputs: int, pretrained: bool) -> Any:
    from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
    from torchvision.models.detection.ssd import SSD
    from torchvision.models.detection.ssdlite import SSDLiteHead

    body = build_body("ssdlite", backbone, levels=shape.levels, pretrained=pretrained, arguments=arguments)
    extractor = Extractor(body.net, body.widths, shape.levels[0], shape.channels)
    generator = DefaultBoxGenerator([RATIOS for _ in extractor.widths], min_ratio=SMALLEST, max_ratio=LARGEST)
    return SSD(
        extractor,
        generator,
        (shape.size, shape.size),
        outputs,
        head=SSDLiteHead(extractor.widths, generator.num_anchors_per_location(), outputs, NORM),
        image_mean=list(body.spec.mean),
        image_std=list(body.spec.std),
        score_thresh=0.001,
        nms_thresh=0.55,
        detections_per_img=300,
        topk_candidates=300,
    )


def _wrap(net: Any, shape: Shape, name: str, classes: tuple[str, ...]) -> SSDLiteDetector:
    net.transform.fixed_size = (shape.size, shape.size)  # torchvision's own function has one size only
    return SSDLiteDetector(net, name=name, classes=classes, negatives=shape.negatives)


FAMILY = Family(
    name="ssdlite",
    shape=Shape,
    build=_build,
    wrap=_wrap,
    heads="head.",
    class_layers=r"head\.classification_head\.module_list\.\d+\.1\.",
    outputs=lambda state: len(state.get(published.SSDLITE_SCORES, ())) // (2 + 2 * len(RATIOS)),
    # not those of the maps that are no backbone's: they start with random weights
    frozen=("backbone.body", "backbone.features"),
    least=SSDLiteDetector.least,
)
