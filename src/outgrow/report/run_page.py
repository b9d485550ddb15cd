"""One self-contained HTML page for one run of ``outgrow distill``."""

from pathlib import Path
from typing import Any

from outgrow.data import Split
from outgrow.report import parts
from outgrow.report.plots import Level, Series, line_plots, style


def write_run_page(path: str | Path, record: parts.Run, test: Split) -> None:
    """Write the page of a run. ``test`` has the images that the record's comparison points into."""
    teacher, student, epochs = record["teacher"], record["student"], record["epochs"]
    levels = _levels(teacher)
    terms = list(dict.fromkeys(name for e in epochs for name in e["terms"]))
    tested = [(float(e["epoch"]), float(e["top1"])) for e in epochs if e["top1"] is not None]
    accuracy = [Series("student", tuple(tested), style="s0 lead")]
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
        "title": f"{student['name']}, {record['config']['method']['preset']}",
        "headline": headline(record),
        "teacher": teacher,
        "student": student,
        "last": epochs[-1] if epochs else None,
        "gap": _gap(record),
        "mapped": parts.is_mapped(record),
        "curves": line_plots(accuracy, levels, ceiling=100.0),
        "legend": [("student", "s0 lead"), *((level.label, level.style) for level in levels)],
        "terms": line_plots(losses),
        "term_legend": [(name, style(i)) for i, name in enumerate(terms)],
        "term_names": terms,
        "epochs": epochs,
        "pictures": None
        if compared is None
        else {
            "method": student["name"],
            "seed": None,
            "num_runs": 1,
            "examples": parts.examples(record, test),
            "total": compared["only_student"],
            "cells": parts.who_is_right([record]),
        },
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


def headline(record: parts.Run) -> str:
    """One sentence with the measured result; one run is never called more than that."""
    teacher, student = record["teacher"], record["student"]
    reached = f"{student['name']} reaches {student['top1']:.2f} %"
    if teacher.get("top1") is None:
        return f"{reached} without a teacher." if not teacher else f"{reached}."
    return f"{reached}; its teacher, {teacher['name']}, reaches {teacher['top1']:.2f} %."


def _gap(record: parts.Run) -> list[tuple[str, float]]:
    """Student minus teacher, as it is and corrected."""
    teacher, top1 = record["teacher"], record["student"]["top1"]
    own, corrected = teacher.get("top1"), teacher.get("top1_corrected")
    gaps = [] if own is None else [("the teacher", top1 - own)]
    if corrected is not None and corrected != own:
        gaps.append(("the teacher after correction of its bias", top1 - corrected))
    return gaps


def _levels(teacher: dict[str, Any]) -> list[Level]:
    own, corrected = teacher.get("top1"), teacher.get("top1_corrected")
    levels = [] if own is None else [Level("teacher", own, "teacher")]
    if corrected is not None and corrected != own:
        levels.append(Level("teacher, corrected", corrected, "corrected"))
    return levels
