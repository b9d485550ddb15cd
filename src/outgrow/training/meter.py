"""The statistics of an epoch: sums on the device that are read once per epoch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from outgrow.outputs import ObjectiveResult
from outgrow.training.processes import mean


@dataclass
class EpochRecord:
    """One epoch: means over its images. ``score`` is the metric of the run (top-1 or box AP, in percent), None if the
    epoch was not evaluated. ``wrong_rate`` is the share that the teacher gets wrong of all rows of the epoch that have a label,
    None without a teacher and for one that gives no logits."""

    epoch: int
    loss: float
    terms: dict[str, float]
    wrong_rate: float | None
    score: float | None
    lr: float
    seconds: float
    images_per_second: float
    stats: dict[str, float] = field(default_factory=dict)


def best_epoch(history: Sequence[EpochRecord]) -> EpochRecord:
    """The evaluated epoch with the highest score, the first of them in a tie."""
    return max((record for record in history if record.score is not None), key=lambda r: r.score or 0.0)


class Meter:
    """Sums of loss, terms and statistics, and what each is divided by: images of an epoch, or rows."""

    def __init__(self, state: Mapping[str, Any] | None = None, device: torch.device | str = "cpu") -> None:
        self.sums: dict[tuple[str, str], Tensor] = {}
        self.counts: dict[tuple[str, str], Tensor | float | int] = {}
        state = state or {"sums": []}
        for kind, name, value, *count in state["sums"]:
            # older checkpoints have one number of images for all
            of_labelled = "labelled" if name == "wrong_rate" and "labelled" in state else "images"
            self.sums[kind, name] = value.to(device)
            self.counts[kind, name] = _on(count[0] if count else state[of_labelled], device)

    def state(self, group: dist.ProcessGroup | None = None) -> dict[str, Any]:
        """The state of a :class:`Meter` for a checkpoint. It can be loaded by any number of processes."""
        sums = mean(torch.stack(list(self.sums.values())), group).clone()
        return {"sums": [(*key, v, self.counts[key]) for key, v in zip(self.sums, sums, strict=True)]}

    def add(self, result: ObjectiveResult, images: Tensor | int) -> None:
        """Add one step with ``images`` images over all processes, without a device sync.

        A statistic that is a share of rows counts by these, as steps differ in rows for an image; all else by images.
        """
        self._sum("loss", "", result.total.detach(), images)
        for name, value in result.terms.items():
            self._sum("terms", name, value, images)
        for name, value in result.stats.items():
            self._sum("stats", name, value, result.rows.get(name, images))

    def _sum(self, kind: str, name: str, value: Float[Tensor, ""], count: Tensor | float | int) -> None:
        key = (kind, name)
        value = value.float() * count
        self.sums[key] = self.sums[key] + value if key in self.sums else value
        self.counts[key] = self.counts[key] + count if key in self.counts else count

    def read(
        self, group: dist.ProcessGroup | None = None
    ) -> tuple[float, dict[str, float], dict[str, float]]:
        """Loss, terms and statistics of the epoch on all processes: means over its images, and shares of its rows."""
        sums = mean(
            torch.stack([share(value, self.counts[key]) for key, value in self.sums.items()]),
            group,
        )
        read = dict(zip(self.sums, sums.tolist(), strict=True))
        terms = {name: value for (kind, name), value in read.items() if kind == "terms"}
        stats = {name: value for (kind, name), value in read.items() if kind == "stats"}
        return read[("loss", "")], terms, stats


def share(part: Tensor, whole: Tensor | float | int) -> Tensor:
    """``part / whole``; 0 of nothing is 0."""
    return part / (whole + (whole == 0))


def _on(count: Tensor | float | int, device: torch.device | str) -> Tensor | float | int:
    return count.to(device) if isinstance(count, Tensor) else count
