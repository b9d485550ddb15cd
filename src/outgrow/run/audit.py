"""``outgrow audit``: in minutes, before anybody trains, whether a teacher is worth listening to.

The task measures (``audit.py`` of its room); here its folder is kept, and commands to go on with are written.
"""

import json
import shlex
import time
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from outgrow.machine.files import check_writable, sealed, write_atomically
from outgrow.report.audit_page import write_audit_page
from outgrow.run.layers import as_config, recipe_layer
from outgrow.run.predict import csv_lines
from outgrow.run.tasks import task_name
from outgrow.training.acceleration import make_accelerator
from outgrow.training.audit import Audited, AuditRecord, LabelErrorsRecord
from outgrow.training.config import Config, build_config, leaves, settle
from outgrow.training.progress import Reporter
from outgrow.training.provenance import provenance
from outgrow.training.task import RunContext

RECORD, PAGE, ERRORS = "audit.json", "index.html", "label_errors.csv"
FILES = (RECORD, PAGE, ERRORS)
"""What an audit writes; other files in its folder stay."""
ROWS = 2000
LEAST_ROWS = 20


def audit_teacher(
    config: Config | Mapping[str, Any],
    *,
    rows: int = ROWS,
    teacher: nn.Module | None = None,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> AuditRecord:
    """Measure the teacher that ``config`` names (or ``teacher``, a module) and say whether it is worth listening to.

    At most ``rows`` training rows and as many held-out rows are looked at, and never a test image. With ``config.out``
    the folder gets ``audit.json``, ``index.html`` and, where labels look wrong, ``label_errors.csv``.

    ``ValueError`` for a folder that holds something, no teacher, and what does not fit together.
    """
    started = time.time()
    config = settle(as_config(config))
    if rows < LEAST_ROWS:
        raise ValueError(f"--rows: needs {LEAST_ROWS} or more, got {rows}; 2000 take minutes.")
    if config.teacher.train:
        raise ValueError(
            "audit: needs a teacher that is there, got one that is to be trained (teacher.train); train it first, and give "
            "its file: --teacher-weights RUN/teacher.safetensors."
        )
    if config.teacher.others:
        raise ValueError(
            f"audit: needs one teacher, got {1 + len(config.teacher.others)} (teacher.others); audit each by itself."
        )
    if teacher is None and config.teacher.name in ("", "none"):
        raise ValueError(
            "--teacher: needs a model such as timm/resnet50 or cifar/resnet56, got none; name the one to audit."
        )
    out = None if config.out is None else Path(config.out)
    if out is not None:
        _open_folder(out, overwrite=overwrite)
    report = reporter or Reporter()
    run = RunContext(config, make_accelerator(config.train).device, report, out)
    room = import_module(f"outgrow.{task_name(config.data.source)}.audit")
    found: Audited = room.audit(run, rows, options, teacher)
    kind = "classification" if task_name(config.data.source) == "classification" else "detection"
    record = AuditRecord(
        verdicts=found.verdicts,
        teacher=found.teacher,
        data=found.data,
        rows=rows,
        notes=found.notes,
        config=config,
        **{kind: found.numbers},
        **provenance(run.device, started),
    )
    if out is not None:
        _write(out, record, found)
    for line in summary(record, found):
        report.note(line)
    report.event("result", verdicts=[one.model_dump() for one in record.verdicts], out=config.out)
    return record


def summary(record: AuditRecord, found: Audited) -> Iterator[str]:
    """What the terminal shows: the verdicts and the numbers that they rest on."""
    yield from found.summary
    yield from (f"note: {note}" for note in found.notes)
    for verdict in record.verdicts:
        yield verdict.text
        if verdict.command:
            yield f"  {verdict.command}"
    if record.config.out:
        yield f"{record.config.out}: {PAGE}, {RECORD}{f', {ERRORS}' if _listed(record) else ''}"


def options(config: Config) -> str:
    """``config`` as the options of a command line: what differs from its recipe."""
    words = ["--data", config.data.source]
    if config.data.label is not None:
        words += ["--label", config.data.label]
    if config.recipe != "default":
        words += ["--recipe", config.recipe]
    words += ["--teacher", config.teacher.name] if config.teacher.name else []
    if config.teacher.weights is not None:
        words += ["--teacher-weights", config.teacher.weights]
    if config.student.name:
        words += ["--student", config.student.name]
    if config.student.weights is not None:
        words += ["--student-weights", config.student.weights]
    typed = {"data.source", "data.label", "recipe", "teacher.name", "teacher.weights", "teacher.train", "out"}
    typed |= {"student.name", "student.weights"}
    base = dict(leaves(settle(build_config(recipe_layer(config.recipe, None))).model_dump(mode="json")))
    for name, value in leaves(config.model_dump(mode="json")):
        if name not in typed and not name.startswith("method.") and base[name] != value:
            words += ["--set", f"{name}={json.dumps(value)}"]
    return shlex.join(words)


def _listed(record: AuditRecord) -> LabelErrorsRecord | None:
    numbers = record.classification
    return numbers.label_errors if numbers is not None and numbers.label_errors.found is not None else None


def _open_folder(out: Path, *, overwrite: bool) -> None:
    check_writable(out, what="--out")
    held = sorted(path.name for path in out.iterdir())
    own = (out / RECORD).exists()
    if held and not (own and overwrite):
        state = "an audit" if own else f"{', '.join(held[:3])}{', ...' if len(held) > 3 else ''}"
        remedy = "give another folder, or --overwrite to replace it" if own else "give another folder"
        raise ValueError(f"--out {out}: needs an empty folder, got one with {state}; {remedy}.")
    for name in FILES:
        (out / name).unlink(missing_ok=True)


def _write(out: Path, record: AuditRecord, found: Audited) -> None:
    """The record last: a folder with one is a finished audit."""
    listed = _listed(record)
    if listed is not None:
        lines = [[listed.column, "label", "suggested", "confidence"]]
        lines += [[c.name, c.label, c.suggested, f"{c.confidence:.4f}"] for c in listed.candidates]
        write_atomically(out / ERRORS, "".join(csv_lines(lines)).encode("utf-8", "surrogateescape"))
    write_audit_page(out / PAGE, record, found.section)
    write_atomically(out / RECORD, sealed(record.as_dict()))
