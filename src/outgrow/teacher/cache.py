"""What a teacher says about a view, kept: views are reproducible, so its logits and features are too.

    cache = TeacherCache(folder, facts, num_indices=..., num_classes=..., features={"layer3": (64, 8, 8)})
    teacher = CachedTeacher(teacher, cache)
    teacher.at(epoch)                       # then teacher(images, index=...) reads, or computes and writes

A folder is one teacher on one set of views: ``facts`` say what its numbers depend on (weights, data, views,
precision), and another teacher has another folder. In it a file holds one epoch of one thing, the logits or
a tap: float16 by sample index, memory-mapped, its shape in its header. So runs that read other taps share
the logits. A file appears when its epoch is whole, so an interrupted run leaves nothing that looks finished.

Float16 rounds, and a tie counts as right: classes that tie only through rounding are kept apart, so that
right and wrong, and the top class, are exactly those of the logits that were stored.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import numpy as np
import torch
from jaxtyping import Float, Float16, Int
from torch import Tensor, nn

from outgrow.outputs import Outputs
from outgrow.teacher.teacher import BaseTeacher

FORMAT = 1
LOGITS = ""
"""The name of the logits among what is kept; no tap is called so."""


class TeacherCache:
    """What one teacher said, by epoch and sample index, in a folder of its own under ``folder``.

    ``features`` are the taps to keep and the shape of each for one image. ``ValueError`` for a folder that
    holds another teacher's.
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
        self.folder.mkdir(parents=True, exist_ok=True)
        stated = self.folder / "facts.json"
        if not stated.is_file():
            stated.write_text(json.dumps(self.facts, indent=1, sort_keys=True))
        held = json.loads(stated.read_text())
        differing = sorted(k for k in {*held, *self.facts} if held.get(k) != self.facts.get(k))
        if differing:
            raise ValueError(
                f"cache: needs what this teacher says on these views, got another's in {self.folder} (differing: "
                f"{', '.join(differing)}); delete that folder or name another."
            )

    @property
    def contents(self) -> str:
        """What is kept, in words: ``logits (100) and features layer3 (64 x 8 x 8)``."""
        said = [f"{name or 'logits'} ({' x '.join(map(str, s[1:]))})" for name, s in self.shapes.items()]
        return said[0] if len(said) == 1 else f"{said[0]} and features {', '.join(said[1:])}"

    def bytes_per_epoch(self) -> int:
        return sum(2 * math.prod(shape) for shape in self.shapes.values())

    def bytes_missing(self, epochs: int) -> int:
        """What the first ``epochs`` epochs have yet to take."""
        sizes = {name: 2 * math.prod(shape) for name, shape in self.shapes.items()}
        return sum(
            size
            for epoch in range(epochs)
            for name, size in sizes.items()
            if not self.path(epoch, name).is_file()
        )

    def check_room(self, epochs: int) -> None:
        """``ValueError`` where the disk has no room for what ``epochs`` epochs have yet to take."""
        missing, free = self.bytes_missing(epochs), shutil.disk_usage(self.folder).free
        if missing > free:
            raise ValueError(
                f"teacher.cache: needs {readable(missing)} for {epochs} epochs of {self.contents}, got "
                f"{readable(free)} free in {self.folder}; name a folder on a larger disk, keep fewer epochs, or "
                "choose losses that read smaller taps."
            )

    def path(self, epoch: int, name: str = LOGITS) -> Path:
        return self.folder / f"epoch{epoch:05d}{'-' if name else ''}{quote(name, safe='')}.npy"

    def read(self, epoch: int, name: str = LOGITS) -> Float16[np.memmap, "indices *shape"] | None:
        """The logits or a tap of an epoch; None if there are none.

        A sample that was not seen in it has NaN in its first number.
        """
        path, shape = self.path(epoch, name), self.shapes[name]
        if not path.is_file():
            return None
        try:
            held = np.load(path, mmap_mode="r")
        except (ValueError, EOFError) as error:
            raise ValueError(
                f"cache: needs a whole file, got {path} cut short ({error}); delete it, it will be made anew."
            ) from None
        if held.shape != shape or held.dtype != np.float16:
            raise ValueError(
                f"cache: needs float16 {name or 'logits'} of shape {shape}, got {held.dtype} of shape {held.shape} in "
                f"{path}; delete it, it will be made anew."
            )
        return held

    def start(self, epoch: int, name: str = LOGITS) -> Float16[np.memmap, "indices *shape"]:
        """An empty epoch to write into; :meth:`finish` makes it count."""
        shape = self.shapes[name]
        held = np.lib.format.open_memmap(self._part(epoch, name), mode="w+", dtype=np.float16, shape=shape)
        held.reshape(len(held), -1)[:, 0] = np.nan
        return held

    def finish(self, epoch: int, held: Float16[np.memmap, "indices *shape"], name: str = LOGITS) -> None:
        held.flush()
        self._part(epoch, name).replace(self.path(epoch, name))

    def _part(self, epoch: int, name: str) -> Path:
        path = self.path(epoch, name)
        return path.with_name(f"{path.name}.part")


