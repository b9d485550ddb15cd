"""One self-contained HTML page for a study: nothing on it is fetched from elsewhere, and no script runs."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outgrow.data import Split
from outgrow.report import parts, words
from outgrow.report.plots import Effect, Level, Series, dot_plots, line_plots, style
from outgrow.report.statistics import Difference, paired
from outgrow.report.table import NO_TEACHER, Records, Row, Table
from outgrow.training.record import Metric, Run, epoch_scores, short_name, student_score

OWN = "outgrow"
"""The preset whose images are shown, where a study has it."""


def write_page(
    path: str | Path,
    *,
    title: str,
    records: Records,
    table: Table,
    about: Mapping[str, str],
    test: Split | None,
    notes: Sequence[str] = (),
) -> None:
    """Write the page of a study: the finding, its numbers, plots and images, and its conditions.

    ``about`` maps methods to what readers call them; ``test`` has the images that the records' comparisons
    point into, None where none has any; ``notes`` are paragraphs on how the teacher came to be imperfect.
    """
    if not table.rows or not all(records.get(row.method) for row in table.rows):
        raise ValueError(
            f"write_page: needs at least one finished run of each method, got {[row.method for row in table.rows]} "
            f"in the table and {[name for name, runs in records.items() if runs]} in the records; "
            "make the table with tabulate(records)."
        )
    names = {row.method: about.get(row.method, row.method) for row in table.rows}
    styles = _styles(table)
    over_kd = _over(records, words.KD)
    best = words.best_row(table)
    shown = _shown(records, best.method)
    runs = [run for row in table.rows for run in records[row.method]]
    mapped = any(parts.is_mapped(run) for run in runs)
    context = {
        "title": title,
        "metric": table.metric,
        "headline": words.headline(table, about),
        "lede": words.lede(table, about, over_kd),
        "best": names[best.method],
        "comparisons": words.comparisons(best, table, mapped=mapped) if table.teacher is not None else (),
        "lines": [_line(row, names, over_kd, best) for row in table.rows],
        "has": {
            "none": any(row.over_none is not None for row in table.rows),
            "kd": bool(over_kd),
            "teacher": table.teacher is not None,
            "mapped": mapped,
            "several": best.score.n > 1,
        },
        "num_methods": len(table.rows),
        "teacher": table.teacher,
        "corrected": table.corrected,
        "teacher_parameters": table.teacher_parameters,
        "teacher_wrong_rate": table.teacher_wrong_rate,
        "teacher_name": next((short_name(run["teacher"]) for run in runs if run["teacher"]), ""),
        "notes": notes,
        "curves": line_plots(_series(records, names, styles), _levels(table), ceiling=100.0),
        "curve_table": _curve_table(records, names),
        "effects": _effects(records, names, styles, table.metric),
        "pictures": _pictures(records, shown, names, test),
        "corrections": _corrections(records),
        "methods": [(names[name], _method(records[name][0])) for name in names],
        "conditions": parts.conditions(runs),
        "legend": [(names[row.method], styles[row.method]) for row in table.rows]
        + [(level.label, level.style) for level in _levels(table)],
        "config": parts.config_text(records[shown or best.method][0]),
        "config_of": names[shown or best.method],
    }
    parts.write_template(path, "study.html", context)


@dataclass(frozen=True)
class _Line:
    """A line of the table of results. ``held`` of ``told`` comparisons were won."""

    name: str
    row: Row
    over_kd: Difference | None
    best: bool
    alone: bool
    held: int
    told: int


def _line(row: Row, names: Mapping[str, str], over_kd: Mapping[str, Difference], best: Row) -> _Line:
    three = (row.over_teacher, row.over_corrected, row.over_none)
    told = [d.better for d in three if d is not None and d.n > 1]
    return _Line(
        name=names[row.method],
        row=row,
        over_kd=over_kd.get(row.method),
        best=row is best,
        alone=row.method == NO_TEACHER,
        held=sum(told),
        told=len(told),
    )


def _styles(table: Table) -> dict[str, str]:
    """A colour for each method: grey without a teacher, the first for our own or else the best."""
    lead = next((row.method for row in table.rows if row.method == OWN), words.best_row(table).method)
    others = [row.method for row in table.rows if row.method not in (lead, NO_TEACHER)]
    styles = {name: style(number) for number, name in enumerate(others, start=1)}
    return {row.method: styles.get(row.method, "s0 lead") for row in table.rows} | {NO_TEACHER: "alone"}


def _scores(runs: Sequence[Run]) -> list[float]:
    return [student_score(run) for run in runs]


def _over(records: Records, null: str) -> dict[str, Difference]:
    """Each method's difference to the method ``null``, where both have the same seeds."""
    others = records.get(null, [])
    return {
        name: paired(_scores(runs), _scores(others))
        for name, runs in records.items()
        if name != null and _seeds(runs) == _seeds(others)
    }


