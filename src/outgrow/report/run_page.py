"""One self-contained HTML page for one run of ``outgrow distill``."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outgrow.data import Split
from outgrow.report import parts
from outgrow.report.detection import detection
from outgrow.report.plots import Level, Series, line_plots, style
from outgrow.training.record import (
    Column,
    Run,
    best_score,
    corrected_score,
    epoch_scores,
    metric_of,
    short_name,
    student_score,
    teacher_score,
)


def write_run_page(path: str | Path, record: Run, test: Split | None) -> None:
    """Write the page of a run. ``test`` has the images that the record's comparison points into, None
    where it has none; the pictures of a detector lie beside the page."""
    teacher, student, epochs = record["teacher"], record["student"], record["epochs"]
    levels = _levels(record)
    tested = epoch_scores(record)
    terms = list(dict.fromkeys(name for e in epochs for name in e["terms"]))
    scores = [Series("student", tuple((float(epoch), score) for epoch, score in tested), style="s0 lead")]
    losses = [
        Series(
            name,
            tuple((float(e["epoch"]), e["terms"][name]) for e in epochs if name in e["terms"]),
            (),
            style(i),
        )
        for i, name in enumerate(terms)
    ]
    compared = record["compared"]
    context = {
        "title": f"{short_name(student)}, {record['config']['method']['preset']}",
        "headline": headline(record),
        "metric": metric_of(record),
        "score": student_score(record),
        "columns": _columns(record),
        "results": _results(record),
        "teacher": teacher,
        "student": student,
        "last": epochs[-1] if epochs else None,
        "gap": _gap(record),
        "mapped": parts.is_mapped(record),
        "curves": line_plots(scores, levels, ceiling=100.0),
        "legend": [("student", "s0 lead"), *((level.label, level.style) for level in levels)],
        "terms": line_plots(losses),
        "term_legend": [(name, style(i)) for i, name in enumerate(terms)],
        "term_names": terms,
        "epochs": epochs,
        "tested": dict(tested),
        "pictures": None
        if compared is None
        else {
            "method": short_name(student),
            "seed": None,
            "num_runs": 1,
            "examples": parts.examples(record, test),
            "total": compared["only_student"],
            "cells": parts.who_is_right([record]),
        },
        "detection": detection(record, Path(path).parent),
        "corrections": [part for part in [parts.correction(record)] if part is not None],
        "methods": [],
        "conditions": [
            (
                "method",
                (", ".join(f"{k} {v}" for k, v in record["config"]["method"].items() if v is not None),),
            ),
            *parts.conditions([record]),
        ],
        "config": parts.config_text(record),
        "config_of": "this run",
    }
    parts.write_template(path, "run.html", context)


def headline(record: Run) -> str:
    """One sentence with the measured result; one run is never called more than that."""
    teacher, metric, own = record["teacher"], metric_of(record), teacher_score(record)
    reached = f"{short_name(record['student'])} reaches {metric.value(student_score(record))}"
    if own is None:
        return f"{reached} without a teacher." if not teacher else f"{reached}."
    return f"{reached}; its teacher, {short_name(teacher)}, reaches {metric.value(own)}."


@dataclass(frozen=True)
class _Result:
    """A line of the table of results; ``beside`` are the cells of the columns next to the score."""

    name: str
    note: str
    style: str
    score: float
    beside: tuple[str, ...]
    parameters: int | None


def _columns(record: Run) -> list[Column]:
    """The further columns for which one of the networks has a number."""
    networks = (record["student"], record["teacher"])
    return [column for column in metric_of(record).beside if any(column.text(n) for n in networks)]


def _results(record: Run) -> list[_Result]:
    """The student, at its last and at its best epoch, and the teacher, as it is and corrected."""
    teacher, student, columns = record["teacher"], record["student"], _columns(record)
    own, corrected = teacher_score(record), corrected_score(record)
    empty = ("",) * len(columns)

    def line(role: str, network: Mapping[str, Any], score: float, note: str, style: str) -> _Result:
        beside = tuple(column.text(network) for column in columns)
        return _Result(f"{role}, {short_name(network)}", note, style, score, beside, network["parameters"])

    best = f"at its best epoch, {student['epoch_best']}"
    lines = [
        line("student", student, student_score(record), "", "strong"),
        _Result(best, "", "soft", best_score(record), empty, None),
    ]
    if own is not None:
        note = "mapped to these classes" if parts.is_mapped(record) else ""
        lines.append(line("teacher", teacher, own, note, ""))
        if corrected is not None and corrected != own:
            lines.append(_Result("teacher, corrected", "", "", corrected, empty, None))
    return lines


def _gap(record: Run) -> list[tuple[str, float]]:
    """Student minus teacher, as it is and corrected."""
    score, own, corrected = student_score(record), teacher_score(record), corrected_score(record)
    gaps = [] if own is None else [("the teacher", score - own)]
    if corrected is not None and corrected != own:
        gaps.append(("the teacher after correction of its bias", score - corrected))
    return gaps


def _levels(record: Run) -> list[Level]:
    own, corrected = teacher_score(record), corrected_score(record)
    levels = [] if own is None else [Level("teacher", own, "teacher")]
    if corrected is not None and corrected != own:
        levels.append(Level("teacher, corrected", corrected, "corrected"))
    return levels
