"""Batches of decoded images: the bytes stay on the device, and views are made there for many images at once."""

from collections.abc import Iterator

import torch
from torch import Tensor

from outgrow.data.geometry import centre_view, crop_batch, resized_crop_box
from outgrow.data.plan import Batch, ImageLoader, Plan, Views
from outgrow.data.splits import ArraySplit
from outgrow.data.transforms import to_float
from outgrow.outputs import Target

_GROUP = 1024
"""Views made at once on an accelerator, where kernel launches dominate the cost."""
_GROUP_CPU = 256
"""Views made at once on a CPU: enough to spread the dispatch overhead, few enough to fit the CPU's cache."""


class TensorLoader(ImageLoader):
    """Batches of decoded images.

    The bytes are kept on the device. If they would take more than half of a GPU's free memory, they stay in
    host memory (or its memory map), and batches are copied from there.
    """

    def __init__(self, split: ArraySplit, plan: Plan, views: Views, device: torch.device) -> None:
        super().__init__(split, plan, views, device)
        self._images = split.images.to(device) if _fits(split.images, device) else split.images

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        # A view does not know its neighbours, so several batches are made at once and cut apart.
        batches = self.plan.batches(epoch, start)
        views = _GROUP_CPU if self._device.type == "cpu" else _GROUP
        group = max(1, views // (self.plan.batch_size * (2 if self._views.augment.mixes else 1)))
        for first in range(0, len(batches), group):
            positions = batches[first : first + group]
            shown = self._shown(torch.cat(positions), epoch)
            index = self._index[shown].to(self._device)
            made = self._batch(self._make(shown, index, epoch), shown, index, epoch)
            target = made.target
            columns = (made.images, target.label, target.index, target.partner, target.mix)
            sizes = [len(batch) for batch in positions]
            for images, label, number, partner, mix in zip(
                *([None] * len(sizes) if column is None else column.split(sizes) for column in columns),
                strict=True,
            ):
                yield Batch(images, Target(label, index=number, partner=partner, mix=mix))

    def _make(self, shown: Tensor, index: Tensor, epoch: int) -> Tensor:
        """Views of the samples at positions ``shown``, on the device; ``index`` are their sample indices."""
        v, scale = self._views, self._views.augment.resized_crop
        counter = self._index[shown]
        images = self._images.index_select(0, counter.to(self._images.device))
        images = images.to(self._device, non_blocking=True)
        if scale is not None:
            height, width = images.shape[2:]
            boxes = torch.tensor(
                [
                    resized_crop_box(height, width, scale=scale, seed=v.seed, epoch=epoch, index=number)
                    for number in counter.tolist()
                ],
                dtype=torch.int64,
            ).view(len(counter), 4)
            pixels = crop_batch(to_float(images), boxes.to(self._device), size=v.size or height)
            return v.finish(v.crop_flip(pixels, index, epoch), index, epoch)
        pixels = to_float(v.crop_flip(images, index, epoch))
        if v.size is not None:
            pixels = centre_view(pixels, size=v.size, crop_pct=v.crop_pct, interpolation=v.interpolation)
            pixels = pixels.clamp_(0, 1)  # bicubic overshoots
        return v.finish(pixels, index, epoch)


def _fits(images: Tensor, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return images.nbytes < free / 2
