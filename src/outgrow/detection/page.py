"""The sections of a run's page that only detectors have: COCO's numbers, errors by class, images with boxes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from outgrow.report.parts import Section, signed
from outgrow.report.pictures import Picture, drawn_picture
from outgrow.report.plots import Plot, recall_plot
from outgrow.training.record import (
    Both,
    CostRecord,
    DetectionRecord,
    ErrorsRecord,
    IntervalRecord,
    IntervalsRecord,
    Run,
    RunRecord,
    parse_record,
)

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
"""COCO's numbers in COCO's order, with their captions."""
COUNTS = {
    "objects": "objects",
    "found": "found",
    "missed": "missed",
    "confused": "confused",
    "duplicated": "duplicated",
    "badly_placed": "badly placed",
    "background": "background",
}
"""The columns of the table of errors: fields of the record, with their captions."""


@dataclass(frozen=True)
class NumberLine:
    """One number of student and teacher, as text; ``teacher`` is None without a teacher. Below a number its interval, or why
    there is none; empty where none was computed."""

    name: str
    student: str
    teacher: str | None
    student_interval: str = ""
    teacher_interval: str = ""


@dataclass(frozen=True)
class ErrorLine:
    """The counts of one network for one class, in the order of ``COUNTS``. ``network`` is student or teacher."""

    network: str
    counts: tuple[int, ...]
    ap: str
    interval: str


@dataclass(frozen=True)
class ClassLines:
    """The lines of one class: the student's, and the teacher's if there is a teacher."""

    name: str
    lines: tuple[ErrorLine, ...]


@dataclass(frozen=True)
class Shown:
    """A drawn image; ``file`` is relative to the page."""

    name: str
    file: str
    picture: Picture


def page_sections(record: Run, folder: str | Path) -> list[Section]:
    """Sections for ``write_run_page``. Drawn images are read only from ``folder``, the run's folder."""
    found = parse_record(record).detection
    if found is None:
        return []
    context = {
        "numbers": () if found.numbers is None else _numbers(found.numbers, found.intervals),
        "intervals": found.intervals is not None,
        "difference": _difference(found),
        "with_teacher": found.numbers is not None and found.numbers.teacher is not None,
        "classes": () if found.errors is None else _classes(found.errors, found.intervals),
        "counts": tuple(COUNTS.values()),
        "curves": None if found.curves is None else _curves(found.curves),
        "costs": () if found.cost is None else _costs(parse_record(record), found.cost),
        "machine": parse_record(record).hardware,
        "pictures": [Shown(Path(name).stem, name, drawn_picture(folder, name)) for name in found.pictures],
        "pictures_of": found.pictures_of,
    }
    return [Section("outgrow.detection/detection.html", context)]


def _numbers(
    numbers: Both[dict[str, float | None]], intervals: Both[IntervalsRecord] | None
) -> list[NumberLine]:
    """COCO's numbers in COCO's order, then other numbers of the record."""
    student, teacher = numbers.student, numbers.teacher
    own, other = (
        {} if one is None else one.numbers
        for one in ((None, None) if intervals is None else (intervals.student, intervals.teacher))
    )
    keys = [key for key in NUMBERS if key in student] + [key for key in student if key not in NUMBERS]
    return [
        NumberLine(
            NUMBERS.get(key, key),
            percent(student[key]),
            None if teacher is None else percent(teacher.get(key)),
            interval_text(own.get(key)),
            interval_text(other.get(key)),
        )
        for key in keys
    ]


def interval_text(found: IntervalRecord | None) -> str:
    """The ends of an interval, or why there is none.

    >>> interval_text(IntervalRecord(low=41.23, high=47.0, images=72))
    '[41.2, 47.0]'
    >>> interval_text(IntervalRecord(low=None, high=None, images=3, reason="3 images"))
    '(3 images)'
    """
    if found is None:
        return ""
    if found.low is None or found.high is None:
        return f"({found.reason})"
    return f"[{found.low:.1f}, {found.high:.1f}]"


@dataclass(frozen=True)
class Apart:
    """The student's AP minus the teacher's, and its interval as text."""

    value: float
    interval: str
    tone: str


def _difference(found: DetectionRecord) -> Apart | None:
    """None without a teacher, or without an interval."""
    one, numbers = found.difference, found.numbers
    if one is None or one.low is None or one.high is None or numbers is None or numbers.teacher is None:
        return None
    student, teacher = numbers.student.get("ap"), numbers.teacher.get("ap")
    if student is None or teacher is None:
        return None
    tone = "better" if one.low > 0 else "worse" if one.high < 0 else "unclear"
    return Apart(student - teacher, f"[{signed(one.low)}, {signed(one.high)}]", tone)


def _curves(curves: Both[dict[str, tuple[float, ...]]]) -> Plot | None:
    lines = []
    for network, found, colour in (("student", curves.student, "s0"), ("teacher", curves.teacher, "teacher")):
        for key, label, style in (("ap50", "IoU 0.50", "-"), ("ap", "IoU 0.50 to 0.95", "--")):
            precision = () if found is None else found.get(key, ())
            points = [(float(recall), value) for recall, value in enumerate(precision)]  # 101 whole percents
            lines.append((f"{network}, {label}", points, colour, style))
    return recall_plot(lines, name="recall", title="Precision by recall")


def _costs(record: RunRecord, cost: Both[CostRecord]) -> list[NumberLine]:
    student, teacher = cost.student, cost.teacher

    def line(name: str, text: Callable[[CostRecord], str]) -> NumberLine:
        return NumberLine(name, text(student), None if teacher is None else text(teacher))

    return [
        NumberLine(
            "parameters",
            f"{record.student.parameters:,}",
            None if record.teacher is None else f"{record.teacher.parameters:,}",
        ),
        line("size of the weights", lambda one: f"{one.bytes / 2**20:.2f} MiB"),
        NumberLine(
            "time for one image",
            _median(student),
            None if teacher is None else _median(teacher),
            _spread(student),
            "" if teacher is None else _spread(teacher),
        ),
    ]


def _median(cost: CostRecord) -> str:
    (one,) = cost.latency
    return f"{one.median:.1f} ms"


def _spread(cost: CostRecord) -> str:
    (one,) = cost.latency
    size = f"; short side {one.size} pixels" if one.size else ""
    return f"(95 % within {one.p95:.1f}{size})"


def _classes(
    errors: Both[tuple[ErrorsRecord, ...]], intervals: Both[IntervalsRecord] | None
) -> list[ClassLines]:
    own_intervals, other_intervals = (
        {} if one is None else one.classes
        for one in ((None, None) if intervals is None else (intervals.student, intervals.teacher))
    )
    others = {line.name: line for line in errors.teacher or ()}
    return [
        ClassLines(
            own.name,
            tuple(
                ErrorLine(
                    network,
                    tuple(getattr(line, count) for count in COUNTS),
                    percent(line.ap),
                    interval_text(found.get(own.name)),
                )
                for network, line, found in (
                    ("student", own, own_intervals),
                    ("teacher", others.get(own.name), other_intervals),
                )
                if line is not None
            ),
        )
        for own in errors.student
    ]


def percent(value: float | None) -> str:
    """Two decimals; a dash for None and for -1, which COCO's evaluation returns if no object applies.

    >>> percent(43.211), percent(-1.0)
    ('43.21', '\u2013')
    """
    return "\u2013" if value is None or value < 0 else f"{value:.2f}"
