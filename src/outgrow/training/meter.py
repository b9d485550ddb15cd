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

OF_LABELLED = "wrong_rate"
"""The statistic that only images with a label have: its mean over an epoch is over those."""


@dataclass
class EpochRecord:
    """One epoch: means over its rows. ``score`` is the metric of the run (top-1 or box AP, in percent), None if the
    epoch was not evaluated. ``wrong_rate`` is the share of rows that the teacher gets wrong, None without a teacher and for
    one that gives no logits."""

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
    """Sums of loss, terms and statistics over the images of an epoch."""

    def __init__(self, state: Mapping[str, Any] | None = None, device: torch.device | str = "cpu") -> None:
        self.sums: dict[tuple[str, str], Tensor] = {}
        self.images: Tensor | int = 0
        self.labelled: Tensor | int = 0
        if state:
            self.images = _on(state["images"], device)
            self.labelled = _on(state.get("labelled", state["images"]), device)  # not in older checkpoints
            self.sums = {(kind, name): value.to(device) for kind, name, value in state["sums"]}

    def state(self, group: dist.ProcessGroup | None = None) -> dict[str, Any]:
        """The state of a :class:`Meter` for a checkpoint. It can be loaded by any number of processes."""
        sums = mean(torch.stack(list(self.sums.values())), group).clone()
        held = {"images": self.images, "labelled": self.labelled}
        return {**held, "sums": [(*key, v) for key, v in zip(self.sums, sums, strict=True)]}

    def add(self, result: ObjectiveResult, images: Tensor | int, labelled: Tensor | int) -> None:
        """Add one step with ``images`` images over all processes, ``labelled`` of them with a label, without a device sync."""
        self.images = self.images + images
        self.labelled = self.labelled + labelled
        self._sum("loss", "", result.total.detach(), images)
        for kind, values in (("terms", result.terms), ("stats", result.stats)):
            for name, value in values.items():
                self._sum(kind, name, value, labelled if name == OF_LABELLED else images)

    def _sum(self, kind: str, name: str, value: Float[Tensor, ""], images: Tensor | int) -> None:
        key = (kind, name)
        value = value.float() * images
        self.sums[key] = self.sums[key] + value if key in self.sums else value

    def read(
        self, group: dist.ProcessGroup | None = None
    ) -> tuple[float, dict[str, float], dict[str, float]]:
        """Loss, terms and statistics: means over the images of the epoch on all processes, and over the labelled ones of
        :data:`OF_LABELLED`."""
        counts = (self.labelled if name == OF_LABELLED else self.images for _, name in self.sums)
        sums = mean(
            torch.stack([value / count for value, count in zip(self.sums.values(), counts, strict=True)]),
            group,
        )
        read = dict(zip(self.sums, sums.tolist(), strict=True))
        terms = {name: value for (kind, name), value in read.items() if kind == "terms"}
        stats = {name: value for (kind, name), value in read.items() if kind == "stats"}
        return read[("loss", "")], terms, stats


def _on(count: Tensor | int, device: torch.device | str) -> Tensor | int:
    return count.to(device) if isinstance(count, Tensor) else count
