"""Pictures without annotations: where a teacher finds an object, the student learns what the teacher says of the place.

    open_pictures    the pictures of a source, without those that are in the labelled data
    marked           the same pictures with the boxes that a detector finds: where to look, not what is true
    marked_by        the same with the boxes of a teacher, found once before training

folder:PATH             every picture below PATH, at any depth; in a folder with splits those of train alone
coco:, yolo:, voc:, hf: the pictures of the train split, else of the first one; annotations are not read and need not be there
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from outgrow.data.cache import default_cache_dir, usable
from outgrow.data.folder import SPLIT_NAMES
from outgrow.data.identity import also_in, fingerprint
from outgrow.data.notes import printable
from outgrow.data.reading import OnFault, Opening
from outgrow.data.unlabelled import left_over
from outgrow.detection.boxes import Detections
from outgrow.detection.data import KINDS as LAYOUTS
from outgrow.detection.data import DetectionSplit, read_pictures, split_listed
from outgrow.detection.layouts.annotations import SMALLEST, Faults
from outgrow.detection.layouts.listed import Listed, only_pictures, pictures_in
from outgrow.detection.loader import make_scene_loader
from outgrow.training.processes import process_group, rank_and_size

SURE = 0.3
"""The least score of a detection that says where to look. What the student learns there are the teacher's logits, so a doubtful
place teaches doubt. Our choice."""
KINDS = ("folder", *LAYOUTS)


@dataclass(frozen=True)
class Pictures:
    """``split`` has no boxes. ``fingerprint`` changes whenever the pictures may have changed."""

    source: str
    split: DetectionSplit
    fingerprint: str = field(repr=False)
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def open_pictures(
    spec: str,
    *,
    known: Mapping[str, DetectionSplit],
    rows: int | None = None,
    seed: int = 0,
    on_fault: OnFault = "refuse",
    cache_dir: Path | None = None,
) -> Pictures:
    """The pictures of ``spec``, without annotations.

    ``known`` are the labelled splits by name. Pictures that are in one of them, byte for byte, are left out: a test picture
    must not be trained on, and a training picture has its annotations. ``rows`` keeps the first of a seeded shuffle.

    ``ValueError`` for a missing path, and for pictures that are missing or whose size cannot be read (with
    ``on_fault="skip"`` these are left out), and if no picture is left.
    """
    notes: list[str] = []
    opening = Opening(None, on_fault, usable((cache_dir or default_cache_dir()) / "data", notes), notes)
    listed = _listed(spec, opening)
    for note in listed.file.notes:
        opening.note(note)
    opening.faults += listed.file.faults
    split, look = split_listed("unlabelled", listed, opening)
    split = replace(split, labelled=False)
    same = {name: _same(split, other) for name, other in known.items()}
    positions, more = left_over(spec, len(split), same, rows=rows, seed=seed)
    for note in more:
        opening.note(note)
    identity = fingerprint([*split.file.names, look.digests.tobytes(), *positions.tolist()])
    return Pictures(spec, split.subset(positions), identity, tuple(opening.faults), tuple(opening.notes))


def marked_by(
    detector: Any, pictures: DetectionSplit, device: torch.device, *, workers: int = 0, advance: Any = None
) -> DetectionSplit:
    """:func:`marked` with what ``detector``, any module with a method ``detect(images)``, finds. Each process looks at its
    share of the pictures."""
    group = process_group()
    rank, size = rank_and_size(group)
    loader = make_scene_loader(
        pictures,
        batch_size=size,  # one for each process: in a larger batch smaller images would be padded
        device=device,
        shuffle=False,
        num_workers=workers,
        rank=rank,
        world_size=size,
    )
    own = []
    for scenes in loader.epoch(0):
        own += [found.to("cpu") for found in detector.detect(scenes.images)]
        if advance is not None:
            advance(min(size * len(own), len(pictures)))
    parts: list[list[Detections]] = [own]
    if group is not None:
        parts = [[] for _ in range(size)]
        dist.all_gather_object(parts, own)
    return marked(pictures, [parts[at % size][at // size] for at in range(len(pictures))])


def marked(pictures: DetectionSplit, found: Sequence[Detections]) -> DetectionSplit:
    """``pictures`` with those of the boxes ``found`` in each of them that have a score of :data:`SURE` or more."""
    file, number = pictures.file, pictures.index
    kept = [one.score >= SURE for one in found]
    counts = torch.zeros(len(file.names), dtype=torch.int64)
    counts[number] = torch.tensor([int(at.sum()) for at in kept], dtype=torch.int64)
    order = number.argsort().tolist()  # rows are by image, in the order of the file
    boxes = torch.cat([found[at].boxes[kept[at]] for at in order]).float()
    label = torch.cat([found[at].label[kept[at]] for at in order])
    wide, high = (boxes[:, 2:] - boxes[:, :2]).unbind(1)
    return replace(
        pictures,
        file=replace(
            file,
            first=torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]),
            ids=torch.arange(len(label)),
            label=label,
            crowd=torch.zeros(len(label), dtype=torch.bool),
            bbox=torch.cat([boxes[:, :2], wide[:, None], high[:, None]], dim=1).double(),
            area=(wide * high).double(),
            boxes=boxes,
            usable=(wide >= SMALLEST) & (high >= SMALLEST),
        ),
    )


def _listed(spec: str, opening: Opening) -> Listed:
    kind, _, where = spec.partition(":")
    if kind not in KINDS or not where:
        raise ValueError(
            "--unlabelled: needs pictures as files, from folder:PATH, coco:..., yolo:..., voc:... or hf:..., got "
            f"{spec!r}; write for example folder:more."
        )
    if kind == "folder":
        return _folder(Path(where).expanduser(), opening)
    return read_pictures(spec, opening)


def _folder(root: Path, opening: Opening) -> Listed:
    if not root.is_dir():
        raise ValueError(
            f"--unlabelled: needs an existing folder of pictures, got {printable(root.absolute())}; check the path."
        )
    folder = root
    split = sorted(
        one.name for one in root.iterdir() if one.is_dir() and SPLIT_NAMES.get(one.name.lower()) == "train"
    )
    if split:
        folder = root / split[0]
        opening.note(
            f"data: the unlabelled images of {printable(root)} are those in {printable(split[0])} alone."
        )
    pictures = pictures_in(folder)
    if not pictures:
        raise ValueError(
            f"--unlabelled: needs at least one picture below {printable(folder)}, got none; add some, or name another folder."
        )
    names = [str(picture.relative_to(folder)) for picture in pictures]
    return only_pictures(names, folder, folder, Faults(str(folder), opening.on_fault))


def _same(split: DetectionSplit, other: DetectionSplit) -> np.ndarray | None:
    """Which pictures of ``split`` are in ``other``, byte for byte; None if digests of one cover whole files and of the other
    parts of them."""
    if split.digests is None or other.digests is None or split.sampled != other.sampled:
        return None
    rows = also_in(split.digests[split.index.numpy()], other.digests[other.index.numpy()])
    same = np.zeros(len(split), bool)
    for at in (rows >= 0).nonzero()[0].tolist():
        # the digest of a large file covers only a sample, so the bytes are compared, too
        same[at] = split.encoded(at) == other.encoded(int(rows[at]))
    return same
