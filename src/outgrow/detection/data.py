"""Detection data: images with boxes, opened by one string.

coco:IMAGES:ANNOTATIONS, coco:FOLDER    :mod:`outgrow.detection.layouts.coco`
yolo:DATA.yaml                          :mod:`outgrow.detection.layouts.yolo`
voc:FOLDER                              :mod:`outgrow.detection.layouts.voc`
hf:NAME                                 :mod:`outgrow.detection.layouts.hub`
"""

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

from outgrow.data.cache import default_cache_dir, usable
from outgrow.data.classes import alike
from outgrow.data.files import PathList
from outgrow.data.identity import Digests, Look, also_in, fingerprint, look_at, look_at_rows
from outgrow.data.notes import printable, some, warn_notes
from outgrow.data.pixels import VERSION, decode, to_tensor
from outgrow.data.reading import OnFault, Opening, kept_rows, note_look
from outgrow.data.splits import Rows
from outgrow.detection.boxes import Truth
from outgrow.detection.layouts.annotations import AnnotationFile, Faults
from outgrow.detection.layouts.coco import coco_pictures, read_coco
from outgrow.detection.layouts.hub import hub_pictures, read_hub
from outgrow.detection.layouts.listed import Listed, read_each
from outgrow.detection.layouts.voc import read_voc, voc_pictures
from outgrow.detection.layouts.yolo import read_yolo, yolo_pictures

KINDS = ("coco", "yolo", "voc", "hf")


@dataclass(frozen=True, repr=False)
class DetectionSplit:
    """Images of any size with their boxes. Images are decoded on access.

    ``index`` is each image's row in its annotation file. ``subset`` keeps it, so that randomness and per-sample
    memories can use it. ``source`` reads the encoded images, which are below ``folder`` if each is a file. ``digests``
    are of the images of ``file``. In a split that is not ``labelled`` the boxes are those that a detector found.
    ``as_seen``: the boxes are for images as a viewer shows them, turned by their EXIF orientation.
    """

    file: AnnotationFile
    folder: str
    index: Int64[Tensor, " n"]
    source: Rows
    digests: Digests | None = None
    sampled: bool = False
    """Whether digests of large files cover only a part of them, as in large sets."""
    labelled: bool = True
    as_seen: bool = False

    def __len__(self) -> int:
        return len(self.index)

    def __repr__(self) -> str:
        return f"DetectionSplit({len(self)} images of {Path(self.file.path).name})"

    @property
    def num_indices(self) -> int:
        """One more than the largest ``index``: the length of a memory by ``index``."""
        return int(self.index.max()) + 1 if len(self) else 0

    @property
    def image_ids(self) -> list[int]:
        """COCO's id of each image."""
        return self.file.image_ids[self.index].tolist()

    @property
    def annotations(self) -> dict[str, list[dict[str, Any]]]:
        """The split in COCO's layout, with the ids and boxes of the file, for COCO's AP.

        Built on each access. It includes crowds and boxes too small to train on.
        """
        return self.file.as_coco(self.index.tolist())

    def subset(self, positions: Int64[Tensor, " m"]) -> "DetectionSplit":
        """The images at ``positions`` of this split, in that order. No data are copied."""
        return replace(self, index=self.index[positions])

    def name(self, position: int) -> str:
        """The image's file name, as in the annotations."""
        return self.file.names[int(self.index[position])]

    def size(self, position: int) -> tuple[int, int]:
        """Height and width in pixels, from the annotations."""
        height, width = self.file.sizes[int(self.index[position])].tolist()
        return height, width

    def encoded(self, position: int) -> bytes:
        """The bytes of an image's file."""
        return self.source.read(int(self.index[position]))

    def describe(self, position: int) -> str:
        """Where an image is, for messages."""
        return self.source.describe(int(self.index[position]))

    def truth(self, position: int) -> Truth:
        """The ground truth of an image, without boxes narrower or lower than one pixel."""
        file, number = self.file, int(self.index[position])
        rows = file.rows(number)
        crowd, usable = file.crowd[rows], file.usable[rows]
        drawn = usable & ~crowd
        boxes = file.boxes[rows]
        return Truth(
            boxes[drawn], file.label[rows][drawn], boxes[usable & crowd], number, labelled=self.labelled
        )

    def image(self, position: int) -> UInt8[Tensor, "3 height width"]:
        """An image, RGB, 0..255.

        COCO's tools ignore the EXIF orientation. In COCO's layout it is applied only if the image has the size in its
        annotations afterwards and not before, and square images are never rotated. In the others it always is.

        ``ValueError`` with the file name if the image cannot be decoded, or if its size differs from its
        annotations, as its boxes would then be misplaced.
        """
        height, width = self.size(position)
        image = to_tensor(
            decode(
                self.encoded(position),
                where=lambda: self.describe(position),
                stored_size=None if self.as_seen else (width, height),
            )
        )
        if image.shape[1:] != (height, width):
            raise ValueError(
                f"data: needs an image of {width}x{height} in {self.describe(position)}, the size of image {self.image_ids[position]} in "
                f"{self.file.path}, got {image.shape[2]}x{image.shape[1]}; restore the image that was annotated "
                "(not resized, not rotated), or correct width and height."
            )
        return image


