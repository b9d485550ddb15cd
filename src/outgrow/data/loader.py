"""Batches of views and targets, in the same order and with the same pixels however they are made.

    Plan          which samples make up which batch, and this process's share of them
    TensorLoader  decoded images: kept on the device as bytes, everything batched there
    FileLoader    encoded images: decoded and resized by workers, the rest batched on the device

A view depends on the seed, the epoch and the sample's index; batch size, workers and processes only
decide when and where it is made.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float32, Int64, Real, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from outgrow.data.geometry import (
    RESAMPLING,
    centre_batch,
    centre_picture,
    crop_batch,
    crop_picture,
    resized_crop_box,
)
from outgrow.data.randaugment import randaugment
from outgrow.data.randomness import epoch_order
from outgrow.data.splits import ArraySplit, FileSplit, Split, to_tensor
from outgrow.data.transforms import NO_AUGMENT, Augment, crop_flip, cutout, mix_views, partners, to_float
from outgrow.outputs import Target

_GROUP = 1024
"""Images handled at once on an accelerator, where launching kernels is what costs."""
_GROUP_CPU = 128
"""On a CPU: enough to spread the cost of dispatch, few enough to stay in the cache."""


@dataclass(frozen=True)
class Batch:
    """Images in [0, 1] and what is true of them, on one device.

    ``target.index`` is the sample's number in the original training set. Where samples are mixed,
    ``target.partner`` is the class blended in and ``target.mix`` the share that the label keeps.
    """

    images: Float32[Tensor, "batch 3 height width"]
    target: Target


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


def make_loader(
    split: Split,
    *,
    batch_size: int,
    device: str | torch.device = "cpu",
    seed: int = 0,
    augment: Augment | None = None,
    size: int | None = None,
    crop_pct: float = 1.0,
    interpolation: str = "bicubic",
    shuffle: bool,
    drop_last: bool = False,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    index_offset: int = 0,
) -> Loader:
    """The loader that suits ``split``.

    ``batch_size`` counts the samples of a step over all processes; each of ``world_size`` processes
    gets its ``rank``'s share of the same batches. In an evaluation every sample is seen once by one
    process, and counts may differ by one.

    ``size``: side of the views in pixels; the short side is resized to ``floor(size / crop_pct)``
    (``interpolation``: "bilinear" or "bicubic") and the centre cut out, or ``augment.resized_crop``
    is taken. Without it images keep their size, which must then be one for all.
    ``index_offset`` is added to every index, also where randomness is drawn from it: for several
    sets numbered as one. ``num_workers`` matters for encoded images only.

    Raises ValueError for options that contradict each other or the split.
    """
    if interpolation not in RESAMPLING or not 0 < crop_pct <= 1 or (size is not None and size < 1):
        raise ValueError(
            f"make_loader: needs size >= 1, crop_pct in (0, 1] and interpolation {' or '.join(RESAMPLING)}, got "
            f"size={size}, crop_pct={crop_pct}, interpolation={interpolation!r}; take them from the model's configuration."
        )
    if not isinstance(split, ArraySplit | FileSplit):
        raise ValueError(
            f"make_loader: needs an ArraySplit or a FileSplit, got {type(split).__name__}; open_data returns them "
            "(ImageData.train is None where a source has only images to evaluate on)."
        )
    plan = Plan(
        num=len(split),
        batch_size=batch_size,
        seed=seed,
        shuffle=shuffle,
        drop_last=drop_last,
        rank=rank,
        world_size=world_size,
    )
    views = _Views(augment or NO_AUGMENT, seed, size, crop_pct, interpolation)
    if isinstance(split, ArraySplit):
        return TensorLoader(split, plan, views, torch.device(device), index_offset)
    return FileLoader(split, plan, views, torch.device(device), index_offset, num_workers)


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
class _Views:
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


class TensorLoader:
    """Batches of decoded images.

    The bytes are kept on the device, or, where they would take more than half of a GPU's free
    memory, in the host's memory (or its memory map), from which batches are sent.
    """

    def __init__(
        self, split: ArraySplit, plan: Plan, views: _Views, device: torch.device, index_offset: int
    ) -> None:
        self._plan, self._views, self._device = plan, views, device
        self._index = split.index + index_offset
        self._rows = split.index
        self._labels = split.labels.to(device)
        self._images = split.images.to(device) if _fits(split.images, device) else split.images

    @property
    def num_samples(self) -> int:
        return self._plan.num

    @property
    def num_indices(self) -> int:
        return int(self._index.max()) + 1 if len(self._index) else 0

    def __len__(self) -> int:
        return len(self._plan)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        batches = self._plan.batches(epoch)
        group = max(1, (_GROUP_CPU if self._device.type == "cpu" else _GROUP) // self._plan.batch_size)
        for first in range(0, len(batches), group):
            yield from self._group(batches[first : first + group], epoch)

    def _group(self, batches: Sequence[Tensor], epoch: int) -> Iterator[Batch]:
        # A view does not know its neighbours, so several batches are made at once and cut apart.
        positions = torch.cat(list(batches))
        index = self._index[positions]
        partner = self._views.partners(index, epoch, self._plan.num)
        views = self._make(positions, epoch)
        others = None if partner is None else self._make(partner, epoch)
        index, positions = index.to(self._device), positions.to(self._device)
        partner = None if partner is None else partner.to(self._device)
        first = 0
        for batch in batches:
            part = slice(first, first + len(batch))
            first += len(batch)
            if partner is None or others is None:
                yield self._views.batch(
                    views[part], None, Target(self._labels[positions[part]], index[part]), epoch
                )
                continue
            # the share is not known before the mix; 1 stands in for it
            target = Target(
                self._labels[positions[part]],
                index=index[part],
                partner=self._labels[partner[part]],
                mix=torch.ones(len(batch), device=self._device),
            )
            yield self._views.batch(views[part], others[part], target, epoch)

    def _make(self, positions: Tensor, epoch: int) -> Tensor:
        v = self._views
        rows = self._rows[positions].to(self._images.device)
        images = self._images.index_select(0, rows).to(self._device, non_blocking=True)
        counter = self._index[positions]
        index = counter.to(self._device)
        if v.augment.resized_crop is not None:
            height, width = images.shape[2:]
            boxes = [
                resized_crop_box(
                    height, width, scale=v.augment.resized_crop, seed=v.seed, epoch=epoch, index=number
                )
                for number in counter.tolist()
            ]
            cropped = crop_batch(
                to_float(images), torch.tensor(boxes).to(self._device), size=v.size or height
            )
            return v.finish(v.crop_flip(cropped, index, epoch), index, epoch)
        pixels = to_float(v.crop_flip(images, index, epoch))
        if v.size is not None:
            pixels = centre_batch(pixels, size=v.size, crop_pct=v.crop_pct, interpolation=v.interpolation)
        return v.finish(pixels, index, epoch)


class FileLoader:
    """Batches of encoded images, decoded by ``num_workers`` processes (0: by this one)."""

    def __init__(
        self,
        split: FileSplit,
        plan: Plan,
        views: _Views,
        device: torch.device,
        index_offset: int,
        num_workers: int,
    ) -> None:
        if views.augment.resized_crop is not None and views.size is None:
            raise ValueError(
                "make_loader: needs size for resized crops of encoded images, got None; give the side of the "
                "model's input, such as 224."
            )
        self._plan, self._views, self._device = plan, views, device
        self._index = split.index + index_offset
        self._labels = split.labels
        self._sampler = _KeyedBatches(plan, self._index, views)
        self._loader: DataLoader[Tensor] = DataLoader(
            _Decoded(split, views, index_offset),
            batch_sampler=self._sampler,
            collate_fn=_as_is,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # DataLoader draws a seed each epoch: not from the user's generator
        )

    @property
    def num_samples(self) -> int:
        return self._plan.num

    @property
    def num_indices(self) -> int:
        return int(self._index.max()) + 1 if len(self._index) else 0

    def __len__(self) -> int:
        return len(self._plan)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        self._sampler.epoch = epoch
        for positions, decoded in zip(self._plan.batches(epoch), self._loader, strict=True):
            index = self._index[positions]
            partner = self._views.partners(index, epoch, self._plan.num)
            counters = index if partner is None else torch.cat([index, self._index[partner]])
            counters = counters.to(self._device)
            images = self._views.crop_flip(decoded.to(self._device, non_blocking=True), counters, epoch)
            views = self._views.finish(to_float(images), counters, epoch)
            label, index = self._labels[positions].to(self._device), counters[: len(positions)]
            if partner is None:
                yield self._views.batch(views, None, Target(label, index), epoch)
                continue
            target = Target(
                label,
                index=index,
                partner=self._labels[partner].to(self._device),
                mix=torch.ones(len(positions), device=self._device),
            )
            yield self._views.batch(views[: len(positions)], views[len(positions) :], target, epoch)


class _KeyedBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, position): workers outlive an epoch, so the epoch travels with the key."""

    def __init__(self, plan: Plan, index: Tensor, views: _Views) -> None:
        self.plan, self.index, self.views, self.epoch = plan, index, views, 0

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for positions in self.plan.batches(self.epoch):
            partner = self.views.partners(self.index[positions], self.epoch, self.plan.num)
            wanted = positions if partner is None else torch.cat([positions, partner])
            yield [(self.epoch, position) for position in wanted.tolist()]


