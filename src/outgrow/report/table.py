"""A study in numbers: one row a method, compared seed by seed."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from outgrow.report.statistics import Difference, Summary, paired, summarize
from outgrow.training.record import (
    Metric,
    Run,
    best_score,
    common_metric,
    corrected_score,
    student_score,
    teacher_score,
)

Records = dict[str, list[dict[str, Any]]]
"""Records of runs by method, in the order of seeds."""
NO_TEACHER = "none"
"""The name of the method, and of the preset, that has no teacher."""


@dataclass(frozen=True)
class Row:
    """One method; scores in percent. Differences are paired by seed; None where there is nothing to compare with.

    ``outgrew`` is True where the student beats the teacher as it is, the teacher after correction, and
    the same student without a teacher, each by a 95 % interval over seeds.
    """

    method: str
    score: Summary
    score_best: Summary
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

    metric: Metric
    """What all of its runs were judged by."""
    rows: tuple[Row, ...]
    teacher: Summary | None
    corrected: Summary | None
    teacher_parameters: int | None
    teacher_wrong_rate: Summary | None
    """On the training views, before any correction."""

    def as_dict(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "metric": self.metric.key,
            "outgrew": {row.method: row.outgrew for row in self.rows},
        }


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
    """Means over seeds, and what is better than what. Runs that were not judged alike are refused."""
    metric = common_metric([run for runs in records.values() for run in runs])
    none = _scores(records.get(NO_TEACHER, []))
    taught = _with_teacher(records)
    teacher = [score for run in taught if (score := teacher_score(run)) is not None]
    corrected = _corrected(records)
    rates = [t["wrong_rate"] for t in _seed_teachers(records, "wrong_rate")]
    rows = []
    for name, runs in records.items():
        scores = _scores(runs)
        rows.append(
            Row(
                method=name,
                score=summarize(scores),
                score_best=summarize([best_score(run) for run in runs]),
                over_none=paired(scores, none) if none and name != NO_TEACHER else None,
                over_teacher=paired(scores, teacher) if len(teacher) == len(scores) else None,
                over_corrected=paired(scores, corrected) if len(corrected) == len(scores) else None,
                wrong_rate=summarize([r["epochs"][-1]["wrong_rate"] for r in runs]).mean,
                parameters=runs[0]["student"]["parameters"],
            )
        )
    return Table(
        metric=metric,
        rows=tuple(rows),
        teacher=summarize(teacher) if teacher else None,
        corrected=summarize(corrected) if corrected and corrected != teacher else None,
        teacher_parameters=taught[0]["teacher"]["parameters"] if taught else None,
        teacher_wrong_rate=summarize(rates) if rates else None,
    )


def _scores(runs: Sequence[Run]) -> list[float]:
    return [student_score(run) for run in runs]


def _with_teacher(records: Records) -> list[dict[str, Any]]:
    """The runs of one method that has a teacher: the others have the same ones."""
    return next((runs for runs in records.values() if runs and teacher_score(runs[0]) is not None), [])


def _seed_teachers(records: Records, key: str) -> list[dict[str, Any]]:
    return next(
        ([run["teacher"] for run in runs] for runs in records.values() if runs and key in runs[0]["teacher"]),
        [],
    )


def _corrected(records: Records) -> list[float]:
    """The teacher after correction, seed by seed; as it is where the correction left it alone."""
    runs = next((runs for runs in records.values() if runs and runs[0]["correction"] is not None), None)
    runs = runs or _with_teacher(records)
    both = [(teacher_score(run), corrected_score(run)) for run in runs]
    last = [own if corrected is None else corrected for own, corrected in both]
    return [score for score in last if score is not None]