def _seeds(runs: Sequence[Run]) -> list[int]:
    return [run["config"]["seed"] for run in runs]


def _series(records: Records, names: Mapping[str, str], styles: Mapping[str, str]) -> list[Series]:
    """Mean over seeds of the score by epoch, with a band of one deviation to either side."""
    series = []
    for name, label in names.items():
        epochs = _tested(records[name])
        points = tuple((float(epoch), statistics.fmean(values)) for epoch, values in epochs.items())
        band = tuple(
            (float(epoch), max(0.0, mean - deviation), min(100.0, mean + deviation))
            for epoch, values in epochs.items()
            if len(values) > 1
            for mean, deviation in [(statistics.fmean(values), statistics.stdev(values))]
        )
        series.append(Series(label, points, band, styles[name]))
    return series


def _tested(runs: Sequence[Run]) -> dict[int, list[float]]:
    """The score of every seed, by the epochs at which all were tested."""
    tested = [dict(epoch_scores(run)) for run in runs]
    common = [epoch for epoch in tested[0] if all(epoch in one for one in tested)]
    return {epoch: [one[epoch] for one in tested] for epoch in common}


def _curve_table(records: Records, names: Mapping[str, str]) -> list[tuple[int, list[float | None]]]:
    """The plotted means, by epoch and method."""
    tested = {name: _tested(records[name]) for name in names}
    epochs = sorted({epoch for one in tested.values() for epoch in one})
    return [
        (epoch, [statistics.fmean(tested[name][epoch]) if epoch in tested[name] else None for name in names])
        for epoch in epochs
    ]


def _levels(table: Table) -> list[Level]:
    levels = [Level("teacher", table.teacher.mean, "teacher")] if table.teacher is not None else []
    if table.corrected is not None:
        levels.append(Level("teacher, corrected", table.corrected.mean, "corrected"))
    return levels


def _effects(
    records: Records, names: Mapping[str, str], styles: Mapping[str, str], metric: Metric
) -> dict[str, Any] | None:
    """Differences by seed to the student without a teacher, or to plain KD where a study lacks it."""
    null = next((name for name in (NO_TEACHER, words.KD) if name in names), None)
    if null is None:
        return None
    effects = []
    for name, difference in _over(records, null).items():
        if name not in names:
            continue
        values = tuple(a - b for a, b in zip(_scores(records[name]), _scores(records[null]), strict=True))
        text = words.interval(difference)
        effects.append(
            Effect(names[name], values, difference.mean, difference.low, difference.high, text, styles[name])
        )
    plots = dot_plots(effects, x_label=f"points of {metric.name} over {names[null]}")
    return None if plots is None else {"plots": plots, "null": names[null], "effects": effects}


def _shown(records: Records, best: str) -> str | None:
    """The method whose images are shown: our preset, else the best, else any that has a teacher."""
    compared = [name for name, runs in records.items() if runs and runs[0]["compared"]]
    own = [name for name in compared if records[name][0]["config"]["method"]["preset"] == OWN]
    return next((name for name in (*own, best, *compared) if name in compared), None)


def _pictures(
    records: Records, shown: str | None, names: Mapping[str, str], test: Split | None
) -> dict[str, Any] | None:
    if shown is None:
        return None
    first = records[shown][0]
    return {
        "method": names.get(shown, shown),
        "seed": first["config"]["seed"],
        "num_runs": len(records[shown]),
        "examples": parts.examples(first, test),
        "total": first["compared"]["only_student"],
        "cells": parts.who_is_right(records[shown]),
    }


def _corrections(records: Records) -> list[parts.CorrectionPart]:
    """The reports of one method, seed by seed: methods of a seed share their teacher."""
    found = [
        [part for run in runs if (part := parts.correction(run)) is not None] for runs in records.values()
    ]
    return max(found, key=len, default=[])


def _method(run: Run) -> str:
    """What was chosen of a method: the preset, and what differs from it."""
    return ", ".join(
        f"{name} {value}" for name, value in run["config"]["method"].items() if value is not None
    )
