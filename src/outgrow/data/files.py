"""Which files of a folder are pictures, and what else lies there.

A picture is a regular file with a picture's suffix, or with none that is known and a picture's first bytes.
Hidden files and folders, and what systems leave behind, are nobody's pictures. Nothing but a regular file is
ever opened: a pipe would wait for ever.
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
"""Suffixes that are believed; a file that breaks its suffix's word is a broken picture."""
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
"""What lies beside pictures and is none, which nobody needs to be told."""
_LITTER = ("__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found", "__pycache__")
MAX_BYTES = 1 << 30
"""Of one picture: a larger file is something else."""


def is_hidden(name: str) -> bool:
    """Whether a file or folder is none of the user's: hidden, or left behind by a system.

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
    """What a walk through a folder met: ``pictures`` in the order of their paths, and everything else."""

    pictures: list[str] = field(default_factory=list)
    direct: int = 0
    """Pictures in the folder itself, not further down."""
    below: set[str] = field(default_factory=set)
    """Names of the folders in it that hold pictures."""
    left_out: Counter[str] = field(default_factory=Counter)
    """By suffix: files that are neither pictures nor what usually lies beside them."""
    special: list[str] = field(default_factory=list)
    """Pipes, sockets and devices."""
    gone: list[str] = field(default_factory=list)
    """Links without a target."""
    again: list[str] = field(default_factory=list)
    """Files and folders that links show a second time."""


def look_into(folder: Path) -> Seen:
    """Everything at any depth of ``folder``; links are followed, and each file is met once."""
    seen = Seen()
    # real files before links: of two names for one file the file's own counts
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
    """What is said of a file that cannot be read."""
    reason = getattr(error, "strerror", None) or str(error)
    return ValueError(
        f"data: needs files that can be read, got {printable(path)} ({reason}); restore it, change its rights, or "
        "remove it from the data set."
    )


def notes_of(seen: Seen, where: object) -> list[str]:
    """What a walk met that a person wants to know."""
    place = printable(where)
    notes = []
    if seen.left_out:
        count = sum(seen.left_out.values())
        kinds = ", ".join(f"{number} {suffix}" for suffix, number in seen.left_out.most_common(5))
        notes.append(f"data: left out {count} files in {place} that are no pictures Pillow reads ({kinds}).")
    if seen.special:
        notes.append(f"data: left out {some(seen.special)}, which is no regular file.")
    if seen.again:
        notes.append(
            f"data: {some(seen.again)} is a link to what is counted already in {place}, and left out."
        )
    return notes


@dataclass(frozen=True, repr=False)
class PathList:
    """Pictures in files of their own."""

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
    """The bytes of one picture. ``ValueError`` where the file cannot be read, or is too large to be one."""
    try:
        if os.stat(path).st_size > MAX_BYTES:
            raise OSError(f"{os.stat(path).st_size:,} bytes, and a picture has at most {MAX_BYTES:,}")
    except OSError as error:
        raise unreadable(path, error) from error
    return read_bytes(path)


def read_bytes(path: str | Path) -> bytes:
    """The bytes of a regular file; ``ValueError`` where it is none, or cannot be read."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise OSError("not a regular file")
        return Path(path).read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
