"""Cache a teacher's outputs on disk. Views (augmented images) are reproducible, so the outputs are too.

    cache = TeacherCache(folder, facts, num_indices=..., num_classes=..., features={"layer3": (64, 8, 8)})
    teacher = CachedTeacher(teacher, cache)
    teacher.at(epoch)                       # then teacher(images, index=...) reads, or computes and writes

Each teacher and set of views has its own folder. ``facts`` are what the outputs depend on (weights, data,
views, precision); the folder's name is their hash. A file has the logits, or one tap, of one epoch: a
memory-mapped float16 array by sample index. Runs with different taps therefore share the logits. A file gets
its final name when its epoch is complete, so an interrupted run leaves no file that looks complete.

Rounding to float16 can make two classes tie, and a tie counts as right. Such classes are kept apart: the top
class, and whether a row is right or wrong, are those of the logits before rounding.
"""

import contextlib
import hashlib
import json
import math
import os
import shutil
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from urllib.parse import quote

import numpy as np
import torch
from jaxtyping import Float, Float16, Int
from torch import Tensor, nn

from outgrow.machine.files import NotWritten, check_writable, counted, readable, write_atomically
from outgrow.outputs import Outputs
from outgrow.teacher.correction import CorrectedTeacher
from outgrow.teacher.teacher import BaseTeacher

FORMAT = 1
LOGITS = ""
"""The name of the logits among the cached arrays; no tap has this name."""


