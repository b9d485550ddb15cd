"""``outgrow demo``: two comparisons on scikit-learn's handwritten digits, without a download.

    biased       a teacher with systematic errors: does correcting them help?
    few-labels   an honest teacher who knows few digits, and digits without labels: is the student better than both?

All students of a seed have the same teacher, rows and views. Every teacher was trained on other digits than the students,
so its errors are as frequent on the students' rows as on any others.
"""

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from outgrow.classification.data import RunData, open_run_data
from outgrow.classification.student import train_alone
from outgrow.data import ArraySplit, DataWarning
from outgrow.machine.files import finite
from outgrow.models import create_model
from outgrow.report.table import Records, Table, tabulate
from outgrow.report.text import markdown_table, text_table
from outgrow.run.study import run_study
from outgrow.training.config import Config, merge
from outgrow.training.folder import check_no_run
from outgrow.training.progress import Reporter

Layer = Mapping[str, Any]

SLOPPY = 0.45
"""The share of the biased teacher's labels that are replaced by the next digit."""
KNOWN = 100
"""The digits that the other teacher knows."""
EPOCHS = {"labels": 280, "unlabelled": 80}
"""As many steps, 560: with images without labels an epoch has more of them."""


@dataclass(frozen=True)
class Case:
    """A teacher, and what is compared under it.

    ``methods`` are the methods by name, ``about`` their names on the page, ``notes`` paragraphs on the teacher.
    ``unlabelled_methods`` also get images without labels, by the layer ``unlabelled``.
    """

    title: str
    notes: tuple[str, ...]
    base: Layer
    methods: Mapping[str, Layer]
    about: Mapping[str, str]
    teacher: Callable[[Config], nn.Module]
    unlabelled: Layer = field(default_factory=dict)
    unlabelled_methods: Mapping[str, Layer] = field(default_factory=dict)


def sloppy_teacher(config: Config) -> nn.Module:
    """A teacher trained, with partly wrong labels, on the rows that the students of this seed do not train on."""
    data, rows = _others(config)
    generator = torch.Generator().manual_seed(config.seed)
    sloppy = torch.rand(len(rows), generator=generator) < SLOPPY
    labels = torch.where(sloppy, (rows.labels + 1) % data.num_classes, rows.labels)
    return _trained(config, data, replace(rows, labels=labels))


def small_teacher(config: Config) -> nn.Module:
    """A teacher trained on :data:`KNOWN` of the rows that the students of this seed do not train on."""
    data, rows = _others(config)
    generator = torch.Generator().manual_seed(config.seed)
    return _trained(config, data, rows.subset(torch.randperm(len(rows), generator=generator)[:KNOWN]))


def _others(config: Config) -> tuple[RunData, ArraySplit]:
    data = open_run_data(config)
    assert isinstance(data.others, ArraySplit)
    return data, data.others


def _trained(config: Config, data: RunData, rows: ArraySplit) -> nn.Module:
    torch.manual_seed(config.seed)
    network = create_model(config.teacher.name, classes=data.classes)
    train_alone(config, rows, data, network)
    return network


