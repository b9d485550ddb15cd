"""Evaluate a detector on a split, and ``outgrow evaluate`` for detectors."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from outgrow.data.reading import OnFault
from outgrow.detection.boxes import Detections
from outgrow.detection.data import DetectionData, DetectionSplit, open_boxes
from outgrow.detection.families.create import create_detector
from outgrow.detection.families.detector import FrozenDetector
from outgrow.detection.intervals import resample
from outgrow.detection.loader import make_scene_loader
from outgrow.detection.record import numbers_of
from outgrow.detection.scores import CocoScores, coco_scores
from outgrow.models import num_parameters
from outgrow.training.acceleration import make_accelerator
from outgrow.training.config import TrainConfig
from outgrow.training.progress import Reporter

EVAL_BATCH = 1
"""Images per batch. In a larger batch, smaller images would be padded, which changes the detections."""


@dataclass
class Found:
    """The detections in a split, and their COCO scores."""

    detections: list[Detections]
    scores: CocoScores

    @property
    def score(self) -> float:
        """Box AP in percent; 0 if the split has no objects."""
        return self.scores.ap or 0.0


def evaluate_detector(
    detector: Any,
    data: DetectionData,
    split: DetectionSplit,
    device: torch.device,
    *,
    workers: int = 0,
    advance: Any = None,
) -> Found:
    """Detect on ``split`` and score. ``detector`` is any module with a method ``detect(images)``."""
    detector.to(device)
    detections: list[Detections] = []
    loader = make_scene_loader(
        split, batch_size=EVAL_BATCH, device=device, shuffle=False, num_workers=workers
    )
    for scenes in loader.epoch(0):
        detections += [found.to("cpu") for found in detector.detect(scenes.images)]
        if advance is not None:
            advance(len(detections))
    scores = coco_scores(split.annotations, split.image_ids, data.category_ids, detections)
    return Found(detections, scores)


def evaluate_detection(
    source: str,
    name: str,
    *,
    weights: str | Path | None,
    label: str | None,
    batch_size: int,
    workers: int,
    report: Reporter,
    on_fault: OnFault = "refuse",
) -> dict[str, Any]:
    """COCO's numbers of a detector on the test images of ``source``, with AP per class.

    ``intervals`` has 95 % intervals of AP, AP by size and by class. They are over the images of this test set (see
    :mod:`outgrow.detection.intervals`), not over seeds of the training. A number that is None, for want of objects, has none.
    Without ``weights``, the published ones are downloaded. ``label`` and ``batch_size`` are for classifiers and
    ignored here, the former with a warning. ``ValueError`` if the detector lacks a class of the data.
    """
    if label is not None:
        report.note("warning: --label has no effect on a detector")
    data = open_boxes(source, on_fault=on_fault)
    detector = create_detector(name, weights=weights, pretrained=weights is None)
    device = make_accelerator(TrainConfig()).device
    frozen = FrozenDetector(detector, data.classes)
    with report.bar(f"{name} on the test images", len(data.test)) as advance:
        found = evaluate_detector(frozen, data, data.test, device, workers=workers, advance=advance)
    drawn = resample(data.test.annotations, data.test.image_ids, data.category_ids, found.detections)
    return {
        "model": detector.name,
        "weights": None if weights is None else str(weights),
        "data": source,
        "metric": "ap",
        "images": len(data.test),
        "parameters": num_parameters(detector),
        **numbers_of(found.scores),
        "per_class": found.scores.per_class,
        "intervals": {
            **{name: asdict(one) for name, one in drawn.intervals.items()},
            "per_class": {name: asdict(one) for name, one in drawn.per_class.items()},
        },
    }
