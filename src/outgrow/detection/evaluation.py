"""What a detector finds in a split, and what ``outgrow evaluate`` says of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from outgrow.detection.boxes import Detections
from outgrow.detection.create import create_detector
from outgrow.detection.data import DetectionData, DetectionSplit, open_coco
from outgrow.detection.detector import FrozenDetector
from outgrow.detection.loader import make_scene_loader
from outgrow.detection.record import numbers_of
from outgrow.detection.scores import CocoScores, coco_scores
from outgrow.models import num_parameters
from outgrow.training.acceleration import make_accelerator
from outgrow.training.config import TrainConfig
from outgrow.training.progress import Reporter

EVAL_BATCH = 1
"""Pictures at a time in evaluation: beside a larger one a picture would be padded, which changes what is found."""


@dataclass
class Found:
    """What a detector found in a split, and COCO's numbers for it."""

    detections: list[Detections]
    scores: CocoScores

    @property
    def score(self) -> float:
        """Box AP in percent; 0 where the split has no object at all."""
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
    """All twelve numbers of COCO on ``split``, by whatever has ``detect(images)``."""
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
) -> dict[str, Any]:
    """COCO's numbers of a detector on the test pictures of ``source``, per class too.

    Without ``weights`` the published ones are used. ``label`` and ``batch_size`` are for classifiers.
    ``ValueError`` where its classes are not the data's.
    """
    data = open_coco(source)
    detector = create_detector(name, weights=weights, pretrained=weights is None)
    device = make_accelerator(TrainConfig()).device
    frozen = FrozenDetector(detector, data.classes)
    with report.bar(f"{name} on the test pictures", len(data.test)) as advance:
        found = evaluate_detector(frozen, data, data.test, device, workers=workers, advance=advance)
    return {
        "model": detector.name,
        "weights": None if weights is None else str(weights),
        "data": source,
        "metric": "ap",
        "images": len(data.test),
        "parameters": num_parameters(detector),
        **numbers_of(found.scores),
        "per_class": found.scores.per_class,
    }
