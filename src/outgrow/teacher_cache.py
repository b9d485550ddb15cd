"""What a teacher says about a view, kept: views are reproducible, so their logits are too.

    cache = TeacherCache(folder, facts, num_indices=..., num_classes=...)
    teacher = CachedTeacher(teacher, cache)
    teacher.at(epoch)                       # then teacher(images, index=...) reads, or computes and writes

One file holds one epoch of views: float16 logits by sample index, memory-mapped. A file appears when its
epoch is whole, so an interrupted run leaves nothing that looks finished. ``facts`` say what the logits
depend on (weights, data, views, precision); another teacher has another folder.

Float16 rounds, and a tie counts as right: classes that tie only through rounding are kept apart, so that
right and wrong, and the top class, are exactly those of the logits that were stored.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float16, Int
from torch import Tensor, nn

from outgrow.outputs import Outputs

FORMAT = 1


class TeacherCache:
    """Logits of one teacher by epoch and sample index, in a folder of their own under ``folder``."""

    def __init__(
        self, folder: str | Path, facts: Mapping[str, str], *, num_indices: int, num_classes: int
    ) -> None:
        self.facts = {**facts, "format": str(FORMAT), "shape": f"{num_indices} x {num_classes}"}
        self.shape = (num_indices, num_classes)
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
                f"cache: needs the logits of this teacher on these views, got others in {self.folder} (differing: "
                f"{', '.join(differing)}); delete that folder or name another."
            )

    def bytes_per_epoch(self) -> int:
        return 2 * self.shape[0] * self.shape[1]

    def path(self, epoch: int) -> Path:
        return self.folder / f"epoch{epoch:05d}.npy"

    def read(self, epoch: int) -> Float16[np.memmap, "indices classes"] | None:
        """The logits of an epoch, NaN where a sample was not seen in it; None if there are none."""
        path = self.path(epoch)
        if not path.is_file():
            return None
        try:
            held = np.load(path, mmap_mode="r")
        except ValueError as error:
            raise ValueError(
                f"cache: needs a whole file, got {path} cut short ({error}); delete it, it will be made anew."
            ) from None
        if held.shape != self.shape or held.dtype != np.float16:
            raise ValueError(
                f"cache: needs float16 logits of shape {self.shape}, got {held.dtype} of shape {held.shape} in {path}; "
                "delete it, it will be made anew."
            )
        return held

    def start(self, epoch: int) -> Float16[np.memmap, "indices classes"]:
        """An empty epoch to write into; :meth:`finish` makes it count."""
        part = self.path(epoch).with_suffix(".part.npy")
        held = np.lib.format.open_memmap(part, mode="w+", dtype=np.float16, shape=self.shape)
        held[:] = np.nan
        return held

    def finish(self, epoch: int, held: Float16[np.memmap, "indices classes"]) -> None:
        held.flush()
        self.path(epoch).with_suffix(".part.npy").replace(self.path(epoch))


class CachedTeacher(nn.Module):
    """``teacher``, asked once for each view.

    Reading and writing happen between :meth:`at` an epoch and the next; outside, and for calls without
    ``index``, the teacher itself answers. Features are not kept.
    """

    def __init__(self, teacher: nn.Module, cache: TeacherCache, *, write: bool = True) -> None:
        super().__init__()
        self.teacher, self.cache, self.write = teacher, cache, write
        self.epoch: int | None = None
        self.held: np.memmap | None = None
        self.part: np.memmap | None = None

    def at(self, epoch: int | None) -> None:
        """From now on views are those of ``epoch``; None ends the last one."""
        if self.part is not None and self.epoch is not None:
            self.cache.finish(self.epoch, self.part)
        self.epoch, self.part = epoch, None
        self.held = None if epoch is None else self.cache.read(epoch)
        if epoch is not None and self.held is None and self.write:
            self.part = self.cache.start(epoch)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "..."], *, index: Int[Tensor, " rows"] | None = None) -> Outputs:
        if index is None or self.epoch is None:
            return self.teacher(images, index=index)
        at = index.cpu().numpy()
        if self.held is not None:
            rows = torch.from_numpy(self.held[at])
            if not bool(rows[:, 0].isnan().any()):  # the file is on the host: no device is asked
                return Outputs(rows.to(images.device).float())
        outputs = self.teacher(images, index=index)
        if self.part is not None:
            self.part[at] = to_half(outputs.logits).cpu().numpy()
        return Outputs(outputs.logits)


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
