"""Digests of files: for fingerprints that a copy of the data shares, and to find duplicate images.

Each file is read once. Its digest is cached under its stat facts: device, inode, size, mtime and ctime (which
cannot be set back). A file that was written to, or replaced by one of the same size and mtime, has other facts
and is read again. So is a file that was written in the last seconds, because file system clocks are coarse.

Sets of up to :data:`WHOLE_SET` bytes are read completely. In larger sets, files over :data:`WHOLE_FILE` are
sampled: the digest covers the size and three blocks. :attr:`Look.sampled` counts them, and ``open_data`` adds
a note: the fingerprint misses a change between the blocks that keeps the size. The keys of decoded copies then
include the stat facts, so these copies are never stale.
"""

import contextlib
import hashlib
import io
import os
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from outgrow.data.files import unreadable
from outgrow.data.pixels import has_frames, sizes_of
from outgrow.machine.files import NotWritten, write_atomically

WHOLE_SET = 2 << 30
"""Bytes up to which a set is read completely; hashing takes 1.5 GB a second and core, once in memory."""
WHOLE_FILE = 128 << 10
"""Bytes up to which a file is read completely in any set: small images, whose decoded copies are cached."""
_BLOCK = 16 << 10
_SETTLED = 3 * 10**9
"""Nanoseconds after a change from which on a further change gets a different mtime or ctime."""
_THREADS = 8
_MAGIC = b"outgrow looks 2\n"
_FRAMES, _SAMPLED, _SIZED = 1, 2, 4
_ENTRY = np.dtype([("quick", "<u8"), ("digest", "u1", 16), ("flags", "u1"), ("sizes", "<u4", (2, 2))])

Digests = NDArray[np.uint8]
"""n x 16: a digest of each image's encoded bytes; zeros for images that were not read."""


@dataclass(frozen=True)
class Look:
    """Facts about image files that do not need decoding."""

    digests: Digests
    frames: NDArray[np.bool_]
    """Which images are animations or have several pages."""
    sampled: int
    """How many files were not read completely."""
    quick: str
    """A hash of the files' stat facts: it changes with every write to any of them, and differs between copies."""
    sizes: NDArray[np.uint32] | None = None
    """n x 2 x 2: width and height as stored, and as EXIF turns the image; zeros for a header that cannot be read."""

    @classmethod
    def unknown(cls, num: int) -> "Look":
        """For ``num`` files that were not read; no two of them count as equal."""
        return cls(np.zeros((num, 16), np.uint8), np.zeros(num, bool), num, "")

    @property
    def known(self) -> bool:
        """Whether any file was read."""
        return bool(self.digests.any())

    @property
    def key(self) -> str:
        """The key of a decoded copy: the digests, with the stat facts if a digest covers only part of a file."""
        return fingerprint([self.digests.tobytes(), self.quick if self.sampled else ""])


