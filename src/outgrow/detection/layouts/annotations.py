"""Check the entries of an annotation file, in COCO's terms, so that later code can rely on them.

read_annotations    a file in COCO's layout
check_content       the same for content that was converted from another layout
"""

import gc
import json
import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeGuard

import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor

from outgrow.data.notes import printable, some
from outgrow.data.reading import OnFault

SMALLEST = 1.0
"""Boxes with a shorter side than this, in pixels, are not trained on. COCO has a few of width 0, which
torchvision's references drop, too. Widths near 0 are as bad, as box regression takes their logarithm."""
_ENOUGH, _LEAST = 8, 2
"""The least number of boxes from which corners are recognised: if some cross the border of their image, and if all do."""
_LISTS = ("images", "annotations", "categories")
_SHAPES = ("segmentation", "keypoints")
"""Keys of an annotation that can hold thousands of numbers and that no box needs."""
SHOWN = 10
"""The most faults that a message has in full."""
Content = Mapping[str, list[Any]]
"""Lists of images, annotations and categories, in COCO's layout."""


@dataclass(frozen=True)
class Fault:
    """What is wrong with an entry: ``place`` is its kind, id and file."""

    kind: str
    place: str
    needed: str
    got: object

    def __str__(self) -> str:
        return f"{self.place}: needs {self.needed}, got {self.got!r}"


class FaultyEntries(ValueError):
    """The faults of ``paths``, which are one or more files. ``skippable``: whether something would be left without them."""

    def __init__(self, faults: Sequence[Fault], paths: Sequence[str], *, skippable: bool = True) -> None:
        self.faults, self.paths, self.skippable = faults, paths, skippable
        super().__init__(self._message())

    def _message(self) -> str:
        if len(self.faults) == 1:
            (one,) = self.faults
            return f"data: needs {one.needed}, got {one.got!r} in {one.place}; correct this {one.kind} or remove it."
        advice = "correct them"
        if self.skippable:
            advice += ", or leave them out with --set data.on_fault=skip"
        return (
            f"data: needs entries without faults, got {len(self.faults):,} with faults in "
            f"{' and '.join(map(printable, self.paths))} ({_listed(self.faults)}); {advice}."
        )


def _listed(faults: Sequence[Fault]) -> str:
    more = f"; and {len(faults) - SHOWN:,} more" if len(faults) > SHOWN else ""
    return "; ".join(map(str, faults[:SHOWN])) + more


@dataclass
class Faults:
    """The faults of a file. ``refuse`` raises once all are known, ``skip`` leaves their entries out, if ``some_left``."""

    path: str
    on_fault: OnFault = "refuse"
    origins: Mapping[int, str] = field(default_factory=dict)
    """Where the annotations of a converted layout come from, by id."""
    found: list[Fault] = field(default_factory=list)
    boxes: Counter[float] = field(default_factory=Counter)
    """How many annotations with faults each image has, by its id."""
    some_left: bool = True

    def add(
        self,
        kind: str,
        number: object,
        needed: str,
        got: object,
        *,
        place: str | None = None,
        on: object = None,
    ) -> None:
        """``on``: the id of the image that an annotation is of, as far as it is known."""
        if isinstance(on, int | float) and not isinstance(on, bool):
            self.boxes[on] += 1
        if place is None and kind == "annotation" and isinstance(number, int):
            place = self.origins.get(number)
        self.found.append(Fault(kind, place or f"{kind} {number} of {printable(self.path)}", needed, got))

    def name(self, number: int) -> str:
        """An annotation for messages: where it comes from, else its id."""
        return self.origins.get(number, f"annotation {number}")

    def settle(self) -> list[str]:
        """``FaultyEntries`` for faults that are not to be skipped; else a note about those that were.

        Faults of categories are never skipped. They are raised alone, as those of annotations may come from them.
        """
        categories = [fault for fault in self.found if fault.kind == "category"]
        if categories or (self.found and (self.on_fault == "refuse" or not self.some_left)):
            skippable = not categories and self.some_left  # no entry can do without its category
            raise FaultyEntries(categories or self.found, [self.path], skippable=skippable)
        if not self.found:
            return []
        return [
            f"data: left out {len(self.found):,} images and annotations of {printable(self.path)} with faults "
            f"({_listed(self.found)})."
        ]