class CachedTeacher(BaseTeacher):
    """``teacher``, asked once for each view.

    Reading and writing happen between :meth:`at` an epoch and the next; outside, and for calls without
    ``index``, the teacher itself answers. Its features are those that the cache keeps, and no others.
    """

    def __init__(self, teacher: BaseTeacher, cache: TeacherCache, *, write: bool = True) -> None:
        super().__init__()
        self.teacher, self.cache, self.write = teacher, cache, write
        self.epoch: int | None = None
        self.held: dict[str, np.memmap] = {}
        self.parts: dict[str, np.memmap] = {}

    @property
    def uncached(self) -> BaseTeacher:
        """The teacher whose outputs are kept."""
        return self.teacher

    def at(self, epoch: int | None) -> None:
        """From now on views are those of ``epoch``; None ends the last one."""
        if self.epoch is not None:
            for name, part in self.parts.items():
                self.cache.finish(self.epoch, part, name)
        self.epoch, self.held, self.parts = epoch, {}, {}
        if epoch is None:
            return
        for name in self.cache.shapes:
            held = self.cache.read(epoch, name)
            if held is not None:
                self.held[name] = held
            elif self.write:
                self.parts[name] = self.cache.start(epoch, name)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "..."], *, index: Int[Tensor, " rows"] | None = None) -> Outputs:
        if index is None or self.epoch is None:
            return self.teacher(images, index=index)
        at = index.cpu().numpy()
        if len(self.held) == len(self.cache.shapes):
            rows = {name: torch.from_numpy(held[at]) for name, held in self.held.items()}
            # the files are on the host: no device is asked
            if not any(bool(value.flatten(1)[:, 0].isnan().any()) for value in rows.values()):
                said = {name: value.to(images.device).float() for name, value in rows.items()}
                return Outputs(said.pop(LOGITS), said)
        outputs: Outputs = self.teacher(images, index=index)
        values = {name: outputs.features[name] if name else outputs.logits for name in self.cache.shapes}
        halves = {
            name: to_half(value) if name == LOGITS else feature_half(value, name)
            for name, value in values.items()
        }
        for name, part in self.parts.items():
            part[at] = halves[name].cpu().numpy()
        # what a later pass reads, and a resumed one: the first pass must not see more digits
        rounded = {name: half.float() for name, half in halves.items()}
        return Outputs(rounded.pop(LOGITS), rounded)


def feature_half(feature: Float[Tensor, "rows *shape"], name: str) -> Float16[Tensor, "rows *shape"]:
    """``feature`` in float16; ``ValueError`` for one that float16 cannot hold."""
    half = feature.half()
    if not bool(half.isfinite().all()):
        raise ValueError(
            f"cache: needs features within float16, got up to {float(feature.abs().max()):g} at {name!r}; train "
            "without teacher.cache_features."
        )
    return half


def readable(size: int) -> str:
    """Bytes in words.

    >>> readable(3 * 2**20), readable(5 * 2**30)
    ('3.0 MiB', '5.0 GiB')
    """
    return f"{size / 2**20:.1f} MiB" if size < 2**30 else f"{size / 2**30:.1f} GiB"


def to_half(logits: Float[Tensor, "rows classes"]) -> Float16[Tensor, "rows classes"]:
    """``logits`` in float16 with the same top classes: what rounding would tie with them stays below.

    ``ValueError`` for logits that float16 cannot hold.

    >>> to_half(torch.tensor([[1.0, 1.00001], [2.0, 2.0]]))
    tensor([[1.0000, 1.0010],
            [2.0000, 2.0000]], dtype=torch.float16)
    """
    top = logits == logits.amax(dim=1, keepdim=True)
    half = logits.half()
    if not bool(half.isfinite().all()):
        raise ValueError(
            f"cache: needs logits within float16, got up to {float(logits.abs().max()):g}; train without teacher.cache."
        )
    ties = (half == half.amax(dim=1, keepdim=True)) & ~top
    up = torch.nextafter(half, torch.full_like(half, torch.inf))
    return torch.where(top & ties.any(dim=1, keepdim=True), up, half)


def digest(module: nn.Module) -> str:
    """A fingerprint of all weights and buffers."""
    total = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        total.update(name.encode())
        total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:16]
