"""Cache images, decoded or packed, in files that are memory-mapped the next time.

    STEM-KEY.npy    small images of one size, decoded: uint8, n x 3 x height x width, and a checksum
    STEM-KEY.pack   any images, encoded: n + 1 offsets, n checksums, a checksum of both, then the bytes

Both formats are written to a temporary file with plain writes and then renamed. A full disk is therefore an
exception; writing through a memory map would kill the process.

A changed source has another key (:attr:`outgrow.data.identity.Look.key`), so its old file is not read. It is
removed when the new one is written. Checksums are verified when a file is opened, or, for packs over
:data:`CHECKED`, when an image is read. A damaged file is built again. If the cache cannot be written, images
are used without it. Both cases add a note.
"""

import contextlib
import glob
import os
import re
import uuid
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from outgrow.data.pixels import decode
from outgrow.data.splits import ArraySplit, FileSplit, Rows, Split

SMALL = 96
"""The largest side of images that are cached decoded: 100,000 of them at 96 x 96 take 2.8 GB."""
CHECKED = 1 << 30
"""Bytes up to which a pack is verified when it is opened, which takes a fraction of a second."""
_CHUNK = 1024
"""Images decoded at once and held in memory; their sizes are checked after each chunk."""
_TRAILER = b"outgrow1"


@dataclass(frozen=True)
class CacheFile:
    """The cache file of one split: ``path(".npy")`` or ``path(".pack")``.

    ``folder`` is None if there is no cache. Problems are appended to ``notes``.
    """

    folder: Path | None
    stem: str
    key: str
    notes: list[str]

    @classmethod
    def of(cls, folder: Path | None, name: str, identity: str, key: str, notes: list[str]) -> "CacheFile":
        """``name`` makes the file name readable, ``identity`` is a hash of the location and ``key`` of the content."""
        readable = re.sub(r"[^A-Za-z0-9]+", "_", name)[:40]
        return cls(folder, f"{readable}-{identity[:8]}", key, notes)

    def path(self, suffix: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{self.stem}-{self.key[:24]}{suffix}"

    def remove_stale(self, suffix: str) -> None:
        assert self.folder is not None
        for old in self.folder.glob(f"{glob.escape(self.stem)}-*{suffix}"):
            if old != self.path(suffix):
                with contextlib.suppress(OSError):  # another process may have removed it
                    old.unlink()

    def damaged(self, path: Path) -> None:
        self.notes.append(f"data: the cached images {path} are damaged and are built again.")

    def not_written(self, error: OSError) -> None:
        note = (
            f"data: the cache {self.folder} cannot be written ({error.strerror or error}); images are decoded at every "
            "start. Free some space, or set XDG_CACHE_HOME to another folder."
        )
        if note not in self.notes:
            self.notes.append(note)


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/outgrow``, or ``~/.cache/outgrow``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "outgrow"


def cached_split(rows: Rows, labels: Int64[Tensor, " n"], *, pack: bool, cache: CacheFile) -> Split:
    """The split of the images ``rows``.

    Images of one size, at most :data:`SMALL`, become an ArraySplit, decoded and cached. Others become a
    FileSplit over ``rows``. With ``pack``, for sources with slow random access, it reads a packed copy in the
    cache.
    """
    images = _read_array(cache, len(labels))
    packed: Pack | None = _read_pack(cache, len(labels)) if images is None and pack else None
    if images is None and packed is None:
        images = _build_array(rows, cache)
        if images is None and pack:
            packed = _build_pack(rows, cache)
    if images is not None:
        return ArraySplit.of(images, labels)
    return FileSplit.of(packed if packed is not None else rows, labels)


@contextlib.contextmanager
def _written(target: Path) -> Iterator[Path]:
    """A temporary path, unique to the process, that is renamed to ``target`` unless an exception is raised."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _read_array(cache: CacheFile, num: int) -> UInt8[Tensor, "n 3 height width"] | None:
    path = cache.path(".npy")
    if path is None or not path.is_file():
        return None
    try:
        # "c" (copy-on-write): pages are shared until written to, and torch does not warn about a read-only array
        array = np.load(path, mmap_mode="c")
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[:2] != (num, 3):
            raise ValueError("another array")
        with path.open("rb") as file:
            file.seek(-len(_TRAILER) - 4, os.SEEK_END)
            if file.read() != _trailer(zlib.crc32(array.data)):
                raise ValueError("another checksum")
    except (OSError, ValueError, EOFError):
        cache.damaged(path)
        return None
    return torch.from_numpy(array)


def _trailer(checksum: int) -> bytes:
    return _TRAILER + checksum.to_bytes(4, "little")


def _build_array(rows: Rows, cache: CacheFile) -> UInt8[Tensor, "n 3 height width"] | None:
    """All images decoded; None unless they are small and of one size."""
    first = next(rows.stream())
    size = decode(first, where=lambda: rows.describe(0)).size
    if max(size) > SMALL:
        return None
    shape = (len(rows), 3, size[1], size[0])
    target = cache.path(".npy")
    if target is not None:
        try:
            with _written(target) as temporary:
                whole = _write_array(temporary, rows, size)
                if not whole:
                    raise _OtherSizes
            cache.remove_stale(".npy")
            return torch.from_numpy(np.load(target, mmap_mode="c"))
        except _OtherSizes:
            return None
        except OSError as error:
            cache.not_written(error)
    memory = np.empty(shape, dtype=np.uint8)
    start = 0
    for chunk in _decoded(rows, size):
        if chunk is None:
            return None
        memory[start : start + len(chunk)] = chunk
        start += len(chunk)
    return torch.from_numpy(memory)


class _OtherSizes(Exception):
    """Not all images have the first one's size."""


def _write_array(path: Path, rows: Rows, size: tuple[int, int]) -> bool:
    """Decode ``rows`` to a file; returns False as soon as an image has another size."""
    checksum = 0
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(rows), 3, size[1], size[0])}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in _decoded(rows, size):
            if chunk is None:
                return False
            checksum = zlib.crc32(chunk.data, checksum)
            file.write(chunk.data)
        file.write(_trailer(checksum))
        file.flush()
        os.fsync(file.fileno())
    return True