@dataclass(frozen=True, repr=False)
class AnnotationFile:
    """The contents of one file as tensors, which are compact and cheap to send to a worker.

    Images are in the file's order. Rows are annotations, grouped by image: those of image i are ``first[i]`` to
    ``first[i + 1]``. ``bbox`` (left, top, width, height) and ``area`` are the file's numbers. ``boxes`` are corners,
    clipped to the image; ``usable`` are those at least :data:`SMALLEST` wide and high. ``label`` counts from 1 in
    the order of ``category_ids``.
    """

    path: str
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    names: tuple[str, ...]
    image_ids: Int64[Tensor, " images"]
    sizes: Int64[Tensor, "images 2"]  # height, width
    first: Int64[Tensor, " images_and_one"]
    ids: Int64[Tensor, " rows"]
    label: Int64[Tensor, " rows"]
    crowd: Bool[Tensor, " rows"]
    bbox: Float64[Tensor, "rows 4"]
    area: Float64[Tensor, " rows"]
    boxes: Float32[Tensor, "rows 4"]
    usable: Bool[Tensor, " rows"]
    notes: tuple[str, ...] = ()
    """Warnings about the file's contents."""
    faults: tuple[str, ...] = ()
    """The entries that were left out, and why."""

    @property
    def num_objects(self) -> int:
        """Annotations without crowds."""
        return int((~self.crowd).sum())

    def rows(self, number: int) -> slice:
        """The rows of image ``number``."""
        return slice(int(self.first[number]), int(self.first[number + 1]))

    def only(self, keep: Bool[Tensor, " images"]) -> "AnnotationFile":
        """The file with the images ``keep`` alone, in its order."""
        counts = self.first.diff()
        rows = keep.repeat_interleave(counts)
        return replace(
            self,
            names=tuple(name for name, kept in zip(self.names, keep.tolist(), strict=True) if kept),
            image_ids=self.image_ids[keep],
            sizes=self.sizes[keep],
            first=torch.cat([self.first[:1], counts[keep].cumsum(0)]),
            ids=self.ids[rows],
            label=self.label[rows],
            crowd=self.crowd[rows],
            bbox=self.bbox[rows],
            area=self.area[rows],
            boxes=self.boxes[rows],
            usable=self.usable[rows],
        )

    def as_coco(self, numbers: Sequence[int]) -> dict[str, list[dict[str, Any]]]:
        """The images ``numbers`` in COCO's layout, with the file's ids and boxes, for COCO's AP.

        Crowds and the smallest boxes are included, segmentations and licences are not.
        """
        images, annotations = [], []
        for number in numbers:
            image_id = int(self.image_ids[number])
            height, width = self.sizes[number].tolist()
            name = self.names[number]
            images.append({"id": image_id, "file_name": name, "height": height, "width": width})
            rows = self.rows(number)
            columns = (self.ids, self.label, self.bbox, self.area, self.crowd)
            for row, label, bbox, area, crowd in zip(*(c[rows].tolist() for c in columns), strict=True):
                annotations.append(
                    {
                        "id": row,
                        "image_id": image_id,
                        "category_id": self.category_ids[label - 1],
                        "bbox": bbox,
                        "area": area,
                        "iscrowd": int(crowd),
                    }
                )
        categories = [
            {"id": number, "name": name} for number, name in zip(self.category_ids, self.classes, strict=True)
        ]
        return {"images": images, "annotations": annotations, "categories": categories}


def read_annotations(path: Path, *, on_fault: OnFault = "refuse") -> AnnotationFile:
    """Read and check a file in COCO's layout: ``images``, ``annotations`` and ``categories``.

    Boxes that cross the image border are clipped. ``area``, which COCO's AP uses, is optional; the default is the
    area of the box. ``iscrowd`` is optional, too (default 0). Duplicate boxes count once.

    ``ValueError`` with the file and the id for unreadable JSON, no images, missing keys, duplicate or unknown ids,
    an image with two ids or outside the folder of images, sizes that are not positive, and boxes that are not four
    finite numbers, have a negative side or are outside their image. All faults are reported at once; with
    ``on_fault="skip"`` images and annotations with faults are left out, and so are images all of whose annotations have
    faults. A box that is most likely in fractions of the image is a fault. If most are, or all are most likely in
    another form (corners, centres), the file is refused.
    """
    return check_content(load_content(path), path, Faults(str(path), on_fault))


