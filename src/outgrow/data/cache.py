"""Images decoded, or packed, once: files in a cache folder that later openings only map.

Two formats, both written beside their final name and moved there whole:

    STEM-FINGERPRINT.npy    small images of one size, decoded: uint8, n x 3 x height x width
    STEM-FINGERPRINT.pack   any images, encoded: n + 1 offsets (int64), then the bytes

A source that has changed has another fingerprint, so its old file is never read (and is removed
when the new one is written); a file of the wrong size is built again.
"""

import contextlib
import hashlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from outgrow.data.splits import ArraySplit, Encoded, FileSplit, Split, decode

SMALL = 96
"""Images up to this side are worth keeping decoded: 100,000 of them at 96 x 96 are 2.8 GB."""
_CHUNK = 1024
"""Images decoded between two looks at their sizes; also what is held in memory meanwhile."""


@dataclass(frozen=True)
class CacheFile:
    """Where the images of one split go: ``path(".npy")`` or ``path(".pack")``."""

    folder: Path
    stem: str
    fingerprint: str

    def path(self, suffix: str) -> Path:
        return self.folder / f"{self.stem}-{self.fingerprint[:16]}{suffix}"

    def remove_stale(self, suffix: str) -> None:
        for old in self.folder.glob(f"{self.stem}-*{suffix}"):
            if old != self.path(suffix):
                with contextlib.suppress(OSError):  # another process may have been faster
                    old.unlink()


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/outgrow``, or ``~/.cache/outgrow``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "outgrow"


def fingerprint(parts: Iterable[object]) -> str:
    """A hash of ``parts`` as text."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{part}\0".encode())
    return digest.hexdigest()


def file_facts(paths: Iterable[Path]) -> Iterator[object]:
    """Folder, name, size and time of change of each file: what tells a source from a changed one."""
    for path in paths:
        status = path.stat()
        yield from (f"{path.parent.name}/{path.name}", status.st_size, status.st_mtime_ns)


def cached_split(
    stream: Callable[[], Iterator[bytes]],
    labels: Int64[Tensor, " n"],
    *,
    describe: Callable[[int], str],
    encoded: Encoded | None,
    cache: CacheFile,
) -> Split:
    """The split of the images that ``stream()`` yields in order.

    Images of one size, at most :data:`SMALL`, become an ArraySplit, decoded through the cache.
    Others become a FileSplit over ``encoded``, or, where that is None (rows of a Parquet file
    cannot be read one by one), over a packed copy in the cache.
    """
    num = len(labels)
    images = _read_array(cache.path(".npy"), num)
    if images is None and (encoded is not None or _read_pack(cache.path(".pack"), num) is None):
        images = _build_array(stream(), num, describe=describe, cache=cache)
    if images is not None:
        return ArraySplit.of(images, labels)
    if encoded is None:
        encoded = Pack(str(cache.path(".pack")), num)
        if _read_pack(cache.path(".pack"), num) is None:
            _build_pack(stream(), num, cache=cache)
    return FileSplit.of(encoded, labels)


class Pack:
    """Encoded images in one ``.pack`` file, mapped anew in each process that reads it."""

    def __init__(self, path: str, num: int) -> None:
        self.path = path
        self.num = num
        self._maps: tuple[np.ndarray, np.ndarray] | None = None

    def __len__(self) -> int:
        return self.num

    def read(self, row: int) -> bytes:
        if self._maps is None:
            self._maps = _read_pack(Path(self.path), self.num)
            if self._maps is None:
                raise ValueError(
                    f"data: needs the packed images {self.path}, got none or a damaged file; open the data set again."
                )
        offsets, data = self._maps
        return data[offsets[row] : offsets[row + 1]].tobytes()

    def describe(self, row: int) -> str:
        return f"image {row} of {self.path}"

    def __getstate__(self) -> tuple[str, int]:
        return self.path, self.num  # a worker opens its own map

    def __setstate__(self, state: tuple[str, int]) -> None:
        self.path, self.num = state
        self._maps = None


def _read_array(path: Path, num: int) -> UInt8[Tensor, "n 3 height width"] | None:
    try:
        # "c": pages are shared until written to, and torch is not warned of a read-only array
        array = np.load(path, mmap_mode="c")
    except (OSError, ValueError, EOFError):
        return None
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[:2] != (num, 3):
        return None
    return torch.from_numpy(array)


def _build_array(
    stream: Iterator[bytes], num: int, *, describe: Callable[[int], str], cache: CacheFile
) -> UInt8[Tensor, "n 3 height width"] | None:
    first = next(stream)
    size = decode(first, where=lambda: describe(0)).size
    if max(size) > SMALL:
        return None
    shape = (num, 3, size[1], size[0])
    target = cache.path(".npy")
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    try:
        cache.folder.mkdir(parents=True, exist_ok=True)
        array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
    except OSError as error:
        warnings.warn(
            f"data: {cache.folder} cannot be written ({error}); images are decoded at every start.",
            stacklevel=2,
        )
        memory = np.empty(shape, dtype=np.uint8)
        return (
            torch.from_numpy(memory) if _decode_into(memory, chain([first], stream), size, describe) else None
        )
    try:
        if not _decode_into(array, chain([first], stream), size, describe):
            return None
        array.flush()
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    cache.remove_stale(".npy")
    return _read_array(target, num)


def _decode_into(
    array: np.ndarray, stream: Iterator[bytes], size: tuple[int, int], describe: Callable[[int], str]
) -> bool:
    """Fill ``array``; False as soon as an image has another size."""

    def work(items: list[tuple[int, bytes]]) -> bool:
        for row, data in items:
            image = decode(data, where=lambda row=row: describe(row))  # type: ignore[misc]
            if image.size != size:
                return False
            array[row] = np.asarray(image).transpose(2, 0, 1)
        return True

    rows = enumerate(stream)
    threads = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        while chunk := list(islice(rows, _CHUNK)):
            # a task of many images: handing over one costs as much as decoding it
            if not all(pool.map(work, [chunk[first::threads] for first in range(threads)])):
                return False
    return True


def _read_pack(path: Path, num: int) -> tuple[np.ndarray, np.ndarray] | None:
    head = 8 * (num + 1)
    try:
        size = path.stat().st_size
        if size < head:
            return None
        offsets = np.memmap(path, dtype=np.int64, mode="r", shape=(num + 1,))
        if size != head + int(offsets[-1]) or size == head:
            return None
        return offsets, np.memmap(path, dtype=np.uint8, mode="r", offset=head)
    except OSError:
        return None


def _build_pack(stream: Iterator[bytes], num: int, *, cache: CacheFile) -> None:
    target = cache.path(".pack")
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    cache.folder.mkdir(parents=True, exist_ok=True)
    offsets = np.zeros(num + 1, dtype=np.int64)
    try:
        with temporary.open("wb") as file:
            file.write(offsets.tobytes())
            for row, data in enumerate(stream):
                file.write(data)
                offsets[row + 1] = offsets[row] + len(data)
            file.seek(0)
            file.write(offsets.tobytes())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    cache.remove_stale(".pack")
