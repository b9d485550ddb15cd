"""``outgrow demo``: a comparison on scikit-learn's handwritten digits, without a download.

The teacher is imperfect by design. It was trained on other digits than the students, and 45 % of its labels were
replaced by the next digit. So its errors are systematic, and as frequent on the students' rows as on any others. The
students have only 150 digits, with true labels. All students of a seed have the same teacher, rows and views.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from outgrow.classification.data import open_run_data
from outgrow.classification.student import train_alone
from outgrow.data import ArraySplit
from outgrow.models import create_model
from outgrow.report.table import Table, tabulate
from outgrow.report.text import markdown_table, text_table
from outgrow.run.study import run_study
from outgrow.training.config import Config
from outgrow.training.progress import Reporter

SLOPPY = 0.45
"""The share of the teacher's labels that are replaced by the next digit."""

BASE: dict[str, Any] = {
    "recipe": "digits",
    "data": {"source": "digits", "train_rows": 150, "augment": {"crop_padding": 1, "flip": False}},
    "teacher": {"name": "cifar/resnet20", "train": True, "rows": "disjoint", "correct_views": 8},
    "student": {"name": "cifar/resnet8"},
    "train": {"epochs": 30, "batch_size": 32, "lr": 0.05, "eval_every": 3},
    "teacher_train": {"epochs": 20, "batch_size": 32, "lr": 0.05, "eval_every": 20},
}

METHODS: dict[str, Mapping[str, Any]] = {
    "none": {"preset": "none"},
    "kd": {"preset": "kd"},
    "drop": {"preset": "drop"},
    "paper": {"preset": "paper"},
    "outgrow": {"preset": "outgrow"},
}

ABOUT = {
    "none": "no teacher",
    "kd": "plain KD",
    "drop": "KD, wrong rows dropped",
    "paper": "the paper's method",
    "outgrow": "outgrow (bias corrected)",
}


def run_demo(
    out: str | Path, *, seeds: int = 3, overwrite: bool = False, reporter: Reporter | None = None
) -> Table:
    """Train everything, print the table, and write ``index.html``, ``table.md`` and the records to ``out``."""
    report = reporter or Reporter()
    out = Path(out)
    report.note(
        f"digits: a teacher trained on other digits with {100 * SLOPPY:.0f} % wrong labels; students trained on "
        f"{BASE['data']['train_rows']} digits with true labels; {seeds} seeds x {len(METHODS)} methods"
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for networks this small, two threads are slower
    try:
        records = run_study(
            BASE, METHODS, range(seeds), out=out, teacher=sloppy_teacher, overwrite=overwrite, reporter=report
        )
    finally:
        torch.set_num_threads(threads)
    table = tabulate(records)
    (out / "table.md").write_text(markdown_table(table, ABOUT))
    (out / "table.json").write_text(json.dumps(table.as_dict(), indent=1))
    from outgrow.report.page import write_page

    write_page(
        out / "index.html",
        title="Handwritten digits",
        records=records,
        table=table,
        about=ABOUT,
        test=open_run_data(Config.model_validate(BASE)).test,
        notes=(__doc__ or "").split("\n\n")[1:],
    )
    report.note("\n" + text_table(table, ABOUT))
    report.event("table", **table.as_dict())
    report.note(
        f"\n{out / 'index.html'}: curves, and digits on which the teacher is wrong and the student right"
    )
    return table


def sloppy_teacher(config: Config) -> nn.Module:
    """A teacher trained, with partly wrong labels, on the rows that the students of this seed do not train on."""
    data = open_run_data(config)
    rows = data.others
    assert isinstance(rows, ArraySplit)
    generator = torch.Generator().manual_seed(config.seed)
    sloppy = torch.rand(len(rows), generator=generator) < SLOPPY
    labels = torch.where(sloppy, (rows.labels + 1) % data.num_classes, rows.labels)
    torch.manual_seed(config.seed)
    network = create_model(config.teacher.name, classes=data.classes)
    train_alone(config, replace(rows, labels=labels), data, network)
    return network