@dataclass(frozen=True)
class DetectionData:
    """A detection data set.

    ``test`` is for reported scores, ``val`` for choosing between models. ``train`` is None if there is only data
    to evaluate on; ``val`` is None unless the source has both. ``fingerprint`` changes whenever images or
    annotations may have changed. A box of label i + 1 has the class ``classes[i]``, with the category id
    ``category_ids[i]`` in COCO's files. ``duplicates``, ``faults`` and ``notes`` are as in
    :class:`outgrow.data.ImageData`.
    """

    source: str
    classes: tuple[str, ...]
    category_ids: tuple[int, ...] = field(repr=False)
    train: DetectionSplit | None
    val: DetectionSplit | None
    test: DetectionSplit
    fingerprint: str = field(repr=False)
    duplicates: int | None = field(default=None, repr=False)
    faults: tuple[str, ...] = field(default=(), repr=False)
    notes: tuple[str, ...] = field(default=(), repr=False)

    @property
    def num_classes(self) -> int:
        """Without the background."""
        return len(self.classes)


def open_coco(source: str, *, on_fault: OnFault = "refuse", cache_dir: Path | None = None) -> DetectionData:
    """Open ``coco:IMAGES:ANNOTATIONS`` or ``coco:FOLDER``, as :func:`open_boxes` does. ``ValueError`` for other kinds."""
    if source.partition(":")[0] != "coco":
        raise ValueError(
            f"data: needs coco:IMAGES:ANNOTATIONS or coco:FOLDER, got {source!r}; use open_boxes for other layouts."
        )
    return open_boxes(source, on_fault=on_fault, cache_dir=cache_dir)


def open_boxes(source: str, *, on_fault: OnFault = "refuse", cache_dir: Path | None = None) -> DetectionData:
    """Open images with boxes; :mod:`outgrow.detection.data` has the kinds of sources.

    A source with a single held-out set, be it test or val, has it as ``test``. A single file is all ``test``.
    "~" is the home folder. ``on_fault="skip"`` leaves out images and annotations with faults, images all of whose
    annotations have faults, and images that cannot be decoded; to find these, all images are decoded once. The results
    of checks are cached in ``cache_dir``, as by :func:`outgrow.data.open_data`. Notes are issued as :class:`outgrow.data.DataWarning`.

    ``ValueError`` for a missing path or image, two files for a split, files with different categories, a training
    or test set without objects, and everything that :func:`read_annotations` checks.
    """
    notes: list[str] = []
    opening = Opening(None, on_fault, usable((cache_dir or default_cache_dir()) / "data", notes), notes)
    listed = read_listed(source, opening)
    files = {split: one.file for split, one in listed.items()}
    _check_categories(list(files.values()))
    _check_objects(files)
    splits: dict[str, DetectionSplit] = {}
    digests: dict[str, Digests] = {}
    facts: list[object] = [VERSION]
    for file in files.values():
        for note in file.notes:
            opening.note(note)
        opening.faults += file.faults
    looks = read_each(listed, lambda split: split_listed(split, listed[split], opening))
    for split, one in listed.items():
        splits[split], look = looks[split]
        digests[split] = look.digests
        facts += [
            split,
            one.digest,
            *splits[split].file.names,
            look.digests.tobytes(),
            *splits[split].index.tolist(),
        ]
    # images may have been left out meanwhile
    _check_objects({split: one.file for split, one in splits.items()})
    test = splits["test"].file
    _note_spellings(test.classes, opening)
    duplicates = None
    if "train" in splits:
        for note in untaught(splits["train"], splits["test"]):
            opening.note(note)
        duplicates = _duplicates(splits["train"], splits["test"], digests, opening)
    data = DetectionData(
        source=source,
        classes=test.classes,
        category_ids=test.category_ids,
        train=splits.get("train"),
        val=splits.get("val"),
        test=splits["test"],
        fingerprint=fingerprint(facts),
        duplicates=duplicates,
        faults=tuple(opening.faults),
        notes=tuple(opening.notes),
    )
    warn_notes(data.notes)
    return data


