"""Detectors of Detectron2: their checkpoints in torchvision's names, and the layers that compute otherwise.

    fasterrcnn:torchvision/resnet101?style=detectron2

What a checkpoint is assumed to be: a Faster R-CNN with FPN on a ResNet of Detectron2's model zoo, whose backbone is
the MSRA one (``STRIDE_IN_1X1``, images in BGR, 0..255). A checkpoint does not say so.

    first convolution     BGR becomes RGB; mean and std are those of [0, 1]
    strides               in the 1x1 convolution of a bottleneck, not in the 3x3 one
    anchors               not rounded, a fixed stride for each level
    pooling of regions    aligned to pixel centres, as many samples as a region needs
    classes               the background is last there and first here; it has no box regression there

What stays different is the resizing of images: Detectron2 smooths when it shrinks and rounds sizes up from a half.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import roi_align
from torchvision.ops.poolers import LevelMapper

from outgrow.detection.families.published import coco_names

STYLE = "detectron2"
BACKBONES = {"torchvision/resnet50": 6, "torchvision/resnet101": 23, "torchvision/resnet152": 36}
"""Backbones of the style, and how many blocks their third stage has."""
MEAN_BGR = (103.53, 116.28, 123.675)
"""The mean of Detectron2's models in BGR, 0..255."""
_MARK = "backbone.bottom_up."
_RENAMED = {
    "backbone.bottom_up.stem.conv1": "backbone.body.conv1",
    "proposal_generator.rpn_head.conv": "rpn.head.conv.0.0",
    "proposal_generator.rpn_head.objectness_logits": "rpn.head.cls_logits",
    "proposal_generator.rpn_head.anchor_deltas": "rpn.head.bbox_pred",
    "roi_heads.box_head.fc1": "roi_heads.box_head.fc6",
    "roi_heads.box_head.fc2": "roi_heads.box_head.fc7",
    "roi_heads.box_predictor.cls_score": "roi_heads.box_predictor.cls_score",
    "roi_heads.box_predictor.bbox_pred": "roi_heads.box_predictor.bbox_pred",
}
_PARTS = {
    "shortcut": ("downsample.0", "downsample.1"),
    **{f"conv{number}": (f"conv{number}", f"bn{number}") for number in (1, 2, 3)},
}
"""A convolution of a block, and the batch norm after it."""
_LEFT_OUT = (
    "proposal_generator.anchor_generator.",
    "roi_heads.mask_head.",
    "roi_heads.keypoint_head.",
    "pixel_",
)
"""Anchors and means are numbers of the configuration; heads for masks and keypoints have no use here."""


def is_detectron2(state: Mapping[str, Tensor]) -> bool:
    """Whether the names of a state dict are Detectron2's."""
    return any(key.startswith(_MARK) for key in state)


