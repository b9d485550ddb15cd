"""Batches of views and targets, in the same order and with the same pixels however they are made.

    plan.py           which samples make up which batch, and this process's share of them
    tensor_loader.py  decoded images: kept on the device as bytes, everything batched there
    file_loader.py    encoded images: decoded and resized by workers, the rest batched on the device

A view depends on the seed, the epoch and the sample's index; batch size, workers and processes only
decide when and where it is made.
"""

import torch

from outgrow.data.file_loader import FileLoader
from outgrow.data.geometry import INTERPOLATIONS
from outgrow.data.plan import Batch, Loader, Plan, Views
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
) -> Loader:
    """The loader that suits ``split``.

    ``batch_size`` counts the samples of a step over all processes; each of ``world_size`` processes
    gets its ``rank``'s share of the same batches. Shares may differ by one row; in training a share has
    ``least`` rows or more, or none, and an empty one is a batch without rows. In an evaluation every sample
    is seen once by one process.

    ``size``: side of the views in pixels; the short side is resized to ``floor(size / crop_pct)``
    (``interpolation``: "bilinear" or "bicubic") and the centre cut out, or ``augment.resized_crop``
    is taken. Without it images keep their size, which must then be one for all.
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
        least=least,
    )
    views = Views(augment or NO_AUGMENT, seed, size, crop_pct, interpolation)
    if isinstance(split, ArraySplit):
        return TensorLoader(split, plan, views, torch.device(device))
    return FileLoader(split, plan, views, torch.device(device), num_workers)
