"""RandAugment, batched: two operations an image, each one row of a table of constants.

Every operation is a setting of the same five steps (move, blend, solarise, posterise, stretch), at
which the other steps do nothing. So a whole batch takes one path, whatever each image drew, and
there is no loop over images. The table is built on the host: the
magnitude is fixed, only the operation and its sign are random.

Reference: Cubuk et al. (2020), https://arxiv.org/abs/1909.13719; ranges from AutoAugment,
https://arxiv.org/abs/1805.09501, table 6. Left out: equalise. Image sides are lengths.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float32, Int64
from torch import Tensor

from outgrow.data.randomness import Stream, as_integers, as_uniform, bits
from outgrow.data.transforms import GREY

NUM_OPERATIONS = 2
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Setting:
    """One operation. The defaults do nothing."""

    move: tuple[float, float, float, float, float, float] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    """Output to input, in sides: x' = m0 x + m1 y + m2, y' = m3 x + m4 y + m5, from the centre."""
    dark: float = 1.0
    """Towards black: the factor."""
    flat: float = 1.0
    """Towards the mean grey (contrast)."""
    dull: float = 1.0
    """Towards the grey image (saturation)."""
    soft: float = 1.0
    """Towards the smoothed image (sharpness)."""
    solarise: float = 2.0
    """Invert what is at least as bright; above 1: nothing."""
    levels: float = 255.0
    """Grey steps kept, less one."""
    stretch: float = 0.0
    """1: darkest to 0, brightest to 1, per channel."""


def settings(magnitude: float) -> dict[str, tuple[Setting, Setting]]:
    """The operations by name, each with its two signs, at ``magnitude`` of 10."""
    share = magnitude / 10
    none = Setting()

    def moved(size: float, kind: str) -> Setting:
        turn = math.radians(size)
        return Setting(
            {
                "shear_x": (1.0, size, 0.0, 0.0, 1.0, 0.0),
                "shear_y": (1.0, 0.0, 0.0, size, 1.0, 0.0),
                "translate_x": (1.0, 0.0, size, 0.0, 1.0, 0.0),
                "translate_y": (1.0, 0.0, 0.0, 0.0, 1.0, size),
                "rotate": (math.cos(turn), math.sin(turn), 0.0, -math.sin(turn), math.cos(turn), 0.0),
            }[kind]
        )

    more, less = 1 + 0.9 * share, 1 - 0.9 * share
    # 150 of 331 pixels in the paper
    sizes = {
        "shear_x": 0.3,
        "shear_y": 0.3,
        "translate_x": 150 / 331,
        "translate_y": 150 / 331,
        "rotate": 30.0,
    }
    solarise = replace(none, solarise=1 - share)
    posterise = replace(none, levels=2.0 ** (8 - round(4 * share)) - 1)
    stretch = replace(none, stretch=1.0)
    return {
        "identity": (none, none),
        **{kind: (moved(size * share, kind), moved(-size * share, kind)) for kind, size in sizes.items()},
        "brightness": (replace(none, dark=more), replace(none, dark=less)),
        "contrast": (replace(none, flat=more), replace(none, flat=less)),
        "saturation": (replace(none, dull=more), replace(none, dull=less)),
        "sharpness": (replace(none, soft=more), replace(none, soft=less)),
        "solarise": (solarise, solarise),
        "posterise": (posterise, posterise),
        "autocontrast": (stretch, stretch),
    }


def randaugment(
    images: Float32[Tensor, "n 3 height width"],
    index: Int64[Tensor, " n"],
    *,
    seed: int,
    epoch: int,
    magnitude: float,
) -> Float32[Tensor, "n 3 height width"]:
    """Each image after two operations drawn for it, at ``magnitude`` (0 to 10), in [0, 1]."""
    table = _table(magnitude, images.device)
    streams = [Stream.RANDAUGMENT + k for k in range(2 * NUM_OPERATIONS)]
    random = bits(seed, epoch, index, streams)
    for operation, sign in zip(random[::2], random[1::2], strict=True):
        row = 2 * as_integers(operation, high=len(table) // 2) + (as_uniform(sign) < 0.5).to(torch.int64)
        images = apply(images, table[row])
    return images


def apply(
    images: Float32[Tensor, "n 3 height width"], rows: Float32[Tensor, "n settings"]
) -> Float32[Tensor, "n 3 height width"]:
    """Each image after the operation that its row of the table describes."""
    still = rows.new_tensor(Setting().move)
    images = _where((rows[:, :6] != still).any(1), images, rows[:, :6], _moved)
    dark, flat, dull, soft, solarise, levels, stretch = rows[:, 6:].t()
    images = _where(dark != 1, images, dark, lambda x, factor: (x * factor).clamp_(0, 1))
    images = _where(flat != 1, images, flat, lambda x, factor: _blend(_mean(x), x, factor))
    images = _where(dull != 1, images, dull, lambda x, factor: _blend(_grey(x), x, factor))
    images = _where(soft != 1, images, soft, lambda x, factor: _blend(_smoothed(x), x, factor))
    images = _where(solarise <= 1, images, solarise, lambda x, bound: torch.where(x >= bound, 1 - x, x))
    images = _where(levels != 255, images, levels, _posterised)
    return _where(stretch == 1, images, stretch, lambda x, _: _stretched(x))


def _where(
    needed: Tensor, images: Tensor, values: Tensor, step: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """``step(images, values)`` on the images that need it. On a CPU the others are spared; on an
    accelerator, where looking would wait for the device, all are computed and the right ones kept."""
    values = values.view(len(images), -1, 1, 1)
    if images.device.type != "cpu":
        return torch.where(needed.view(-1, 1, 1, 1), step(images, values), images)
    chosen = needed.nonzero().squeeze(1)
    return images.index_copy(0, chosen, step(images[chosen], values[chosen])) if len(chosen) else images


@cache
def _table(magnitude: float, device: torch.device) -> Tensor:
    rows = [setting for pair in settings(magnitude).values() for setting in pair]
    names = [field.name for field in fields(Setting)][1:]
    return torch.tensor([[*row.move, *(getattr(row, name) for name in names)] for row in rows], device=device)


def _blend(other: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    return (other + (images - other) * factor).clamp_(0, 1)


def _grey(images: Tensor) -> Tensor:
    red, green, blue = (images * images.new_tensor(_LUMA).view(1, 3, 1, 1)).unbind(1)
    return (red + green + blue).unsqueeze(1)


def _mean(images: Tensor) -> Tensor:
    # a sum of whole numbers: its rounding does not depend on how a device adds them up
    total = (_grey(images) * 255).round().to(torch.int64).sum((1, 2, 3), keepdim=True)
    return total.to(torch.float32) / (255 * images.shape[2] * images.shape[3])


def _posterised(images: Tensor, levels: Tensor) -> Tensor:
    # each byte to the lowest of those that share its upper bits, as masking bits does
    step = 256 / (levels + 1)
    return torch.div((images * 255).round(), step, rounding_mode="floor") * step / 255


def _stretched(images: Tensor) -> Tensor:
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    span = high - low
    return torch.where(span > 0, (images - low) / span.masked_fill(span == 0, 1), images)


def _moved(images: Tensor, move: Tensor) -> Tensor:
    height, width = images.shape[2:]
    # pixel centres as shares of the sides, from the centre
    y = ((torch.arange(height, device=images.device) + 0.5) / height - 0.5).view(1, -1, 1)
    x = ((torch.arange(width, device=images.device) + 0.5) / width - 0.5).view(1, 1, -1)
    m = move[:, :, 0, 0].t().unsqueeze(2).unsqueeze(3)  # 6 x n x 1 x 1
    grid = torch.stack([m[0] * x + m[1] * y + m[2], m[3] * x + m[4] * y + m[5]], dim=3) * 2
    # padded with zeros around grey: what comes in from outside is grey
    return (
        F.grid_sample(images - GREY, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        .add_(GREY)
        .clamp_(0, 1)
    )


def _smoothed(images: Tensor) -> Tensor:
    """Each inner pixel as (its eight neighbours + 5 x itself) / 13, the border as it is."""
    around = images * 5
    for down in (-1, 0, 1):
        for across in (-1, 0, 1):
            if down or across:
                around = around + images.roll((down, across), (2, 3))
    smoothed = images.clone()
    smoothed[..., 1:-1, 1:-1] = around[..., 1:-1, 1:-1] / 13
    return smoothed
