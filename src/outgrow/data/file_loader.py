"""Batches of encoded images: workers decode and resize, and the rest runs in batches on the device."""

from collections.abc import Iterator

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset

from outgrow.data.geometry import centre_view, crop_picture, resized_crop_box
from outgrow.data.pixels import to_tensor
from outgrow.data.plan import Batch, Decoding, ImageLoader, KeyedBatches, Plan, Views
from outgrow.data.splits import FileSplit
from outgrow.data.transforms import to_float


class FileLoader(ImageLoader):
    """Batches of encoded images, decoded by ``num_workers`` processes (0: in this process)."""

    def __init__(
        self, split: FileSplit, plan: Plan, views: Views, device: torch.device, num_workers: int
    ) -> None:
        if views.augment.resized_crop is not None and views.size is None:
            raise ValueError(
                "make_loader: needs size for resized crops of encoded images, got None; pass the model's input size, "
                "such as 224."
            )
        super().__init__(split, plan, views, device)
        keys = KeyedBatches(plan, self._shown)
        self._decoding = Decoding(
            _Decoded(split, views), keys, torch.stack, num_workers=num_workers, device=device
        )

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        batches = self.plan.batches(epoch, start)
        for positions, decoded in zip(batches, self._decoding.epoch(epoch, start), strict=True):
            shown = self._shown(positions, epoch)
            index = self._index[shown].to(self._device)
            decoded = decoded[: len(shown)]  # an empty share is decoded as one image, to have a size
            images = self._views.crop_flip(decoded.to(self._device, non_blocking=True), index, epoch)
            yield self._batch(self._views.finish(to_float(images), index, epoch), shown, index, epoch)


class _Decoded(Dataset[Tensor]):
    """Decode and resize in a worker: images of one size, uint8, not flipped yet."""

    def __init__(self, split: FileSplit, views: Views) -> None:
        self.split, self.views = split, views

    def __getitem__(self, key: tuple[int, int]) -> UInt8[Tensor, "3 height width"]:
        epoch, position = key
        v, picture = self.views, self.split.picture(position)
        if v.size is None:
            return to_tensor(picture)
        if v.augment.resized_crop is None:
            return to_tensor(
                centre_view(picture, size=v.size, crop_pct=v.crop_pct, interpolation=v.interpolation)
            )
        box = resized_crop_box(
            picture.height,
            picture.width,
            scale=v.augment.resized_crop,
            seed=v.seed,
            epoch=epoch,
            index=int(self.split.index[position]),
        )
        return crop_picture(picture, box, size=v.size, interpolation=v.interpolation)

    def __getitems__(self, keys: list[tuple[int, int]]) -> list[Tensor]:
        if not keys:  # an empty share still needs a size: decode one image
            return [self[0, 0]]
        images = [self[key] for key in keys]
        for key, image in zip(keys, images, strict=True):
            if image.shape != images[0].shape:
                first, other = (
                    self.split.source.describe(int(self.split.index[k[1]])) for k in (keys[0], key)
                )
                raise ValueError(
                    f"make_loader: needs images of one size, got {tuple(images[0].shape[1:])} in {first} and "
                    f"{tuple(image.shape[1:])} in {other}; pass size=, the model's input size."
                )
        return images
