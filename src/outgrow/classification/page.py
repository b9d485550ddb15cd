"""The sections of a classification page besides the scores: warnings, size and speed, classes, calibration.

They come from ``record.classification``. Older records without it have no such sections.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from outgrow.classification.augmentation import advice, cost_text, costs_much
from outgrow.report.parts import Section
from outgrow.report.plots import calibration_plot
from outgrow.teacher.counts import paired
from outgrow.training.noise import wanted_noise
from outgrow.training.record import (
    ClassesRecord,
    ClassificationRecord,
    ComparedRecord,
    CostRecord,
    NoiseRecord,
    Run,
    RunRecord,
    parse_record,
)

MAX_CLASSES = 40
"""Largest number of classes for the whole confusion matrix; with more, the most frequent confusions are listed."""
NUM_CONFUSIONS = 12
CHANCE = 0.05
"""From this p-value of McNemar's test on, a difference is called within chance."""


def page_warnings(record: Run) -> list[str]:
    """Warnings for the top of the page, as sentences."""
    record = parse_record(record)
    return [text for text in (_below_majority(record), *_augmented(record), _too_small(record)) if text]


def _augmented(record: RunRecord) -> list[str]:
    """A warning for each teacher that loses much by the augmentation."""
    named = {"The teacher": record.teacher}
    if record.mixture is not None:
        members = record.mixture.members
        named = {f"Teacher {number}, {one.short_name},": one for number, one in enumerate(members, start=1)}
    augment = record.config.data.augment
    looked = {
        who: one.augmented for who, one in named.items() if one is not None and one.augmented is not None
    }
    return [
        f"{cost_text(found, who)} {advice(found, augment)}"
        for who, found in looked.items()
        if costs_much(found)
    ]


def _below_majority(record: RunRecord) -> str:
    found, own = record.classification, record.teacher_score
    if found is None or own is None or own > found.majority:
        return ""
    if found.majority == 100:  # all test images are of one class, and no teacher can be right on more
        return ""
    return (
        f"The teacher is right on {own:.2f} % of the test images; always predicting the most frequent class would be right on "
        f"{found.majority:.2f} %. A student learns little from such a teacher: check its classes, its normalisation and its "
        "weights."
    )


def _too_small(record: RunRecord) -> str:
    """A warning if the difference between student and teacher is within chance, with the number of images it needs."""
    if record.compared is None:
        return ""
    total, difference, needed = images_needed(record.compared)
    # a difference may be shown by fewer images than are needed to be likely to show one like it
    shown = paired(record.compared.only_student, record.compared.only_teacher) < CHANCE
    if needed is None or needed <= total or shown:
        return ""
    if math.isinf(needed):
        return (
            f"Student and teacher are right on equally many of the {total:,} test images: this test set shows no difference "
            "between them."
        )
    return (
        f"The test set has {total:,} images: a difference of {abs(difference):.2f} points between student and teacher is within "
        f"chance. About {_round_up(needed):,} images would be needed to show it."
    )


def images_needed(compared: ComparedRecord) -> tuple[int, float, float | None]:
    """Images of the test set, student minus teacher in points, and how many images the difference needs.

    For McNemar's test at :data:`CHANCE` and a power of 80 %; None if the networks never differ.

    Reference: Connor (1987), Sample size for testing differences in proportions for the paired-sample design.
    """
    total = compared.both_right + compared.only_teacher + compared.only_student + compared.neither
    discordant = (compared.only_student + compared.only_teacher) / total
    difference = (compared.only_student - compared.only_teacher) / total
    if discordant == 0:
        return total, 0.0, None
    if difference == 0:
        return total, 0.0, math.inf
    z_level, z_power = 1.959964, 0.841621
    root = z_level * math.sqrt(discordant) + z_power * math.sqrt(discordant - difference**2)
    return total, 100 * difference, root**2 / difference**2


def _round_up(value: float) -> int:
    """Round up to two digits, as the number is an estimate.

    >>> _round_up(2345.6), _round_up(87.2)
    (2400, 88)
    """
    step = 10 ** max(0, int(math.log10(value)) - 1)
    return math.ceil(value / step) * step


@dataclass(frozen=True)
class CostLine:
    """One quantity of both networks, as text."""

    name: str
    student: str
    teacher: str


@dataclass(frozen=True)
class ClassLine:
    """A class: its images, and the accuracies in percent."""

    name: str
    count: int
    student: float | None
    teacher: float | None


@dataclass(frozen=True)
class Confusion:
    """The student predicted ``predicted`` for ``count`` images of ``label``."""

    label: str
    predicted: str
    count: int
    share: float