def read_listed(source: str, opening: Opening) -> dict[str, Listed]:
    """The splits of ``source``, checked; their images are not looked at yet."""
    kind, _, where = source.partition(":")
    if kind not in KINDS or not where:
        raise ValueError(
            "data: needs coco:IMAGES:ANNOTATIONS, coco:FOLDER, yolo:DATA.yaml, voc:FOLDER or hf:NAME, got "
            f"{source!r}; write for example coco:data/coco:data/coco/annotations."
        )
    if kind == "hf":
        return read_hub(where, opening)
    readers = {"coco": read_coco, "yolo": read_yolo, "voc": read_voc}
    return readers[kind](source, where, opening.on_fault)


def read_pictures(source: str, opening: Opening) -> Listed:
    """The pictures of ``source``, a source of :data:`KINDS`. Its annotations need not be there, and are not read."""
    kind, _, where = source.partition(":")
    if kind == "hf":
        return hub_pictures(where, opening)
    readers = {"coco": coco_pictures, "yolo": yolo_pictures, "voc": voc_pictures}
    return readers[kind](source, where, opening.on_fault)


def split_listed(split: str, one: Listed, opening: Opening) -> tuple[DetectionSplit, Look]:
    """The images of a split that can be used, and their digests."""
    name = f"{one.home.name}-{split}"
    identity = fingerprint([os.path.realpath(one.folder), os.path.realpath(one.file.path)])
    file = one.file
    if one.rows is None:
        file, paths = _image_paths(one.home, one.folder, file, opening)
        rows: Rows = PathList(paths)
        look = look_at(paths, opening.store(name, identity), with_sizes=one.stated)
        if one.stated:
            keep = _as_stated(file, paths, look, opening)
            file, rows = file.only(keep), PathList([paths[at] for at in keep.nonzero()[:, 0].tolist()])
            look = replace(look, digests=look.digests[keep.numpy()], frames=look.frames[keep.numpy()])
    else:
        rows = one.rows
        look = look_at_rows(rows.stream(), len(rows))
    note_look(rows, look, one.folder if one.rows is None else one.file.path, opening)
    key = fingerprint([look.key, VERSION])
    kept = kept_rows(rows, name=one.home.name, identity=identity, key=key, opening=opening)
    sampled = bool(look.sampled)
    return DetectionSplit(
        file, str(one.folder), kept, rows, look.digests, sampled, as_seen=not one.stated
    ), look


def _check_objects(files: Mapping[str, AnnotationFile]) -> None:
    for split, file in files.items():
        if split != "val" and not file.num_objects:
            use = "train on" if split == "train" else "measure box AP on"
            raise ValueError(
                f"data: needs an object to {use}, got {len(file.names)} images without a box (crowds do not count) in "
                f"{file.path}; pass the file that has the boxes (those of a test set are often not published)."
            )


def _duplicates(
    train: DetectionSplit, test: DetectionSplit, digests: Mapping[str, Digests], opening: Opening
) -> int:
    """The number of test images that are also training images, byte for byte."""
    rows = also_in(digests["test"][test.index.numpy()], digests["train"][train.index.numpy()])
    same = []  # the digest of a large file covers only a sample, so the bytes are compared, too
    for position in (rows >= 0).nonzero()[0].tolist():
        other = int(rows[position])
        if test.encoded(position) == train.encoded(other):
            same.append(f"{test.describe(position)} is {train.describe(other)}")
    if same:
        opening.note(
            f"data: {len(same)} of {len(test):,} test images are among the training images, byte for byte ({some(same)}); "
            "AP on them is no measure of generalisation."
        )
    return len(same)


def _check_categories(files: list[AnnotationFile]) -> None:
    first = files[0]
    for other in files[1:]:
        here, there = (set(zip(file.category_ids, file.classes, strict=True)) for file in (first, other))
        if here != there:
            raise ValueError(
                f"data: needs the same categories (ids and names) in {first.path} and {other.path}, got a "
                f"difference (only in the first: {sorted(here - there) or 'none'}; only in the second: "
                f"{sorted(there - here) or 'none'}); correct one of the files."
            )


def _note_spellings(classes: Sequence[str], opening: Opening) -> None:
    """A note on classes that are most likely one, as Dog and dog."""
    if pairs := [" and ".join(map(repr, names)) for names in alike(classes)]:
        opening.note(
            f"data: {some(pairs)} are classes of their own; if they are one, name it alike everywhere."
        )


def untaught(train: DetectionSplit, test: DetectionSplit) -> list[str]:
    """A note if classes with objects in the test images have no box to train on, as of images with one label."""
    here, there = _labels(test, trained=False), _labels(train, trained=True)
    lacking = sorted(here - there)
    if not lacking:
        return []
    classes = test.file.classes
    return [
        f"data: {len(lacking)} of {len(classes)} classes have objects in the test images but no box to train on "
        f"({some([classes[label - 1] for label in lacking])}): no box teaches them, and each of them counts in AP."
    ]


