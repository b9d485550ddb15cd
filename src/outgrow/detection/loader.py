"""Batches of images with boxes: workers decode and crop, and one transfer moves a batch to the device.

The order, the share of each process and the randomness are those of classification (outgrow.data.loader): a
view depends only on the seed, the epoch and the image's index.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from outgrow.data.mixed import Mixed
from outgrow.data.plan import Decoding, KeyedBatches, Plan
from outgrow.detection.boxes import Scenes
from outgrow.detection.data import DetectionSplit
from outgrow.detection.views import SceneViews, View

MEMORY = 256 * 2**20
"""Bytes of decoded images that may be kept: 291 of 640x480. A JPEG of that size takes 7 ms to decode, each epoch."""


def make_scene_loader(
    split: DetectionSplit,
    *,
    batch_size: int,
    device: str | torch.device = "cpu",
    seed: int = 0,
    shuffle: bool,
    drop_last: bool = False,
    flip: bool = False,
    resized_crop: tuple[float, float] | None = None,
    group_orientation: bool = False,
    short_sides: Sequence[int] = (),
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    least: int = 1,
) -> "SceneLoader":
    """The loader of ``split``.

    ``batch_size`` counts the images of a step over all ``world_size`` processes; process ``rank`` gets its
    share of each batch. ``flip`` mirrors half of the views. ``resized_crop`` (smallest and largest share of
    the area) crops at random, without resizing. ``group_orientation`` fills the batches of an epoch with images of
    one orientation, as a mixed batch is padded to squares; at most one batch is mixed. It has no effect with
    ``resized_crop``, whose views have any orientation. ``short_sides`` are sizes in pixels, of which each batch has
    one, drawn at random, as :attr:`Scenes.short_side`. ``num_workers`` processes decode; with 0, this process
    decodes, and keeps the decoded images if all of them fit in :data:`MEMORY`. In training a process's share of a batch
    has at least ``least`` images, or none.

    ``ValueError`` for options that contradict each other or the split.
    """
    plan = Plan(
        num=len(split),
        batch_size=batch_size,
        seed=seed,
        shuffle=shuffle,
        drop_last=drop_last,
        rank=rank,
        world_size=world_size,
        least=least,
        group=_is_upright(split) if group_orientation and resized_crop is None else None,
    )
    views = SceneViews(seed, flip, resized_crop, tuple(short_sides))
    return SceneLoader(split, plan, views, torch.device(device), num_workers)


class SceneLoader:
    """A loader as in classification, with :class:`Scenes` as batches."""

    def __init__(
        self, split: DetectionSplit, plan: Plan, views: SceneViews, device: torch.device, num_workers: int
    ) -> None:
        self._split, self.plan, self._device = split, plan, device
        self._views = views
        keep = num_workers == 0 and decoded_bytes(split) <= MEMORY
        images = _Decoded(split, views, keep=keep)
        self._decoding = Decoding(
            images, KeyedBatches(plan), _end_to_end, num_workers=num_workers, device=device
        )

    @property
    def num_samples(self) -> int:
        """Images in the split, over all processes."""
        return self.plan.num

    @property
    def num_indices(self) -> int:
        """One more than the largest ``index``."""
        return self._split.num_indices

    def __len__(self) -> int:
        """Batches per epoch on this process."""
        return len(self.plan)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Scenes]:
        """The batches of ``epoch`` from step ``start`` on. Epochs may be read in any order, more than once."""
        batches = self.plan.batches(epoch, start)
        decoded = self._decoding.epoch(epoch, start)
        for step, (positions, pixels) in enumerate(zip(batches, decoded, strict=True), start):
            # the ground truth needs no decoding, so it is made here and not sent from a worker
            shown = [(at, view_at(self._split, self._views, epoch, at)) for at in positions.tolist()]
            pixels = pixels.to(self._device, non_blocking=True).to(torch.float32).div_(255)
            parts = pixels.split([3 * view.height * view.width for _, view in shown])
            yield Scenes(
                images=[
                    part.view(3, view.height, view.width)
                    for part, (_, view) in zip(parts, shown, strict=True)
                ],
                truth=[view.truth(self._split.truth(at)).to(self._device) for at, view in shown],
                short_side=self._views.short_side(epoch=epoch, step=step),
            )


class MixedScenes(Mixed[Scenes]):
    """:class:`outgrow.data.mixed.Mixed` of images with boxes: those without annotations come last."""

    def joined(self, batch: Scenes, more: Scenes, step: int) -> Scenes:
        return Scenes([*batch.images, *more.images], [*batch.truth, *more.truth], batch.short_side)


def _is_upright(split: DetectionSplit) -> Int64[Tensor, " n"]:
    """1 for each image that is higher than wide, else 0."""
    height, width = split.file.sizes[split.index].unbind(1)
    return (height > width).long()


def view_at(split: DetectionSplit, views: SceneViews, epoch: int, position: int) -> View:
    """The view of the image at ``position`` of ``split`` in ``epoch``."""
    height, width = split.size(position)
    return views.view(height, width, epoch=epoch, index=int(split.index[position]))


def decoded_bytes(split: DetectionSplit) -> int:
    """Bytes of all images of ``split``, decoded."""
    return 3 * int(split.file.sizes[split.index].prod(1).sum())


class _Decoded(Dataset[Tensor]):
    """Views as uint8. With ``keep``, which is for the main process, decoded images are kept."""

    def __init__(self, split: DetectionSplit, views: SceneViews, *, keep: bool) -> None:
        self.split, self.views = split, views
        self.kept: dict[int, Tensor] | None = {} if keep else None

    def __getitem__(self, key: tuple[int, int]) -> UInt8[Tensor, "3 height width"]:
        epoch, position = key
        return view_at(self.split, self.views, epoch, position).image(self._image(position))

    def _image(self, position: int) -> UInt8[Tensor, "3 height width"]:
        if self.kept is None:
            return self.split.image(position)
        if position not in self.kept:
            self.kept[position] = self.split.image(position)
        return self.kept[position]


def _end_to_end(images: list[Tensor]) -> UInt8[Tensor, " bytes"]:
    """Images of any size as one flat tensor: one file handle between processes and one copy to the device."""
    if not images:  # the share of a process may be empty
        return torch.empty(0, dtype=torch.uint8)
    return torch.cat([image.reshape(-1) for image in images])
