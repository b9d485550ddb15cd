"""Detection data: ``coco:IMAGES:ANNOTATIONS`` opens any data set in COCO's layout.

IMAGES       a folder of images, or one with a folder for each split
ANNOTATIONS  a folder with instances_train*.json and instances_val*.json, instances_test*.json or both; or one
             such file to evaluate on

The images of ``instances_train2017.json`` are in ``IMAGES/train2017``, else ``IMAGES/train``, else IMAGES.
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
    """Images of any size with their boxes. Images are decoded on access.

    ``index`` is each image's row in its annotation file. ``subset`` keeps it, so that randomness and per-sample
    memories can use it.
    """

    file: AnnotationFile
    folder: str
    index: Int64[Tensor, " n"]

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
        return DetectionSplit(self.file, self.folder, self.index[positions])

    def name(self, position: int) -> str:
        """The image's file name, as in the annotations."""
        return self.file.names[int(self.index[position])]

    def size(self, position: int) -> tuple[int, int]:
        """Height and width in pixels, from the annotations."""
        height, width = self.file.sizes[int(self.index[position])].tolist()
        return height, width

    def truth(self, position: int) -> Truth:
        """The ground truth of an image, without boxes narrower or lower than one pixel."""
        file, number = self.file, int(self.index[position])
        rows = file.rows(number)
        crowd, usable = file.crowd[rows], file.usable[rows]
        drawn = usable & ~crowd
        boxes = file.boxes[rows]
        return Truth(boxes[drawn], file.label[rows][drawn], boxes[usable & crowd], number)

    def image(self, position: int) -> UInt8[Tensor, "3 height width"]:
        """An image, RGB, 0..255.

        COCO's tools ignore the EXIF orientation. It is applied only if the image has the size in its annotations
        afterwards and not before. Square images are never rotated.

        ``ValueError`` with the file name if the image cannot be decoded, or if its size differs from its
        annotations, as its boxes would then be misplaced.
        """
        path = os.path.join(self.folder, self.name(position))
        height, width = self.size(position)
        image = to_tensor(
            decode(read_picture(path), where=lambda: printable(path), stored_size=(width, height))
        )
        if image.shape[1:] != (height, width):
            raise ValueError(
                f"data: needs an image of {width}x{height} in {path}, the size of image {self.image_ids[position]} in "
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
    """Open ``coco:IMAGES:ANNOTATIONS``; :mod:`outgrow.detection.data` has the layout.

    A source with a single held-out set, be it test or val, has it as ``test``. A single file is all ``test``.
    "~" is the home folder. ``on_fault="skip"`` leaves out images that cannot be decoded; to find them, all images
    are decoded once. The results of checks are cached in ``cache_dir``, as by :func:`outgrow.data.open_data`.
    Notes are issued as :class:`outgrow.data.DataWarning`.

    ``ValueError`` for a missing path or image, two files for a split, files with different categories, a training
    or test set without objects, and everything that :func:`read_annotations` checks.
    """
    kind, *parts = source.split(":")
    if kind != "coco" or len(parts) != 2 or not all(parts):
        raise ValueError(
            "data: needs coco:IMAGES:ANNOTATIONS (a folder of images; a folder of instances_*.json, or one file), "
            f"got {source!r}; write for example coco:data/coco:data/coco/annotations."
        )
    images, annotations = (Path(part).expanduser() for part in parts)
    for path, needed, exists in (
        (images, "folder of images", images.is_dir()),
        (annotations, "file or folder of annotations", annotations.exists()),
    ):
        if not exists:
            raise ValueError(
                f"data: needs an existing {needed} in {source!r}, got {path.absolute()}; check the path."
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
        image_paths = _image_paths(images, folder, file)
        identity = fingerprint([os.path.realpath(folder), os.path.realpath(paths[split])])
        look = look_at(image_paths, opening.store(f"{images.name}-{split}", identity))
        note_look(PathList(image_paths), look, folder, opening)
        kept = kept_rows(
            PathList(image_paths), name=images.name, identity=identity, key=look.key, opening=opening
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
        paths = [
            os.path.join(split.folder, split.name(at))
            for split, at in ((test, position), (train, int(rows[position])))
        ]
        if read_picture(paths[0]) == read_picture(paths[1]):
            same.append(" is ".join(map(printable, paths)))
    if same:
        opening.note(
            f"data: {len(same)} of {len(test):,} test images are among the training images, byte for byte ({some(same)}); "
            "AP on them is no measure of generalisation."
        )
    return len(same)


def _split_files(folder: Path) -> dict[str, Path]:
    """The file of each split. If only val is held out, it becomes test."""
    found: dict[str, Path] = {}
    for split in SPLITS:
        paths = sorted(folder.glob(f"{_PREFIX}{split}*.json"))
        if len(paths) > 1:
            raise ValueError(
                f"data: needs one file for {split}, got {', '.join(path.name for path in paths)} in {folder}; "
                "move the others away, or pass the one to evaluate on."
            )
        if paths:
            found[split] = paths[0]
    if "test" not in found and "val" in found:
        found["test"] = found.pop("val")
    if "test" not in found:
        got = ", ".join(sorted(path.name for path in folder.glob("*.json"))) or "no .json file"
        raise ValueError(
            f"data: needs {_PREFIX}val*.json or {_PREFIX}test*.json to report on, got {got} in {folder}; rename a "
            "file, hold out some images in one, or pass a single file to evaluate on."
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
    """The first candidate folder that has the image ``name``; else the first one that exists."""
    tag = annotations.stem.removeprefix(_PREFIX)
    candidates = [images / tag, *(images / split for split in SPLITS if tag.startswith(split)), images]
    folders = [folder for folder in candidates if folder.is_dir()]
    # file names may include the folder of the split (train2017/1.jpg), relative to IMAGES
    return next((folder for folder in folders if (folder / name).is_file()), folders[0])


def _image_paths(images: Path, folder: Path, file: AnnotationFile) -> list[str]:
    """The paths of all images of a file. Each must be a regular file below ``images``, and only listed once."""
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
    return paths
