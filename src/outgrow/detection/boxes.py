"""The nouns that a detector adds: what is in a picture, what a detector found, and a batch of both.

    Truth       the boxes that somebody drew
    Detections  the boxes that a detector drew, with classes and scores
    Scenes      a batch: pictures of any size, and the truth about each

Boxes are ``(left, top, right, bottom)`` in pixels of the picture they belong to, as float32. Classes
count from 1; 0 is background, and no box has it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

BACKGROUND = 0


@dataclass(frozen=True)
class Truth:
    """What is in one picture: nothing, or some boxes.

    ``crowd`` are regions full of objects that nobody drew one by one (COCO's ``iscrowd``): not trained
    on, and not background either. ``index`` is the picture's number in its split.
    """

    boxes: Float32[Tensor, "n 4"]
    label: Int64[Tensor, " n"]
    crowd: Float32[Tensor, "m 4"]
    index: int

    def to(self, device: torch.device) -> "Truth":
        return Truth(self.boxes.to(device), self.label.to(device), self.crowd.to(device), self.index)


@dataclass(frozen=True)
class Detections:
    """What a detector found in one picture, best first, in pixels of that picture."""

    boxes: Float32[Tensor, "n 4"]
    label: Int64[Tensor, " n"]
    score: Float32[Tensor, " n"]

    def to(self, device: torch.device | str) -> "Detections":
        return Detections(self.boxes.to(device), self.label.to(device), self.score.to(device))


@dataclass(frozen=True)
class Scenes:
    """A batch of pictures in [0, 1], each 3 x height x width with a size of its own, and their truth."""

    images: Sequence[Float32[Tensor, "3 _ _"]]
    truth: Sequence[Truth]

    @property
    def index(self) -> Int64[Tensor, " batch"]:
        """The pictures' numbers, for messages."""
        return torch.tensor([truth.index for truth in self.truth], dtype=torch.int64)
