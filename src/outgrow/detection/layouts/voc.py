"""Pascal VOC's layout: ``voc:FOLDER``.

    Annotations/a.xml         the objects of an image
    JPEGImages/a.jpg
    ImageSets/Main/train.txt  a name in each line; val.txt, test.txt; trainval.txt where there is neither train.txt nor val.txt

An image of another size than its annotation states is a fault, as its boxes would lie elsewhere. Corners are pixels
counted from 1, both inside the box, as VOC has them. Where a corner is 0 they are taken as they are. Objects that are
marked as difficult are regions to ignore, like COCO's crowds, as VOC does not count them.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from outgrow.data.files import PICTURES, is_hidden, read_bytes
from outgrow.data.notes import printable
from outgrow.data.reading import OnFault
from outgrow.detection.layouts.annotations import Faults, check_content
from outgrow.detection.layouts.listed import (
    Listed,
    digest_of,
    hold_out,
    only_pictures,
    read_each,
    size_of_file,
)

_MARK = re.compile(r"\s+-?[01]$")
_SIDES = ("xmin", "ymin", "xmax", "ymax")
_Object = tuple[str, str, bool, list[float] | None, object]
"""The class, the place, whether it is difficult, the corners (None: a fault), and the text of the corners."""


class _Annotated(NamedTuple):
    """The size of the image as a file of annotations states it, if it does, its objects, and why it cannot be read."""

    size: tuple[int, int] | None
    objects: list[_Object]
    unreadable: str | None = None


def read_voc(source: str, where: str, on_fault: OnFault) -> dict[str, Listed]:
    """The splits of ``voc:WHERE``."""
    root = _root(source, where, "Annotations", "JPEGImages", "ImageSets/Main")
    names = {split: _listed(root, split) for split in ("train", "val", "test")}
    both = _listed(root, "trainval")
    notes: list[str] = []
    if both and not names["train"] and not names["val"]:
        names["train"] = both
    elif both and not names["train"]:
        notes = [
            f"data: trainval.txt in {root / 'ImageSets/Main'} is not trained on, as it has the pictures of val.txt as well; list those "
            "to train on in train.txt."
        ]
    pictures = _pictures(root)
    parsed = {
        split: {name: _annotated(root / "Annotations" / f"{name}.xml") for name in listed}
        for split, listed in names.items()
        if listed
    }
    objects = [one for split in parsed.values() for found in split.values() for one in found.objects]
    classes = sorted({one[0] for one in objects if one[0]})
    # a corner outside of its image (-3) says nothing about where counting starts
    starts = [corner for one in objects if one[3] is not None for corner in one[3][:2]]
    first = 0 if any(0 <= corner < 1 for corner in starts) else 1

    def read(split: str) -> Listed:
        faults = Faults(f"{root / 'ImageSets/Main' / split}.txt", on_fault)
        content = _content(root, parsed[split], pictures, classes, first, faults)
        files = [root / "Annotations" / f"{name}.xml" for name in parsed[split]]
        folder = root / "JPEGImages"
        file = check_content(content, root, faults)
        return Listed(file, folder, folder, digest_of(path for path in files if path.is_file()))

    found = read_each(parsed, read)
    if notes:
        found["val"] = replace(
            found["val"], file=replace(found["val"].file, notes=(*notes, *found["val"].file.notes))
        )
    return hold_out(found, root)


def voc_pictures(source: str, where: str, on_fault: OnFault) -> Listed:
    """The pictures of the training list; without one all of JPEGImages."""
    root = _root(source, where, "JPEGImages")
    pictures = _pictures(root)
    stems = _listed(root, "train") or _listed(root, "trainval") or list(pictures)
    names = [path.name for stem in stems for path in pictures.get(stem, [Path(stem)])]
    folder = root / "JPEGImages"
    return only_pictures(names, folder, folder, Faults(str(folder), on_fault))


def _root(source: str, where: str, *needed: str) -> Path:
    root = Path(where).expanduser()
    for name in needed:
        if not (root / name).is_dir():
            raise ValueError(
                f"data: needs {', '.join(needed)} in {source!r}, got no {name} in {root.absolute()}; pass the folder above, "
                "such as VOCdevkit/VOC2012."
            )
    return root


def _pictures(root: Path) -> dict[str, list[Path]]:
    """The pictures by their names without the suffix."""
    found: dict[str, list[Path]] = {}
    for path in sorted((root / "JPEGImages").iterdir()):
        if path.suffix.lower() in PICTURES and not is_hidden(path.name):
            found.setdefault(path.stem, []).append(path)
    return found


def _listed(root: Path, split: str) -> list[str]:
    """The names in a file of ImageSets/Main, without the marks that some have after the name."""
    path = root / "ImageSets" / "Main" / f"{split}.txt"
    if not path.is_file():
        return []
    lines = [line.strip() for line in read_bytes(path).decode("utf-8-sig", "replace").splitlines()]
    return [_without_mark(root, line) for line in lines if line]


def _without_mark(root: Path, line: str) -> str:
    """A name may have spaces, and may end like a mark."""
    name = _MARK.sub("", line)
    return line if name != line and (root / "Annotations" / f"{line}.xml").is_file() else name


def _content(
    root: Path,
    annotated: dict[str, _Annotated],
    pictures: dict[str, list[Path]],
    classes: list[str],
    first: int,
    faults: Faults,
) -> dict[str, list[Any]]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    origins: dict[int, str] = {}
    for number, (name, found) in enumerate(annotated.items()):
        there = pictures.get(name, [])
        if len(there) != 1:
            faults.add(
                "image",
                name,
                "one picture in JPEGImages",
                " and ".join(path.name for path in there) or "none",
            )
            continue
        if found.unreadable is not None:  # its objects are not known, so it is no image without objects
            place = printable(root / "Annotations" / f"{name}.xml")
            faults.add("annotation", name, "XML that can be read", found.unreadable, place=place)
            continue
        (picture,) = there
        size = size_of_file(picture)
        if size is None:
            faults.add("image", name, "an image whose size can be read", "none")
            continue
        if found.size not in (None, size):
            needed = f"an image of the {found.size[0]} x {found.size[1]} pixels that its annotation states"
            faults.add("image", name, needed, f"{size[0]} x {size[1]}")
            continue
        width, height = size
        images.append({"id": number, "file_name": picture.name, "width": width, "height": height})
        for kind, place, difficult, corners, text in found.objects:
            entry = len(annotations)
            if corners is None or not kind:
                needed = "four numbers as bndbox" if kind else "a name"
                faults.add("annotation", entry, needed, text, place=place, on=number)
                continue
            left, top, right, bottom = corners[0] - first, corners[1] - first, corners[2], corners[3]
            origins[entry] = place
            annotations.append(
                {
                    "id": entry,
                    "image_id": number,
                    "category_id": classes.index(kind),
                    "bbox": [left, top, right - left, bottom - top],
                    "iscrowd": int(difficult),
                }
            )
    faults.origins = origins
    categories = [{"id": number, "name": name} for number, name in enumerate(classes)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _annotated(path: Path) -> _Annotated:
    """The content of a file."""
    if not path.is_file():
        return _Annotated(None, [], "no file")
    try:
        text = read_bytes(path)
        if b"<!ENTITY" in text:
            raise ElementTree.ParseError("it defines entities")
        root = ElementTree.fromstring(text)
        for entry in root.iter():
            entry.tag = entry.tag.rpartition("}")[2]  # without the namespace that some tools write
        if root.tag != "annotation" and root.find(".//object") is None:
            raise ElementTree.ParseError(f"it is of {root.tag}, not of annotation")
    except (ElementTree.ParseError, ValueError) as error:
        return _Annotated(None, [], str(error).splitlines()[0])
    found: list[_Object] = []
    for number, entry in enumerate(root.iter("object"), start=1):
        place = f"object {number} of {printable(path)}"
        box = entry.find("bndbox")
        texts = [None if box is None else box.findtext(side) for side in _SIDES]
        try:
            corners = [float(text or "") for text in texts]
        except ValueError:
            corners = None
        name = (entry.findtext("name") or "").strip()
        difficult = (entry.findtext("difficult") or "0").strip().lower() in ("1", "true")
        found.append((name, place, difficult, corners, texts if name else entry.findtext("name")))
    sides = [(root.findtext(f"size/{side}") or "").strip() for side in ("width", "height")]
    known = all(side.isdecimal() and int(side) > 0 for side in sides)  # some tools write 0
    return _Annotated((int(sides[0]), int(sides[1])) if known else None, found)
