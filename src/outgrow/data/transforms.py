"""Augmentations for batches on any device, with separate random parameters for every sample.

The parameters come from :mod:`outgrow.data.randomness`, so a view depends only on the seed, the epoch
and the sample's index. Parameters are equal on every device; pixels are equal within rounding. Order:

    uint8   pad and crop, flip
    float   [0, 1]; RandAugment (:mod:`outgrow.data.randaugment`), cutout, mixup or CutMix

Normalisation is not done here: each network normalises its own input.
"""

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float32, Int64, Real, UInt8
from torch import Tensor

from outgrow.data.randomness import Stream, as_integers, as_uniform, bits, integers

GREY = 128 / 255
"""The fill value for cutout and for moved edges. It is about the mean of photographs; in the papers the fill is
the zero of a normalised image, which is the mean too."""
_BETA_STEPS = 1 << 12


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Augmentation of training images. The defaults are those of the CRD protocol on CIFAR.

    ``crop_padding``: pixels of padding on every side (``padding``: zeros or reflection) before a random crop of
    the original size. ``flip``: flip each image horizontally with probability 1/2. ``cutout``: side, in pixels,
    of a grey square around a random pixel. ``randaugment``: magnitude 0 to 10 of two random operations per
    image, 0 for none. ``mixup``, ``cutmix``: alpha of the Beta distribution of the mixing share, 0 for none.
    Every sample is mixed; with both, each sample takes one of them at random. ``resized_crop``: smallest and
    largest share of the area, such as (0.08, 1.0); it replaces pad and crop.
    """

    crop_padding: int = 4
    padding: Literal["zero", "reflect"] = "zero"
    flip: bool = True
    cutout: int = 0
    randaugment: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    resized_crop: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name in ("crop_padding", "cutout", "randaugment", "mixup", "cutmix"):
            if not getattr(self, name) >= 0:  # nan raises too
                raise ValueError(f"Augment: needs {name} >= 0, got {getattr(self, name)}; 0 turns it off.")
        if self.randaugment > 10:
            raise ValueError(
                f"Augment: needs a randaugment magnitude from 0 to 10, got {self.randaugment}; 9 is common."
            )
        if self.padding not in ("zero", "reflect"):
            raise ValueError(f"Augment: needs padding 'zero' or 'reflect', got {self.padding!r}; choose one.")
        if self.resized_crop is not None and not 0 < self.resized_crop[0] <= self.resized_crop[1] <= 1:
            raise ValueError(
                f"Augment: needs resized_crop shares with 0 < smallest <= largest <= 1, got {self.resized_crop}; "
                "ImageNet's are (0.08, 1.0)."
            )

    @property
    def mixes(self) -> bool:
        """Whether samples are mixed with partners."""
        return self.mixup > 0 or self.cutmix > 0


NO_AUGMENT = Augment(crop_padding=0, flip=False)
"""The identity."""


def to_float(images: UInt8[Tensor, "n 3 height width"]) -> Float32[Tensor, "n 3 height width"]:
    """0..255 to [0, 1]."""
    return images.to(torch.float32).div_(255)


def crop_flip(
    images: Real[Tensor, "n 3 height width"],
    index: Int64[Tensor, " n"],
    *,
    seed: int,
    epoch: int,
    crop_padding: int = 4,
    padding: str = "zero",
    flip: bool = True,
) -> Real[Tensor, "n 3 height width"]:
    """Pad each image, crop the original size at a random offset, and flip half of them horizontally."""
    num, _, height, width = images.shape
    random = bits(seed, epoch, index, [Stream.CROP_Y, Stream.CROP_X, Stream.FLIP])
    if crop_padding:
        offset = as_integers(random[:2], high=2 * crop_padding + 1)
        padded = _pad(images, crop_padding, padding)
        # A view of all windows of all images; indexing one window per image copies only that window. On one CPU
        # thread this takes 202,000 images of 32x32 a second. torchvision's crop takes 173,000 one by one, and
        # 139,000 grouped by equal offset.
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)
        images = windows[torch.arange(num, device=images.device), :, offset[0], offset[1]]
    if flip:
        mirrored = as_uniform(random[2]) < 0.5
        images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)
    return images


def _pad(images: Tensor, by: int, padding: str) -> Tensor:
    if padding == "zero":
        return F.pad(images, (by, by, by, by))
    from torchvision.transforms.v2 import functional

    height, width = images.shape[2:]
    if by >= min(height, width):
        raise ValueError(
            f"Augment: needs crop_padding below the image's side for reflection, got {by} for {height}x{width}; "
            "use padding='zero' or a smaller crop_padding."
        )
    return functional.pad(images, [by] * 4, padding_mode="reflect")


def cutout(
    images: Float32[Tensor, "n 3 height width"],
    index: Int64[Tensor, " n"],
    *,
    seed: int,
    epoch: int,
    side: int,
) -> Float32[Tensor, "n 3 height width"]:
    """Fill a square around a random pixel of each image with grey; the square is clipped at the border.

    Reference: DeVries and Taylor (2017), https://arxiv.org/abs/1708.04552, section 3.
    """
    height, width = images.shape[2:]
    random = bits(seed, epoch, index, [Stream.CUTOUT_Y, Stream.CUTOUT_X])
    top = as_integers(random[0], high=height) - side // 2
    left = as_integers(random[1], high=width) - side // 2
    inside = _box(top, top + side, left, left + side, height=height, width=width)
    return images.masked_fill(inside, GREY)


def partners(index: Int64[Tensor, " n"], *, seed: int, epoch: int, num: int) -> Int64[Tensor, " n"]:
    """The position of each sample's mixing partner among the ``num`` samples of the training set."""
    return integers(seed, epoch, index, Stream.PARTNER, high=num)