class TeacherCache:
    """One teacher's outputs, by epoch and sample index, in a subfolder of ``folder``.

    ``features`` are the taps to cache and the shape of each for one image. ``ValueError`` if the subfolder has
    the outputs of another teacher.
    """

    def __init__(
        self,
        folder: str | Path,
        facts: Mapping[str, str],
        *,
        num_indices: int,
        num_classes: int,
        features: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        self.facts = {**facts, "format": str(FORMAT), "shape": f"{num_indices} x {num_classes}"}
        self.shapes: dict[str, tuple[int, ...]] = {LOGITS: (num_indices, num_classes)}
        self.shapes |= {tap: (num_indices, *shape) for tap, shape in (features or {}).items()}
        text = json.dumps(self.facts, sort_keys=True)
        self.folder = Path(folder) / hashlib.sha256(text.encode()).hexdigest()[:16]
        stated = self.folder / "facts.json"
        if not stated.is_file():
            try:
                write_atomically(stated, json.dumps(self.facts, indent=1, sort_keys=True))
            except OSError as error:
                reason = os.strerror(error.errno) if error.errno else str(error)
                raise ValueError(
                    f"teacher.cache: needs a folder that can be written, got {self.folder} ({reason}); name another, free "
                    "some room, or change its rights."
                ) from None
        held = _read_facts(stated)
        differing = sorted(k for k in {*held, *self.facts} if held.get(k) != self.facts.get(k))
        if differing:
            raise ValueError(
                f"cache: needs the outputs of this teacher on these views, got others in {self.folder} (differing: "
                f"{', '.join(differing)}); delete that folder or name another."
            )

    @property
    def contents(self) -> str:
        """The cached arrays for messages: ``logits (100) and features layer3 (64 x 8 x 8)``."""
        parts = [f"{name or 'logits'} ({' x '.join(map(str, s[1:]))})" for name, s in self.shapes.items()]
        return parts[0] if len(parts) == 1 else f"{parts[0]} and features {', '.join(parts[1:])}"

    def bytes_per_epoch(self) -> int:
        return sum(2 * math.prod(shape) for shape in self.shapes.values())

    def bytes_missing(self, epochs: int) -> int:
        """Bytes that the files still to be written for the first ``epochs`` epochs will take."""
        sizes = {name: 2 * math.prod(shape) for name, shape in self.shapes.items()}
        return sum(
            size
            for epoch in range(epochs)
            for name, size in sizes.items()
            if not self.path(epoch, name).is_file()
        )

    def path(self, epoch: int, name: str = LOGITS) -> Path:
        return self.folder / f"epoch{epoch:05d}{'-' if name else ''}{quote(name, safe='')}.npy"

    def read(self, epoch: int, name: str = LOGITS) -> Float16[np.memmap, "indices *shape"] | None:
        """The logits or a tap of an epoch; None if the epoch is not cached.

        The first number of a sample without outputs in that epoch is NaN.
        """
        path, shape = self.path(epoch, name), self.shapes[name]
        if not path.is_file():
            return None
        try:
            held = np.load(path, mmap_mode="r")
        except (ValueError, EOFError) as error:
            raise ValueError(
                f"cache: needs a whole file, got {path} cut short ({error}); delete it, it will be written again."
            ) from None
        _check_sum(path)
        if held.shape != shape or held.dtype != np.float16:
            raise ValueError(
                f"cache: needs float16 {name or 'logits'} of shape {shape}, got {held.dtype} of shape {held.shape} in "
                f"{path}; delete it, it will be written again."
            )
        return held

    def start(self, epoch: int, name: str = LOGITS) -> Float16[np.memmap, "indices *shape"]:
        """An empty array for an epoch, to write into; :meth:`finish` completes it."""
        shape, part = self.shapes[name], self._part(epoch, name)
        try:
            # someone may have removed the cache since this run began
            part.parent.mkdir(parents=True, exist_ok=True)
            held = np.lib.format.open_memmap(part, mode="w+", dtype=np.float16, shape=shape)
            with part.open("r+b") as file, contextlib.suppress(AttributeError):  # not on every system
                # a file with holes would end the process with SIGBUS once the disk is full
                os.posix_fallocate(file.fileno(), 0, part.stat().st_size)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise NotWritten(
                error.errno,
                f"needs {readable(2 * math.prod(shape))} for {part}, got {error.strerror}; free some room",
            ) from error
        held.reshape(len(held), -1)[:, 0] = np.nan
        return held

    def finish(self, epoch: int, held: Float16[np.memmap, "indices *shape"], name: str = LOGITS) -> None:
        held.flush()
        part, path = self._part(epoch, name), self.path(epoch, name)
        if not part.is_file():  # removed with the whole cache: the epoch is computed again where it is needed
            return
        try:
            write_atomically(_sum_of(path), _crc(part))
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def discard(self, epoch: int, name: str = LOGITS) -> None:
        """Remove what :meth:`start` began: its epoch did not end."""
        self._part(epoch, name).unlink(missing_ok=True)

    def _part(self, epoch: int, name: str) -> Path:
        """Of this process alone: two runs may fill one cache."""
        path = self.path(epoch, name)
        return path.with_name(f".{path.name}.{os.getpid()}.part")


def check_room(caches: Sequence[TeacherCache], epochs: int) -> None:
    """``ValueError`` if the disk has less free space than ``epochs`` epochs of ``caches`` will take, or cannot be written."""
    for one in caches:
        if one.bytes_missing(epochs) and not os.access(one.folder, os.W_OK):
            raise ValueError(
                f"teacher.cache: needs {'the epoch' if epochs == 1 else f'all {epochs} epochs'} in a folder that cannot be written, got {one.folder} with some "
                "missing; fill it with `outgrow cache`, or name another."
            )
    missing, folder = sum(one.bytes_missing(epochs) for one in caches), caches[0].folder
    free = shutil.disk_usage(folder).free
    if missing > free:
        raise ValueError(
            f"teacher.cache: needs {readable(missing)} for {counted(epochs, 'epoch')} of {' and '.join(one.contents for one in caches)}, "
            f"got {readable(free)} free in {folder}; name a folder on a larger disk, keep fewer epochs, or choose losses that "
            "read smaller taps."
        )


def check_cache_folder(folder: Path) -> None:
    """``ValueError`` at the start of a run, before a teacher is trained, if ``folder`` cannot be a cache.

    A folder that cannot be written but has a cache is accepted: whether that is complete is not known yet. The check
    leaves no new folder, as the run may not fill a cache (a rehearsal).
    """
    # in the nearest folder that is there: to make and remove one would disturb another run
    place = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    try:
        check_writable(place, what="teacher.cache")
    except ValueError:
        if not any(folder.glob("*/facts.json")):
            raise


def _read_facts(path: Path) -> dict[str, str]:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(held, dict):
            raise ValueError(f"a {type(held).__name__}")
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"cache: needs what the outputs depend on as JSON in {path}, got a damaged file ({error}); delete the folder "
            f"{path.parent}, it will be written again."
        ) from None
    return held


def _sum_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.crc32")


