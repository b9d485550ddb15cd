"""A comparison as text, Markdown, LaTeX, CSV and JSON: one table, written five ways.

text(tables), markdown(tables), latex(tables)     # what people read: rounded, one block for each study
csv_text(tables)                                  # what programs read: every number, one line a method
as_json(tables)
"""

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from outgrow.machine.files import finite
from outgrow.report.statistics import Contrast, Difference
from outgrow.report.table import Row, Table, other_teachers
from outgrow.report.words import outgrown

Tables = Mapping[str, Table]
"""Tables by the name of their study, which is empty where there is one."""


def text(tables: Tables) -> str:
    """Aligned columns."""
    blocks = []
    for name, table in tables.items():
        cells = [_head(table), *(_cells(row, table) for row in table.rows)]
        widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in cells
        ]
        lines.insert(1, "  ".join("-" * width for width in widths))
        blocks.append("\n".join([*([name, ""] if name else []), *lines, "", *_below(table)]))
    return "\n\n".join([*blocks, "\n".join(how_to_read(tables))])


def markdown(tables: Tables) -> str:
    """GitHub's Markdown."""
    blocks = []
    for name, table in tables.items():
        head = _head(table)
        lines = [head, tuple("---" for _ in head), *(_cells(row, table) for row in table.rows)]
        body = "\n".join("| " + " | ".join(map(_plain, line)) + " |" for line in lines)
        below = "\n".join(map(_plain, _below(table)))
        blocks.append("\n\n".join([*([f"## {_plain(name)}"] if name else []), body, below]))
    return "\n\n".join([*blocks, "\n".join(how_to_read(tables))]) + "\n"


def latex(tables: Tables) -> str:
    """A ``tabular`` of the package booktabs for each study."""
    blocks = []
    for name, table in tables.items():
        head = [_tex(cell) for cell in _head(table)]
        rows = [
            " & ".join(_tex(cell).replace("+-", r"$\pm$") for cell in _cells(row, table)) + r" \\"
            for row in table.rows
        ]
        blocks.append(
            "\n".join(
                [
                    *([f"% {name}"] if name else []),
                    r"\begin{tabular}{l" + "r" * (len(head) - 1) + "}",
                    r"\toprule",
                    " & ".join(head) + r" \\",
                    r"\midrule",
                    *rows,
                    r"\bottomrule",
                    r"\end{tabular}",
                    *(f"% {line}" for line in _below(table)),
                ]
            )
        )
    return (
        "\n\n".join(
            [
                r"% needs \usepackage{booktabs}",
                *blocks,
                "\n".join(f"% {line}" for line in how_to_read(tables)),
            ]
        )
        + "\n"
    )


def _plain(text: str) -> str:
    r"""Text of which Markdown makes nothing: the stars in the name of a loss are no emphasis.

    >>> _plain("kd + 0.8*crd + 2*label_smooth | <0.001")
    'kd + 0.8\\*crd + 2\\*label_smooth \\| <0.001'
    """
    return re.sub(r"[\\`*|]|<(?=[A-Za-z/!?])|(?<!\w)_|_(?!\w)", r"\\\g<0>", text)


