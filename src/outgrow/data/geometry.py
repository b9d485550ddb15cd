"""Bring images to one size: resized crops for training, centre crops for evaluation.

torchvision resizes and crops: PIL images one at a time in the workers, batches of tensors on their device.
It is imported on use, because the import takes a second. Two parts are our own: the random boxes, which are
reproducible, and crops with a different box for each image of a batch, which torchvision can only loop over.
"""

import math
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float32, Int64, UInt8
from PIL.Image import Image
from torch import Tensor

from outgrow.data.pixels import to_tensor
from outgrow.data.randomness import Stream, integer_at, uniform_at

Images = TypeVar("Images", Tensor, Image)

RATIO = (3 / 4, 4 / 3)
"""Range of width over height of a resized crop, as in torchvision's and timm's recipes."""
_ATTEMPTS = 10
INTERPOLATIONS = ("bilinear", "bicubic")


def resized_crop_box(
    height: int, width: int, *, scale: tuple[float, float], seed: int, epoch: int, index: int
) -> tuple[int, int, int, int]:
    """Top, left, height and width of one sample's random crop.

    Up to ten times, a share of the area (uniform in ``scale``) and a ratio (log-uniform in 3/4 to 4/3) are
    drawn. The first box that fits gets a random position. If none fits, the result is the largest centre crop
    with an allowed ratio. This is the algorithm of torchvision's ``RandomResizedCrop`` with our random numbers.
    """
    ratios = math.log(RATIO[0]), math.log(RATIO[1])
    for attempt in range(_ATTEMPTS):
        stream = Stream.RESIZED_CROP + 2 * attempt
        share = scale[0] + (scale[1] - scale[0]) * uniform_at(seed, epoch, index, stream)
        ratio = math.exp(ratios[0] + (ratios[1] - ratios[0]) * uniform_at(seed, epoch, index, stream + 1))
        wide = round(math.sqrt(height * width * share * ratio))
        high = round(math.sqrt(height * width * share / ratio))
        if 0 < wide <= width and 0 < high <= height:
            stream = Stream.RESIZED_CROP + 2 * _ATTEMPTS
            top = integer_at(seed, epoch, index, stream, high=height - high + 1)
            left = integer_at(seed, epoch, index, stream + 1, high=width - wide + 1)
            return top, left, high, wide
    high, wide = height, width
    if width / height < RATIO[0]:
        high = round(width / RATIO[0])
    elif width / height > RATIO[1]:
        wide = round(height * RATIO[1])
    return (height - high) // 2, (width - wide) // 2, high, wide


def centre_view(images: Images, *, size: int, crop_pct: float, interpolation: str) -> Images:
    """The evaluation view of one image or a batch: resize the short side to ``floor(size / crop_pct)`` with
    antialiasing, then crop the centre. On tensors, bicubic values may overshoot the range."""
    from torchvision.transforms.v2 import InterpolationMode, functional

    short = math.floor(size / crop_pct)
    resized = functional.resize(images, [short], InterpolationMode(interpolation))
    return functional.center_crop(resized, [size])


def crop_picture(
    picture: Image, box: tuple[int, int, int, int], *, size: int, interpolation: str
) -> UInt8[Tensor, "3 size size"]:
    """Crop a box (top, left, height, width) from an image and resize it to ``size``."""
    from torchvision.transforms.v2 import InterpolationMode, functional

    mode = InterpolationMode(interpolation)
    return to_tensor(functional.resized_crop(picture, *box, [size, size], mode))


def crop_batch(
    images: Float32[Tensor, "n 3 height width"], boxes: Int64[Tensor, "n 4"], *, size: int
) -> Float32[Tensor, "n 3 size size"]:
    """Crop a box (top, left, height, width) from each image and resize it to ``size``, bilinearly.

    There is no antialiasing, which only matters if a box is larger than ``size``.
    """
    height, width = images.shape[2:]
    top, left, high, wide = boxes.to(torch.float32).t().unsqueeze(2)
    steps = (torch.arange(size, device=images.device) + 0.5) / size
    y = ((top + high * steps) / height * 2 - 1).unsqueeze(2).expand(-1, size, size)
    x = ((left + wide * steps) / width * 2 - 1).unsqueeze(1).expand(-1, size, size)
    grid = torch.stack([x, y], dim=3)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False).clamp_(
        0, 1
    )
