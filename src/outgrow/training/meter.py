"""What an epoch measured: sums on the device, read once an epoch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor

from outgrow.outputs import ObjectiveResult


@dataclass
class EpochRecord:
    """One epoch: means over its rows. ``score`` is the run's metric (top-1 or box AP, in percent);
    None where the epoch was not evaluated."""

    epoch: int
    loss: float
    terms: dict[str, float]
    wrong_rate: float
    score: float | None
    lr: float
    seconds: float
    images_per_second: float
    stats: dict[str, float] = field(default_factory=dict)


def best_epoch(history: Sequence[EpochRecord]) -> EpochRecord:
    """The evaluated epoch with the highest score; of equals the first."""
    return max((record for record in history if record.score is not None), key=lambda r: r.score or 0.0)


class Meter:
    """Sums of loss, terms and statistics over the rows of an epoch."""

    def __init__(self, state: Mapping[str, Any] | None = None, device: torch.device | str = "cpu") -> None:
        self.sums: dict[tuple[str, str], Tensor] = {}
        self.rows = 0
        if state:
            self.rows = state["rows"]
            self.sums = {(kind, name): value.to(device) for kind, name, value in state["sums"]}

    def state(self) -> dict[str, Any]:
        """What :class:`Meter` continues from, for a checkpoint."""
        return {"rows": self.rows, "sums": [(kind, name, v.clone()) for (kind, name), v in self.sums.items()]}

    def add(self, result: ObjectiveResult, rows: int) -> None:
        """Count one step of ``rows`` rows. Nothing is read from the device."""
        self.rows += rows
        self._sum("loss", "", result.total.detach(), rows)
        for kind, values in (("terms", result.terms), ("stats", result.stats)):
            for name, value in values.items():
                self._sum(kind, name, value, rows)

    def _sum(self, kind: str, name: str, value: Float[Tensor, ""], rows: int) -> None:
        key = (kind, name)
        value = value.float() * rows
        self.sums[key] = self.sums[key] + value if key in self.sums else value

    def read(self, accelerator: Accelerator) -> tuple[float, dict[str, float], dict[str, float]]:
        """Loss, terms and statistics: means over the epoch's rows, of all processes."""
        sums = torch.stack(list(self.sums.values())) / self.rows
        if accelerator.num_processes > 1:
            sums = accelerator.reduce(sums, reduction="mean")  # each process has the same number of rows
        mean = dict(zip(self.sums, sums.tolist(), strict=True))
        terms = {name: value for (kind, name), value in mean.items() if kind == "terms"}
        stats = {name: value for (kind, name), value in mean.items() if kind == "stats"}
        return mean[("loss", "")], terms, stats
