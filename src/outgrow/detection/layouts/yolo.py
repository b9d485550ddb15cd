"""YOLO's layout: ``yolo:DATA.yaml``.

    path: cells                   optional: the folder that the others are relative to
    train: train/images           a folder, a list of folders, or a text file with a path in each line
    val: valid/images
    names: [RBC, WBC]             or {0: RBC, 1: WBC}

The labels of ``images/a.jpg`` are in ``labels/a.txt``: in each line a class and a box (centre x, centre y, width, height)
as shares of the image, or a polygon, whose bounding box counts. With ``kpt_shape`` in the YAML keypoints follow the box.
An image without such a file has no objects. Two images of one name (a.jpg, a.png) are a fault, as they have one such file.
"""

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from outgrow.data.files import read_bytes
from outgrow.data.notes import printable, some
from outgrow.data.reading import OnFault
from outgrow.detection.layouts.annotations import Faults, check_content
from outgrow.detection.layouts.listed import (
    SPLITS,
    Listed,
    common_folder,
    digest_of,
    hold_out,
    no_size,
    only_pictures,
    pictures_in,
    read_each,
    size_of_file,
)
from outgrow.machine.files import parse_yaml

_KEYS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_ROUNDING = 1e-3
"""How far a share may lie outside [0, 1]: labels are written with a few digits."""
_OUTSIDE = 0.02
"""How far a keypoint may lie outside of its box, as a share of the image. Our choice."""
_LINES = 10
"""The least number of lines that are taken for keypoints. Our choice."""


def read_yolo(source: str, where: str, on_fault: OnFault) -> dict[str, Listed]:
    """The splits of ``yolo:WHERE``."""
    path, facts = _facts(source, where)
    names = _names(path, facts)
    keys = {split: key for key, split in reversed(_KEYS.items()) if facts.get(key)}
    splits = [split for split in SPLITS if split in keys]
    found = read_each(splits, lambda split: _split(path, facts, keys[split], names, on_fault))
    return hold_out(found, path)


def yolo_pictures(source: str, where: str, on_fault: OnFault) -> Listed:
    """The images of the training split, or of the first split there is."""
    path, facts = _facts(source, where)
    key = next((key for key in _KEYS if facts.get(key)), None)
    if key is None:
        raise ValueError(
            f"data: needs the images of a split (train) in {path}, got {', '.join(map(str, facts)) or 'nothing'}; add them."
        )
    pictures = _pictures_of(path, facts, key)
    home = common_folder(pictures)
    names = [os.path.relpath(picture, home) for picture in pictures]
    return only_pictures(names, home, home, Faults(f"{path} ({key})", on_fault))


def _facts(source: str, where: str) -> tuple[Path, dict[str, Any]]:
    """The path of a data.yaml and its content."""
    path = Path(where).expanduser()
    if path.is_dir():
        path = path / "data.yaml"
    if not path.is_file():
        raise ValueError(
            f"data: needs an existing data.yaml in {source!r}, got {path.absolute()}; check the path."
        )
    try:
        facts = parse_yaml(read_bytes(path))
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(
            f"data: needs a YAML file, got {path}, which cannot be read ({(str(error) or type(error).__name__).splitlines()[0]}); restore it."
        ) from error
    if not isinstance(facts, dict):
        raise ValueError(
            f"data: needs train, val and names in {path}, got {type(facts).__name__}; pass the data.yaml of the set."
        )
    return path, facts


def _names(path: Path, facts: Mapping[str, Any]) -> tuple[str, ...]:
    names, count = facts.get("names"), facts.get("nc")
    if isinstance(names, dict) and sorted(names) == list(range(len(names))):
        names = [names[number] for number in range(len(names))]
    plain = isinstance(names, list) and all(type(name) in (str, int, float) for name in names)
    if not plain or not names or len(set(map(str, names))) < len(names):
        raise ValueError(
            f"data: needs the names of the classes in {path}, as a list or numbered from 0, each once, got names: {names!r}; "
            "add them, and put yes, no, on, off and null in quotes."
        )
    if count is not None and count != len(names):
        raise ValueError(
            f"data: needs as many names as classes in {path}, got {len(names)} names and nc: {count!r}; correct one of them."
        )
    return tuple(map(str, names))


def _pictures_of(path: Path, facts: dict[str, Any], key: str) -> list[Path]:
    stated = facts[key] if isinstance(facts[key], list) else [facts[key]]
    pictures = [picture for one in stated for picture in _pictures(_place(path, facts, str(one)), path, key)]
    if not pictures:
        raise ValueError(f"data: needs images in {key} of {path}, got none in {stated}; check the folder.")
    return pictures


