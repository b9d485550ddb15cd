"""Make a loader of reproducible batches of images and targets.

    plan.py           which samples make up which batch, and this process's share of them
    tensor_loader.py  decoded images: kept on the device as uint8, all steps batched there
    file_loader.py    encoded images: decoded and resized by workers, the rest batched on the device

A view depends on the seed, the epoch and the sample's index. Batch size, workers and processes do not change
its pixels or its place in the epoch.
"""

import torch

from outgrow.data.file_loader import FileLoader
from outgrow.data.geometry import INTERPOLATIONS
from outgrow.data.plan import Batch, ImageLoader, Loader, Plan, Views
from outgrow.data.splits import ArraySplit, FileSplit, Split
from outgrow.data.tensor_loader import TensorLoader
from outgrow.data.transforms import NO_AUGMENT, Augment

__all__ = ["Batch", "Loader", "make_loader"]


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
    least: int = 1,
    balanced: bool = False,
) -> ImageLoader:
    """The loader for ``split``.

    ``batch_size`` counts the samples of a step over all processes. Each of ``world_size`` processes
    gets the share of its ``rank`` of the same batches. Shares may differ by one row. In training a share has at
    least ``least`` rows, or none; an empty share is a batch without rows. In evaluation every sample belongs to
    exactly one process.

    ``balanced`` draws all classes equally often: samples of rare classes come several times in an epoch.

    ``size``: side of the views in pixels. The short side is resized to ``floor(size / crop_pct)``
    (``interpolation``: "bilinear" or "bicubic") and the centre is cropped, unless ``augment.resized_crop`` is
    set. Without ``size`` images keep their size, which must then be the same for all.
    ``num_workers`` matters for encoded images only.

    Raises ValueError for options that contradict each other or the split.
    """
    if interpolation not in INTERPOLATIONS or not 0 < crop_pct <= 1 or (size is not None and size < 1):
        raise ValueError(
            f"make_loader: needs size >= 1, crop_pct in (0, 1] and interpolation {' or '.join(INTERPOLATIONS)}, got "
            f"size={size}, crop_pct={crop_pct}, interpolation={interpolation!r}; take them from the model's configuration."
        )
    if not isinstance(split, ArraySplit | FileSplit):
        raise ValueError(
            f"make_loader: needs an ArraySplit or a FileSplit, got {type(split).__name__}; open_data returns them "
            "(ImageData.train is None for a source that has only images to evaluate on)."
        )
    plan = Plan(
        num=len(split),
        batch_size=batch_size,
        seed=seed,
        shuffle=shuffle,
        drop_last=drop_last,
        rank=rank,
        world_size=world_size,
        least=least,
        balance=split.labels if balanced else None,
    )
    views = Views(augment or NO_AUGMENT, seed, size, crop_pct, interpolation)
    if isinstance(split, ArraySplit):
        return TensorLoader(split, plan, views, torch.device(device))
    return FileLoader(split, plan, views, torch.device(device), num_workers)
