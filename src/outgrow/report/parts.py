"""Shared parts of the pages of studies, runs and audits: the template engine, images, conditions."""

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jaxtyping import UInt8
from jinja2 import ChoiceLoader, Environment, PackageLoader, PrefixLoader, StrictUndefined
from markupsafe import Markup, escape
from torch import Tensor

from outgrow.data import Split
from outgrow.machine.files import write_atomically
from outgrow.report.palette import PALETTE
from outgrow.report.pictures import Picture, picture
from outgrow.training.config import TrainConfig
from outgrow.training.record import DataRecord, ExampleRecord, RunRecord, TeacherRecord

MINUS = "\u2212"


@dataclass(frozen=True)
class Section:
    """A section of a run's page that its task adds.

    ``template`` is PACKAGE/FILE, for a package with a folder ``templates``, for example
    ``"outgrow.detection/detection.html"``. It is rendered with ``context`` alone and may import ``parts.html``.
    """

    template: str
    context: Mapping[str, Any]

    def html(self) -> Markup:
        """The rendered section."""
        package = self.template.partition("/")[0]
        return Markup(_environment(package).get_template(self.template).render(self.context))


def write_template(path: str | Path, template: str, context: Mapping[str, Any]) -> None:
    """Render a template of this package to a file."""
    page = _environment().get_template(template).render(context, palette=PALETTE)
    write_atomically(path, page)