def _crc(path: Path) -> str:
    """CRC-32 of a file, in hexadecimal."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return f"{value:08x}\n"


def _check_sum(path: Path) -> None:
    """``ValueError`` for a file that differs from what was written. Read once for each state of the file."""
    sums = _sum_of(path)
    if not sums.is_file():
        return  # of an older version
    facts = path.stat()
    if not _is_whole(path, facts.st_size, facts.st_mtime_ns, sums.read_bytes()):
        raise ValueError(
            f"cache: needs the file as it was written, got {path}, which is damaged (its checksum differs); delete it, it "
            "will be written again."
        )


@cache
def _is_whole(path: Path, size: int, changed: int, stated: bytes) -> bool:
    return _crc(path).encode() == stated


class CachedTeacher(BaseTeacher):
    """``teacher``, computed once for each view and read from ``cache`` after that.

    Call :meth:`at` at the start of each epoch. Before the first call, after ``at(None)`` and without
    ``index``, the teacher is computed and nothing is cached. Otherwise the outputs have only the features
    that are cached.

    ``plain`` is a second cache, of the logits before the correction: ``teacher`` is then a corrected one. It gets the epochs
    that are computed, so that runs which do not correct the teacher need not compute it again.
    """

    def __init__(
        self,
        teacher: BaseTeacher,
        cache: TeacherCache,
        *,
        write: bool = True,
        plain: TeacherCache | None = None,
    ) -> None:
        super().__init__()
        self.teacher, self.cache, self.write, self.plain = teacher, cache, write, plain
        self.plain_part: np.memmap | None = None
        self.epoch: int | None = None
        self.held: dict[str, np.memmap] = {}
        self.parts: dict[str, np.memmap] = {}

    @property
    def uncached(self) -> BaseTeacher:
        """The teacher whose outputs are cached."""
        return self.teacher

    def at(self, epoch: int | None) -> None:
        """Start ``epoch``: complete the files of the one before. None ends the last epoch."""
        if self.epoch is not None:
            # the plain one first: an epoch that the cache has is not computed again
            if self.plain is not None and self.plain_part is not None:
                self.plain.finish(self.epoch, self.plain_part)
            for name, part in self.parts.items():
                self.cache.finish(self.epoch, part, name)
        self.epoch, self.held, self.parts, self.plain_part = epoch, {}, {}, None
        if epoch is None:
            return
        for name in self.cache.shapes:
            held = self.cache.read(epoch, name)
            if held is not None:
                self.held[name] = held
            elif self.write:
                self.parts[name] = self.cache.start(epoch, name)
        if self.plain is not None and self.parts and self.plain.read(epoch) is None:
            try:
                self.plain_part = self.plain.start(epoch)
            except NotWritten:
                for name in self.parts:
                    self.cache.discard(epoch, name)
                self.epoch, self.parts = None, {}
                raise

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "..."], *, index: Int[Tensor, " rows"] | None = None) -> Outputs:
        if index is None or self.epoch is None:
            return self.teacher(images, index=index)
        at = index.cpu().numpy()
        if len(self.held) == len(self.cache.shapes):
            rows = {name: torch.from_numpy(held[at]) for name, held in self.held.items()}
            # the arrays are in CPU memory: no device sync
            if not any(bool(value.flatten(1)[:, 0].isnan().any()) for value in rows.values()):
                cached = {name: value.to(images.device).float() for name, value in rows.items()}
                return Outputs(cached.pop(LOGITS), cached)
        outputs = self._computed(images, index, at)
        values = {name: outputs.features[name] if name else outputs.logits for name in self.cache.shapes}
        halves = {
            name: to_half(value) if name == LOGITS else feature_half(value, name)
            for name, value in values.items()
        }
        for name, part in self.parts.items():
            part[at] = halves[name].cpu().numpy()
        # rounded as in the cache, so that the first pass equals later and resumed ones
        rounded = {name: half.float() for name, half in halves.items()}
        return Outputs(rounded.pop(LOGITS), rounded)

    def _computed(self, images: Tensor, index: Tensor, at: np.ndarray) -> Outputs:
        """The outputs of the teacher, from which ``plain`` gets those before the correction."""
        if self.plain_part is None:
            outputs: Outputs = self.teacher(images, index=index)
            return outputs
        assert isinstance(self.teacher, CorrectedTeacher)
        before, after = self.teacher.before_and_after(images, index=index)
        try:
            self.plain_part[at] = to_half(before.logits).cpu().numpy()
        except ValueError:  # beyond float16: this run does not need them
            assert self.plain is not None
            assert self.epoch is not None
            self.plain_part = None
            self.plain.discard(self.epoch)
        return after


def feature_half(feature: Float[Tensor, "rows *shape"], name: str) -> Float16[Tensor, "rows *shape"]:
    """``feature`` in float16; ``ValueError`` if a value is out of float16's range."""
    half = feature.half()
    if not bool(half.isfinite().all()):
        raise ValueError(
            f"cache: needs features within float16, got up to {float(feature.abs().max()):g} at {name!r}; train "
            "without teacher.cache_features."
        )
    return half


def to_half(logits: Float[Tensor, "rows classes"]) -> Float16[Tensor, "rows classes"]:
    """``logits`` in float16 with the same top classes: no other class ties with them through rounding.

    ``ValueError`` if a value is out of float16's range.

    >>> to_half(torch.tensor([[1.0, 1.00001], [2.0, 2.0]]))
    tensor([[1.0000, 1.0010],
            [2.0000, 2.0000]], dtype=torch.float16)
    """
    top = logits == logits.amax(dim=1, keepdim=True)
    half = logits.half()
    if not bool(half.isfinite().all()):
        raise ValueError(
            f"cache: needs logits within float16, got up to {float(logits.abs().max()):g}; train without teacher.cache "
            "(outgrow compare: --no-cache)."
        )
    ties = (half == half.amax(dim=1, keepdim=True)) & ~top
    up = torch.nextafter(half, torch.full_like(half, torch.inf))
    return torch.where(top & ties.any(dim=1, keepdim=True), up, half)


def digest(module: nn.Module) -> str:
    """A hash of all weights and buffers."""
    total = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        total.update(name.encode())
        total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:16]
