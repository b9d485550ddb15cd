"""The detection part of a run's record, and its drawn images.

detection_record    COCO's numbers and the errors by class, of student and teacher
draw                images with the ground truth and the detections of each network side by side
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from outgrow.detection.boxes import Detections
from outgrow.detection.errors import best_threshold, class_errors, confident
from outgrow.detection.intervals import Interval, Resampled, difference, resample
from outgrow.detection.run_data import RunScenes
from outgrow.detection.scores import NUMBERS, CocoScores
from outgrow.training.record import Both, CostRecord, DetectionRecord, IntervalRecord, IntervalsRecord

NUM_PICTURES = 8


@runtime_checkable
class Finding(Protocol):
    """The detections in a split and their scores: :class:`outgrow.detection.evaluation.Found`."""

    @property
    def detections(self) -> list[Detections]: ...

    @property
    def scores(self) -> CocoScores: ...


def detection_record(
    data: RunScenes,
    student: Finding,
    teacher: Finding | None,
    pictures: Sequence[str],
    cost: Both[CostRecord] | None,
) -> DetectionRecord:
    """Student and teacher on the test images. The teacher's fields are None without a teacher."""
    drawn = _resampled(data, student)
    before = None if teacher is None else _resampled(data, teacher)
    apart = None if before is None else difference(drawn, before)
    return DetectionRecord(
        numbers=Both(
            student=numbers_of(student.scores),
            teacher=None if teacher is None else numbers_of(teacher.scores),
        ),
        intervals=Both(student=_intervals(drawn), teacher=None if before is None else _intervals(before)),
        difference=None if apart is None else _interval(apart),
        errors=Both(
            student=errors_by_class(data, student),
            teacher=None if teacher is None else errors_by_class(data, teacher),
        ),
        curves=Both(
            student=student.scores.curves, teacher=None if teacher is None else teacher.scores.curves
        ),
        cost=cost,
        pictures=tuple(pictures),
        pictures_of="test",
    )


def _resampled(data: RunScenes, found: Finding) -> Resampled:
    test = data.test
    return resample(test.annotations, test.image_ids, data.source.category_ids, found.detections)


def _intervals(drawn: Resampled) -> IntervalsRecord:
    return IntervalsRecord(
        numbers={name: _interval(one) for name, one in drawn.intervals.items()},
        classes={name: _interval(one) for name, one in drawn.per_class.items()},
    )


def _interval(one: Interval) -> IntervalRecord:
    return IntervalRecord(low=one.low, high=one.high, images=one.images, reason=one.reason)


def numbers_of(scores: CocoScores) -> dict[str, float | None]:
    """COCO's twelve numbers, in percent."""
    return {name: getattr(scores, name) for name in NUMBERS}


def errors_by_class(data: RunScenes, found: Finding) -> list[dict[str, Any]]:
    """Counts by class on the test images, at the score threshold with the best F1 of this detector."""
    truth = [data.test.truth(i) for i in range(len(data.test))]
    errors = class_errors(truth, found.detections, data.num_classes)
    columns = {
        name: errors.count(name).tolist() for name in ("objects", "found", "missed", "confused", "duplicated")
    }
    columns["badly placed"] = (errors.count("badly_placed") + errors.count("both")).tolist()
    columns["background"] = errors.count("background").tolist()
    return [
        {
            "class": name,
            **{key: column[i] for key, column in columns.items()},
            "ap": found.scores.per_class[name],
        }
        for i, name in enumerate(data.classes)
    ]


def draw(out: Path, data: RunScenes, columns: Mapping[str, Finding]) -> list[str]:
    """Draw the test images on which the first and the last of ``columns`` differ most.

    Each file has the ground truth and all ``columns`` side by side. Writes to ``out/pictures`` and returns the
    paths relative to ``out``.
    """
    from outgrow.detection.pictures import side_by_side, where_they_differ

    split = data.test
    truth = [split.truth(i) for i in range(len(split))]
    # each network at its own best threshold, as in the table of errors
    drawn = []
    for label, found in columns.items():
        threshold = best_threshold(truth, found.detections)
        drawn.append((label, [confident(one, threshold) for one in found.detections]))
    first, *_, after = (found.detections for found in columns.values())
    names = []
    (out / "pictures").mkdir(exist_ok=True)
    for position in where_they_differ(truth, first, after, NUM_PICTURES):
        name = f"pictures/{position:05d}-{Path(split.name(position)).stem}.jpg"
        side_by_side(
            out / name,
            [("truth", truth[position]), *((label, found[position]) for label, found in drawn)],
            split.image(position),
            data.classes,
        )
        names.append(name)
    return names
