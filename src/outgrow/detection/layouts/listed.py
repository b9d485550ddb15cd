"""What a reader of a layout returns for each split: the checked annotations, and where the images are."""

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from outgrow.data.files import PICTURES, is_hidden, read_bytes
from outgrow.data.notes import printable
from outgrow.data.pixels import sizes_of
from outgrow.data.splits import Rows
from outgrow.detection.layouts.annotations import AnnotationFile, Faults, FaultyEntries, check_content

T = TypeVar("T")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Listed:
    """The images of ``file`` are below ``folder`` by name, or in ``rows``; links must stay below ``home``.

    ``digest`` identifies the content of the annotations. Sizes that are ``stated`` there are still to be compared with
    the images.
    """

    file: AnnotationFile
    folder: Path
    home: Path
    digest: bytes
    rows: Rows | None = None
    stated: bool = False


def digest_of(files: Iterable[Path]) -> bytes:
    """A hash of the contents of ``files``."""
    total = hashlib.sha256()
    for file in files:
        total.update(hashlib.sha256(read_bytes(file)).digest())
    return total.digest()


def read_each(splits: Iterable[str], read: Callable[[str], T]) -> dict[str, T]:
    """``read`` of each of ``splits``. The faults of all of them are raised at once."""
    found: dict[str, T] = {}
    faulty: list[FaultyEntries] = []
    for split in splits:
        try:
            found[split] = read(split)
        except FaultyEntries as error:
            faulty.append(error)
    if faulty:
        faults = [fault for error in faulty for fault in error.faults]
        paths = [path for error in faulty for path in error.paths]
        raise FaultyEntries(faults, paths, skippable=all(error.skippable for error in faulty))
    return found


def hold_out(found: dict[str, Listed], where: object) -> dict[str, Listed]:
    """If only val is held out, it becomes test. ``ValueError`` without either."""
    if "test" not in found and "val" in found:
        found["test"] = found.pop("val")
    if "test" not in found:
        raise ValueError(
            f"data: needs images to report on (val or test), got {', '.join(found) or 'none'} in {printable(where)}; hold out "
            "some."
        )
    return {split: found[split] for split in SPLITS if split in found}


def pictures_in(folder: Path) -> list[Path]:
    """The image files in a folder and below it, sorted; without hidden files and those that systems leave behind."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in PICTURES
        and not any(map(is_hidden, path.relative_to(folder).parts))
        and path.is_file()
    )


def only_pictures(names: Sequence[str], folder: Path, home: Path, faults: Faults) -> Listed:
    """The pictures ``names`` below ``folder`` without annotations, in the sizes that their files have."""
    sizes = [size_of_file(folder / name) for name in names]
    return Listed(without_objects(names, sizes, folder, faults, folder), folder, home, digest_of([]))


def without_objects(
    names: Sequence[str],
    sizes: Sequence[tuple[int, int] | None],
    path: Path,
    faults: Faults,
    folder: Path | None = None,
) -> AnnotationFile:
    """The images ``names``, files in ``folder`` if it is given, with no object. One without a size is a fault. ``ValueError`` for no images."""
    if not names:
        raise ValueError(
            f"data: needs at least one picture in {printable(path)}, got none; add some, or name another source."
        )
    images = []
    for number, (name, size) in enumerate(zip(names, sizes, strict=True)):
        if size is None:
            faults.add("image", name, *no_size(None if folder is None else folder / name))
        else:
            images.append({"id": number, "file_name": name, "width": size[0], "height": size[1]})
    return check_content({"images": images, "annotations": [], "categories": []}, path, faults)


def seen_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of an encoded image as a viewer shows it; None if its header cannot be read."""
    found = sizes_of(io.BytesIO(data))
    return None if found is None else found[1]


def size_of_file(path: Path) -> tuple[int, int] | None:
    """:func:`seen_size` of a file, of which only the header is read; None for a missing file, too."""
    if not path.is_file():  # reading a pipe would block
        return None
    with open(path, "rb") as file:
        found = sizes_of(file)
    return None if found is None else found[1]


def no_size(path: Path | None) -> tuple[str, str]:
    """What an image without a size needs and has; ``path`` is its file, if it is one."""
    if path is not None and not path.is_file():
        return "an existing file", printable(path)
    return "an image whose size can be read", "none"


def common_folder(paths: Sequence[Path]) -> Path:
    """The folder that has all ``paths``."""
    return Path(os.path.commonpath([str(path.parent) for path in paths]))