def _base(rows: int, teacher: str, epochs: int, teacher_epochs: int) -> dict[str, Any]:
    return {
        "recipe": "digits",
        "data": {"source": "digits", "train_rows": rows, "augment": {"crop_padding": 1, "flip": False}},
        "teacher": {"name": teacher, "train": True, "rows": "disjoint", "correct_views": 8},
        "student": {"name": "cifar/resnet8"},
        "train": {"epochs": epochs, "batch_size": 32, "lr": 0.05, "eval_every": epochs // 10},
        "teacher_train": {
            "epochs": teacher_epochs,
            "batch_size": 32,
            "lr": 0.05,
            "eval_every": teacher_epochs,
        },
    }


CASES = {
    "biased": Case(
        title="A biased teacher",
        notes=(
            f"The teacher is imperfect by design. It was trained on other digits than the students, and {100 * SLOPPY:.0f} % "
            "of its labels were replaced by the next digit. So its errors are systematic, and as frequent on the students' "
            "rows as on any others. The students have only 150 digits, with true labels. All students of a seed have the "
            "same teacher, rows and views.",
        ),
        base=_base(150, "cifar/resnet20", 30, 20),
        methods={
            "none": {"preset": "none"},
            "kd": {"preset": "kd"},
            "drop": {"preset": "drop"},
            "paper": {"preset": "paper"},
            "outgrow": {"preset": "outgrow"},
        },
        about={
            "none": "no teacher",
            "kd": "plain KD",
            "drop": "KD, wrong rows dropped",
            "paper": "the paper's method",
            "outgrow": "outgrow (bias corrected)",
        },
        teacher=sloppy_teacher,
    ),
    "few-labels": Case(
        title="Few labels, and digits without labels",
        notes=(
            f"The teacher is honest but knows little: it was trained on {KNOWN} digits with true labels, until its own loss had "
            "settled. The students have 50 other digits with labels and the architecture of the teacher. The last two methods "
            "also get the remaining training digits without labels, as three quarters of each batch, in as many steps. These "
            "include the teacher's own. Where no bias of the teacher is found, outgrow is plain KD, and both have the same numbers. "
            "All students of a seed have the same teacher, rows and views.",
        ),
        base=_base(50, "cifar/resnet8", EPOCHS["labels"], 200),
        methods={"none": {"preset": "none"}, "kd": {"preset": "kd"}},
        about={
            "none": "no teacher",
            "kd": "plain KD",
            "kd, unlabelled": "plain KD + unlabelled",
            "outgrow, unlabelled": "outgrow + unlabelled",
        },
        teacher=small_teacher,
        unlabelled={
            "data": {"unlabelled": "digits", "unlabelled_share": 0.75},
            "train": {"epochs": EPOCHS["unlabelled"], "eval_every": EPOCHS["unlabelled"] // 10},
        },
        unlabelled_methods={
            "kd, unlabelled": {"preset": "kd"},
            "outgrow, unlabelled": {"preset": "outgrow"},
        },
    ),
}


def run_demo(
    out: str | Path, *, seeds: int = 3, overwrite: bool = False, reporter: Reporter | None = None
) -> dict[str, Table]:
    """Train everything, and print the tables. ``out`` gets ``index.html``, a page for each case, ``table.md`` and the records."""
    report = reporter or Reporter()
    out = Path(out)
    check_no_run(out)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for networks this small, two threads are slower
    try:
        tables = {name: _run(name, out / name, seeds, overwrite, report) for name in CASES}
    finally:
        torch.set_num_threads(threads)
    texts = [f"## {case.title}\n\n{markdown_table(tables[name], case.about)}" for name, case in CASES.items()]
    (out / "table.md").write_text("\n".join(texts))
    (out / "table.json").write_text(
        # an interval of one seed is infinite, which JSON cannot say
        json.dumps(
            finite({name: table.as_dict() for name, table in tables.items()}), indent=1, allow_nan=False
        )
    )
    from outgrow.report.page import write_overview

    write_overview(
        out / "index.html",
        title="Handwritten digits",
        heading="Two teachers, and what their students made of them",
        tables={case.title: tables[name] for name, case in CASES.items()},
        pages={case.title: f"{name}/index.html" for name, case in CASES.items()},
        about={label: text for case in CASES.values() for label, text in case.about.items()},
    )
    report.note(
        f"\n{out / 'index.html'}: the two comparisons, with curves, and digits on which teacher and student differ"
    )
    return tables


def _run(name: str, out: Path, seeds: int, overwrite: bool, report: Reporter) -> Table:
    case = CASES[name]
    report.note(f"\n{case.title}: {len(case.about)} methods x {seeds} seeds")
    records = _records(case, out, seeds, overwrite, report)
    table = tabulate(records)
    from outgrow.report.page import write_page

    write_page(
        out / "index.html",
        title=f"Handwritten digits: {case.title.lower()}",
        records=records,
        table=table,
        about=case.about,
        test=open_run_data(Config.model_validate(case.base)).test,
        notes=case.notes,
    )
    report.note("\n" + text_table(table, case.about))
    report.event("table", case=name, **table.as_dict())
    return table


def _records(case: Case, out: Path, seeds: int, overwrite: bool, report: Reporter) -> Records:
    held: dict[int, nn.Module] = {}

    def teacher(config: Config) -> nn.Module:
        if config.seed not in held:
            held[config.seed] = case.teacher(config)
        return held[config.seed]

    def run(base: Layer, methods: Mapping[str, Layer]) -> Records:
        return run_study(
            base, methods, range(seeds), out=out, teacher=teacher, overwrite=overwrite, reporter=report
        )

    records = run(case.base, case.methods)
    with warnings.catch_warnings():
        # the digits without labels are the whole training set, which holds the students' own; these are left out
        warnings.simplefilter("ignore", DataWarning)
        return records | run(merge(case.base, case.unlabelled), case.unlabelled_methods)
