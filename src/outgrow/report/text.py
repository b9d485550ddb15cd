"""A study's table as text for terminals and as Markdown."""

from collections.abc import Mapping

from outgrow.machine.files import counted
from outgrow.report.table import Row, Table, other_teachers
from outgrow.report.words import outgrown


def text_table(table: Table, about: Mapping[str, str] | None = None) -> str:
    """The table with aligned columns. ``about`` maps methods to the names to show."""
    cells = [_head(table), *(_cells(row, table, about or {}) for row in table.rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([*lines, "", *summary_lines(table)])


def markdown_table(table: Table, about: Mapping[str, str] | None = None) -> str:
    """The table in GitHub's Markdown."""
    head = _head(table)
    lines = [head, tuple("---" for _ in head), *(_cells(row, table, about or {}) for row in table.rows)]
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return body + "\n\n" + "\n".join(summary_lines(table)) + "\n"


def summary_lines(table: Table) -> list[str]:
    """The lines below the table: the teacher, the sizes, and how to read it."""
    lines, unit = [], table.metric.unit
    if table.teacher is not None:
        wrong = (
            f", wrong on {100 * table.teacher_wrong_rate.mean:.1f} % of the {table.metric.rows}"
            if table.teacher_wrong_rate
            else ""
        )
        lines.append(f"teacher: {table.teacher} {unit} ({table.teacher_parameters:,} parameters){wrong}")
    if table.corrected is not None:
        lines.append(f"teacher after correction of its bias: {table.corrected} {unit}")
    if others := other_teachers(table, {}):
        lines.append(others)
    first = table.rows[0]
    lines.append(
        f"student: {first.parameters:,} parameters, {counted(first.score.n, 'seed')}; differences are "
        "paired by seed, with 95 % intervals"
    )
    lines.append(
        "outgrew: beats the teacher as it is, the teacher after correction, and the student alone, each by its interval"
    )
    if table.teacher is not None and table.corrected is None:
        lines.append("no correction changed a teacher here, so over corrected is over teacher")
    return lines


def _head(table: Table) -> tuple[str, ...]:
    return (
        "method",
        f"{table.metric.name}, last epoch",
        "best epoch",
        "over no teacher",
        "over teacher",
        "over corrected",
        "outgrew",
    )


def _cells(row: Row, table: Table, about: Mapping[str, str]) -> tuple[str, ...]:
    differences = (row.over_none, row.over_teacher, row.over_corrected)
    return (
        about.get(row.method, row.method),
        str(row.score),
        str(row.score_best),
        *("" if d is None else str(d) for d in differences),
        outgrown(row, table),
    )
