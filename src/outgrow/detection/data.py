"""Pictures with boxes: ``coco:IMAGES:ANNOTATIONS`` opens any data set in COCO's layout.

IMAGES       a folder of images, or one with a folder for each split
ANNOTATIONS  a folder with instances_train*.json, instances_val*.json and instances_test*.json (any of
             val and test), or one such file to evaluate on

Images of ``instances_train2017.json`` are in ``IMAGES/train2017``, else ``IMAGES/train``, else IMAGES.
"""

import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxtyping import Int64, UInt8
from torch import Tensor

from outgrow.data.cache import default_cache_dir, usable
from outgrow.data.files import PathList, read_bytes, read_picture
from outgrow.data.identity import Digests, also_in, fingerprint, look_at
from outgrow.data.notes import printable, some, warn_notes
from outgrow.data.pixels import VERSION, decode, to_tensor
from outgrow.data.reading import OnFault, Opening, kept_rows, note_look
from outgrow.detection.annotations import AnnotationFile, read_annotations
from outgrow.detection.boxes import Truth

SPLITS = ("train", "val", "test")
_PREFIX = "instances_"


@dataclass(frozen=True, repr=False)
class DetectionSplit:
    """Pictures of any size and the boxes in them, decoded when asked for.

    A picture keeps, through any number of ``subset`` calls, its number ``index`` in the file it was
    read from: randomness and memories go by it.
    """

    file: AnnotationFile
    folder: str
    index: Int64[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.index)

    def __repr__(self) -> str:
        return f"DetectionSplit({len(self)} pictures of {Path(self.file.path).name})"

    @property
    def num_indices(self) -> int:
        """One more than the largest ``index``: the length of a memory by index."""
        return int(self.index.max()) + 1 if len(self) else 0

    @property
    def image_ids(self) -> list[int]:
        """COCO's id of each picture."""
        return self.file.image_ids[self.index].tolist()

    @property
    def annotations(self) -> dict[str, list[dict[str, Any]]]:
        """The pictures in COCO's own layout, ids and boxes as in the file, for COCO's AP.

        Made anew each time. Crowds and boxes too small to train on are among them.
        """
        return self.file.as_coco(self.index.tolist())

    def subset(self, positions: Int64[Tensor, " m"]) -> "DetectionSplit":
        """The pictures at ``positions`` of this split, in that order; nothing is copied."""
        return DetectionSplit(self.file, self.folder, self.index[positions])

    def name(self, position: int) -> str:
        """The picture's file name, as the annotations have it."""
        return self.file.names[int(self.index[position])]

    def size(self, position: int) -> tuple[int, int]:
        """Height and width in pixels, without decoding."""
        height, width = self.file.sizes[int(self.index[position])].tolist()
        return height, width

    def truth(self, position: int) -> Truth:
        """What somebody drew in a picture; nothing under one pixel."""
        file, number = self.file, int(self.index[position])
        rows = file.rows(number)
        crowd, usable = file.crowd[rows], file.usable[rows]
        drawn = usable & ~crowd
        boxes = file.boxes[rows]
        return Truth(boxes[drawn], file.label[rows][drawn], boxes[usable & crowd], number)

    def image(self, position: int) -> UInt8[Tensor, "3 height width"]:
        """A picture, RGB, 0..255.

        Its annotations give its orientation: turned as EXIF says where it then has the size that they
        give, as it is stored where that has (COCO's own tools do not look at EXIF; a square one is not turned).

        Raises ValueError, with the file's name, where it cannot be decoded or has another size than
        its annotations give: boxes would be in the wrong place.
        """
        path = os.path.join(self.folder, self.name(position))
        height, width = self.size(position)
        image = to_tensor(
            decode(read_picture(path), where=lambda: printable(path), stored_size=(width, height))
        )
        if image.shape[1:] != (height, width):
            raise ValueError(
                f"data: needs a picture of {width}x{height} in {path}, as image {self.image_ids[position]} of "
                f"{self.file.path} says, got {image.shape[2]}x{image.shape[1]}; restore the picture that the boxes "
                "were drawn on (not resized, not turned), or correct width and height."
            )
        return image


