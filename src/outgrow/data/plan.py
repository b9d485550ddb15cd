"""The parts that loaders share, also those of images with boxes.

Plan            which samples make up which batch, on which process
Views           the augmentation steps
ImageLoader     the base class; it makes a :class:`Batch` of views and labels
Decoding        images decoded by worker processes
"""

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float32, Int64, Real
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from outgrow.data.randaugment import randaugment
from outgrow.data.randomness import balanced_order, epoch_order, grouped_batches
from outgrow.data.splits import Split
from outgrow.data.transforms import Augment, crop_flip, cutout, mix_views, partners
from outgrow.outputs import Target


@dataclass(frozen=True)
class Batch:
    """Images in [0, 1] and their targets, on one device.

    ``target.index`` is the sample's index in the original training set. If samples are mixed,
    ``target.partner`` is the partner's class and ``target.mix`` the share of the sample's own label.
    """

    images: Float32[Tensor, "batch 3 height width"]
    target: Target
    labelled: int | None = None
    """How many rows have a label, which are the first ones; None for all."""

    @property
    def num_labelled(self) -> int:
        """How many rows have a label, without looking at them."""
        return len(self.images) if self.labelled is None else self.labelled

    @property
    def index(self) -> Int64[Tensor, " batch"] | None:
        """The samples' indices in the original training set."""
        return self.target.index

    def split(self, parts: int) -> list["Batch"]:
        """``parts`` batches: every ``parts``-th row, so that each has its share of labelled and unlabelled rows."""
        return [
            Batch(
                self.images[first::parts],
                self.target.rows(slice(first, None, parts)),
                labelled=len(range(first, self.num_labelled, parts)),
            )
            for first in range(parts)
        ]


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
        """Batches per epoch on this process."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from step ``start`` on. Epochs may be called in any order and repeatedly.

        Batches before ``start`` cost nothing: their images are not decoded.
        """


def drops_last(num: int, batch_size: int, *, least: int) -> bool:
    """Whether training drops an epoch's last, smaller batch because it has fewer than ``least`` rows.

    A batch norm needs two rows. The answer does not depend on the number of processes.

    >>> [drops_last(num, 32, least=2) for num in (96, 97, 98)]
    [False, True, False]
    """
    return 0 < num % batch_size < least


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which positions of a split make up which batch.

    In training a process's share of a batch has at least ``least`` rows, or none. If a batch is too small for
    all processes, only the first ones get rows.
    """

    num: int
    batch_size: int
    seed: int
    shuffle: bool
    drop_last: bool
    rank: int
    world_size: int
    least: int = 1
    balance: Int64[Tensor, " num"] | None = None
    """The labels, if an epoch draws all classes equally often; None for every sample once."""
    group: Int64[Tensor, " num"] | None = None
    """A group for each sample, if the samples of a batch are to be of one group as far as possible; in training only."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or not 0 <= self.rank < self.world_size:
            raise ValueError(
                f"make_loader: needs batch_size >= 1 and 0 <= rank < world_size, got batch_size={self.batch_size}, "
                f"rank={self.rank}, world_size={self.world_size}; set them from the process group."
            )
        if self.drop_last and self.num < self.batch_size:
            raise ValueError(
                f"make_loader: needs batch_size <= {self.num} (the number of samples) with drop_last, got "
                f"{self.batch_size}; lower it or set drop_last=False."
            )

    def batches(self, epoch: int, start: int = 0) -> list[Int64[Tensor, " share"]]:
        """This process's positions for each batch from ``start`` on.

        In training all batches are listed, because all processes take every step. In evaluation batches without
        rows for this process are left out.
        """
        shares = [self.share(batch) for batch in self._order(epoch).split(self.batch_size)]
        if self.drop_last:
            shares = shares[: self.num // self.batch_size]
        shares = shares if self.shuffle else [share for share in shares if len(share)]
        return shares[start:]

    def _order(self, epoch: int) -> Int64[Tensor, " num"]:
        if not self.shuffle:
            return torch.arange(self.num)
        if self.balance is not None:
            return balanced_order(self.balance, self.seed, epoch)
        order = epoch_order(self.num, self.seed, epoch)
        return order if self.group is None else grouped_batches(order, self.group, self.batch_size)

    def share(self, batch: Int64[Tensor, " batch"]) -> Int64[Tensor, " share"]:
        """This process's part of a batch."""
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
    """The augmentation steps that both loaders use."""

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
        """``positions``, followed by those of their partners if samples are mixed. ``index`` is the split's."""
        if not self.augment.mixes:
            return positions
        chosen = partners(index[positions], seed=self.seed, epoch=epoch, num=len(index))
        return torch.cat([positions, chosen])


class ImageLoader:
    """The base class of both loaders: lengths, positions including partners, and the batch made of views."""

    def __init__(self, split: Split, plan: Plan, views: Views, device: torch.device) -> None:
        self.plan, self._views, self._device = plan, views, device
        self._index, self._labels = split.index, split.labels
        self._shown = partial(views.shown, split.index)

    @property
    def num_samples(self) -> int:
        return self.plan.num

    @property
    def num_indices(self) -> int:
        return int(self._index.max()) + 1 if len(self._index) else 0

    def __len__(self) -> int:
        return len(self.plan)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """See :meth:`Loader.epoch`."""
        raise NotImplementedError

    def _batch(
        self,
        views: Float32[Tensor, "shown 3 height width"],
        shown: Int64[Tensor, " shown"],
        index: Int64[Tensor, " shown"],
        epoch: int,
    ) -> Batch:
        """The batch of the samples at positions ``shown`` with indices ``index``, mixed with their partners if mixing is on."""
        label, a = self._labels[shown].to(self._device), self._views.augment
        if not a.mixes:
            return Batch(views, Target(label, index))
        (own, others), (index, _), (label, partner) = (x.chunk(2) for x in (views, index, label))
        images, mix = mix_views(
            own, others, index, seed=self._views.seed, epoch=epoch, mixup=a.mixup, cutmix=a.cutmix
        )
        return Batch(images, Target(label, index=index, partner=partner, mix=mix))


class KeyedBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, position). Workers persist over epochs, so each key includes the epoch."""

    def __init__(self, plan: Plan, shown: Callable[[Tensor, int], Tensor] | None = None) -> None:
        self.plan, self.shown, self.epoch, self.start = plan, shown, 0, 0

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch  # another may begin before this one has ended
        for positions in self.plan.batches(epoch, self.start):
            shown = positions if self.shown is None else self.shown(positions, epoch)
            yield [(epoch, position) for position in shown.tolist()]


@dataclass(frozen=True)
class Fault:
    """The message of a worker's ``ValueError``. Raised in the worker, it would be buried in a traceback."""

    reason: str


