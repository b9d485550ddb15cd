"""The curves of one run, as a picture for its folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from outgrow.training.record import corrected_score, epoch_scores, metric_of, short_name, teacher_score

# as in the pages' style sheet: distinct for colour-blind readers
COLOURS = ("#0b6e4f", "#0072b2", "#d55e00", "#a0528a", "#8a6d00", "#3a9bc8", "#6a4fb3", "#5f6b73")
STUDENT, TEACHER, CORRECTED = COLOURS[0], "#6b6b6b", "#b34700"


def draw_curves(record: Mapping[str, Any], path: str | Path) -> None:
    """Write a PNG: the score of student and teacher, and the terms of the loss, by epoch."""
    # a figure of its own: nothing of pyplot's global state, which is a notebook's or another thread's
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharex=True)
    _scores(left, record)
    _terms(right, record["epochs"])
    for axis in (left, right):
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#000000", alpha=0.08, lw=0.8)
        axis.set_axisbelow(True)
        axis.set_xlabel("epoch")
        if axis.get_legend_handles_labels()[0]:
            many = len(axis.lines) > 8
            axis.legend(frameon=False, ncols=2 if many else 1, fontsize="small" if many else None)
    epochs = [e["epoch"] for e in record["epochs"]]
    if len(epochs) == 1:  # a range of one epoch to either side, not of hundredths of one
        left.set_xlim(epochs[0] - 1, epochs[0] + 1)
    figure.savefig(path, dpi=130)


def _scores(axis: Any, record: Mapping[str, Any]) -> None:
    tested = epoch_scores(record)
    axis.plot(
        [epoch for epoch, _ in tested],
        [score for _, score in tested],
        marker="o",
        ms=3,
        color=STUDENT,
        label="student",
    )
    teacher, corrected = teacher_score(record), corrected_score(record)
    if teacher is not None:
        axis.axhline(teacher, color=TEACHER, ls="--", lw=1.2, label="teacher")
    if corrected is not None and corrected != teacher:
        axis.axhline(corrected, color=CORRECTED, ls=":", lw=1.6, label="teacher, corrected")
    axis.margins(y=0.08)
    axis.set(ylabel=metric_of(record).label, title=f"student {short_name(record['student'])}")


def _terms(axis: Any, epochs: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(name for e in epochs for name in e["terms"]))
    for number, name in enumerate(names):
        known = [e for e in epochs if name in e["terms"]]
        axis.plot(
            [e["epoch"] for e in known],
            [e["terms"][name] for e in known],
            marker="o" if len(known) == 1 else None,
            ms=4,
            color=COLOURS[number % len(COLOURS)],
            ls=("-", "--", ":", "-.")[number // len(COLOURS) % 4],
            label=name,
        )
    if all(value >= 0 for e in epochs for value in e["terms"].values()):
        axis.set_ylim(bottom=0)
    axis.set(ylabel="weighted training loss", title="terms of the loss")