def page_sections(record: Run) -> list[Section]:
    """The sections, for ``write_run_page``."""
    record = parse_record(record)
    sections = []
    if record.mixture is not None:
        sections.append(Section("outgrow.classification/teachers.html", {"mixture": record.mixture}))
    if record.noise is not None:
        believed = wanted_noise(record.config.method) != "none"
        context = {
            "noise": record.noise,
            "believed": believed,
            # records of before the field `task` do not have it
            "labels_learnt": record.noise.task == "label" and record.config.method.task != "posterior",
            "tried": believed or record.noise.used,
            "mistaken": _mistaken(record, record.noise),
        }
        sections.append(Section("outgrow.classification/noise.html", context))
    if record.classification is not None:
        sections.append(_measured(record, record.classification))
    return sections


def _mistaken(record: RunRecord, noise: NoiseRecord) -> list[Confusion]:
    """Which classes are most often labelled as which others."""
    matrix = noise.matrix or ()
    found = [
        Confusion(record.class_name(i), record.class_name(j), 0, 100 * share)
        for i, row in enumerate(matrix)
        for j, share in enumerate(row)
        if i != j
    ]
    return sorted(found, key=lambda one: -one.share)[:NUM_CONFUSIONS] if noise.chosen.pseudo_counts else []


def _measured(record: RunRecord, found: ClassificationRecord) -> Section:
    """Size, speed, classes and calibration."""
    student, teacher = found.classes.student, found.classes.teacher
    names = [record.class_name(number) for number in range(len(found.counts))]
    networks = [
        ("student", student, "s0"),
        *([("teacher", teacher, "teacher")] if teacher is not None else []),
    ]
    context = {
        "record": record,
        "found": found,
        "student": student,
        "teacher": teacher,
        "costs": _costs(record),
        "machine": record.hardware,
        "classes": _classes(names, record),
        "names": names,
        "confusion": student.confusion if len(names) <= MAX_CLASSES else None,
        "confusions": _confusions(names, student),
        "calibration": calibration_plot(
            [(name, _points(one), colour) for name, one, colour in networks],
            name="calibration",
            title="Accuracy by confidence",
        ),
    }
    return Section("outgrow.classification/classification.html", context)


def _points(network: ClassesRecord) -> list[tuple[float, float]]:
    """Confidence and accuracy of the bins with images."""
    return [
        (one.confidence, one.accuracy)
        for one in network.reliability
        if one.confidence is not None and one.accuracy is not None
    ]


def _costs(record: RunRecord) -> list[CostLine]:
    assert record.classification is not None
    student, teacher = record.classification.cost.student, record.classification.cost.teacher

    def line(name: str, text: Callable[[CostRecord], str]) -> CostLine:
        return CostLine(name, text(student), "" if teacher is None else text(teacher))

    lines = [
        CostLine(
            "parameters",
            f"{record.student.parameters:,}",
            "" if record.teacher is None else f"{record.teacher.parameters:,}",
        ),
        line("size of the weights", lambda cost: f"{cost.bytes / 2**20:.2f} MiB"),
        line("operations for one image", lambda cost: "" if cost.flops is None else _flops(cost.flops)),
    ]
    for number, one in enumerate(student.latency):
        name = "one image" if one.batch == 1 else f"{one.batch} images at once"
        lines.append(line(f"time for {name}", partial(_latency, number)))
    return lines


def _flops(value: int) -> str:
    """
    >>> _flops(2_480_000), _flops(7_700_000_000)
    ('2.5 million', '7.7 billion')
    """
    return f"{value / 1e9:.1f} billion" if value >= 1e9 else f"{value / 1e6:.1f} million"


def _latency(number: int, cost: CostRecord) -> str:
    one = cost.latency[number]
    return f"{one.median:.1f} ms (95 % within {one.p95:.1f}; {one.size} pixels)"


def _classes(names: list[str], record: RunRecord) -> list[ClassLine]:
    """The classes, sorted by the accuracy of the student, lowest first."""
    assert record.classification is not None
    found = record.classification
    teacher = found.classes.teacher
    lines = [
        ClassLine(
            name,
            found.counts[i],
            found.classes.student.per_class[i],
            None if teacher is None else teacher.per_class[i],
        )
        for i, name in enumerate(names)
    ]
    return sorted(lines, key=lambda line: (line.student is None, line.student or 0.0))


def _confusions(names: list[str], student: ClassesRecord) -> list[Confusion]:
    """The most frequent confusions of the student."""
    if student.confusion is None:
        return []
    found = [
        Confusion(names[i], names[j], count, 100 * count / (sum(row) or 1))
        for i, row in enumerate(student.confusion)
        for j, count in enumerate(row)
        if i != j and count
    ]
    return sorted(found, key=lambda one: -one.count)[:NUM_CONFUSIONS]