@contextmanager
def _without_collector() -> Iterator[None]:
    """Python's garbage collector off: it would walk the growing entries again and again, a third of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@_without_collector()
def check_content(content: Content, path: Path, faults: Faults, *, centred: bool = False) -> AnnotationFile:
    """The content of a file, checked as by :func:`read_annotations`. ``faults`` may have some already.

    ``centred``: the file has centres and sizes as shares of the image, of which the boxes were made. So small ones are no shares.
    """
    categories = _Entries(faults, "category", content["categories"]).checked("name")
    order = sorted(categories)
    labels = {number: label for label, number in enumerate(order, start=1)}
    seen: set[str] = set()
    for number in order:
        name = categories[number]["name"]
        if name in seen:
            faults.add("category", number, "a unique name", name)
        seen.add(name)
    listed = _Entries(faults, "image", content["images"]).checked("file_name", "height", "width")
    images = _checked_images(listed, faults)
    entries = _Entries(faults, "annotation", content["annotations"])
    annotations = entries.checked("image_id", "category_id", "bbox")
    # annotations of an image that is left out are left out with it, and are no faults of their own
    left_out = {
        entry.get("id")
        for entry in content["images"]
        if isinstance(entry, dict) and _is_integer(entry.get("id"))
    } - images.keys()
    if left_out:
        annotations = {
            number: entry
            for number, entry in annotations.items()
            if not (_is_integer(entry["image_id"]) and entry["image_id"] in left_out)
        }
    for number, entry in list(annotations.items()):
        complaint = _complaint(entry, images=images, labels=labels)
        if complaint:
            faults.add("annotation", number, *complaint, on=entry["image_id"])
            del annotations[number]
    if not centred:
        _leave_out_shares(path, annotations, images, faults)
    known = {entry["image_id"] for entry in annotations.values()}
    unknown = {number for number in images if number in faults.boxes and number not in known}
    faults.some_left = len(unknown) < len(images)
    notes = faults.settle()
    images, more = _without_unknown(images, unknown, faults)
    notes += more
    annotations, copies = _without_copies(path, annotations, faults)
    notes += copies

    places = {number: place for place, number in enumerate(images)}
    place = torch.tensor([places[entry["image_id"]] for entry in annotations.values()], dtype=torch.int64)
    by_image = place.argsort(stable=True)
    sizes = torch.tensor([[image["height"], image["width"]] for image in images.values()])
    counts = place.bincount(minlength=len(images))
    ids = torch.tensor(list(annotations), dtype=torch.int64)[by_image]
    bbox = torch.tensor([e["bbox"] for e in annotations.values()], dtype=torch.float64)
    bbox = bbox.reshape(-1, 4)[by_image]
    area = [e.get("area", e["bbox"][2] * e["bbox"][3]) for e in annotations.values()]
    boxes, usable = _corners(bbox, sizes[place[by_image]])
    notes += _check_scale(path, ids, bbox, sizes[place[by_image]], usable, faults, centred=centred)
    areas = torch.tensor(area, dtype=torch.float64)[by_image]
    notes += _check_areas(path, ids, bbox, areas, faults)
    return AnnotationFile(
        path=str(path),
        classes=tuple(categories[number]["name"] for number in order),
        category_ids=tuple(order),
        names=tuple(image["file_name"] for image in images.values()),
        image_ids=torch.tensor(list(images), dtype=torch.int64),
        sizes=sizes,
        first=torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]),
        ids=ids,
        label=torch.tensor([labels[e["category_id"]] for e in annotations.values()], dtype=torch.int64)[
            by_image
        ],
        crowd=torch.tensor([e.get("iscrowd", 0) for e in annotations.values()], dtype=torch.bool)[by_image],
        bbox=bbox,
        area=areas,
        boxes=boxes,
        usable=usable,
        notes=tuple(notes),
        faults=tuple(map(str, faults.found)),
    )


def _checked_images(images: Mapping[int, dict[str, Any]], faults: Faults) -> dict[int, dict[str, Any]]:
    """The images with a valid size. Each has one id, and its path is below the folder of images."""
    known: dict[str, int] = {}
    kept: dict[int, dict[str, Any]] = {}
    for number, image in images.items():
        name = posixpath.normpath(image["file_name"].replace("\\", "/"))
        side = next((s for s in ("height", "width") if not _is_integer(image[s]) or image[s] < 1), None)
        if side is not None:
            faults.add("image", number, f"a positive whole number of pixels as {side}", image[side])
        elif name.startswith(("/", "../")) or name in ("..", "."):
            faults.add("image", number, "a file_name below the folder of images", image["file_name"])
        elif name in known:
            needed = f"one id for {image['file_name']}, which is also image {known[name]}"
            faults.add("image", number, needed, "a second one")
        else:
            known[name] = number
            kept[number] = image
    return kept


def _without_unknown(
    images: Mapping[int, dict[str, Any]], unknown: set[int], faults: Faults
) -> tuple[dict[int, dict[str, Any]], list[str]]:
    """``images`` without the ``unknown`` ones, of which no box is left: they would count as background."""
    names = {number: printable(image["file_name"]) for number, image in images.items() if number in unknown}
    if not names:
        return dict(images), []
    for number, name in names.items():
        faults.add("image", name, "a box without a fault", f"{faults.boxes[number]} with faults")
    return {number: image for number, image in images.items() if number not in unknown}, [
        f"data: left out {len(names):,} of {len(images):,} images of {printable(faults.path)} all of whose boxes have faults "
        f"({some(list(names.values()))}), as it is not known what is in them."
    ]


def _without_copies(
    path: Path, annotations: Mapping[int, dict[str, Any]], faults: Faults
) -> tuple[dict[int, dict[str, Any]], list[str]]:
    """``annotations`` without duplicates: the same box of the same category in the same image."""
    first: dict[tuple[Any, ...], int] = {}
    copies: list[tuple[int, int]] = []
    kept = {}
    for number, entry in annotations.items():
        key = (entry["image_id"], entry["category_id"], *entry["bbox"], entry.get("iscrowd", 0))
        if key in first:
            copies.append((number, first[key]))
        else:
            first[key] = number
            kept[number] = entry
    if not copies:
        return kept, []
    names = some([f"{faults.name(number)} is {faults.name(original)}" for number, original in copies])
    return kept, [
        f"data: {len(copies)} of {len(annotations):,} annotations in {path} are duplicates and count once ({names})."
    ]


def _leave_out_shares(
    path: Path,
    annotations: dict[int, dict[str, Any]],
    images: Mapping[int, dict[str, Any]],
    faults: Faults,
) -> None:
    """Boxes that are shares of their image are faults; ``ValueError`` if most are. Boxes without an area are none."""
    shares = [
        number
        for number, entry in annotations.items()
        if max(entry["bbox"]) <= 1 < max(images[entry["image_id"]][side] for side in ("height", "width"))
        and min(entry["bbox"][2:]) > 0
    ]
    if 2 * len(shares) > len(annotations):
        raise ValueError(
            f"data: needs boxes in pixels, got {len(shares)} of {len(annotations)} in {path} that look like fractions of the "
            f"image (annotation {shares[0]}: {annotations[shares[0]]['bbox']}); multiply them by its width and height."
        )
    for number in shares:
        entry = annotations.pop(number)
        needed = "a bbox (left, top, width, height) in pixels, not shares of the image"
        faults.add("annotation", number, needed, entry["bbox"], on=entry["image_id"])


def _check_scale(
    path: Path,
    ids: Int64[Tensor, " rows"],
    bbox: Float64[Tensor, "rows 4"],
    sizes: Int64[Tensor, "rows 2"],
    usable: Bool[Tensor, " rows"],
    faults: Faults,
    *,
    centred: bool,
) -> list[str]:
    """Notes on boxes that are not trained on or are clipped; ``ValueError`` if the boxes seem to have another unit."""
    notes: list[str] = []
    num, dropped = len(bbox), (~usable).nonzero().squeeze(1)

    def named(rows: Int64[Tensor, " some"]) -> str:
        return some([faults.name(number) for number in ids[rows].tolist()])

    if 2 * len(dropped) > num:
        form = (
            "a box is its centre, width and height as shares of the image"
            if centred
            else "bbox is left, top, width and height in pixels"
        )
        raise ValueError(
            f"data: needs boxes of at least {SMALLEST:.0f} pixel, got {len(dropped)} of {num} smaller ones in {path} "
            f"({named(dropped[:1])}: {bbox[dropped[0]].tolist()} in pixels); {form}."
        )
    if len(dropped):
        notes.append(
            f"data: {len(dropped)} of {num:,} boxes in {path} are under {SMALLEST:.0f} pixel wide or high inside their image, and "
            f"are not trained on ({named(dropped)}). In a test AP counts them, as COCO does; the objects by class are without them."
        )
    limit = sizes.flip(1).to(torch.float64)
    over = ((bbox[:, :2] < -1) | (bbox[:, :2] + bbox[:, 2:] > limit + 1)).any(1).nonzero().squeeze(1)
    if len(over):
        many = num >= _ENOUGH and 10 * len(over) >= num
        other = _other_format(bbox, limit, centred=centred) if many or len(over) == num >= _LEAST else None
        if other is not None:
            row, needed = (
                int(over[0]),
                "centre x, centre y, width and height" if centred else "left, top, width and height",
            )
            number = int(ids[row])
            place = faults.origins.get(number, f"annotation {number}: {bbox[row].tolist()}")
            raise ValueError(
                f"data: needs boxes as {needed}, got {len(over)} of {num} that cross the border of their image in {path} "
                f"({place}), while all would fit as {other}; convert them."
            )
        notes.append(
            f"data: {len(over)} of {num:,} boxes in {path} cross the border of their image and are clipped "
            f"({named(over)})."
        )
    return notes


def _other_format(
    bbox: Float64[Tensor, "rows 4"], limit: Float64[Tensor, "rows 2"], *, centred: bool
) -> str | None:
    """Another meaning of the four numbers of a box with which all would be inside their images, if there is one."""
    size = bbox[:, 2:]
    start = bbox[:, :2] + size / 2 if centred else bbox[:, :2]  # as the file has them
    meanings = {"left, top, right and bottom": (start, size)}
    if centred:
        meanings["left, top, width and height"] = (start, start + size)
    else:
        meanings["centre x, centre y, width and height"] = (start - size / 2, start + size / 2)
    for name, (first, last) in meanings.items():
        if ((first >= -1) & (last > first) & (last <= limit + 1)).all():
            return name
    return None


def _check_areas(
    path: Path,
    ids: Int64[Tensor, " rows"],
    bbox: Float64[Tensor, "rows 4"],
    areas: Float64[Tensor, " rows"],
    faults: Faults,
) -> list[str]:
    """A note if most areas cannot be those of anything in the box, as after boxes were resized without them."""
    inside = bbox[:, 2] * bbox[:, 3]
    wrong = (((areas > 1.1 * inside + 1) | (areas == 0)) & (inside > 0)).nonzero().squeeze(1)
    if 2 * len(wrong) <= len(areas):
        return []
    row = int(wrong[0])
    return [
        f"data: {len(wrong)} of {len(areas):,} annotations in {path} have an area of 0 or one larger than their box "
        f"({faults.name(int(ids[row]))}: {areas[row]:g} for {inside[row]:g}). AP of small, medium and large objects goes by it; correct area, or "
        "leave it out."
    ]


@_without_collector()
def load_content(path: Path, lists: Sequence[str] = _LISTS) -> dict[str, list[Any]]:
    """The ``lists`` of a file in COCO's layout, without the polygons and keypoints of its entries."""
    try:
        data = path.read_bytes()
        text = data.decode(json.detect_encoding(data), errors="surrogatepass")  # as json.loads
        del data  # before the entries are there, too
        content = json.loads(text, object_hook=_without_shapes)
    except (OSError, ValueError, RecursionError) as error:  # unreadable, not JSON, not UTF-8, too deep
        raise ValueError(
            f"data: needs COCO annotations in JSON, got {path}, which cannot be read ({error}); restore the "
            "file, or pass another."
        ) from error
    for key in lists:
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            got = ", ".join(sorted(content)) if isinstance(content, dict) else f"a {type(content).__name__}"
            raise ValueError(
                f"data: needs {_named(lists)}, got {path} without a list of {key} "
                f"(it has: {got}); pass an instances file in COCO's layout."
            )
    for key in lists:
        if key != "annotations" and not content[key]:
            raise ValueError(
                f"data: needs one or more {key}, got an empty list in {path}; add some, or leave the file out."
            )
    return {key: content[key] for key in lists}


