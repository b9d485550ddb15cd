"""The section of an audit's page: numbers before and after the correction, rules, images, labels.

Everything that is shown is text or a picture of the source; the numbers are those of the record.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from outgrow.data import Split
from outgrow.report.parts import Section
from outgrow.report.pictures import Picture, picture
from outgrow.report.plots import Plot, calibration_plot
from outgrow.training.audit import (
    AnswersRecord,
    BeliefRecord,
    ClassifierAudit,
    LabelErrorRecord,
    RuleRecord,
    WrongRecord,
)

SHOWN_ERRORS = 24
"""Candidates that are shown with their pictures; the list has all."""


@dataclass(frozen=True)
class Shown:
    """The rows whose pictures the page shows, and the names of classes. ``mapped``: the teacher has other ones."""

    held_out: Split
    train: Split
    classes: Sequence[str]
    mapped: bool


@dataclass(frozen=True)
class Column:
    """One column of the table of answers: which rows, before or after, and the numbers."""

    rows: str
    state: str
    answers: AnswersRecord


@dataclass(frozen=True)
class ClassLine:
    """A class: its held-out images, and the accuracies there in percent."""

    name: str
    count: int
    before: float | None
    after: float | None


@dataclass(frozen=True)
class Bar:
    """A class and its probability in percent; ``own`` says whether it is the label."""

    name: str
    percent: float
    own: bool


@dataclass(frozen=True)
class WrongImage:
    """An image that the teacher gets wrong; bars before and after the correction, where there are both."""

    position: int
    name: str
    picture: Picture
    before: tuple[Bar, ...]
    after: tuple[Bar, ...]


@dataclass(frozen=True)
class WrongClass:
    """The images of one class."""

    label: str
    images: tuple[WrongImage, ...]


@dataclass(frozen=True)
class ErrorImage:
    """A candidate for a wrong label."""

    picture: Picture
    error: LabelErrorRecord


def page_section(numbers: ClassifierAudit, shown: Shown) -> Section:
    """For ``write_audit_page``."""
    errors = numbers.label_errors
    context = {
        "numbers": numbers,
        "mapped": shown.mapped,
        "columns": _columns(numbers),
        "classes": _class_lines(numbers, shown.classes),
        "confusions": numbers.held_out.best.confusions,
        "state": _state(numbers),
        "calibration": _calibration(numbers),
        "rules": _tables(numbers),
        "temperatures": [one.temperature for one in numbers.rules[0].at],
        "wrong": _wrong(numbers.wrong, shown.held_out),
        "errors": [
            ErrorImage(picture(shown.train.image(one.position)), one)
            for one in errors.candidates[:SHOWN_ERRORS]
        ],
    }
    return Section("outgrow.classification/audit.html", context)


def _state(numbers: ClassifierAudit) -> str:
    return "corrected" if numbers.held_out.corrected is not None else "as it is"


def _columns(numbers: ClassifierAudit) -> list[Column]:
    found = []
    for rows, side in (("training views", numbers.training), ("held-out images", numbers.held_out)):
        for state, one in (("as it is", side.raw), ("corrected", side.corrected)):
            if one is not None:
                found.append(Column(rows, state, one))
    return found


def _class_lines(numbers: ClassifierAudit, classes: Sequence[str]) -> list[ClassLine]:
    """The worst class first; those without an image last."""
    side = numbers.held_out
    lines = [
        ClassLine(
            name,
            side.best.counts[at],
            None if side.raw is None else side.raw.per_class[at],
            None if side.corrected is None else side.corrected.per_class[at],
        )
        for at, name in enumerate(classes)
    ]

    def worst(line: ClassLine) -> float:
        value = line.before if line.before is not None else line.after
        return 101.0 if value is None else value

    return sorted(lines, key=worst)


def _calibration(numbers: ClassifierAudit) -> Plot | None:
    lines = [
        ("as it is", _points(numbers.held_out.raw), "teacher"),
        ("corrected", _points(numbers.held_out.corrected), "s0"),
    ]
    return calibration_plot(lines, name="calibration", title="Accuracy by confidence on held-out images")


def _points(one: AnswersRecord | None) -> list[tuple[float, float]]:
    """Confidence and accuracy of the bins that hold images."""
    return [
        (b.confidence, b.accuracy)
        for b in (() if one is None else one.reliability)
        if b.confidence is not None and b.accuracy is not None
    ]


def _tables(numbers: ClassifierAudit) -> list[tuple[str, tuple[RuleRecord, ...]]]:
    if numbers.training.corrected is None:
        return [("teacher as it is", numbers.rules)]
    tables = [("corrected teacher, out of fold", numbers.rules)]
    return tables if numbers.rules_raw is None else [*tables, ("teacher as it is", numbers.rules_raw)]


def _wrong(records: Sequence[WrongRecord], split: Split) -> list[WrongClass]:
    groups: dict[str, list[WrongImage]] = {}
    for one in records:
        groups.setdefault(one.label, []).append(
            WrongImage(
                one.position,
                one.name,
                picture(split.image(one.position)),
                _bars(one.before, one.label),
                _bars(one.after, one.label),
            )
        )
    return [WrongClass(label, tuple(images)) for label, images in groups.items()]


def _bars(beliefs: Sequence[BeliefRecord] | None, label: str) -> tuple[Bar, ...]:
    return tuple(Bar(one.name, 100 * one.probability, one.name == label) for one in beliefs or ())