@cache
def _environment(package: str | None = None) -> Environment:
    """The templates of this package by name, and those of ``package`` as ``package/name``."""
    own = PackageLoader("outgrow.report")
    others = {} if package is None else {package: PackageLoader(package)}
    environment = Environment(
        loader=ChoiceLoader([own, PrefixLoader(others)]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "signed": signed,
        "count": count,
        "tone": tone,
        "p_value": p_value,
        "prose": prose,
        "finite": math.isfinite,
    }
    return environment


def signed(value: float) -> str:
    """Two decimals with a sign; negative numbers get U+2212.

    >>> signed(1.741)
    '+1.74'
    """
    text = f"{abs(value):.2f}"
    return ("+" if value >= 0 or float(text) == 0 else MINUS) + text


def count(value: int | float) -> str:
    """A count with thousands separators; one decimal if it is not whole.

    >>> count(12345), count(2 / 3)
    ('12,345', '0.7')
    """
    return f"{value:,.0f}" if value == round(value) else f"{value:,.1f}"


def tone(difference: Any) -> str:
    """The CSS class of a difference: its interval is above zero, below zero, or has zero in it."""
    if difference.low > 0:
        return "better"
    return "worse" if difference.high < 0 else "unclear"


def p_value(value: float | None) -> str:
    """A p-value as tables show it.

    >>> p_value(0.04321), p_value(0.00001), p_value(None)
    ('0.043', '< 0.001', '\u2013')
    """
    if value is None:
        return "\u2013"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def prose(text: str) -> Markup:
    """HTML of a docstring's text: escaped, with ``*emphasis*`` and double backticks marked up.

    >>> prose("a *b* <c>")
    Markup('a <em>b</em> &lt;c&gt;')
    """
    safe = str(escape(text))
    safe = re.sub(r"``([^`]+)``", r"<code>\1</code>", safe)
    return Markup(re.sub(r"(?<![\w*])\*(\S(?:[^*]*\S)?)\*(?![\w*])", r"<em>\1</em>", safe))


@dataclass(frozen=True)
class Example:
    """An image with the names of its label, of the teacher's top class and of the student's."""

    picture: Picture
    position: int
    name: str
    """The image's file; empty where it has none."""
    label: str
    teacher: str
    student: str


@dataclass(frozen=True)
class Cell:
    number: float
    share: float
    """Of all test images, in percent."""


@dataclass(frozen=True)
class PicturesPart:
    """Images that only the student of a run gets right, and counts of who is right, as means over the runs."""

    method: str
    seed: int
    num_runs: int
    examples: tuple[Example, ...]
    total: int
    cells: Mapping[str, Cell] | None
    """None if a run had no teacher."""


def pictures(runs: Sequence[RunRecord], method: str, test: Split | None) -> PicturesPart | None:
    """The images of the first run, and counts over all; None if the first run has no comparison."""
    first = runs[0]
    if first.compared is None:
        return None
    return PicturesPart(
        method, first.seed, len(runs), examples(first, test), first.compared.only_student, who_is_right(runs)
    )


def lost(runs: Sequence[RunRecord], method: str, test: Split | None) -> PicturesPart | None:
    """The images of the first run that only its teacher gets right; None if its record has none."""
    first = runs[0]
    if first.compared is None or not first.compared.lost:
        return None
    shown = _examples(first, first.compared.lost, test)
    return PicturesPart(method, first.seed, len(runs), shown, first.compared.only_teacher, None)


def examples(run: RunRecord, test: Split | None) -> tuple[Example, ...]:
    """The images of a run's comparison that only its student gets right."""
    return _examples(run, () if run.compared is None else run.compared.examples, test)


def _examples(run: RunRecord, shown: Sequence[ExampleRecord], test: Split | None) -> tuple[Example, ...]:
    if shown and test is None:
        raise ValueError(
            "page: needs the test images that its record refers to, got none; give test=data.test."
        )
    return tuple(
        Example(
            picture(_image(test, one.position)),
            one.position,
            _file_name(test, one.position),
            run.class_name(one.label),
            run.class_name(one.teacher),
            run.class_name(one.student),
        )
        for one in shown
        if test is not None
    )


def _file_name(test: Split, position: int) -> str:
    """Class folder and file of a photograph; empty for images without files of their own."""
    describe = getattr(getattr(test, "source", None), "describe", None)
    if describe is None:
        return ""
    return "/".join(Path(str(describe(int(test.index[position])))).parts[-2:])


def _image(test: Split, position: int) -> UInt8[Tensor, "3 height width"]:
    if not 0 <= position < len(test):
        raise ValueError(
            f"page: needs a test image at position {position}, got {len(test)} test images; "
            "give the data that the run was tested on."
        )
    return test.image(position)


def who_is_right(runs: Sequence[RunRecord]) -> dict[str, Cell] | None:
    """The 2 x 2 table of teacher and student, right or wrong: means over the runs. None if a run has no teacher."""
    compared = [run.compared for run in runs if run.compared is not None]
    if len(compared) < len(runs):
        return None
    means = {
        key: statistics.fmean(getattr(one, key) for one in compared)
        for key in ("both_right", "only_teacher", "only_student", "neither")
    }
    total = sum(means.values()) or 1.0
    return {key: Cell(mean, 100 * mean / total) for key, mean in means.items()}


Condition = tuple[str, tuple[str, ...]]


def conditions(runs: Sequence[RunRecord]) -> list[Condition]:
    """The conditions of the runs: name and values, several values if the runs differ."""
    found: list[Condition] = []

    def add(name: str, values: Iterable[Any]) -> None:
        texts = tuple(dict.fromkeys(str(v) for v in values if v not in (None, "")))
        if texts:
            found.append((name, texts))

    trains = [run.config.train for run in runs]
    seeds = sorted({run.seed for run in runs})
    add("seeds" if len(seeds) > 1 else "seed", [", ".join(map(str, seeds))])
    add("data", (run.data.source for run in runs))
    # where some have a teacher: what these learn from
    add("rows", (rows(run.data, seen=_seen(run)) for run in runs if _seen(run) or not any(map(_seen, runs))))
    add("epochs", (run.trained_epochs for run in runs))
    add("optimiser", (_optimiser(train) for train in trains))
    add("augmentation", (augmentation(run.config.data.augment.model_dump(mode="json")) for run in runs))
    add("precision", (train.precision for train in trains))
    add("student", (run.student.name for run in runs))
    add("teacher", (_teacher(run.teacher) for run in runs))
    add("hardware", (run.hardware for run in runs))
    add("versions", (", ".join(f"{k} {v}" for k, v in run.versions.items()) for run in runs))
    add("commit", (_commit(run.commit) for run in runs))
    add("command", (run.command for run in runs))
    started = sorted(run.started for run in runs)
    add("started", [started[0] if started[0] == started[-1] else f"{started[0]} to {started[-1]}"])
    add("time", [_duration(sum(run.seconds for run in runs), len(runs))])
    add("data fingerprint", (run.data.fingerprint for run in runs))
    return found


def _seen(run: RunRecord) -> bool:
    """Whether its student sees images without labels: nobody but a teacher can tell about them."""
    return run.config.method.preset != "none"


def rows(data: DataRecord, *, seen: bool = True) -> str:
    """How many images each split has, in words; those without labels if they are ``seen``."""
    val = f"{data.val:,} for validation, " if data.val else ""
    excluded = f" ({data.excluded:,} others excluded)" if data.excluded else ""
    unlabelled = f"{data.unlabelled:,} without labels, " if data.unlabelled and seen else ""
    return f"{data.train:,} for training{excluded}, {unlabelled}{val}{data.test:,} for testing"


def _optimiser(train: TrainConfig) -> str:
    return (
        f"{train.optimizer}, learning rate {train.lr:g} ({train.lr_schedule}), "
        f"weight decay {train.weight_decay:g}, batch {train.batch_size}"
    )


def augmentation(augment: Mapping[str, Any]) -> str:
    """How training images are varied, in words."""
    used = [
        name.replace("_", " ") if value is True else f"{name.replace('_', ' ')} {value}"
        for name, value in augment.items()
        if value and name != "padding"
    ]
    return ", ".join(used) or "none"


def _teacher(teacher: TeacherRecord | None) -> str | None:
    return f"{teacher.name}, weights: {teacher.weights}" if teacher is not None else None


def _commit(commit: str | None) -> str | None:
    if commit is None or not commit.endswith("+"):
        return commit
    return f"{commit} (the plus: with changes that were not committed)"


def _duration(seconds: float, num_runs: int) -> str:
    runs = f" in {num_runs} runs" if num_runs > 1 else ""
    if seconds < 120:
        return f"{seconds:.1f} seconds{runs}"
    return f"{seconds / 60:.0f} minutes{runs}" if seconds < 7200 else f"{seconds / 3600:.1f} hours{runs}"