def _named(lists: Sequence[str]) -> str:
    return "lists of images, annotations and categories" if len(lists) > 1 else f"a list of {lists[0]}"


def _without_shapes(entry: dict[str, Any]) -> dict[str, Any]:
    """``entry`` as a box needs it. The polygons are two thirds of COCO's memory, so each is freed at once."""
    for key in _SHAPES:
        entry.pop(key, None)
    return entry


@dataclass(frozen=True)
class _Entries:
    """One list of a file; ``kind`` is the name of an entry in messages."""

    faults: Faults
    kind: str
    entries: list[Any]

    def checked(self, *keys: str) -> dict[int, dict[str, Any]]:
        """The valid entries by id, in the file's order. Each has ``keys``, and names are non-empty strings."""
        found: dict[int, dict[str, Any]] = {}
        for place, entry in enumerate(self.entries):
            number, on = (entry.get("id"), entry.get("image_id")) if isinstance(entry, dict) else (None, None)
            if not _is_integer(number):
                needed = f"a whole number as id of every {self.kind}"
                self.faults.add(self.kind, f"number {place}", needed, number, on=on)
                continue
            complaint = self._complaint(entry, keys)
            if number in found:
                complaint = f"a unique id for every {self.kind}", "a second one"
            if complaint is None:
                found[number] = entry
            else:
                self.faults.add(self.kind, number, *complaint, on=on)
        return found

    def _complaint(self, entry: dict[str, Any], keys: tuple[str, ...]) -> tuple[str, object] | None:
        for key in keys:
            if key not in entry:
                return f"the key {key!r}", ", ".join(sorted(entry))
            if key in ("name", "file_name") and not (isinstance(entry[key], str) and entry[key].strip()):
                return f"text as {key}", entry[key]
        return None


