"""The types of detection: ground truth, detections, and a batch of images with their ground truth.

    Truth       the annotated boxes of an image
    Detections  the boxes that a detector found in an image, with classes and scores
    Scenes      a batch: images of any size and their ground truth

Boxes are ``(left, top, right, bottom)`` in pixels of their image, as float32. Labels count from 1; 0 is the
background, and no box has it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

BACKGROUND = 0
IN_CROWD = 0.5
"""A background row with at least this share of its box in a crowd region has no known label."""


@dataclass(frozen=True)
class Truth:
    """The annotated boxes of one image; there may be none.

    ``crowd`` are regions of many objects without a box each (COCO's ``iscrowd``). They are neither trained on
    nor background. ``index`` is the image's row in its annotation file.

    An image that is not ``labelled`` has boxes that a detector found. They say where to look, not what is true: the
    detector's losses leave the image out, and its rows have no label.
    """

    boxes: Float32[Tensor, "n 4"]
    label: Int64[Tensor, " n"]
    crowd: Float32[Tensor, "m 4"]
    index: int
    labelled: bool = True

    def to(self, device: torch.device) -> "Truth":
        return replace(
            self, boxes=self.boxes.to(device), label=self.label.to(device), crowd=self.crowd.to(device)
        )


def as_shares(
    boxes: Sequence[Float32[Tensor, "_ 4"]], height: int, width: int
) -> Float32[Tensor, "images objects 4"]:
    """The boxes of each image, in pixels of a batch of this size, as shares of it. Empty ones fill up; there is one at least."""
    most = max((len(one) for one in boxes), default=0)
    filled = [torch.nn.functional.pad(one, (0, 0, 0, max(most, 1) - len(one))) for one in boxes]
    return torch.stack(filled) / filled[0].new_tensor([width, height, width, height])


@dataclass(frozen=True)
class Detections:
    """What a detector found in one image, highest score first, in pixels of that image."""

    boxes: Float32[Tensor, "n 4"]
    label: Int64[Tensor, " n"]
    score: Float32[Tensor, " n"]

    def to(self, device: torch.device | str) -> "Detections":
        return Detections(self.boxes.to(device), self.label.to(device), self.score.to(device))


@dataclass(frozen=True)
class Scenes:
    """A batch of images in [0, 1], each 3 x height x width in its own size, and their ground truth.

    ``short_side`` is the size in pixels to which the student resizes them in this step; None for its own.
    """

    images: Sequence[Float32[Tensor, "3 _ _"]]
    truth: Sequence[Truth]
    short_side: int | None = None

    @property
    def index(self) -> Int64[Tensor, " batch"]:
        """The index of each image, for messages."""
        return torch.tensor([truth.index for truth in self.truth], dtype=torch.int64)

    @property
    def num_labelled(self) -> int:
        """How many images have annotations; an image without an object may be one of them."""
        return sum(one.labelled for one in self.truth)

    def split(self, parts: int) -> list["Scenes"]:
        """``parts`` batches: every ``parts``-th image."""
        return [
            Scenes(self.images[first::parts], self.truth[first::parts], self.short_side)
            for first in range(parts)
        ]


def in_crowd(boxes: Float[Tensor, "n 4"], truth: Truth) -> Bool[Tensor, " n"]:
    """Which boxes have at least the share :data:`IN_CROWD` of their area inside one of the crowd regions."""
    if not len(truth.crowd):
        return torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    corner = torch.maximum(boxes[:, None, :2], truth.crowd[None, :, :2])
    other = torch.minimum(boxes[:, None, 2:], truth.crowd[None, :, 2:])
    both = (other - corner).clamp_min(0).prod(dim=2)
    area = (boxes[:, 2:] - boxes[:, :2]).clamp_min(0).prod(dim=1)
    share = both.amax(dim=1) / torch.where(area > 0, area, torch.ones_like(area))
    return share >= IN_CROWD
