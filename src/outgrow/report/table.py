"""The table of a study: one row per method, with differences paired by seed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from outgrow.report.statistics import Difference, Summary, paired, summarize
from outgrow.training.record import Metric, Run, RunRecord, common_metric, parse_record, read_record

Records = dict[str, list[RunRecord]]
"""Records of runs by method, ordered by seed."""
AnyRecords = Mapping[str, Sequence[Run]]
"""The same, or dictionaries as ``outgrow.distill`` returns them."""
NO_TEACHER = "none"
"""The name of the method, and of the preset, that has no teacher."""


@dataclass(frozen=True)
class Row:
    """One method; scores in percent. Differences are paired by seed, None if there is nothing to compare with.

    ``outgrew`` is True if the student beats the teacher as it is, the teacher after correction, and the same
    student without a teacher, each with a 95 % interval over seeds above zero.
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
    """The table of a study. ``corrected`` is None if no correction was used."""

    metric: Metric
    """The metric of all its runs."""
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
    """The finished runs under ``folder``: ``<method>/seed<k>/record.json``, by method, ordered by seed.

    ``ValueError`` if methods have different seeds, since differences are paired by seed.
    """
    folder = Path(folder)
    found: dict[str, dict[int, RunRecord]] = {}
    for path in sorted(folder.glob("*/seed*/record.json")):
        record = read_record(path)
        runs = found.setdefault(path.parts[-3], {})
        if record.seed in runs:
            raise ValueError(
                f"report: needs one run of each seed, got seed {record.seed} again in {path}; move one away."
            )
        runs[record.seed] = record
    if not found:
        raise ValueError(
            f"report: needs finished runs as METHOD/seedK/record.json, got none under {folder}; "
            "give each run --out FOLDER/METHOD/seedK."
        )
    seeds = {name: sorted(runs) for name, runs in found.items()}
    if len({tuple(value) for value in seeds.values()}) > 1:
        raise ValueError(f"report: needs the same seeds for every method, got {seeds}; run the missing ones.")
    return {name: [runs[seed] for seed in sorted(runs)] for name, runs in found.items()}


def parse_records(records: AnyRecords) -> Records:
    """``records`` with every run as a :class:`RunRecord`, without the methods that have no run."""
    return {name: [parse_record(run) for run in runs] for name, runs in records.items() if runs}


def tabulate(records: AnyRecords) -> Table:
    """Means over seeds and paired differences. ``ValueError`` if the runs have different metrics."""
    parsed = parse_records(records)
    metric = common_metric([run for runs in parsed.values() for run in runs])
    none = _scores(parsed.get(NO_TEACHER, []))
    teacher = _first(parsed, lambda run: run.teacher_score)
    corrected = _corrected(parsed)
    rates = _first(parsed, lambda run: run.teacher_wrong_rate)
    rows = []
    for name, runs in parsed.items():
        scores = _scores(runs)
        rows.append(
            Row(
                method=name,
                score=summarize(scores),
                score_best=summarize([run.best_score for run in runs]),
                over_none=paired(scores, none) if none and name != NO_TEACHER else None,
                over_teacher=paired(scores, teacher) if len(teacher) == len(scores) else None,
                over_corrected=paired(scores, corrected) if len(corrected) == len(scores) else None,
                wrong_rate=summarize([run.epochs[-1].wrong_rate for run in runs]).mean,
                parameters=runs[0].student.parameters,
            )
        )
    return Table(
        metric=metric,
        rows=tuple(rows),
        teacher=summarize(teacher) if teacher else None,
        corrected=summarize(corrected) if corrected and corrected != teacher else None,
        teacher_parameters=next(
            (run.teacher.parameters for runs in parsed.values() for run in runs if run.teacher is not None),
            None,
        ),
        teacher_wrong_rate=summarize(rates) if rates else None,
    )


def _scores(runs: Sequence[RunRecord]) -> list[float]:
    return [run.student_score for run in runs]


def _first(records: Records, number: Callable[[RunRecord], float | None]) -> list[float]:
    """The numbers of the first method whose records have them. All methods of a seed share their teacher."""
    return next(
        (
            [found for run in runs if (found := number(run)) is not None]
            for runs in records.values()
            if number(runs[0]) is not None
        ),
        [],
    )


def _corrected(records: Records) -> list[float]:
    """The scores of the teacher after correction, by seed; the plain score if nothing was corrected."""
    sought = {name: runs for name, runs in records.items() if runs[0].correction is not None}
    return _first(
        sought or records,
        lambda run: run.teacher_score if run.corrected_score is None else run.corrected_score,
    )
