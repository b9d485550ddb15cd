"""``outgrow data`` for detection: a summary as text, and a sheet of example images with their boxes."""

import warnings
from pathlib import Path

import torch
from jaxtyping import Float32
from torch import Tensor

from outgrow.data.describe import SHOWN, spread, write_sheet
from outgrow.data.notes import DataWarning, printable, some
from outgrow.data.reading import OnFault
from outgrow.detection.data import DetectionData, DetectionSplit, open_boxes


def describe_boxes(source: str, *, on_fault: OnFault = "refuse") -> list[str]:
    """Lines with each split's images, boxes by class and image sizes, and with duplicates, faults and notes."""
    data = _opened(source, on_fault)
    lines = [f"{printable(source)}: {data.num_classes} classes"]
    for name, split in (("train", data.train), ("val", data.val), ("test", data.test)):
        if split is not None:
            lines += [
                f"{name:<6}{len(split):>9,} images  {_boxes(split, data)}",
                f"{'':<6}{'':>9} {_sizes(split)}",
            ]
    if data.duplicates is not None:
        lines.append(f"{data.duplicates} test images are among the training images, byte for byte")
    if data.faults:
        lines.append(
            f"{len(data.faults)} images and annotations have faults and are left out ({some(data.faults)})"
        )
    lines.append(f"fingerprint {data.fingerprint[:16]}")
    return lines + [f"note: {note.removeprefix('data: ')}" for note in data.notes]


def write_scene_sheet(source: str, path: str | Path, *, on_fault: OnFault = "refuse") -> Path:
    """A PNG of eight images with their boxes, each at most 400 pixels wide and high."""
    data = _opened(source, on_fault)
    split = data.test if data.train is None else data.train
    return write_sheet([_drawn(split, at) for at in spread(len(split), SHOWN).tolist()], path)


def _opened(source: str, on_fault: OnFault) -> DetectionData:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # notes are printed as lines
        return open_boxes(source, on_fault=on_fault)


def _boxes(split: DetectionSplit, data: DetectionData) -> str:
    labels = torch.cat([split.truth(at).label for at in range(len(split))])
    counts = labels.bincount(minlength=data.num_classes + 1)[1:].tolist()
    order = sorted(range(len(counts)), key=lambda number: -counts[number])
    named = ", ".join(f"{printable(data.classes[number])} {counts[number]:,}" for number in order[:20])
    more = f" and {len(order) - 20} classes more" if len(order) > 20 else ""
    return f"{len(labels):,} boxes: {named}{more}"


def _sizes(split: DetectionSplit) -> str:
    sizes = split.file.sizes[split.index]
    order = sizes.prod(1).argsort()
    (low, thin), (high, wide) = sizes[order[0]].tolist(), sizes[order[-1]].tolist()
    return f"all {thin} x {low}" if (low, thin) == (high, wide) else f"{thin} x {low} to {wide} x {high}"


def _drawn(split: DetectionSplit, position: int) -> Float32[Tensor, "3 _ _"]:
    import numpy as np
    from PIL import Image, ImageDraw

    image = Image.fromarray(split.image(position).permute(1, 2, 0).numpy())
    scale = min(1.0, 400 / max(image.size))
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    draw = ImageDraw.Draw(image)
    for box in (split.truth(position).boxes * scale).tolist():
        draw.rectangle(box, outline=(230, 30, 30), width=2)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).to(torch.float32) / 255
