"""What the page of a detector shows besides its measure, from ``record["detection"]``.

    numbers    COCO's twelve, {"student": {"ap": 43.2, "ap50": ...}, "teacher": {...} or None}, in percent
    errors     by class, {"student": [{"class": "RBC", "objects": 819, "found": ...}], "teacher": [...] or None}
    pictures   paths of test images with boxes on them, relative to the page

Each may be missing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outgrow.report.pictures import Picture, drawn_picture
from outgrow.training.record import Run

NUMBERS = {
    "ap": "AP, mean over IoU 0.50 to 0.95",
    "ap50": "AP at IoU 0.50",
    "ap75": "AP at IoU 0.75",
    "ap_small": "AP of small objects, below 32\u00b2 pixels",
    "ap_medium": "AP of medium objects",
    "ap_large": "AP of large objects, above 96\u00b2 pixels",
    "ar1": "AR, 1 box an image",
    "ar10": "AR, 10 boxes an image",
    "ar100": "AR, 100 boxes an image",
    "ar_small": "AR of small objects",
    "ar_medium": "AR of medium objects",
    "ar_large": "AR of large objects",
}
"""COCO's numbers in COCO's order, and in words."""
COUNTS = ("objects", "found", "missed", "confused", "duplicated", "badly placed", "background")
NONE = "\u2013"


@dataclass(frozen=True)
class NumberLine:
    """One number of both networks, as text; ``teacher`` is None without a teacher."""

    name: str
    student: str
    teacher: str | None


@dataclass(frozen=True)
class ErrorLine:
    """What one network did with the objects of a class: the counts in the order of ``COUNTS``."""

    who: str
    counts: tuple[int, ...]
    ap: str


@dataclass(frozen=True)
class ClassLines:
    """The student's line, and the teacher's where there is one."""

    name: str
    lines: tuple[ErrorLine, ...]


@dataclass(frozen=True)
class Shown:
    name: str
    picture: Picture


@dataclass(frozen=True)
class DetectionPart:
    numbers: tuple[NumberLine, ...]
    classes: tuple[ClassLines, ...]
    pictures: tuple[Shown, ...]
    counts: tuple[str, ...] = COUNTS

    @property
    def with_teacher(self) -> bool:
        return any(line.teacher is not None for line in self.numbers)


def detection(record: Run, folder: Path) -> DetectionPart | None:
    """None for a run that is no detector's. Pictures are read from ``folder``."""
    found = record.get("detection")
    if found is None:
        return None
    numbers, errors = found.get("numbers"), found.get("errors")
    return DetectionPart(
        numbers=() if numbers is None else _numbers(numbers["student"], numbers["teacher"]),
        classes=() if errors is None else _classes(errors["student"], errors["teacher"]),
        pictures=tuple(Shown(Path(p).stem, drawn_picture(folder / p)) for p in found.get("pictures", ())),
    )


def _numbers(student: Mapping[str, Any], teacher: Mapping[str, Any] | None) -> tuple[NumberLine, ...]:
    """COCO's in their order, then what else was measured."""
    keys = [key for key in NUMBERS if key in student] + [key for key in student if key not in NUMBERS]
    return tuple(
        NumberLine(
            NUMBERS.get(key, key),
            percent(student[key]),
            None if teacher is None else percent(teacher.get(key)),
        )
        for key in keys
    )


def _classes(
    student: Sequence[Mapping[str, Any]], teacher: Sequence[Mapping[str, Any]] | None
) -> tuple[ClassLines, ...]:
    others = {line["class"]: line for line in teacher or ()}
    return tuple(
        ClassLines(
            str(own["class"]),
            tuple(
                ErrorLine(who, tuple(line[count] for count in COUNTS), percent(line["ap"]))
                for who, line in (("student", own), ("teacher", others.get(own["class"])))
                if line is not None
            ),
        )
        for own in student
    )


def percent(value: float | None) -> str:
    """Two decimals. COCO's evaluation says -1 where there is no object to find.

    >>> percent(43.211), percent(-1.0)
    ('43.21', '\u2013')
    """
    return NONE if value is None or value < 0 else f"{value:.2f}"
