"""Describe a data set before training: a text summary, and a contact sheet of images.

lines = describe_data("folder:photos")
write_contact_sheet("folder:photos", "photos.png")
"""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float32
from torch import Tensor

from outgrow.data.loader import make_loader
from outgrow.data.notes import DataWarning, printable, some
from outgrow.data.reading import OnFault
from outgrow.data.source import open_data
from outgrow.data.splits import ArraySplit, FileSplit, ImageData, Split
from outgrow.machine.files import write_atomically

SHOWN = 8
"""Images on a contact sheet."""
MEASURED = 500
"""Largest number of images whose size is read; of larger sets, this many at equal distances."""
_LISTED = 20
"""Largest number of classes that are listed one by one."""
_LEAST = 96
"""Smallest side in pixels on the sheet: smaller images are enlarged with nearest-neighbour interpolation."""


def describe_data(
    source: str, *, label: str | None = None, size: int | None = None, on_fault: OnFault = "refuse"
) -> list[str]:
    """A summary: splits with images per class, image sizes, the network's input size, duplicates and broken images.

    ``size`` is the run's ``data.size`` or the network's default. ``ValueError`` as from
    :func:`outgrow.data.open_data`.
    """
    data = _opened(source, label, on_fault)
    lines = [f"{printable(source)}: {data.num_classes} classes"]
    for name, split in _splits(data):
        lines.append(f"{name:<6}{len(split):>9,} images  {_counts(split, data.classes)}")
        lines.append(f"{'':<6}{'':>9} {_sizes(split)}")
    lines.append(f"input size {_input_size(data.test, size)}")
    if data.duplicates is None:
        lines.append("images for training and for testing were not compared")
    else:
        lines.append(f"{data.duplicates} test images are among the training images, byte for byte")
    skipped = f" ({some(data.faults)})" if data.faults else ""
    how = (
        "cannot be decoded and are left out"
        if on_fault == "skip"
        else "are known to be broken (data.on_fault=skip checks all)"
    )
    lines.append(f"{len(data.faults)} images {how}{skipped}")
    lines.append(f"fingerprint {data.fingerprint[:16]}")
    return lines + [f"note: {note.removeprefix('data: ')}" for note in data.notes]


def write_contact_sheet(
    source: str,
    path: str | Path,
    *,
    label: str | None = None,
    size: int | None = None,
    on_fault: OnFault = "refuse",
) -> Path:
    """Write a PNG with eight images at equal distances, as evaluation views of ``size``."""
    data = _opened(source, label, on_fault)
    split = data.test if data.train is None else data.train
    chosen = split.subset(spread(len(split), SHOWN))
    side = size or (None if isinstance(split, ArraySplit) else 224)
    batch = next(iter(make_loader(chosen, batch_size=SHOWN, size=side, shuffle=False).epoch(0)))
    return write_sheet(list(batch.images), path)


def write_sheet(images: Sequence[Float32[Tensor, "3 _ _"]], path: str | Path) -> Path:
    """Write images in [0, 1] as a PNG, four in a row."""
    from PIL import Image

    pictures = []
    for image in images:
        pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        picture = Image.fromarray(pixels)
        times = max(1, -(-_LEAST // max(picture.size)))
        pictures.append(
            picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
        )
    wide, high = (max(picture.size[axis] for picture in pictures) + 4 for axis in (0, 1))
    sheet = Image.new("RGB", (4 * wide + 4, -(-len(pictures) // 4) * high + 4), (255, 255, 255))
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (number % 4 * wide + 4, number // 4 * high + 4))
    content = io.BytesIO()
    sheet.save(content, format="PNG")
    write_atomically(path, content.getvalue())
    return Path(path)


def spread(num: int, count: int) -> Tensor:
    """``count`` positions at equal distances from the first to the last of ``num``; all if there are fewer.

    >>> spread(100, 4).tolist()
    [0, 33, 66, 99]
    """
    return torch.linspace(0, num - 1, min(num, count), dtype=torch.float64).round().to(torch.int64)


def _opened(source: str, label: str | None, on_fault: OnFault) -> ImageData:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # the notes are printed as lines
        return open_data(source, label=label, on_fault=on_fault)


def _splits(data: ImageData) -> list[tuple[str, Split]]:
    named = (("train", data.train), ("val", data.val), ("test", data.test))
    return [(name, split) for name, split in named if split is not None]


def _counts(split: Split, classes: Sequence[str]) -> str:
    counts = split.labels.bincount(minlength=len(classes)).tolist()
    names = [printable(name) for name in classes]
    if len(names) <= _LISTED:
        return ", ".join(f"{name} {count:,}" for name, count in zip(names, counts, strict=True))
    order = sorted(range(len(names)), key=lambda number: counts[number])
    few, many = order[0], order[-1]
    return f"from {counts[few]:,} ({names[few]}) to {counts[many]:,} ({names[many]}) per class"


def _sizes(split: Split) -> str:
    """The range of widths and heights, from the images' headers."""
    if isinstance(split, ArraySplit):
        return f"all {split.images.shape[3]} x {split.images.shape[2]}"
    assert isinstance(split, FileSplit)
    from PIL import Image

    sizes = []
    for position in spread(len(split), MEASURED).tolist():
        try:
            with Image.open(io.BytesIO(split.source.read(int(split.index[position])))) as image:
                sizes.append(image.size)
        except Exception:  # broken images are counted elsewhere
            continue
    if not sizes:
        return "of unknown size"
    sizes.sort(key=lambda size: size[0] * size[1])
    least, middle, largest = (f"{w} x {h}" for w, h in (sizes[0], sizes[len(sizes) // 2], sizes[-1]))
    of = "" if len(split) <= MEASURED else f" ({len(sizes)} measured)"
    return (
        f"all {least}{of}"
        if sizes[0] == sizes[-1]
        else f"{least} to {largest}, half of them up to {middle}{of}"
    )


def _input_size(split: Split, size: int | None) -> str:
    if size is not None:
        return f"{size} x {size} (data.size, or the network's default)"
    if isinstance(split, ArraySplit):
        return f"{split.images.shape[3]} x {split.images.shape[2]}, the size of the images (data.size changes it)"
    return "224 x 224 unless the network has another default (data.size changes it)"
