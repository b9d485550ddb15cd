"""Find the image files in a folder, and report what else is there.

An image is a regular file with the suffix of an image format. A file with an unknown suffix is an image if its
first bytes are those of one. Hidden files and folders, and files that systems leave behind, are ignored. Only
regular files are opened: reading a pipe would block.
"""

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from outgrow.data.notes import printable, some
from outgrow.data.pixels import HEAD, is_picture

PICTURES = [
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".jif",
    ".png",
    ".apng",
    ".bmp",
    ".dib",
    ".webp",
    ".gif",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".pbm",
    ".pnm",
    ".jp2",
    ".j2k",
    ".avif",
    ".tga",
]
"""Suffixes of images. A file with such a suffix that cannot be decoded is a broken image, not some other file."""
_COMPANIONS = [
    ".txt",
    ".csv",
    ".tsv",
    ".json",
    ".jsonl",
    ".xml",
    ".yaml",
    ".yml",
    ".md",
    ".rst",
    ".html",
    ".htm",
    ".log",
    ".ini",
    ".db",
    ".py",
    ".ipynb",
    ".url",
    ".sha256",
    ".md5",
]
"""Suffixes of files that often accompany images; they are left out without a note."""
_LITTER = ("__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found", "__pycache__")
MAX_BYTES = 1 << 30
"""The largest size of an image file; a larger file is not an image."""


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden or was left behind by a system.

    >>> [is_hidden(name) for name in (".ipynb_checkpoints", "__MACOSX", "._cat.jpg", "Thumbs.db", "cat.jpg")]
    [True, True, True, True, False]
    """
    return name.startswith(".") or name.lower() in (*_LITTER, "thumbs.db", "desktop.ini")


def folders_in(folder: Path) -> list[str]:
    """The names of the folders in ``folder`` that are not hidden, sorted."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not is_hidden(entry.name) and entry.is_dir())


@dataclass
class Seen:
    """What :func:`look_into` found: ``pictures`` sorted by path, and everything else."""

    pictures: list[str] = field(default_factory=list)
    direct: int = 0
    """Number of pictures in the folder itself, not in a subfolder."""
    below: set[str] = field(default_factory=set)
    """Names of its subfolders that contain pictures."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Counts by suffix of files that are neither pictures nor their usual companions."""
    special: list[str] = field(default_factory=list)
    """Pipes, sockets and devices."""
    gone: list[str] = field(default_factory=list)
    """Symbolic links whose target does not exist."""
    again: list[str] = field(default_factory=list)
    """Symbolic links to files and folders that are found already."""


def look_into(folder: Path) -> Seen:
    """List everything in ``folder``, at any depth. Links are followed, and each file is listed once."""
    seen = Seen()
    # real files come before links, so that a file is listed under its own path
    met: set[tuple[int, int]] = set()
    files: list[tuple[str, str, os.stat_result, bool]] = []
    stack = [(str(folder), "")]
    top = os.stat(folder)
    folders = {(top.st_dev, top.st_ino)}
    while stack:
        here, first = stack.pop()
        with os.scandir(here) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            if is_hidden(entry.name):
                continue
            try:
                status = entry.stat()
            except OSError as error:
                if not entry.is_symlink():
                    raise error
                if _suffix(entry.name) not in _COMPANIONS:
                    seen.gone.append(entry.path)
                continue
            if stat.S_ISDIR(status.st_mode):
                place = (status.st_dev, status.st_ino)
                if place in folders:
                    seen.again.append(entry.path)
                else:
                    folders.add(place)
                    stack.append((entry.path, first or entry.name))
            elif stat.S_ISREG(status.st_mode):
                files.append((entry.path, first, status, entry.is_symlink()))
            else:
                seen.special.append(entry.path)
    for linked in (False, True):
        for path, first, status, is_link in files:
            if is_link != linked or not _looks_like_one(path, seen):
                continue
            place = (status.st_dev, status.st_ino)
            if is_link and place in met:
                seen.again.append(path)
                continue
            met.add(place)
            seen.pictures.append(path)
            seen.direct += not first
            if first:
                seen.below.add(first)
    seen.pictures.sort()
    return seen


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _looks_like_one(path: str, seen: Seen) -> bool:
    suffix = _suffix(path)
    if suffix in PICTURES:
        return True
    if suffix in _COMPANIONS:
        return False
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise unreadable(path, error) from error
    if is_picture(head):
        return True
    seen.left_out[suffix or "no suffix"] += 1
    return False


def unreadable(path: object, error: BaseException) -> ValueError:
    """The exception for a file that cannot be read."""
    reason = getattr(error, "strerror", None) or str(error)
    return ValueError(
        f"data: needs readable files, got {printable(path)} ({reason}); restore it, change its permissions, or "
        "remove it from the data set."
    )


def notes_of(seen: Seen, where: object) -> list[str]:
    """Notes for the user about files that were left out."""
    place = printable(where)
    notes = []
    if seen.left_out:
        count = sum(seen.left_out.values())
        kinds = ", ".join(f"{number} {suffix}" for suffix, number in seen.left_out.most_common(5))
        notes.append(
            f"data: left out {count} files in {place} that are not images Pillow can read ({kinds})."
        )
    if seen.special:
        notes.append(f"data: left out {some(seen.special)}: not a regular file.")
    if seen.again:
        notes.append(f"data: left out {some(seen.again)}: a link to something already counted in {place}.")
    return notes


@dataclass(frozen=True, repr=False)
class PathList:
    """Encoded images, each in its own file."""

    paths: Sequence[str]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, row: int) -> bytes:
        return read_picture(self.paths[row])

    def describe(self, row: int) -> str:
        return printable(self.paths[row])

    def stream(self) -> Iterator[bytes]:
        return (self.read(row) for row in range(len(self)))


def read_picture(path: str) -> bytes:
    """The bytes of one image file. ``ValueError`` if it cannot be read or is too large to be an image."""
    try:
        if os.stat(path).st_size > MAX_BYTES:
            raise OSError(f"{os.stat(path).st_size:,} bytes; an image has at most {MAX_BYTES:,}")
    except OSError as error:
        raise unreadable(path, error) from error
    return read_bytes(path)


def read_bytes(path: str | Path) -> bytes:
    """The bytes of a file; ``ValueError`` if it is not a regular file or cannot be read."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise OSError("not a regular file")
        return Path(path).read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
