"""What the loaders share: who sees which samples, the steps that make a view, batches, and workers."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float32, Int64, Real
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from outgrow.data.randaugment import randaugment
from outgrow.data.randomness import epoch_order
from outgrow.data.splits import Split
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


def drops_last(num: int, batch_size: int, *, least: int) -> bool:
    """Whether training leaves out an epoch's last, smaller batch: it has fewer than ``least`` rows (a batch norm
    needs two). It does not depend on the number of processes.

    >>> [drops_last(num, 32, least=2) for num in (96, 97, 98)]
    [False, True, False]
    """
    return 0 < num % batch_size < least


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which positions of a split make up which batch.

    In training a process's share of a batch has ``least`` rows or more, or none: where a batch is too small for
    all processes, the first ones share it.
    """

    num: int
    batch_size: int
    seed: int
    shuffle: bool
    drop_last: bool
    rank: int
    world_size: int
    least: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1 or not 0 <= self.rank < self.world_size:
            raise ValueError(
                f"make_loader: needs batch_size >= 1 and 0 <= rank < world_size, got batch_size={self.batch_size}, "
                f"rank={self.rank}, world_size={self.world_size}; set them from the process group."
            )
        if self.drop_last and self.num < self.batch_size:
            raise ValueError(
                f"make_loader: needs batch_size <= {self.num} (the samples there are) when the last batch is "
                f"dropped, got {self.batch_size}; lower it or keep the last batch."
            )

    def batches(self, epoch: int) -> list[Int64[Tensor, " share"]]:
        """This process's positions, batch by batch: in training for every batch, as all processes take every
        step; otherwise for those of which it has a share."""
        order = epoch_order(self.num, self.seed, epoch) if self.shuffle else torch.arange(self.num)
        shares = [self._share(batch) for batch in order.split(self.batch_size)]
        if self.drop_last:
            shares = shares[: self.num // self.batch_size]
        return shares if self.shuffle else [share for share in shares if len(share)]

    def _share(self, batch: Int64[Tensor, " batch"]) -> Int64[Tensor, " share"]:
        sharers = min(self.world_size, max(len(batch) // self.least, 1)) if self.shuffle else self.world_size
        return batch[self.rank :: sharers] if self.rank < sharers else batch[:0]

    def __len__(self) -> int:
        full, rest = divmod(self.num, self.batch_size)
        last = rest > 0 and not self.drop_last
        if self.shuffle:
            return full + last
        return full * (self.rank < self.batch_size) + (rest > self.rank and last)


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

    def shown(
        self, index: Int64[Tensor, " all"], positions: Int64[Tensor, " n"], epoch: int
    ) -> Int64[Tensor, " shown"]:
        """``positions``, then those of their partners where samples are mixed; ``index`` is the split's."""
        if not self.augment.mixes:
            return positions
        chosen = partners(index[positions], seed=self.seed, epoch=epoch, num=len(index))
        return torch.cat([positions, chosen])


class ImageLoader:
    """What both loaders share: their length, whose views a batch takes, and the batch made of them."""

    def __init__(self, split: Split, plan: Plan, views: Views, device: torch.device) -> None:
        self._plan, self._views, self._device = plan, views, device
        self._index, self._labels = split.index, split.labels
        self._shown = partial(views.shown, split.index)

    @property
    def num_samples(self) -> int:
        return self._plan.num

    @property
    def num_indices(self) -> int:
        return int(self._index.max()) + 1 if len(self._index) else 0

    def __len__(self) -> int:
        return len(self._plan)

    def _batch(
        self,
        views: Float32[Tensor, "shown 3 height width"],
        shown: Int64[Tensor, " shown"],
        index: Int64[Tensor, " shown"],
        epoch: int,
    ) -> Batch:
        """The batch of the samples at ``shown``, numbered ``index``, mixed with their partners."""
        label, a = self._labels[shown].to(self._device), self._views.augment
        if not a.mixes:
            return Batch(views, Target(label, index))
        (own, others), (index, _), (label, partner) = (x.chunk(2) for x in (views, index, label))
        images, mix = mix_views(
            own, others, index, seed=self._views.seed, epoch=epoch, mixup=a.mixup, cutmix=a.cutmix
        )
        return Batch(images, Target(label, index=index, partner=partner, mix=mix))


class KeyedBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, position): workers outlive an epoch, so the epoch travels with the key."""

    def __init__(self, plan: Plan, shown: Callable[[Tensor, int], Tensor] | None = None) -> None:
        self.plan, self.shown, self.epoch = plan, shown, 0

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for positions in self.plan.batches(self.epoch):
            shown = positions if self.shown is None else self.shown(positions, self.epoch)
            yield [(self.epoch, position) for position in shown.tolist()]


def decoding(
    images: Dataset[Tensor],
    batches: KeyedBatches,
    join: Callable[[Any], Tensor],
    *,
    num_workers: int,
    device: torch.device,
) -> "DataLoader[Tensor]":
    """``images`` by their keys, read by ``num_workers`` processes (0: by this one), a batch put together by ``join``."""
    return DataLoader(
        images,
        batch_sampler=batches,
        collate_fn=join,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # DataLoader draws a seed each epoch: not from the user's generator
    )