def fingerprint(parts: Iterable[object]) -> str:
    """A hash of ``parts``: bytes as they are, others as text."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogatepass"))
        digest.update(b"\0")
    return digest.hexdigest()


def look_at(paths: Sequence[str], store: Path | None, *, with_sizes: bool = False) -> Look:
    """The :class:`Look` of the files ``paths``; ``store`` is the file that caches digests and sizes."""
    now = time.time_ns()
    entries = np.zeros(len(paths), _ENTRY)
    sizes = np.zeros(len(paths), np.int64)
    settled = np.zeros(len(paths), bool)
    for row, path in enumerate(paths):
        try:
            status = os.stat(path)
        except OSError as error:
            raise unreadable(path, error) from error
        sizes[row] = status.st_size
        settled[row] = max(status.st_ctime_ns, status.st_mtime_ns) < now - _SETTLED
        facts = struct.pack(
            "<5Q",
            *(
                value & 0xFFFFFFFFFFFFFFFF
                for value in (
                    status.st_dev,
                    status.st_ino,
                    status.st_size,
                    status.st_mtime_ns,
                    status.st_ctime_ns,
                )
            ),
        )
        entries["quick"][row] = int.from_bytes(hashlib.sha256(facts).digest()[:8], "little")
    sampled = (sizes > WHOLE_FILE) & (int(sizes.sum()) > WHOLE_SET)
    known = _fill_known(entries, _read_store(store), sampled)
    if with_sizes:
        known &= (entries["flags"] & _SIZED) > 0

    def look(row: int) -> None:
        digest, frames, entries["sizes"][row] = _look(
            paths[row], int(sizes[row]), sample=bool(sampled[row]), with_sizes=with_sizes
        )
        entries["digest"][row] = np.frombuffer(digest, np.uint8)
        entries["flags"][row] = _FRAMES * frames + _SAMPLED * bool(sampled[row]) + _SIZED * with_sizes

    unknown = (~known).nonzero()[0].tolist()
    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(look, unknown):
            pass
    if unknown and store is not None and settled.any():
        _write_store(store, entries[settled])
    return Look(
        np.ascontiguousarray(entries["digest"]),
        (entries["flags"] & _FRAMES) > 0,
        int(sampled.sum()),
        fingerprint([entries["quick"].tobytes()]),
        np.ascontiguousarray(entries["sizes"]) if with_sizes else None,
    )


def look_at_rows(rows: Iterable[bytes], num: int) -> Look:
    """The :class:`Look` of images inside other files; nothing is cached."""
    digests = np.zeros((num, 16), np.uint8)
    frames = np.zeros(num, bool)
    count = 0
    stream = enumerate(rows)
    while chunk := list(islice(stream, 1024)):
        for row, data in chunk:
            digests[row] = np.frombuffer(_digest(data, len(data)), np.uint8)
            frames[row] = has_frames(data)
        count += len(chunk)
    assert count == num, (count, num)
    return Look(digests, frames, 0, "")


def look_at_pixels(images: NDArray[np.uint8]) -> Digests:
    """Digests of decoded images."""
    found = [np.frombuffer(_digest(image.tobytes(), image.nbytes), np.uint8) for image in images]
    return np.stack(found) if found else np.zeros((0, 16), np.uint8)


def also_in(digests: Digests, others: Digests) -> NDArray[np.int64]:
    """For each of ``digests`` the first row of ``others`` with the same digest, -1 if there is none.

    Zeros (images that were not read) match nothing.
    """
    known, first = np.unique(_numbers(others), return_index=True)
    mine = _numbers(digests)
    if not len(known):
        return np.full(len(mine), -1)
    place = known.searchsorted(mine).clip(max=len(known) - 1)
    row = first[place]
    same = (digests == others[row]).all(1) & digests.any(1)
    return np.where(same, row, -1)


def _numbers(digests: Digests) -> NDArray[np.uint64]:
    return np.ascontiguousarray(digests[:, :8]).view("<u8")[:, 0]


def _digest(data: bytes, size: int) -> bytes:
    total = hashlib.sha256(size.to_bytes(8, "little"))
    total.update(data)
    return total.digest()[:16]


def _look(path: str, size: int, *, sample: bool, with_sizes: bool) -> tuple[bytes, bool, object]:
    def sizes(image: io.BytesIO | io.BufferedReader) -> object:
        return (sizes_of(image) if with_sizes else None) or 0

    try:
        with open(path, "rb") as file:
            if not sample and size <= (8 << 20):
                data = file.read()
                return _digest(data, len(data)), has_frames(data), sizes(io.BytesIO(data))
            head = file.read(_BLOCK)
            parts: Iterator[bytes] = iter(lambda: file.read(1 << 20), b"")
            if sample:
                parts = _blocks(file, size)
            total = hashlib.sha256(size.to_bytes(8, "little"))
            total.update(head)
            for part in parts:
                total.update(part)
            file.seek(0)
            return total.digest()[:16], has_frames(head), sizes(file)
    except OSError as error:
        raise unreadable(path, error) from error


def _blocks(file: io.BufferedReader, size: int) -> Iterator[bytes]:
    """A block from the middle and one from the end of ``file``."""
    for place in (size // 2, size - _BLOCK):
        file.seek(place)
        yield file.read(_BLOCK)


def _fill_known(entries: np.ndarray, stored: np.ndarray, sampled: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Copy digests and flags from ``stored`` to the ``entries`` with the same stat facts; returns a mask of these."""
    if not len(stored):
        return np.zeros(len(entries), bool)
    stored = stored[stored["quick"].argsort(kind="stable")]
    place = stored["quick"].searchsorted(entries["quick"]).clip(max=len(stored) - 1)
    found = stored[place]
    known = (found["quick"] == entries["quick"]) & (((found["flags"] & _SAMPLED) > 0) == sampled)
    entries["digest"][known] = found["digest"][known]
    entries["flags"][known] = found["flags"][known]
    entries["sizes"][known] = found["sizes"][known]
    return known


def read_look(store: Path | None, num: int) -> Look | None:
    """The look that :func:`write_look` wrote for ``num`` rows; None if there is none."""
    stored = _read_store(store)
    if not num or len(stored) != num:
        return None
    return Look(np.ascontiguousarray(stored["digest"]), (stored["flags"] & _FRAMES) > 0, 0, "")


def write_look(store: Path | None, look: Look) -> None:
    """Write ``look`` to ``store``, whose name must identify the images."""
    if store is not None:
        entries = np.zeros(len(look.digests), _ENTRY)
        entries["digest"], entries["flags"] = look.digests, _FRAMES * look.frames
        _write_store(store, entries)


def _read_store(store: Path | None) -> np.ndarray:
    """The cached entries; empty if the file is absent or damaged, which only means that files are read again."""
    nothing = np.zeros(0, _ENTRY)
    if store is None:
        return nothing
    try:
        content = store.read_bytes()
    except OSError:
        return nothing
    head = len(_MAGIC) + 32
    body = content[head:]
    if content[:head] != _MAGIC + hashlib.sha256(body).digest() or len(body) % _ENTRY.itemsize:
        return nothing
    return np.frombuffer(body, _ENTRY)


def _write_store(store: Path, entries: np.ndarray) -> None:
    body = entries.tobytes()
    with contextlib.suppress(NotWritten):  # the next call reads the files again
        write_atomically(store, _MAGIC + hashlib.sha256(body).digest() + body)