def _decoded(rows: Rows, size: tuple[int, int]) -> Iterator[np.ndarray | None]:
    """The decoded images in order, in chunks; yields None and stops at an image of another size."""
    threads = min(8, os.cpu_count() or 1)
    numbered = enumerate(rows.stream())

    def work(items: list[tuple[int, bytes]]) -> list[np.ndarray] | None:
        images = []
        for row, data in items:
            image = decode(data, where=lambda row=row: rows.describe(row))  # type: ignore[misc]
            if image.size != size:
                return None
            images.append(np.asarray(image).transpose(2, 0, 1))
        return images

    with ThreadPoolExecutor(threads) as pool:
        while chunk := list(islice(numbered, _CHUNK)):
            # many images per task: the overhead of a task is as large as decoding one image
            share = -(-len(chunk) // threads)
            parts = list(pool.map(work, [chunk[at : at + share] for at in range(0, len(chunk), share)]))
            if any(part is None for part in parts):
                yield None
                return
            images = list(chain.from_iterable(part or () for part in parts))
            yield np.ascontiguousarray(np.stack(images))


class Pack:
    """Encoded images in one ``.pack`` file, memory-mapped in each process that reads it."""

    def __init__(self, path: str, num: int) -> None:
        self.path = path
        self.num = num
        self._maps: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def __len__(self) -> int:
        return self.num

    def read(self, row: int) -> bytes:
        if self._maps is None:
            self._maps = _map_pack(Path(self.path), self.num)
        if self._maps is not None:
            offsets, checksums, data = self._maps
            found = data[offsets[row] : offsets[row + 1]].tobytes()
            if zlib.crc32(found) == checksums[row]:
                return found
        raise ValueError(
            f"data: needs the packed images {self.path} as they were written, got a damaged file; remove it, it will be "
            "built again."
        )

    def describe(self, row: int) -> str:
        return f"image {row} of {self.path}"

    def __getstate__(self) -> tuple[str, int]:
        return self.path, self.num  # a worker makes its own memory map

    def __setstate__(self, state: tuple[str, int]) -> None:
        self.path, self.num = state
        self._maps = None


def _read_pack(cache: CacheFile, num: int) -> Pack | None:
    path = cache.path(".pack")
    if path is None or not path.is_file():
        return None
    maps = _map_pack(path, num)
    if maps is not None and len(maps[2]) <= CHECKED:
        offsets, checksums, data = maps
        whole = all(zlib.crc32(data[offsets[k] : offsets[k + 1]].data) == checksums[k] for k in range(num))
        maps = maps if whole else None
    if maps is None:
        cache.damaged(path)
        return None
    return Pack(str(path), num)


def _map_pack(path: Path, num: int) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Offsets, checksums and bytes; None if the file is not a pack of ``num`` images."""
    head = 8 * (num + 1) + 4 * num
    try:
        size = path.stat().st_size
        if size <= head + 4:
            return None
        with path.open("rb") as file:
            content = file.read(head + 4)
        if zlib.crc32(content[:head]) != int.from_bytes(content[head:], "little"):
            return None
        offsets = np.frombuffer(content, np.int64, num + 1)
        if size != head + 4 + int(offsets[-1]):
            return None
        checksums = np.frombuffer(content, np.uint32, num, offset=8 * (num + 1))
        return offsets, checksums, np.memmap(path, dtype=np.uint8, mode="r", offset=head + 4)
    except (OSError, ValueError):
        return None


def _build_pack(rows: Rows, cache: CacheFile) -> Pack | None:
    """Write ``rows`` to a pack; returns None if the cache cannot be written."""
    target = cache.path(".pack")
    if target is None:
        return None
    num = len(rows)
    offsets, checksums = np.zeros(num + 1, np.int64), np.zeros(num, np.uint32)
    try:
        with _written(target) as temporary:
            with temporary.open("wb") as file:
                file.write(bytes(8 * (num + 1) + 4 * num + 4))
                for row, data in enumerate(rows.stream()):
                    file.write(data)
                    offsets[row + 1] = offsets[row] + len(data)
                    checksums[row] = zlib.crc32(data)
                head = offsets.tobytes() + checksums.tobytes()
                file.seek(0)
                file.write(head + zlib.crc32(head).to_bytes(4, "little"))
                file.flush()
                os.fsync(file.fileno())
            pack = Pack(str(target), num)
        cache.remove_stale(".pack")
        return pack
    except OSError as error:
        cache.not_written(error)
        return None


def usable(folder: Path, notes: list[str]) -> Path | None:
    """``folder`` if it can be written; otherwise None, with a note."""
    cache = CacheFile(folder, "", "", notes)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{uuid.uuid4().hex[:12]}.tmp"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        cache.not_written(error)
        return None
    return folder
