"""A self-contained HTML page for one run of ``outgrow distill``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from outgrow.data import Split
from outgrow.report import parts
from outgrow.report.curves import score_levels, score_lines, term_lines
from outgrow.report.parts import Section
from outgrow.report.plots import line_plot
from outgrow.training.record import Column, NetworkRecord, Run, RunRecord, parse_record


def write_run_page(
    path: str | Path,
    record: Run,
    test: Split | None,
    sections: Sequence[Section] = (),
    warnings: Sequence[str] = (),
) -> None:
    """Write the page of a run.

    ``test`` are the test images that the record's comparison refers to, None if it has none. ``sections`` are
    further sections from the run's task, in order. ``warnings`` are shown at the top of the page.
    """
    record = parse_record(record)
    measure, teacher, levels = record.measure, record.teacher, score_levels(record)
    terms = term_lines(record)
    context = {
        "title": f"{record.student.short_name}, {record.preset}",
        "headline": headline(record),
        "record": record,
        "metric": measure,
        "columns": _columns(record),
        "results": _results(record),
        "gap": [(_IN_WORDS[level.label], record.student_score - level.value) for level in levels],
        "share": None
        if teacher is None or not teacher.parameters
        else 100 * record.student.parameters / teacher.parameters,
        "curves": line_plot(
            score_lines(record), levels, name="scores", title=f"{measure.title} by epoch", ceiling=100.0
        ),
        "terms": line_plot(terms, name="terms", title="Weighted terms of the training loss by epoch"),
        "term_names": [line.label for line in terms],
        "pictures": parts.pictures([record], record.student.short_name, test),
        "warnings": warnings,
        "lost": parts.lost([record], record.student.short_name, test),
        "sections": [section.html() for section in sections],
        "corrections": [record] if record.correction is not None else [],
        "conditions": [("method", (record.method_text,)), *parts.conditions([record])],
        "config": record.config.to_yaml(),
        "config_of": "this run",
    }
    parts.write_template(path, "run.html", context)


_IN_WORDS = {"teacher": "the teacher", "teacher, corrected": "the teacher after correction of its bias"}


def headline(record: RunRecord) -> str:
    """One sentence with the measured result. It draws no conclusion from one run."""
    teacher, measure, own = record.teacher, record.measure, record.teacher_score
    reached = f"{record.student.short_name} reaches {measure.value(record.student_score)}"
    if teacher is None:
        return f"{reached} without a teacher."
    if own is None:
        return f"{reached}."
    return f"{reached}; its teacher, {teacher.short_name}, reaches {measure.value(own)}."


@dataclass(frozen=True)
class _Result:
    """A line of the table of results; ``beside`` are the cells of the further columns."""

    name: str
    note: str
    style: str
    score: float
    beside: tuple[str, ...]
    parameters: int | None


def _columns(record: RunRecord) -> list[Column]:
    """The further columns for which at least one network has a number."""
    networks = (record.student, record.teacher)
    return [column for column in record.measure.beside if any(column.text(one) for one in networks)]


def _results(record: RunRecord) -> list[_Result]:
    """Lines for the student (last and best epoch) and the teacher (as it is and corrected)."""
    columns = _columns(record)
    empty = ("",) * len(columns)

    def line(role: str, network: NetworkRecord, score: float, note: str, style: str) -> _Result:
        beside = tuple(column.text(network) for column in columns)
        return _Result(f"{role}, {network.short_name}", note, style, score, beside, network.parameters)

    best = f"at its best epoch, {record.student.epoch_best}"
    lines = [
        line("student", record.student, record.student_score, "", "strong"),
        _Result(best, "", "soft", record.best_score, empty, None),
    ]
    found = record.classification
    for level in score_levels(record):
        if level.label == "teacher" and record.teacher is not None:
            note = "mapped to these classes" if record.is_mapped else ""
            lines.append(line("teacher", record.teacher, level.value, note, ""))
        else:
            lines.append(_Result(level.label, "", "", level.value, empty, None))
    if found is not None:
        lines.append(_Result("always the most frequent class", "", "soft", found.majority, empty, None))
    return lines