def csv_text(tables: Tables) -> str:
    """Every number unrounded: one line a method; a baseline that a study lacks leaves its columns empty."""
    baselines = list(dict.fromkeys(name for table in tables.values() for name in table.baselines))
    lines: list[dict[str, Any]] = []
    for study, table in tables.items():
        for row in table.rows:
            line: dict[str, Any] = {"study": study, "method": row.method, "metric": table.metric.key}
            line |= {"n": row.score.n, "mean": row.score.mean, "deviation": row.score.deviation}
            line |= {"parameters": row.parameters, "conditions": "; ".join(row.conditions)}
            versus = {one.baseline: one for one in row.versus}
            teachers = {"teacher": row.over_teacher, "corrected": row.over_corrected}
            for base in baselines:
                # a method may be called as the columns of the teacher are
                own = f"method {base}" if base in teachers else base
                line |= {f"{own}: {key}": value for key, value in _numbers(versus.get(base)).items()}
            for name, difference in teachers.items():
                line[f"{name}: difference"] = None if difference is None else difference.mean
            line["outgrew"] = row.outgrew
            lines.append(line)
    file = io.StringIO()
    writer = csv.DictWriter(file, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(finite(line) for line in lines)
    return file.getvalue()


def as_json(tables: Tables, **facts: Any) -> str:
    """Everything, with ``facts`` beside it; numbers that are not finite are null."""
    studies = {name: table.as_dict() for name, table in tables.items()}
    return json.dumps(finite({**facts, "studies": studies}), indent=1, allow_nan=False) + "\n"


def _numbers(contrast: Contrast | None) -> dict[str, float | None]:
    keys = ("difference", "low", "high", "low_together", "high_together", "p", "p_exact", "p_holm")
    if contrast is None:
        return dict.fromkeys(keys)
    alone, joint = contrast.difference, contrast.together
    values = (alone.mean, alone.low, alone.high, joint.low, joint.high)
    return dict(zip(keys, (*values, contrast.p, contrast.p_exact, contrast.p_holm), strict=True))


def how_to_read(tables: Tables) -> list[str]:
    """What stands below all tables."""
    first = next(iter(tables.values()))
    lines = []
    if first.baselines:
        lines.append(
            f"over: paired by seed, with 95 % intervals that hold for all {first.together} comparisons with a baseline together "
            "(Bonferroni);"
            if first.together > 1
            else "over: paired by seed, with 95 % intervals;"
        )
        lines.append("p: paired t test" + (", corrected by Holm" if first.together > 1 else ""))
    if any(table.teacher is not None for table in tables.values()):
        lines.append(
            "outgrew: beats the teacher as it is, the teacher after correction, and the student alone, each by its interval"
        )
        if all(table.corrected is None for table in tables.values()):
            lines.append("no correction changed a teacher here, so over corrected is over teacher")
    return lines


def _below(table: Table) -> list[str]:
    """The teacher and the sizes."""
    lines, unit = [], table.metric.unit
    if table.teacher is not None:
        rate = table.teacher_wrong_rate
        wrong = f", wrong on {100 * rate.mean:.1f} % of the {table.metric.rows}" if rate else ""
        lines.append(f"teacher: {table.teacher} {unit} ({table.teacher_parameters:,} parameters){wrong}")
    if table.corrected is not None:
        lines.append(f"teacher after correction of its bias: {table.corrected} {unit}")
    if others := other_teachers(table, {}):
        lines.append(others)
    sizes = dict.fromkeys(row.parameters for row in table.rows)
    seeds = dict.fromkeys(row.score.n for row in table.rows)
    lines.append(
        f"student: {' or '.join(f'{size:,}' for size in sizes)} parameters, {' or '.join(map(str, sorted(seeds, reverse=True)))} "
        f"seed{'' if list(seeds) == [1] else 's'}"
    )
    return lines


def _base_name(name: str, table: Table) -> str:
    return "no teacher" if name == table.null else name


def _head(table: Table) -> tuple[str, ...]:
    versus = [column for name in table.baselines for column in (f"over {_base_name(name, table)}", "p")]
    if table.teacher is not None:
        versus += ["over teacher", "over corrected", "outgrew"]
    conditions = ["other conditions"] if any(row.conditions for row in table.rows) else []
    return ("method", f"{table.metric.name}, last epoch", *versus, *conditions)


def _cells(row: Row, table: Table) -> tuple[str, ...]:
    versus = {one.baseline: one for one in row.versus}
    cells = [row.method, str(row.score)]
    for name in table.baselines:
        one = versus.get(name)
        cells += ["", ""] if one is None else [_difference(one.together), p_value(one.p_holm)]
    if table.teacher is not None:
        cells += ["" if d is None else _difference(d) for d in (row.over_teacher, row.over_corrected)]
        cells.append(outgrown(row, table))
    if any(one.conditions for one in table.rows):
        cells.append("; ".join(row.conditions))
    return tuple(cells)


def _difference(difference: Difference) -> str:
    return str(difference)


def p_value(value: float | None) -> str:
    """As papers print it: never as nought."""
    if value is None:
        return ""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


_TEX: Sequence[tuple[str, str]] = (
    ("\\", r"\textbackslash{}"),
    *((letter, "\\" + letter) for letter in "&%$#_{}"),
    ("~", r"\textasciitilde{}"),
    ("^", r"\textasciicircum{}"),
    *((letter, f"${letter}$") for letter in "<>|"),  # of LaTeX's first font encoding: other letters
)


def _tex(cell: str) -> str:
    """A cell in which LaTeX's own letters are plain ones."""
    table = dict(_TEX)
    return "".join(table.get(letter, letter) for letter in cell)
