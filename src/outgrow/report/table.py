"""A study in numbers: one row a method, compared seed by seed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from outgrow.report.statistics import Difference, Summary, paired, summarize

Records = dict[str, list[dict[str, Any]]]
"""Records of runs by method, in the order of seeds."""
NO_TEACHER = "none"
"""The name of the method, and of the preset, that has no teacher."""


@dataclass(frozen=True)
class Row:
    """One method. Differences are paired by seed; None where there is nothing to compare with.

    ``outgrew`` is True where the student beats the teacher as it is, the teacher after correction, and
    the same student without a teacher, each by a 95 % interval over seeds.
    """

    method: str
    top1: Summary
    top1_best: Summary
    over_none: Difference | None
    over_teacher: Difference | None
    over_corrected: Difference | None
    wrong_rate: float
    parameters: int

    @property
    def outgrew(self) -> bool:
        differences = (self.over_none, self.over_teacher, self.over_corrected)
        return all(d is not None and d.better for d in differences)


@dataclass(frozen=True)
class Table:
    """A study in numbers. ``corrected`` is None where no correction was made."""

    rows: tuple[Row, ...]
    teacher: Summary | None
    corrected: Summary | None
    teacher_parameters: int | None
    teacher_wrong_rate: Summary | None
    """On the training views, before any correction."""

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "outgrew": {row.method: row.outgrew for row in self.rows}}


def read_records(folder: str | Path) -> Records:
    """The finished runs under ``folder``: ``<method>/seed<k>/record.json``, by method, in the order of seeds.

    Methods that lack seeds which others have are refused: differences are paired by seed.
    """
    folder = Path(folder)
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for path in sorted(folder.glob("*/seed*/record.json")):
        record = json.loads(path.read_text())
        found.setdefault(path.parts[-3], {})[record["config"]["seed"]] = record
    if not found:
        raise ValueError(
            f"report: needs finished runs as METHOD/seedK/record.json, got none under {folder}; "
            "give each run --out FOLDER/METHOD/seedK."
        )
    seeds = {name: sorted(runs) for name, runs in found.items()}
    if len({tuple(value) for value in seeds.values()}) > 1:
        raise ValueError(f"report: needs the same seeds for every method, got {seeds}; run the missing ones.")
    return {name: [runs[seed] for seed in sorted(runs)] for name, runs in found.items()}


def tabulate(records: Records) -> Table:
    """Means over seeds, and what is better than what."""
    none = _top1(records.get(NO_TEACHER, []))
    teachers = [record["teacher"] for record in _with_teacher(records)]
    teacher = [t["top1"] for t in teachers]
    corrected = _corrected(records)
    rates = [t["wrong_rate"] for t in _seed_teachers(records, "wrong_rate")]
    rows = []
    for name, runs in records.items():
        top1 = _top1(runs)
        rows.append(
            Row(
                method=name,
                top1=summarize(top1),
                top1_best=summarize([r["student"]["top1_best"] for r in runs]),
                over_none=paired(top1, none) if none and name != NO_TEACHER else None,
                over_teacher=paired(top1, teacher) if len(teacher) == len(top1) else None,
                over_corrected=paired(top1, corrected) if len(corrected) == len(top1) else None,
                wrong_rate=summarize([r["epochs"][-1]["wrong_rate"] for r in runs]).mean,
                parameters=runs[0]["student"]["parameters"],
            )
        )
    return Table(
        rows=tuple(rows),
        teacher=summarize(teacher) if teacher else None,
        corrected=summarize(corrected) if corrected and corrected != teacher else None,
        teacher_parameters=teachers[0]["parameters"] if teachers else None,
        teacher_wrong_rate=summarize(rates) if rates else None,
    )


def _top1(runs: Sequence[Mapping[str, Any]]) -> list[float]:
    return [run["student"]["top1"] for run in runs]


def _with_teacher(records: Records) -> list[dict[str, Any]]:
    """The runs of one method that has a teacher: the others have the same ones."""
    return next((runs for runs in records.values() if runs and "top1" in runs[0]["teacher"]), [])


def _seed_teachers(records: Records, key: str) -> list[dict[str, Any]]:
    return next(
        ([run["teacher"] for run in runs] for runs in records.values() if runs and key in runs[0]["teacher"]),
        [],
    )


def _corrected(records: Records) -> list[float]:
    """The teacher after correction, seed by seed; as it is where the correction left it alone."""
    runs = next((runs for runs in records.values() if runs and runs[0]["correction"] is not None), None)
    runs = runs or _with_teacher(records)
    return [run["teacher"].get("top1_corrected", run["teacher"]["top1"]) for run in runs]