def _complaint(
    entry: dict[str, Any], *, images: Mapping[int, dict[str, Any]], labels: dict[int, int]
) -> tuple[str, object] | None:
    """What an annotation needs and what it has instead; None if it is valid."""
    for key, known, what in (("image_id", images, "images"), ("category_id", labels, "categories")):
        number = entry[key]
        if not _is_integer(number) or number not in known:
            return f"{key} to be the id of one of the {len(known)} {what}", entry[key]
    bbox = entry["bbox"]
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_finite, bbox)):
        return "four finite numbers (left, top, width, height) as bbox", bbox
    if bbox[2] < 0 or bbox[3] < 0:
        return "a bbox (left, top, width, height) without negative sides", bbox
    image, (left, top, wide, high) = images[entry["image_id"]], bbox
    width, height, right, bottom = image["width"], image["height"], left + wide, top + high
    outside = left >= width or top >= height or right <= 0 or bottom <= 0
    if outside and min(wide, high) >= SMALLEST:
        return f"a bbox (left, top, width, height) that overlaps its image of {width}x{height}", bbox
    area = entry.get("area", 0)
    if not _is_finite(area) or area < 0:  # AP would ignore an object of a negative area
        return "a finite number of pixels as area", area
    if entry.get("iscrowd", 0) not in (0, 1):
        return "0 or 1 as iscrowd", entry["iscrowd"]
    return None


def _corners(
    bbox: Float64[Tensor, "rows 4"], sizes: Int64[Tensor, "rows 2"]
) -> tuple[Float32[Tensor, "rows 4"], Bool[Tensor, " rows"]]:
    """Corners clipped to the image, and which boxes are at least :data:`SMALLEST` wide and high."""
    start, size = bbox[:, :2], bbox[:, 2:]
    limit = sizes.flip(1).to(torch.float64)  # width, height: the order of x and y
    end = start + size
    usable = (size >= SMALLEST).all(1)
    start, end = start.clamp(min=0).minimum(limit), end.clamp(min=0).minimum(limit)
    usable &= (end - start >= SMALLEST).all(1)
    return torch.cat([start, end], dim=1).to(torch.float32), usable


def _is_integer(value: object) -> TypeGuard[int]:
    """Whether ``value`` is an integer in the range of int64. JSON's true and false, integers in Python, are not."""
    return isinstance(value, int) and not isinstance(value, bool) and -(1 << 63) <= value < 1 << 63


def _is_finite(value: object) -> bool:
    """Whether ``value`` is a number of at most 1e15, which no NaN is."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e15 <= value <= 1e15
