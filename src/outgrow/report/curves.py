"""The curves of one run, for its page and as a PNG in its folder."""

from pathlib import Path

from outgrow.machine.files import write_atomically
from outgrow.report.palette import COLOURS as COLOURS
from outgrow.report.palette import colour
from outgrow.report.plots import (
    Level,
    Series,
    add_axis,
    draw_lines,
    names_width,
    new_figure,
    teacher_levels,
)
from outgrow.training.record import Run, RunRecord, parse_record

HEIGHT, WIDTH = 400.0, 420.0
"""Height of the picture, and width of each plot without the names beside it, in points."""


def draw_curves(record: Run, path: str | Path) -> None:
    """Write a PNG with the scores of student and teacher, and the terms of the loss, by epoch."""
    record = parse_record(record)
    plots: list[tuple[list[Series], list[Level], float | None, dict[str, str]]] = [
        (
            score_lines(record),
            score_levels(record),
            100.0,
            {"ylabel": record.measure.label, "title": f"student {record.student.short_name}"},
        ),
        (term_lines(record), [], None, {"ylabel": "weighted training loss", "title": "terms of the loss"}),
    ]
    plots = [plot for plot in plots if plot[0]]
    widths = [60 + WIDTH + names_width([*lines, *levels]) for lines, levels, _, _ in plots]
    with new_figure(sum(widths), HEIGHT) as figure:
        left = 60.0
        for (lines, levels, ceiling, texts), width in zip(plots, widths, strict=True):
            axis = add_axis(figure, left, left + WIDTH, 40.0, HEIGHT - 46)
            draw_lines(axis, lines, levels, ceiling=ceiling)
            axis.set(xlabel="epoch", **texts)
            left += width
        write_atomically(
            path, lambda part: figure.savefig(part, format="png", dpi=110, metadata={"Software": None})
        )


def score_lines(record: RunRecord) -> list[Series]:
    """The student's score by epoch."""
    scores = record.epoch_scores
    return [Series("student", scores, lead=True)] if scores else []


def score_levels(record: RunRecord) -> list[Level]:
    return teacher_levels(record.teacher_score, record.corrected_score)


def term_lines(record: RunRecord) -> list[Series]:
    """The weighted terms of the loss by epoch."""
    names = dict.fromkeys(name for epoch in record.epochs for name in epoch.terms)
    return [
        Series(
            name,
            [(epoch.epoch, epoch.terms[name]) for epoch in record.epochs if name in epoch.terms],
            colour=colour(number),
        )
        for number, name in enumerate(names)
    ]
