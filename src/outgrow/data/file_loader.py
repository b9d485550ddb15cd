"""Batches of encoded images: workers decode and resize, the device does the rest in batches."""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from outgrow.data.geometry import centre_picture, crop_picture, resized_crop_box
from outgrow.data.plan import Batch, Plan, Views
from outgrow.data.splits import FileSplit, to_tensor
from outgrow.data.transforms import to_float
from outgrow.outputs import Target


class FileLoader:
    """Batches of encoded images, decoded by ``num_workers`` processes (0: by this one)."""

    def __init__(
        self,
        split: FileSplit,
        plan: Plan,
        views: Views,
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

    def __init__(self, plan: Plan, index: Tensor, views: Views) -> None:
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

    def __init__(self, split: FileSplit, views: Views, index_offset: int) -> None:
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