def mix_views(
    views: Float32[Tensor, "n 3 height width"],
    others: Float32[Tensor, "n 3 height width"],
    index: Int64[Tensor, " n"],
    *,
    seed: int,
    epoch: int,
    mixup: float = 0.0,
    cutmix: float = 0.0,
) -> tuple[Float32[Tensor, "n 3 height width"], Float32[Tensor, " n"]]:
    """Each view mixed with its partner's view, and the share of the view itself.

    For mixup the share is the weight. For CutMix it is the share of the area outside the partner's box, after
    the box is clipped at the border.

    Reference: Zhang et al. (2018), https://arxiv.org/abs/1710.09412; Yun et al. (2019),
    https://arxiv.org/abs/1905.04899, section 3.1.
    """
    assert mixup > 0 or cutmix > 0
    random = bits(seed, epoch, index, [Stream.MIX, Stream.MIX_KIND, Stream.BOX_Y, Stream.BOX_X])
    if cutmix == 0:
        return _mixup(views, others, random[0], mixup)
    pasted, kept = _cutmix(views, others, random, cutmix)
    if mixup == 0:
        return pasted, kept
    blended, share = _mixup(views, others, random[0], mixup)
    chosen = as_uniform(random[1]) < 0.5
    return torch.where(chosen.view(-1, 1, 1, 1), pasted, blended), torch.where(chosen, kept, share)


def _mixup(views: Tensor, others: Tensor, random: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    share = _beta(random, alpha)
    return torch.lerp(others, views, share.view(-1, 1, 1, 1)), share


def _cutmix(views: Tensor, others: Tensor, random: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    height, width = views.shape[2:]
    ratio = (1 - _beta(random[0], alpha)).sqrt()
    edges = []
    for side, draw in ((height, random[2]), (width, random[3])):
        length = (ratio * side).to(torch.int64)
        start = as_integers(draw, high=side) - length // 2
        edges += [start.clamp(min=0), (start + length).clamp(max=side)]
    inside = _box(*edges, height=height, width=width)
    area = (edges[1] - edges[0]) * (edges[3] - edges[2])
    return torch.where(inside, others, views), 1 - area.to(torch.float32) / (height * width)


def _box(top: Tensor, bottom: Tensor, left: Tensor, right: Tensor, *, height: int, width: int) -> Tensor:
    """True inside each sample's box; n x 1 x height x width."""
    rows = torch.arange(height, device=top.device).view(1, -1)
    columns = torch.arange(width, device=top.device).view(1, -1)
    down = (rows >= top.unsqueeze(1)) & (rows < bottom.unsqueeze(1))
    across = (columns >= left.unsqueeze(1)) & (columns < right.unsqueeze(1))
    return (down.unsqueeze(2) & across.unsqueeze(1)).unsqueeze(1)


def _beta(random: Tensor, alpha: float) -> Tensor:
    """Draws from Beta(alpha, alpha) by a table of quantiles, which is equal on every device."""
    if alpha == 1:
        return as_uniform(random)
    return _beta_table(alpha, random.device)[as_integers(random, high=_BETA_STEPS)]


@cache
def _beta_table(alpha: float, device: torch.device) -> Tensor:
    from scipy.special import betaincinv

    levels = (torch.arange(_BETA_STEPS, dtype=torch.float64) + 0.5) / _BETA_STEPS
    return torch.as_tensor(betaincinv(alpha, alpha, levels.numpy())).to(torch.float32).to(device)