def from_detectron2(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict in torchvision's names and order, and the facts that create_detector needs."""
    kept = {key: value for key, value in state.items() if not key.startswith(_LEFT_OUT)}
    unknown = [key for key in kept if _renamed(key) is None]
    predictor = "roi_heads.box_predictor."
    needed = [f"{_MARK}stem.conv1.weight", f"{predictor}cls_score.bias", f"{predictor}bbox_pred.bias"]
    needed += [f"backbone.fpn_lateral{level}.weight" for level in (2, 3, 4, 5)]
    wrong = [*unknown, *(key for key in needed if key not in kept)]
    if not wrong:
        outputs, boxes = (len(kept[key]) for key in needed[1:3])
        if boxes != 4 * (outputs - 1):
            wrong = [f"{predictor}bbox_pred with {boxes} numbers for {outputs - 1} classes"]
    if wrong:
        raise ValueError(
            "detector: needs a Faster R-CNN of Detectron2 on a ResNet with FPN (R50-FPN, R101-FPN) and a box regression "
            f"for each class, got a checkpoint that differs in {', '.join(wrong[:3])}{', ...' if len(wrong) > 3 else ''} "
            f"({len(wrong)} in all); use a model such as faster_rcnn_R_101_FPN_3x."
        )
    named = {str(_renamed(key)): value for key, value in kept.items()}
    first = "backbone.body.conv1.weight"
    named[first] = named[first].flip(1).contiguous()  # BGR
    for kind in ("weight", "bias"):
        scores, regression = (f"{predictor}{layer}.{kind}" for layer in ("cls_score", "bbox_pred"))
        named[scores] = named[scores].roll(1, dims=0)
        nothing = torch.zeros_like(named[regression][:4])
        named[regression] = torch.cat([nothing, named[regression]])
    facts: dict[str, Any] = {"classes": _classes(outputs - 1), "style": STYLE}
    mean, std = state.get("pixel_mean"), state.get("pixel_std")
    bgr = MEAN_BGR if mean is None else mean.flatten().tolist()
    scale = (1.0, 1.0, 1.0) if std is None else std.flatten().tolist()
    facts |= {"mean": [value / 255 for value in bgr[::-1]], "std": [value / 255 for value in scale[::-1]]}
    blocks = len({key.split(".")[3] for key in kept if key.startswith(f"{_MARK}res4.")})
    backbone = next((name for name, count in BACKBONES.items() if count == blocks), None)
    if backbone is not None:
        facts["model"] = f"fasterrcnn:{backbone}?style={STYLE}"
    return named, facts


def _classes(count: int) -> list[str]:
    """COCO's names in the order of their ids; numbers, which count by position, for any other number of classes."""
    coco = [name for name in coco_names() if not name.startswith("(")]
    return coco if count == len(coco) else [str(number) for number in range(count)]


def _renamed(key: str) -> str | None:
    """torchvision's name of a tensor.

    >>> _renamed("backbone.bottom_up.res3.0.shortcut.norm.bias"), _renamed("backbone.fpn_output5.weight")
    ('backbone.body.layer2.0.downsample.1.bias', 'backbone.fpn.layer_blocks.3.0.weight')
    """
    layer, _, kind = key.rpartition(".")
    if layer == f"{_MARK}stem.conv1.norm":
        return f"backbone.body.bn1.{kind}"
    if layer in _RENAMED:
        return f"{_RENAMED[layer]}.{kind}"
    if found := re.fullmatch(r"backbone\.fpn_(lateral|output)([2-5])", layer):
        blocks = {"lateral": "inner_blocks", "output": "layer_blocks"}[found[1]]
        return f"backbone.fpn.{blocks}.{int(found[2]) - 2}.0.{kind}"
    found = re.fullmatch(r"backbone\.bottom_up\.res([2-5])\.(\d+)\.(conv[123]|shortcut)(\.norm)?", layer)
    if found is None:
        return None
    convolution, norm = _PARTS[found[3]]
    return f"backbone.body.layer{int(found[1]) - 1}.{found[2]}.{norm if found[4] else convolution}.{kind}"


def set_style(net: Any, strides: Sequence[int], levels: Sequence[str]) -> None:
    """Make a Faster R-CNN of torchvision compute as Detectron2 does."""
    for number in (2, 3, 4):
        block = net.backbone.body[f"layer{number}"][0]
        block.conv1.stride, block.conv2.stride = (2, 2), (1, 1)
    old = net.rpn.anchor_generator
    net.rpn.anchor_generator = ExactAnchors(old.sizes, old.aspect_ratios, strides)
    pooled = net.roi_heads.box_roi_pool
    net.roi_heads.box_roi_pool = AlignedRegions(levels, strides[: len(levels)], pooled.output_size)


class ExactAnchors(AnchorGenerator):
    """Anchors that are not rounded, at a fixed distance from each other."""

    def __init__(self, sizes: Any, aspect_ratios: Any, strides: Sequence[int]) -> None:
        super().__init__(sizes, aspect_ratios)
        self.strides = tuple(strides)

    def generate_anchors(
        self,
        scales: Any,
        aspect_ratios: Any,
        dtype: torch.dtype = torch.float32,
        device: Any = None,
    ) -> Tensor:
        ratio = torch.as_tensor(aspect_ratios, dtype=dtype, device=device).sqrt()
        scale = torch.as_tensor(scales, dtype=dtype, device=device)
        high, wide = (ratio[:, None] * scale).flatten(), (scale / ratio[:, None]).flatten()
        return torch.stack([-wide, -high, wide, high], dim=1) / 2

    def grid_anchors(self, grid_sizes: Any, strides: Any) -> list[Tensor]:
        """At the strides of the levels: ``strides``, which torchvision guesses, are wrong where maps were rounded up."""
        fixed = [[torch.tensor(stride, device=self.cell_anchors[0].device)] * 2 for stride in self.strides]
        return super().grid_anchors(grid_sizes, fixed)


class AlignedRegions(nn.Module):
    """RoIAlign from the level that fits a region's size, aligned to pixel centres."""

    def __init__(self, levels: Sequence[str], strides: Sequence[int], output_size: tuple[int, int]) -> None:
        super().__init__()
        self.levels, self.strides, self.output_size = tuple(levels), tuple(strides), tuple(output_size)
        first, last = (stride.bit_length() - 1 for stride in (strides[0], strides[-1]))
        self.level_of = LevelMapper(first, last)

    def forward(
        self, maps: Mapping[str, Tensor], boxes: list[Tensor], image_sizes: object
    ) -> Float[Tensor, "rows channels height width"]:
        images = torch.repeat_interleave(
            torch.arange(len(boxes), device=boxes[0].device),
            torch.tensor([len(one) for one in boxes], device=boxes[0].device),
        )
        regions = torch.cat([images[:, None].to(boxes[0].dtype), torch.cat(boxes)], dim=1)
        level = self.level_of(boxes)
        pooled = maps[self.levels[0]].new_zeros(
            len(regions), maps[self.levels[0]].shape[1], *self.output_size
        )
        for number, (name, stride) in enumerate(zip(self.levels, self.strides, strict=True)):
            rows = (level == number).nonzero()[:, 0]
            # sampling_ratio 0: as many samples as the region has pixels
            part = roi_align(maps[name], regions[rows], self.output_size, 1 / stride, 0, aligned=True)
            pooled = pooled.index_copy(0, rows, part)
        return pooled
