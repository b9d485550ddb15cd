"""Augmented views of an image for training: a crop, mirrored or not, with the boxes moved along; and the size of a step.

As in classification, a view is a pure function of the seed, the epoch and the image's index, and draws from
the same random streams.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from outgrow.data.geometry import resized_crop_box
from outgrow.data.randomness import Stream, integer_at, uniform_at
from outgrow.detection.boxes import Truth


@dataclass(frozen=True)
class View:
    """A crop of one image in whole pixels, then mirrored or not.

    The crop keeps its size, as the detector resizes its input.
    """

    top: int
    left: int
    height: int
    width: int
    mirrored: bool

    def image(self, image: UInt8[Tensor, "3 high wide"]) -> UInt8[Tensor, "3 height width"]:
        """The view of ``image``; it may share its memory."""
        part = image[:, self.top : self.top + self.height, self.left : self.left + self.width]
        return part.flip(2) if self.mirrored else part

    def truth(self, truth: Truth) -> Truth:
        """The boxes whose centre is in the crop, clipped, and the part of each crowd region in the crop.

        A smaller part of an object need not be found, but a part of a crowd is still a crowd.
        """
        centre = (truth.boxes[:, :2] + truth.boxes[:, 2:]) / 2 - self._corner
        seen = ((centre >= 0) & (centre < self._corner.new_tensor([self.width, self.height]))).all(1)
        crowd = self._move(truth.crowd)
        crowd = crowd[(crowd[:, 2:] > crowd[:, :2]).all(1)]
        return replace(truth, boxes=self._move(truth.boxes[seen]), label=truth.label[seen], crowd=crowd)

    @property
    def _corner(self) -> Float32[Tensor, " 2"]:
        return torch.tensor([self.left, self.top], dtype=torch.float32)

    def _move(self, boxes: Float32[Tensor, "n 4"]) -> Float32[Tensor, "n 4"]:
        left, top, right, bottom = (boxes - self._corner.repeat(2)).unbind(1)
        left, right = left.clamp(0, self.width), right.clamp(0, self.width)
        if self.mirrored:
            left, right = self.width - right, self.width - left
        return torch.stack([left, top.clamp(0, self.height), right, bottom.clamp(0, self.height)], dim=1)


@dataclass(frozen=True)
class SceneViews:
    """The options of views.

    ``resized_crop`` is the smallest and the largest share of the area in a crop. ``short_sides`` are the sizes of which
    each step has one; empty for the detector's own.
    """

    seed: int
    flip: bool
    resized_crop: tuple[float, float] | None
    short_sides: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        crop = self.resized_crop
        if crop is not None and not 0 < crop[0] <= crop[1] <= 1:
            raise ValueError(
                f"make_scene_loader: needs resized_crop as shares of the area, 0 < smallest <= largest <= 1, got "
                f"{crop}; try (0.3, 1.0), or None."
            )

    def short_side(self, *, epoch: int, step: int) -> int | None:
        """The size of a step, the same on all processes."""
        if not self.short_sides:
            return None
        drawn = integer_at(self.seed, epoch, step, Stream.SHORT_SIDE, high=len(self.short_sides))
        return self.short_sides[drawn]

    def view(self, height: int, width: int, *, epoch: int, index: int) -> View:
        """The view of an image of this size with this index."""
        part = (0, 0, height, width)
        if self.resized_crop is not None:
            part = resized_crop_box(
                height, width, scale=self.resized_crop, seed=self.seed, epoch=epoch, index=index
            )
        mirrored = self.flip and uniform_at(self.seed, epoch, index, Stream.FLIP) < 0.5
        return View(*part, mirrored=mirrored)
