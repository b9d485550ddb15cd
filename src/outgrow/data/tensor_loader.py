"""Batches of decoded images: bytes that stay on the device, and views made there, many at a time."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from outgrow.data.geometry import centre_batch, crop_batch, resized_crop_box
from outgrow.data.plan import Batch, Plan, Views
from outgrow.data.splits import ArraySplit
from outgrow.data.transforms import to_float
from outgrow.outputs import Target

_GROUP = 1024
"""Images handled at once on an accelerator, where launching kernels is what costs."""
_GROUP_CPU = 256
"""On a CPU: enough to spread the cost of dispatch, few enough to stay in the cache."""


class TensorLoader:
    """Batches of decoded images.

    The bytes are kept on the device, or, where they would take more than half of a GPU's free
    memory, in the host's memory (or its memory map), from which batches are sent.
    """

    def __init__(
        self, split: ArraySplit, plan: Plan, views: Views, device: torch.device, index_offset: int
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


def _fits(images: Tensor, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return images.nbytes < free / 2
