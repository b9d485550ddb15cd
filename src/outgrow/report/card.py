"""The README of an exported student, as a model card of the Hugging Face hub."""

import re

from outgrow.machine.files import counted
from outgrow.training.deployment import Exported, public_name, public_source
from outgrow.training.record import RunRecord

SHOWN = 40
"""Names of classes that a card spells out; config.json has them all."""


def model_card(record: RunRecord, exported: Exported) -> str:
    """Markdown: what it is, how good, how it is loaded, what it was made from. The licence is the reader's to choose."""
    student = record.student
    lines = [
        "---",
        f"library_name: {exported.library}",
        f"pipeline_tag: {exported.pipeline}",
        "tags: [knowledge-distillation, outgrow]",
        "# license: choose one; it must suit the data and the weights that this was made from",
        "---",
        "",
        f"# {public_name(student.short_name)}, distilled",
        "",
        f"{public_name(student.name)}, {student.parameters:,} parameters, {_task(record)} "
        f"{len(record.data.classes)} class{'' if len(record.data.classes) == 1 else 'es'}: {_classes(record.data.classes)}.",
        "",
        "## How good it is",
        "",
        *_scores(record),
        "",
        "## How it is loaded",
        "",
        f"Pictures: {exported.preparation}.",
        "",
        exported.loading,
        "",
        "| file | MB | compared with the trained student |",
        "|---|---|---|",
        *(f"| `{one.name}` | {one.bytes / 1e6:.2f} | {one.check} |" for one in exported.files),
        "",
        "## What it was made from",
        "",
        f"- Teacher: {_teacher(record)}",
        f"- Data: {public_source(record.data.source)}, {record.data.train:,} images for training"
        f"{_unlabelled(record)}; fingerprint "
        f"`{record.data.fingerprint[:16]}`",
        f"- Method: `{_plain(record.method_text)}`; {counted(len(record.epochs), 'epoch')}, seed {record.seed}",
        f"- Made with outgrow {record.versions.get('outgrow', '')}, torch {record.versions.get('torch', '')}"
        f"{f', {record.started[:10]}' if record.started else ''}",
        "",
    ]
    return "\n".join(lines)


def _unlabelled(record: RunRecord) -> str:
    """The images without labels that the student learned from; without a teacher they are left out."""
    if not record.data.unlabelled or record.config.method.preset == "none":
        return ""
    return f" and {record.data.unlabelled:,} without labels"


def _task(record: RunRecord) -> str:
    return "boxes of" if record.metric == "ap" else "tells apart"


def _classes(names: tuple[str, ...]) -> str:
    shown = ", ".join(f"`{_plain(name)}`" for name in names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more (config.json)"


def _scores(record: RunRecord) -> list[str]:
    """The student's numbers, and their conditions."""
    measure, student, data = record.measure, record.student, record.data
    rows = [("student", student)] + ([] if record.teacher is None else [("teacher", record.teacher)])
    columns = [f"{measure.title} (%)", *(column.name for column in measure.beside)]
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for who, network in rows:
        score = getattr(network, measure.key)
        cells = [
            "" if score is None else f"{score:.2f}",
            *(column.text(network) for column in measure.beside),
        ]
        lines.append(f"| {who} | {' | '.join(cells)} |")
    lines += [
        "",
        f"On {data.test:,} test images of {public_source(data.source)}, after the last epoch, of one run (seed {record.seed}).",
    ]
    return lines


def _plain(text: str) -> str:
    """Text on one line that can stand between backticks, where Markdown leaves it as it is.

    >>> _plain("a`b" + chr(10) + "c")
    "a'b c"
    """
    return re.sub(r"\s+", " ", text).replace("`", "'")


def _teacher(record: RunRecord) -> str:
    teacher = record.teacher
    if teacher is None:
        return "none"
    corrected = record.corrected_score
    words = f"{public_name(teacher.name)}, {teacher.parameters:,} parameters"
    return words if corrected is None else f"{words}; corrected, {record.measure.value(corrected)}"
