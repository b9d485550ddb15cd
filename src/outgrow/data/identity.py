"""What files hold, told by their bytes: fingerprints that a copy shares, and pictures that are there twice.

A file is looked at once. What was seen of it is kept in the cache folder under its quick facts: device, inode,
size and both times, of which the time of change (ctime) cannot be set back. A file that was written to, or
replaced by one of the same size and time, has other facts and is looked at again; so is one that was written
in the last seconds, since clocks of file systems are coarse.

Sets of up to :data:`WHOLE_SET` bytes are read whole. Of larger ones files over :data:`WHOLE_FILE` are sampled: size,
and three blocks. :attr:`Look.sampled` counts them, and the opening says so: a change between the blocks that
keeps the size is then not seen in the fingerprint. Decoded copies go by the quick facts, too, so they are
never old.
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
from outgrow.data.pixels import has_frames
from outgrow.machine.files import NotWritten, write_atomically

WHOLE_SET = 2 << 30
"""Bytes of a set that are read to know it; 1.5 GB a second and core once they are in memory."""
WHOLE_FILE = 128 << 10
"""Bytes of a file that is read whole in any set: small pictures, of which decoded copies are kept."""
_BLOCK = 16 << 10
_SETTLED = 3 * 10**9
"""Nanoseconds after which a file's times tell a later change from the last one."""
_THREADS = 8
_MAGIC = b"outgrow looks 1\n"
_FRAMES, _SAMPLED = 1, 2
_ENTRY = np.dtype([("quick", "<u8"), ("digest", "u1", 16), ("flags", "u1")])

Digests = NDArray[np.uint8]
"""n x 16: a digest of each picture's encoded bytes."""


@dataclass(frozen=True)
class Look:
    """What is known of files without decoding them."""

    digests: Digests
    frames: NDArray[np.bool_]
    """Which are animations or have several pages."""
    sampled: int
    """How many were not read whole."""
    quick: str
    """Changes with every write to any of them; differs between copies."""

    @classmethod
    def unknown(cls, num: int) -> "Look":
        """Of ``num`` files at which nobody looked: no two are known to be the same."""
        return cls(np.zeros((num, 16), np.uint8), np.zeros(num, bool), num, "")

    @property
    def known(self) -> bool:
        """Whether anybody looked."""
        return bool(self.digests.any())

    @property
    def key(self) -> str:
        """What a decoded copy goes by: the bytes, and the quick facts where not all of those were read."""
        return fingerprint([self.digests.tobytes(), self.quick if self.sampled else ""])


def fingerprint(parts: Iterable[object]) -> str:
    """A hash of ``parts`` as text, or as they are where they are bytes."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogatepass"))
        digest.update(b"\0")
    return digest.hexdigest()


def look_at(paths: Sequence[str], store: Path | None) -> Look:
    """Look at ``paths``, or remember what was seen in them; ``store`` is the file that remembers."""
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
    known = _remember(entries, _read_store(store), sampled)

    def look(row: int) -> None:
        digest, frames = _look(paths[row], int(sizes[row]), sample=bool(sampled[row]))
        entries["digest"][row] = np.frombuffer(digest, np.uint8)
        entries["flags"][row] = _FRAMES * frames + _SAMPLED * bool(sampled[row])

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
    )


def look_at_rows(rows: Iterable[bytes], num: int) -> Look:
    """The same of pictures that are no files of their own; nothing is remembered."""
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
    """Digests of pictures that are decoded."""
    found = [np.frombuffer(_digest(image.tobytes(), image.nbytes), np.uint8) for image in images]
    return np.stack(found) if found else np.zeros((0, 16), np.uint8)


def also_in(digests: Digests, others: Digests) -> NDArray[np.int64]:
    """For each of ``digests`` the first row of ``others`` that has the same bytes, -1 where none has.

    Zeros stand for images at which nobody looked: they are like no other.
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


def _look(path: str, size: int, *, sample: bool) -> tuple[bytes, bool]:
    try:
        with open(path, "rb") as file:
            if not sample and size <= (8 << 20):
                data = file.read()
                return _digest(data, len(data)), has_frames(data)
            head = file.read(_BLOCK)
            parts: Iterator[bytes] = iter(lambda: file.read(1 << 20), b"")
            if sample:
                parts = _blocks(file, size)
            total = hashlib.sha256(size.to_bytes(8, "little"))
            total.update(head)
            for part in parts:
                total.update(part)
            return total.digest()[:16], has_frames(head)
    except OSError as error:
        raise unreadable(path, error) from error


def _blocks(file: io.BufferedReader, size: int) -> Iterator[bytes]:
    """The middle and the end."""
    for place in (size // 2, size - _BLOCK):
        file.seek(place)
        yield file.read(_BLOCK)


def _remember(entries: np.ndarray, stored: np.ndarray, sampled: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Fill in what is stored of ``entries``; which ones that were."""
    if not len(stored):
        return np.zeros(len(entries), bool)
    stored = stored[stored["quick"].argsort(kind="stable")]
    place = stored["quick"].searchsorted(entries["quick"]).clip(max=len(stored) - 1)
    found = stored[place]
    known = (found["quick"] == entries["quick"]) & (((found["flags"] & _SAMPLED) > 0) == sampled)
    entries["digest"][known] = found["digest"][known]
    entries["flags"][known] = found["flags"][known]
    return known


def read_look(store: Path | None, num: int) -> Look | None:
    """What :func:`write_look` kept of ``num`` rows."""
    stored = _read_store(store)
    if not num or len(stored) != num:
        return None
    return Look(np.ascontiguousarray(stored["digest"]), (stored["flags"] & _FRAMES) > 0, 0, "")


def write_look(store: Path | None, look: Look) -> None:
    """Keep ``look`` in a file whose name says of what it is."""
    if store is not None:
        entries = np.zeros(len(look.digests), _ENTRY)
        entries["digest"], entries["flags"] = look.digests, _FRAMES * look.frames
        _write_store(store, entries)


def _read_store(store: Path | None) -> np.ndarray:
    """What is remembered; nothing where the file is absent or damaged: looking again is always right."""
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
    with contextlib.suppress(NotWritten):  # the next opening looks again
        write_atomically(store, _MAGIC + hashlib.sha256(body).digest() + body)
