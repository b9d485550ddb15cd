"""RandAugment in batches: two random operations per image, computed by torchvision.

The draws are our own: an image's operations depend only on the seed, the epoch and its index. All images of a
batch that drew the same operation are transformed together. Pixels are rounded to uint8 after each operation,
as in the paper. A pixel is therefore the same for any batch size and any order of floating-point sums.

Reference: Cubuk et al. (2020), https://arxiv.org/abs/1909.13719; ranges from AutoAugment,
https://arxiv.org/abs/1805.09501, table 6. Left out: equalise. Shifts are relative to the image's sides.
"""

import math
from collections.abc import Callable
from functools import cache

import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from outgrow.data.randomness import Stream, as_integers, as_uniform, bits
from outgrow.data.transforms import GREY, to_float

NUM_OPERATIONS = 2
Operation = Callable[[UInt8[Tensor, "n 3 height width"], int], UInt8[Tensor, "n 3 height width"]]


@cache
def operations(magnitude: float) -> dict[str, Operation]:
    """The operations by name at ``magnitude`` (0 to 10), as functions of images and a sign (1 or -1).

    A draw is an index into this table, so its order determines the views.
    """
    from torchvision.transforms.v2 import functional as tv  # on use: importing it takes a second

    share = magnitude / 10
    shear = math.degrees(math.atan(0.3 * share))
    shift = 150 / 331 * share  # 150 of 331 pixels in the paper
    return {
        "identity": lambda x, sign: x,
        "shear_x": lambda x, sign: _moved(x, shear=(sign * shear, 0.0)),
        "shear_y": lambda x, sign: _moved(x, shear=(0.0, sign * shear)),
        "translate_x": lambda x, sign: _moved(x, translate=(-sign * shift * x.shape[3], 0.0)),
        "translate_y": lambda x, sign: _moved(x, translate=(0.0, -sign * shift * x.shape[2])),
        "rotate": lambda x, sign: _moved(x, angle=sign * 30 * share),
        "brightness": lambda x, sign: tv.adjust_brightness(x, 1 + sign * 0.9 * share),
        "contrast": lambda x, sign: tv.adjust_contrast(x, 1 + sign * 0.9 * share),
        "saturation": lambda x, sign: tv.adjust_saturation(x, 1 + sign * 0.9 * share),
        "sharpness": lambda x, sign: tv.adjust_sharpness(x, 1 + sign * 0.9 * share),
        "solarise": lambda x, sign: tv.solarize(x, 255 * (1 - share)),
        "posterise": lambda x, sign: tv.posterize(x, 8 - round(4 * share)),
        "autocontrast": lambda x, sign: tv.autocontrast(x),
    }


def randaugment(
    images: Float32[Tensor, "n 3 height width"],
    index: Int64[Tensor, " n"],
    *,
    seed: int,
    epoch: int,
    magnitude: float,
) -> Float32[Tensor, "n 3 height width"]:
    """Apply two random operations to each image at ``magnitude`` (0 to 10); the result is in steps of 1 / 255."""
    kinds = list(operations(magnitude).values())
    streams = [Stream.RANDAUGMENT + k for k in range(2 * NUM_OPERATIONS)]
    random = bits(seed, epoch, index.cpu(), streams)  # the group sizes are needed on the CPU
    pixels = (images * 255).round_().to(torch.uint8)
    for operation, sign in zip(random[::2], random[1::2], strict=True):
        drawn = 2 * as_integers(operation, high=len(kinds)) + (as_uniform(sign) < 0.5).to(torch.int64)
        order = drawn.argsort().to(pixels.device)
        groups = pixels[order].split(drawn.bincount(minlength=2 * len(kinds)).tolist())
        pixels[order] = torch.cat(
            [kinds[k // 2](group, 1 - 2 * (k % 2)) if len(group) else group for k, group in enumerate(groups)]
        )
    return to_float(pixels)


def _moved(
    images: UInt8[Tensor, "n 3 height width"],
    *,
    angle: float = 0.0,
    translate: tuple[float, float] = (0.0, 0.0),
    shear: tuple[float, float] = (0.0, 0.0),
) -> UInt8[Tensor, "n 3 height width"]:
    from torchvision.transforms.v2 import InterpolationMode, functional

    # subtract grey, so that the zeros from outside the image mean grey: torchvision's fill darkens the edge
    centred = images.to(torch.float32).sub_(255 * GREY)
    moved = functional.affine(centred, angle, list(translate), 1.0, list(shear), InterpolationMode.BILINEAR)
    return moved.add_(255 * GREY).round_().to(torch.uint8)