@dataclass(frozen=True)
class DetectionData:
    """A detection data set.

    ``train`` is None where there are only pictures to evaluate on; ``val``, for choosing between
    models, is None unless the source has a test set too; ``test`` is for reporting. ``fingerprint``
    changes whenever pictures or annotations may have changed. A box of label i + 1 is of class
    ``classes[i]``, which COCO's files call ``category_ids[i]``. ``duplicates``, ``faults`` and ``notes`` are as in
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
    """Open ``coco:IMAGES:ANNOTATIONS``, laid out as :mod:`outgrow.detection.data` says.

    A source with one held-out set (test, or else val) reports on it; with both, val stays ``val``.
    One file is all ``test``. "~" is the home folder. ``on_fault="skip"`` leaves out pictures that cannot be
    decoded, with their boxes, which means to decode all of them once. What files hold is remembered in
    ``cache_dir``, as by :func:`outgrow.data.open_data`. Notes are :class:`outgrow.data.DataWarning`.

    Raises ValueError: a path or an image that is absent, two files for a split, files with different
    categories, no object to train on or to report on, and everything that :func:`read_annotations` checks.
    """
    kind, *parts = source.split(":")
    if kind != "coco" or len(parts) != 2 or not all(parts):
        raise ValueError(
            "data: needs coco:IMAGES:ANNOTATIONS (a folder of images; a folder of instances_*.json, or one file), "
            f"got {source!r}; write for example coco:data/coco:data/coco/annotations."
        )
    images, annotations = (Path(part).expanduser() for part in parts)
    for path, wanted, there in (
        (images, "folder of images", images.is_dir()),
        (annotations, "file or folder of annotations", annotations.exists()),
    ):
        if not there:
            raise ValueError(
                f"data: needs an existing {wanted} in {source!r}, got {path.absolute()}, which is none; check "
                "the path."
            )
    paths = _split_files(annotations) if annotations.is_dir() else {"test": annotations}
    files = {split: read_annotations(path) for split, path in paths.items()}
    _check_categories(list(files.values()))
    _check_objects(files)
    notes: list[str] = []
    opening = Opening(None, on_fault, usable((cache_dir or default_cache_dir()) / "data", notes), notes)
    splits: dict[str, DetectionSplit] = {}
    digests: dict[str, Digests] = {}
    facts: list[object] = [VERSION]
    for split, file in files.items():
        for note in file.notes:
            opening.note(note)
        folder = _image_folder(images, paths[split], file.names[0])
        pictures = _pictures(images, folder, file)
        identity = fingerprint([os.path.realpath(folder), os.path.realpath(paths[split])])
        look = look_at(pictures, opening.store(f"{images.name}-{split}", identity))
        note_look(PathList(pictures), look, folder, opening)
        kept = kept_rows(
            PathList(pictures), name=images.name, identity=identity, key=look.key, opening=opening
        )
        splits[split] = DetectionSplit(file, str(folder), kept)
        digests[split] = look.digests
        content = read_bytes(paths[split])
        facts += [
            split,
            hashlib.sha256(content).digest(),
            *file.names,
            look.digests.tobytes(),
            *kept.tolist(),
        ]
    one = splits["test"].file
    duplicates = None
    if "train" in splits:
        duplicates = _duplicates(splits["train"], splits["test"], digests, opening)
    data = DetectionData(
        source=source,
        classes=one.classes,
        category_ids=one.category_ids,
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


def _check_objects(files: Mapping[str, AnnotationFile]) -> None:
    for split, file in files.items():
        if split != "val" and not file.num_objects:
            use = "train on" if split == "train" else "measure box AP on"
            raise ValueError(
                f"data: needs an object to {use}, got {len(file.names)} images without a box (crowds apart) in {file.path}; give "
                "the file that has the boxes (those of a test set are often kept back)."
            )


def _duplicates(
    train: DetectionSplit, test: DetectionSplit, digests: Mapping[str, Digests], opening: Opening
) -> int:
    """How many test pictures the training set holds, too, byte for byte."""
    rows = also_in(digests["test"][test.index.numpy()], digests["train"][train.index.numpy()])
    same = []
    for position in (rows >= 0).nonzero()[0].tolist():
        paths = [
            os.path.join(split.folder, split.name(at))
            for split, at in ((test, position), (train, int(rows[position])))
        ]
        if read_picture(paths[0]) == read_picture(paths[1]):  # of large files a sample was seen
            same.append(" is ".join(map(printable, paths)))
    if same:
        opening.note(
            f"data: {len(same)} of {len(test):,} test images are among the training images, too, byte for byte ({some(same)}): "
            "the accuracy on them is one of training."
        )
    return len(same)


def _split_files(folder: Path) -> dict[str, Path]:
    """The file of each split; where only val is held out, it is the test split."""
    found: dict[str, Path] = {}
    for split in SPLITS:
        paths = sorted(folder.glob(f"{_PREFIX}{split}*.json"))
        if len(paths) > 1:
            raise ValueError(
                f"data: needs one file for {split}, got {', '.join(path.name for path in paths)} in {folder}; "
                "move the others away, or give the one to evaluate on."
            )
        if paths:
            found[split] = paths[0]
    if "test" not in found and "val" in found:
        found["test"] = found.pop("val")
    if "test" not in found:
        got = ", ".join(sorted(path.name for path in folder.glob("*.json"))) or "no .json file"
        raise ValueError(
            f"data: needs {_PREFIX}val*.json or {_PREFIX}test*.json to report on, got {got} in {folder}; rename a "
            "file, set images aside in one, or give one file to evaluate on it alone."
        )
    return found


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


def _image_folder(images: Path, annotations: Path, name: str) -> Path:
    """The first likely folder that has the image ``name``; else the first that exists."""
    tag = annotations.stem.removeprefix(_PREFIX)
    likely = [images / tag, *(images / split for split in SPLITS if tag.startswith(split)), images]
    folders = [folder for folder in likely if folder.is_dir()]
    # file names may hold the split's folder themselves (train2017/1.jpg): then they start at IMAGES
    return next((folder for folder in folders if (folder / name).is_file()), folders[0])


def _pictures(images: Path, folder: Path, file: AnnotationFile) -> list[str]:
    """The paths of all pictures of a file: regular files below the folder of images, each once."""
    pictures = [os.path.join(folder, name) for name in file.names]
    missing, links, folders = [], [], set()
    for place, picture in enumerate(pictures):
        try:
            found = os.lstat(picture)
            if stat.S_ISLNK(found.st_mode):
                links.append(place)
                found = os.stat(picture)
        except (OSError, ValueError):  # absent, or a name that no file can have
            missing.append(place)
            continue
        folders.add(os.path.dirname(picture))
        if not stat.S_ISREG(found.st_mode):
            missing.append(place)
    if missing:
        first = missing[0]
        raise ValueError(
            f"data: needs all {len(pictures)} images of {file.path}, got {len(missing)} missing, the first "
            f"{printable(pictures[first])} (image {int(file.image_ids[first])}); check the folder, or remove their entries."
        )
    homes = tuple({os.path.realpath(home) + os.sep for home in (images, folder)})
    real = {place: os.path.realpath(pictures[place]) for place in links}
    for path in [*real.values(), *(os.path.realpath(inside) + os.sep for inside in folders)]:
        if not path.startswith(homes):
            raise ValueError(
                f"data: needs images below {printable(images)}, got a link to {printable(path)} for one of {file.path}; copy the image, "
                "or give the folder that holds it."
            )
    known: dict[str, int] = {}
    for place, picture in enumerate(pictures) if links else ():
        path = real.get(place, os.path.realpath(picture))
        if path in known:
            ids = [int(file.image_ids[at]) for at in (known[path], place)]
            raise ValueError(
                f"data: needs one id for every picture, got the images {ids[0]} and {ids[1]} of {file.path} for {printable(path)}; "
                "remove one of the links and its entry."
            )
        known[path] = place
    return pictures