class _Decoded(Dataset[Tensor]):
    """Decoding and resizing, in a worker: one size, still bytes, not yet mirrored."""

    def __init__(self, split: FileSplit, views: _Views, index_offset: int) -> None:
        self.split, self.views, self.index_offset = split, views, index_offset

    def __getitem__(self, key: tuple[int, int]) -> UInt8[Tensor, "3 height width"]:
        epoch, position = key
        v, picture = self.views, self.split.picture(position)
        if v.size is None:
            return to_tensor(picture)
        if v.augment.resized_crop is None:
            return centre_picture(picture, size=v.size, crop_pct=v.crop_pct, interpolation=v.interpolation)
        box = resized_crop_box(
            picture.height,
            picture.width,
            scale=v.augment.resized_crop,
            seed=v.seed,
            epoch=epoch,
            index=int(self.split.index[position]) + self.index_offset,
        )
        return crop_picture(picture, box, size=v.size, interpolation=v.interpolation)

    def __getitems__(self, keys: list[tuple[int, int]]) -> UInt8[Tensor, "n 3 height width"]:
        images = [self[key] for key in keys]
        for key, image in zip(keys, images, strict=True):
            if image.shape != images[0].shape:
                first, other = (
                    self.split.source.describe(int(self.split.index[k[1]])) for k in (keys[0], key)
                )
                raise ValueError(
                    f"make_loader: needs images of one size, got {tuple(images[0].shape[1:])} in {first} and "
                    f"{tuple(image.shape[1:])} in {other}; give size=, the side of the model's input."
                )
        return torch.stack(images)


def _as_is(batch: Any) -> Any:
    return batch  # __getitems__ has stacked it already


def _fits(images: Tensor, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return images.nbytes < free / 2
