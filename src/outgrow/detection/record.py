"""What a detection run leaves besides its weights: numbers, a table per class, pictures.

student_facts, network_facts   what the record says of a network
detection_facts                COCO's numbers and the errors of both
draw                           pictures of both, beside the truth
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from outgrow.classification.scores import num_parameters
from outgrow.detection.data import DetectionData, DetectionSplit
from outgrow.detection.detector import Detector
from outgrow.detection.errors import best_threshold, class_errors, confident
from outgrow.detection.prepare import Found
from outgrow.training.config import Config
from outgrow.training.trainer import EpochRecord

NUM_PICTURES = 8


def student_facts(student: Detector, found: Found, history: Sequence[EpochRecord]) -> dict[str, Any]:
    """After the last epoch, and at the best one."""
    best = max((r for r in history if r.score is not None), key=lambda r: r.score or 0.0)
    return {
        "name": student.name,
        "parameters": num_parameters(student),
        **numbers_of(found),
        "ap_best": best.score,
        "epoch_best": best.epoch,
    }


def detection_facts(data: DetectionData, student: Found, teacher: Found | None) -> dict[str, Any]:
    """Both networks on the test pictures; the teacher's are None without one."""
    return {
        "numbers": {"student": numbers_of(student), "teacher": teacher and numbers_of(teacher)},
        "errors": {
            "student": errors_by_class(data, data.test, student),
            "teacher": teacher and errors_by_class(data, data.test, teacher),
        },
        "pictures": [],
    }


def data_facts(config: Config, data: DetectionData, train: DetectionSplit) -> dict[str, Any]:
    return {
        "source": config.data.source,
        "fingerprint": data.fingerprint,
        "classes": list(data.classes),
        "train": len(train),
        "val": 0 if data.val is None else len(data.val),
        "test": len(data.test),
    }


def network_facts(config: Config, detector: Detector, found: Found) -> dict[str, Any]:
    options = config.teacher
    return {
        "name": detector.name,
        "parameters": num_parameters(detector),
        "weights": options.weights
        or ("trained here" if options.train else "published" if options.pretrained else "own"),
        "classes": len(detector.classes),
        **numbers_of(found),
    }


def numbers_of(found: Found) -> dict[str, float | None]:
    return {name: value for name, value in asdict(found.scores).items() if name != "per_class"}


def errors_by_class(data: DetectionData, split: DetectionSplit, found: Found) -> list[dict[str, Any]]:
    """Counts per class at the detector's own best threshold."""
    truth = [split.truth(i) for i in range(len(split))]
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


def draw(
    out: Path,
    data: DetectionData,
    split: DetectionSplit,
    columns: Mapping[str, Found],
) -> list[str]:
    """The pictures on which the first and the last of ``columns`` differ most, side by side with the truth.

    Writes ``out/pictures`` and returns the names of the files, relative to ``out``.
    """
    from outgrow.detection.pictures import side_by_side, where_they_differ

    truth = [split.truth(i) for i in range(len(split))]
    # each network at the score that suits it best, as in the table
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