def _labels(split: DetectionSplit, *, trained: bool) -> set[int]:
    """The labels of the objects of a split, without crowds; if ``trained``, of those that are trained on."""
    file = split.file
    images = torch.zeros(len(file.names), dtype=torch.bool)
    images[split.index] = True
    rows = images.repeat_interleave(file.first.diff()) & ~file.crowd
    return set(file.label[rows & file.usable if trained else rows].tolist())


def _image_paths(
    images: Path, folder: Path, file: AnnotationFile, opening: Opening
) -> tuple[AnnotationFile, list[str]]:
    """``file`` and the paths of its images; with ``on_fault="skip"`` without missing ones.

    Each must be a regular file below ``images``, and only listed once.
    """
    paths = [os.path.join(folder, name) for name in file.names]
    missing, links, folders = [], [], set()
    for place, path in enumerate(paths):
        try:
            found = os.lstat(path)
            if stat.S_ISLNK(found.st_mode):
                links.append(place)
                found = os.stat(path)
        except (OSError, ValueError):  # missing, or not a valid file name
            missing.append(place)
            continue
        folders.add(os.path.dirname(path))
        if not stat.S_ISREG(found.st_mode):
            missing.append(place)
    if missing and opening.on_fault == "skip" and len(missing) < len(paths):
        keep = torch.ones(len(paths), dtype=torch.bool)
        keep[missing] = False
        faults = Faults(file.path, "skip")
        for place in missing:
            faults.add("image", int(file.image_ids[place]), "an existing file", paths[place])
        _settle(faults, opening)
        return _image_paths(images, folder, file.only(keep), opening)
    if missing:
        first = missing[0]
        raise ValueError(
            f"data: needs all {len(paths)} images of {file.path}, got {len(missing)} missing, the first "
            f"{printable(paths[first])} (image {int(file.image_ids[first])}); check the folder, or remove their entries."
        )
    homes = tuple({os.path.realpath(home) + os.sep for home in (images, folder)})
    real = {place: os.path.realpath(paths[place]) for place in links}
    for target in [*real.values(), *(os.path.realpath(inside) + os.sep for inside in folders)]:
        if not target.startswith(homes):
            raise ValueError(
                f"data: needs images below {printable(images)}, got a link to {printable(target)} for one of {file.path}; copy "
                "the image, or pass the folder that has it."
            )
    known: dict[str, int] = {}
    for place, path in enumerate(paths) if links else ():
        target = real.get(place, os.path.realpath(path))
        if target in known:
            ids = [int(file.image_ids[at]) for at in (known[target], place)]
            raise ValueError(
                f"data: needs one id per image, got the ids {ids[0]} and {ids[1]} in {file.path} for {printable(target)}; "
                "remove one of the links and its entry."
            )
        known[target] = place
    return file, paths


def _as_stated(
    file: AnnotationFile, paths: Sequence[str], look: Look, opening: Opening
) -> Bool[Tensor, " images"]:
    """Which images have the size that ``file`` states, by the rule of :meth:`DetectionSplit.image`.

    Others are faults. An image whose header cannot be read is not one of them: decoding says what is wrong with it.
    """
    assert look.sizes is not None
    # width and height of each image as stored, and as turned
    sizes = torch.from_numpy(look.sizes.astype("int64"))
    keep = ((sizes == file.sizes.flip(1)[:, None]).all(2) | (sizes == 0).all(2)).any(1)
    faults = Faults(file.path, opening.on_fault, some_left=bool(keep.any()))
    for place in (~keep).nonzero()[:, 0].tolist():
        (height, width), (wide, high) = file.sizes[place].tolist(), sizes[place, 1].tolist()
        needed = f"an image of the {width} x {height} pixels that its entry states"
        number, got = int(file.image_ids[place]), f"{wide} x {high} in {printable(paths[place])}"
        faults.add("image", number, needed, got)
    _settle(faults, opening)
    stored, turned = (sizes == file.sizes.flip(1)[:, None]).all(2).unbind(1)
    lying = (stored & ~turned & (sizes[:, 1] > 0).all(1)).nonzero()[:, 0].tolist()
    if lying:
        opening.note(
            f"data: {len(lying):,} of {len(paths):,} images of {file.path} have an EXIF orientation that the sizes there leave out, "
            f"so they are read as stored ({some([paths[at] for at in lying])}). `outgrow predict` turns them, as viewers do: its "
            "boxes are then no match for these annotations."
        )
    return keep


def _settle(faults: Faults, opening: Opening) -> None:
    """:meth:`Faults.settle`, with its note and faults added to those of ``opening``."""
    for note in faults.settle():
        opening.note(note)
    opening.faults += map(str, faults.found)