class Collated(Dataset[Any]):
    """``images`` collated to batches; a batch with an image that cannot be decoded is a :class:`Fault`."""

    def __init__(self, images: Any, join: Callable[[list[Tensor]], Tensor]) -> None:
        self.images, self.join = images, join

    def __getitems__(self, keys: list[tuple[int, int]]) -> Tensor | Fault:
        try:
            get_many = getattr(self.images, "__getitems__", None)
            return self.join(get_many(keys) if get_many else [self.images[key] for key in keys])
        except ValueError as error:
            return Fault(str(error))


class Decoding:
    """Batches of decoded images by their keys, from ``num_workers`` processes (0: this process).

    An image that cannot be decoded raises the same ``ValueError`` with workers and without.
    """

    def __init__(
        self,
        images: Dataset[Tensor],
        batches: KeyedBatches,
        join: Callable[[list[Tensor]], Tensor],
        *,
        num_workers: int,
        device: torch.device,
    ) -> None:
        self.keys = batches
        self.begun = 0
        self._ends: weakref.finalize[..., Decoding] | None = None
        self.workers: DataLoader[Any] = DataLoader(
            Collated(images, join),
            batch_sampler=batches,
            collate_fn=_as_is,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # DataLoader draws a seed each epoch: keep the user's generator unchanged
        )

    def epoch(self, epoch: int, start: int) -> Iterator[Tensor]:
        self.keys.epoch, self.keys.start = epoch, start
        self.begun += 1
        own, batches = self.begun, iter(self.workers)
        if self._ends is None and self.workers.num_workers:
            # In a cycle the garbage collector takes the queues before the iterator: its processes then do not hear that they
            # should end, and PyTorch waits five seconds for each. So the iterator is held here, and ended with this object.
            self._ends = weakref.finalize(self, batches._shutdown_workers)  # type: ignore[attr-defined]
        for batch in batches:
            if self.begun > own and self.workers.num_workers:
                raise ValueError(
                    f"epoch: needs one epoch at a time from worker processes, got another begun in the middle of epoch {epoch}; make "
                    "a loader for each, or use num_workers=0."
                )
            if isinstance(batch, Fault):
                raise ValueError(batch.reason)
            yield batch


def _as_is(batch: Any) -> Any:
    return batch  # collated by Collated
