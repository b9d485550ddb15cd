"""Views of a picture for training: which part is shown, mirrored or not, and where its boxes go.

A view is a pure function of the seed, the epoch and the picture's number, as in classification, and
draws from the same streams.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from outgrow.data.geometry import resized_crop_box
from outgrow.data.randomness import Stream, uniform_at
from outgrow.detection.boxes import Truth


@dataclass(frozen=True)
class View:
    """The part of one picture that is shown, in whole pixels, then mirrored or not.

    A part keeps its own size: a detector resizes for itself.
    """

    top: int
    left: int
    height: int
    width: int
    mirrored: bool

    def image(self, image: UInt8[Tensor, "3 high wide"]) -> UInt8[Tensor, "3 height width"]:
        """What is seen of the picture; may share its memory."""
        part = image[:, self.top : self.top + self.height, self.left : self.left + self.width]
        return part.flip(2) if self.mirrored else part

    def truth(self, truth: Truth) -> Truth:
        """The boxes whose centre is seen, clipped, and whatever is seen of crowds.

        Half an object is not one that a detector should find; half a crowd is still a crowd.
        """
        centre = (truth.boxes[:, :2] + truth.boxes[:, 2:]) / 2 - self._corner
        seen = ((centre >= 0) & (centre < self._corner.new_tensor([self.width, self.height]))).all(1)
        crowd = self._move(truth.crowd)
        crowd = crowd[(crowd[:, 2:] > crowd[:, :2]).all(1)]
        return Truth(self._move(truth.boxes[seen]), truth.label[seen], crowd, truth.index)

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
    """How views are made. ``resized_crop`` is the least and the largest share of the area to show."""

    seed: int
    flip: bool
    resized_crop: tuple[float, float] | None

    def __post_init__(self) -> None:
        crop = self.resized_crop
        if crop is not None and not 0 < crop[0] <= crop[1] <= 1:
            raise ValueError(
                f"make_scene_loader: needs resized_crop as shares of the area, 0 < least <= largest <= 1, got "
                f"{crop}; try (0.3, 1.0), or None."
            )

    def view(self, height: int, width: int, *, epoch: int, index: int) -> View:
        """The view of a picture of this size with this number."""
        part = (0, 0, height, width)
        if self.resized_crop is not None:
            part = resized_crop_box(
                height, width, scale=self.resized_crop, seed=self.seed, epoch=epoch, index=index
            )
        mirrored = self.flip and uniform_at(self.seed, epoch, index, Stream.FLIP) < 0.5
        return View(*part, mirrored=mirrored)
