"""What both loaders share: batches, who sees which samples, and the steps that make a view."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float32, Int64, Real
from torch import Tensor

from outgrow.data.randaugment import randaugment
from outgrow.data.randomness import epoch_order
from outgrow.data.transforms import Augment, crop_flip, cutout, mix_views, partners
from outgrow.outputs import Target


@dataclass(frozen=True)
class Batch:
    """Images in [0, 1] and what is true of them, on one device.

    ``target.index`` is the sample's number in the original training set. Where samples are mixed,
    ``target.partner`` is the class blended in and ``target.mix`` the share that the label keeps.
    """

    images: Float32[Tensor, "batch 3 height width"]
    target: Target

    @property
    def index(self) -> Int64[Tensor, " batch"] | None:
        """The samples' numbers in the original training set."""
        return self.target.index


@runtime_checkable
class Loader(Protocol):
    """What :func:`make_loader` returns."""

    @property
    def num_samples(self) -> int:
        """Samples in the split, over all processes."""

    @property
    def num_indices(self) -> int:
        """One more than the largest ``target.index``: the length of a memory by index."""

    def __len__(self) -> int:
        """Batches an epoch on this process."""

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch; any epoch may be asked for, in any order, again."""


def drops_last(num: int, batch_size: int, world_size: int, *, least: int) -> bool:
    """Whether training leaves out an epoch's last, smaller batch: its processes would have unequal shares, or
    fewer than ``least`` rows each (a batch norm needs two).

    >>> [drops_last(num, 32, 1, least=2) for num in (96, 97, 98)]
    [False, True, False]
    """
    rest = num % batch_size
    return rest > 0 and (rest % world_size > 0 or rest // world_size < least)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which positions of a split make up which batch."""

    num: int
    batch_size: int
    seed: int
    shuffle: bool
    drop_last: bool
    rank: int
    world_size: int

    def __post_init__(self) -> None:
        if self.batch_size < 1 or not 0 <= self.rank < self.world_size:
            raise ValueError(
                f"make_loader: needs batch_size >= 1 and 0 <= rank < world_size, got batch_size={self.batch_size}, "
                f"rank={self.rank}, world_size={self.world_size}; set them from the process group."
            )
        rest = self.num % self.batch_size
        if self.drop_last and self.num < self.batch_size:
            raise ValueError(
                f"make_loader: needs batch_size <= {self.num} (the samples there are) when the last batch is "
                f"dropped, got {self.batch_size}; lower it or keep the last batch."
            )
        if self.shuffle and (
            self.batch_size % self.world_size or (rest % self.world_size and not self.drop_last)
        ):
            raise ValueError(
                f"make_loader: needs equal counts on all {self.world_size} processes to train, got batch_size="
                f"{self.batch_size} and {rest} samples in the last batch; make batch_size a multiple and set drop_last."
            )

    def batches(self, epoch: int) -> list[Int64[Tensor, " share"]]:
        """This process's positions, batch by batch; without batches of which it has no share."""
        order = epoch_order(self.num, self.seed, epoch) if self.shuffle else torch.arange(self.num)
        shares = [batch[self.rank :: self.world_size] for batch in order.split(self.batch_size)]
        if self.drop_last:
            shares = shares[: self.num // self.batch_size]
        return [share for share in shares if len(share)]

    def __len__(self) -> int:
        full, rest = divmod(self.num, self.batch_size)
        return full * (self.rank < self.batch_size) + (rest > self.rank and not self.drop_last)


@dataclass(frozen=True)
class Views:
    """How a view is made; the steps that both loaders share."""

    augment: Augment
    seed: int
    size: int | None
    crop_pct: float
    interpolation: str

    def crop_flip(
        self, images: Real[Tensor, "n 3 height width"], index: Int64[Tensor, " n"], epoch: int
    ) -> Real[Tensor, "n 3 height width"]:
        a = self.augment
        padding = 0 if a.resized_crop else a.crop_padding
        if not padding and not a.flip:
            return images
        return crop_flip(
            images, index, seed=self.seed, epoch=epoch, crop_padding=padding, padding=a.padding, flip=a.flip
        )

    def finish(
        self, images: Float32[Tensor, "n 3 height width"], index: Int64[Tensor, " n"], epoch: int
    ) -> Float32[Tensor, "n 3 height width"]:
        a = self.augment
        if a.randaugment:
            images = randaugment(images, index, seed=self.seed, epoch=epoch, magnitude=a.randaugment)
        if a.cutout:
            images = cutout(images, index, seed=self.seed, epoch=epoch, side=a.cutout)
        return images

    def partners(self, index: Int64[Tensor, " n"], epoch: int, num: int) -> Int64[Tensor, " n"] | None:
        return partners(index, seed=self.seed, epoch=epoch, num=num) if self.augment.mixes else None

    def batch(self, images: Tensor, others: Tensor | None, target: Target, epoch: int) -> Batch:
        if others is None:
            return Batch(images, target)
        a = self.augment
        assert target.index is not None
        images, mix = mix_views(
            images, others, target.index, seed=self.seed, epoch=epoch, mixup=a.mixup, cutmix=a.cutmix
        )
        return Batch(images, Target(target.label, index=target.index, partner=target.partner, mix=mix))