def _split(path: Path, facts: dict[str, Any], key: str, names: tuple[str, ...], on_fault: OnFault) -> Listed:
    pictures = _pictures_of(path, facts, key)
    labels = [_label_file(picture) for picture in pictures]
    if not any(label.is_file() for label in labels):
        raise ValueError(
            f"data: needs a text file of labels for the images of {key} in {path}, got none such as {printable(labels[0])}; "
            "put them into a folder labels beside images."
        )
    notes = [*_without_labels(path, key, labels), *_without_pictures(path, facts, key, labels)]
    same_name = Counter(map(_label_file, set(pictures)))
    keypoints = _keypoints(path, facts)
    home = common_folder(pictures)
    faults = Faults(f"{path} ({key})", on_fault)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    origins: dict[int, str] = {}
    shapes: Counter[tuple[int, int]] = Counter()
    for number, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        width, height = size_of_file(picture) or (0, 0)
        name = os.path.relpath(picture, home)
        if not width:
            faults.add("image", name, *no_size(picture))
            continue
        if same_name[label] > 1 and label.is_file():
            # such as a picture and its mask: which of them the boxes are of is not known
            needed = f"to be the only picture of {printable(label)}"
            faults.add("image", name, needed, f"{same_name[label]} of that name")
            continue
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for line, text in enumerate(_lines(label), start=1):
            if not text.strip():
                continue
            entry = len(annotations)
            place = f"line {line} of {printable(label)}"
            origins[entry] = place
            found = _box(text, len(names), width, height, keypoints)
            if isinstance(found[0], str):
                faults.add("annotation", line, found[0], text.strip()[:80], place=place, on=number)
                continue
            if not keypoints:
                shapes.update(_shapes([float(share) for share in text.split()[1:]]))
            kind, box = found
            annotations.append({"id": entry, "image_id": number, "category_id": kind, "bbox": box})
    notes += _as_keypoints(path, key, shapes, len(annotations))
    faults.origins = origins
    categories = [{"id": number, "name": name} for number, name in enumerate(names)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    file = check_content(content, path, faults, centred=True)
    file = replace(file, notes=(*notes, *file.notes))
    return Listed(file, home, home, digest_of([path, *(label for label in labels if label.is_file())]))


def _without_labels(path: Path, key: str, labels: Sequence[Path]) -> list[str]:
    """A note if half of the images or more have no file of labels: some may have another name."""
    missing = [label for label in labels if not label.is_file()]
    if 2 * len(missing) < len(labels):
        return []
    return [
        f"data: {len(missing):,} of {len(labels):,} images of {key} in {path} have no file of labels and count as images without "
        f"objects (there is no {printable(missing[0])})."
    ]


def _without_pictures(path: Path, facts: dict[str, Any], key: str, labels: Sequence[Path]) -> list[str]:
    """A note on files with boxes beside those of a split's folders that no picture has: theirs may have an unknown suffix."""
    stated = facts[key] if isinstance(facts[key], list) else [facts[key]]
    if not all(_place(path, facts, str(one)).is_dir() for one in stated):
        return []  # a list of paths may leave some out on purpose
    known = set(labels)
    others = (
        other
        for folder in sorted({label.parent for label in labels})
        for other in sorted(folder.glob("*.txt"))
    )
    alone = [other for other in others if other not in known and _has_boxes(other)]
    if not alone:
        return []
    return [
        f"data: {len(alone):,} files of labels for {key} in {path} have no picture of that name and are left out "
        f"({some([printable(one) for one in alone])})."
    ]


def _has_boxes(label: Path) -> bool:
    """Whether the first line is a class and numbers, which that of a list of classes is not."""
    numbers = next((line.split() for line in _lines(label) if line.strip()), [])
    try:
        return len([float(number) for number in numbers]) >= 5
    except ValueError:
        return False


def _keypoints(path: Path, facts: Mapping[str, Any]) -> int:
    """How many numbers of keypoints follow the box in a line."""
    shape = facts.get("kpt_shape")
    if shape is None:
        return 0
    if not (
        isinstance(shape, list) and len(shape) == 2 and all(type(one) is int and one > 0 for one in shape)
    ):
        raise ValueError(
            f"data: needs two numbers as kpt_shape in {path} (keypoints, and numbers of each), got {shape!r}; correct them."
        )
    return shape[0] * shape[1]


def _as_keypoints(path: Path, key: str, shapes: Counter[tuple[int, int]], lines: int) -> list[str]:
    """A note if nearly all lines that are read as polygons are most likely boxes with keypoints."""
    shape, most = max(shapes.items(), key=lambda one: (one[1], one[0][1]), default=((0, 0), 0))
    if lines < _LINES or 10 * most < 9 * lines:
        return []
    return [
        f"data: {most:,} of {lines:,} lines of labels for {key} in {path} are read as polygons, and would be boxes with keypoints "
        f"inside. If they are, write kpt_shape: {list(shape)} into {path.name}: without it the boxes are wrong."
    ]


def _shapes(shares: Sequence[float]) -> set[tuple[int, int]]:
    """The values of kpt_shape with which the numbers of a line are a box in its image and keypoints in the box.

    >>> _shapes([0.5, 0.5, 0.2, 0.4, 0.45, 0.6, 1.0, 0.0, 0.0, 0.0])
    {(2, 3)}
    """
    (x, y, wide, high), rest = shares[:4], shares[4:]
    if len(rest) == 4 and abs(x - wide + rest[0] - rest[2]) + abs(y - high + rest[1] - rest[3]) < _ROUNDING:
        return set()  # four corners of a rectangle that may be turned
    if max(abs(x - 0.5) + wide / 2, abs(y - 0.5) + high / 2) > 0.5 + _ROUNDING:
        return set()
    found = set()
    for size in (2, 3):
        points = [rest[at : at + size] for at in range(0, len(rest), size)]
        if points and all(
            len(point) == size
            and point[2:] in ([], [0], [1], [2])
            and (
                not any(point[:2])
                or max(abs(point[0] - x) - wide / 2, abs(point[1] - y) - high / 2) < _OUTSIDE
            )
            for point in points
        ):
            found.add((len(points), size))
    return found


def _place(path: Path, facts: dict[str, Any], stated: str) -> Path:
    """A folder or file of the YAML, relative to its ``path``, to the YAML, or as Roboflow writes it (../train)."""
    base = path.parent / Path(str(facts.get("path") or ".")).expanduser()
    candidates = [base / stated, path.parent / stated, path.parent / stated.removeprefix("../")]
    return next((one for one in candidates if one.exists()), candidates[0])


def _pictures(place: Path, path: Path, key: str) -> list[Path]:
    if place.is_dir():
        return [Path(os.path.abspath(one)) for one in pictures_in(place)]
    if place.suffix != ".txt" or not place.is_file():
        raise ValueError(
            f"data: needs a folder of images or a text file of paths as {key} in {path}, got {printable(place)}; correct the path."
        )
    lines = [line.strip() for line in _lines(place) if line.strip()]
    return [Path(os.path.abspath(place.parent / line)) for line in lines]


def _label_file(picture: Path) -> Path:
    """The file of labels of an image: the last folder ``images`` of its path is ``labels`` there.

    >>> _label_file(Path("set/images/train/a.jpg")).as_posix()
    'set/labels/train/a.txt'
    """
    parts = list(picture.with_suffix(".txt").parts)
    for place in range(len(parts) - 2, -1, -1):
        if parts[place] == "images":
            parts[place] = "labels"
            break
    return Path(*parts)


def _lines(path: Path) -> list[str]:
    return read_bytes(path).decode("utf-8-sig", "replace").splitlines() if path.is_file() else []


def _box(
    text: str, classes: int, width: int, height: int, keypoints: int
) -> tuple[str, None] | tuple[int, list[float]]:
    """The class and the box in pixels; or what the line needs, and None."""
    try:
        kind, *shares = map(float, text.split())
    except ValueError:
        return "a class and four shares (centre x, centre y, width, height)", None
    if not 0 <= kind < classes or kind != int(kind):
        return f"a class from 0 to {classes - 1}", None
    if keypoints:
        if len(shares) not in (4, 4 + keypoints):
            return (
                f"four shares (centre x, centre y, width, height) and {keypoints} numbers of keypoints",
                None,
            )
        shares = shares[:4]
    more = " (of keypoints kpt_shape in the YAML)" if len(shares) > 4 else ""
    if len(shares) < 4 or len(shares) == 5 or len(shares) % 2 or not all(map(math.isfinite, shares)):
        return f"four shares (centre x, centre y, width, height) or a polygon after the class{more}", None
    if not all(-_ROUNDING <= share <= 1 + _ROUNDING for share in shares):
        return f"shares of the image between 0 and 1, not pixels{more}", None
    if len(shares) == 4:
        x, y, wide, high = shares
        left, top = x - wide / 2, y - high / 2
    else:
        left, top = min(shares[::2]), min(shares[1::2])
        wide, high = max(shares[::2]) - left, max(shares[1::2]) - top
    return int(kind), [left * width, top * height, wide * width, high * height]
