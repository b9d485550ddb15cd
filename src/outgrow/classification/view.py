"""The preprocessing of a picture for evaluation and prediction.

They are the same, with one exception: test images in memory that all have one size that is not square, with data.size set.
An evaluation resizes their tensors, and a prediction resizes the picture. Pixels then differ by 0.3/255 on average.
"""

import math
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float32
from PIL.Image import Image
from torch import Tensor

from outgrow.data import ArraySplit, Split
from outgrow.data.geometry import centre_view
from outgrow.data.pixels import to_tensor
from outgrow.data.transforms import to_float
from outgrow.models import InputSpec

PHOTO = 224
"""Default side in pixels for photographs, as in most published networks."""


@dataclass(frozen=True)
class EvalView:
    """The short side of a picture is resized to ``floor(size / crop_pct)`` and the centre is cropped.

    ``whole`` is the height and width of the test images if all are equal. A picture of this size is not changed.
    """

    size: int
    crop_pct: float
    interpolation: str
    whole: tuple[int, int] | None = None

    def of(self, picture: Image) -> Float32[Tensor, "3 height width"]:
        """The prepared RGB picture, in [0, 1]."""
        if (picture.height, picture.width) != self.whole:
            picture = centre_view(
                picture, size=self.size, crop_pct=self.crop_pct, interpolation=self.interpolation
            )
        return to_float(to_tensor(picture)[None])[0]

    def __str__(self) -> str:
        short = math.floor(self.size / self.crop_pct)
        text = f"the short side resized to {short} pixels ({self.interpolation}), the centre {self.size} x {self.size} cropped"
        if self.whole is None:
            return text
        height, width = self.whole
        return f"{height} x {width} images as they are; of others {text}"


def eval_view(spec: InputSpec, whole: tuple[int, int] | None) -> EvalView:
    """The preprocessing of test images for a network of this input; ``whole`` is their size if they are in memory.

    Such images are not cropped. Square ones keep their size, and the network resizes them itself.
    """
    if whole is None:
        return EvalView(spec.size or PHOTO, spec.crop_pct, spec.interpolation)
    as_they_are = spec.size is None or whole[0] == whole[1]
    return EvalView(spec.size or max(whole), 1.0, spec.interpolation, whole if as_they_are else None)


def whole_size(split: Split) -> tuple[int, int] | None:
    """Height and width of the images of a decoded split; None for photographs of any size."""
    return (split.images.shape[2], split.images.shape[3]) if isinstance(split, ArraySplit) else None


def stated_whole(value: Any) -> tuple[int, int] | None:
    """``whole`` from the metadata of a file."""
    return (int(value[0]), int(value[1])) if isinstance(value, list | tuple) and len(value) == 2 else None
