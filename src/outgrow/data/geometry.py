"""From images of any size to one size: resized crops for training, centre crops for evaluation.

For decoded images Pillow does the resizing (anti-aliased), one image at a time, in the workers; for
batches in memory torch does, on their device. Both cut at the same places.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float32, Int64, UInt8
from PIL import Image
from torch import Tensor

from outgrow.data.randomness import Stream, integer_at, uniform_at
from outgrow.data.splits import to_tensor

RATIO = (3 / 4, 4 / 3)
"""Width over height of a resized crop, as in all of torchvision's and timm's recipes."""
_ATTEMPTS = 10
RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def resized_crop_box(
    height: int, width: int, *, scale: tuple[float, float], seed: int, epoch: int, index: int
) -> tuple[int, int, int, int]:
    """Top, left, height and width of one sample's random crop.

    Ten attempts at a share of the area (uniform in ``scale``) and a ratio (log-uniform in 3/4 to
    4/3); the first that fits is put at a random place. If none fits: the largest centre crop with an
    allowed ratio. This is what torchvision's ``RandomResizedCrop`` does, with our own draws.
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


def centre_geometry(height: int, width: int, *, size: int, crop_pct: float) -> tuple[int, int, int, int]:
    """Evaluation: height and width to resize to (short side ``floor(size / crop_pct)``), then top and
    left of the centre crop of ``size``."""
    short = math.floor(size / crop_pct)
    if height <= width:
        high, wide = short, int(short * width / height)
    else:
        high, wide = int(short * height / width), short
    return high, wide, round((high - size) / 2), round((wide - size) / 2)


def crop_picture(
    picture: Image.Image, box: tuple[int, int, int, int], *, size: int, interpolation: str
) -> UInt8[Tensor, "3 size size"]:
    """The box (top, left, height, width) of an image, resized to ``size``."""
    top, left, height, width = box
    cropped = picture.crop((left, top, left + width, top + height))
    return to_tensor(cropped.resize((size, size), RESAMPLING[interpolation]))


def centre_picture(
    picture: Image.Image, *, size: int, crop_pct: float, interpolation: str
) -> UInt8[Tensor, "3 size size"]:
    """The evaluation view of an image."""
    high, wide, top, left = centre_geometry(picture.height, picture.width, size=size, crop_pct=crop_pct)
    resized = picture.resize((wide, high), RESAMPLING[interpolation])
    return to_tensor(resized.crop((left, top, left + size, top + size)))


def crop_batch(
    images: Float32[Tensor, "n 3 height width"], boxes: Int64[Tensor, "n 4"], *, size: int
) -> Float32[Tensor, "n 3 size size"]:
    """A box (top, left, height, width) of each image, resized to ``size`` bilinearly.

    Not anti-aliased, which only matters where a box is larger than ``size``.
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


def centre_batch(
    images: Float32[Tensor, "n 3 height width"], *, size: int, crop_pct: float, interpolation: str
) -> Float32[Tensor, "n 3 size size"]:
    """The evaluation view of each image; the images themselves where that has their size."""
    height, width = images.shape[2:]
    high, wide, top, left = centre_geometry(height, width, size=size, crop_pct=crop_pct)
    if (high, wide) != (height, width):
        images = F.interpolate(images, (high, wide), mode=interpolation, antialias=True, align_corners=False)
        images = images.clamp_(0, 1)  # bicubic overshoots
    return images[..., top : top + size, left : left + size]
