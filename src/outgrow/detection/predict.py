"""``outgrow predict`` for detectors: boxes in pixels, and images with the boxes drawn."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from outgrow.data.pixels import to_tensor
from outgrow.data.transforms import to_float
from outgrow.detection.boxes import Detections
from outgrow.detection.export import Finder, load_student, onnx_finder
from outgrow.detection.families.create import load_detector
from outgrow.detection.families.detector import Detector
from outgrow.models.portable import OnnxModel
from outgrow.training.acceleration import make_accelerator
from outgrow.training.config import TrainConfig
from outgrow.training.deployment import FinishedRun

SCORE = 0.3
"""The default of ``--score``: boxes with a lower score are left out."""


@dataclass(frozen=True)
class Boxes:
    """A detector to predict with. ``find`` takes one image in [0, 1] of any size."""

    find: Finder
    classes: tuple[str, ...]

    task = "detection"

    @torch.no_grad()
    def predict(
        self,
        images: Iterable[tuple[str, Image]],
        *,
        top: int | None,
        score: float | None = None,
        drawn: Path | None = None,
        **_: Any,
    ) -> Iterator[dict[str, Any]]:
        """One row per image: its ``file`` and ``boxes``, highest score first, at most ``top``, with at least ``score``.

        Images with their boxes drawn are written to the folder ``drawn``.
        """
        least = SCORE if score is None else score
        for number, (file, image) in enumerate(images):
            pixels = to_tensor(image)
            try:
                found = self.find(to_float(pixels[None])[0]).to("cpu")
            except ValueError as error:
                raise ValueError(f"{file}: {error}") from error
            kept = (found.score >= least).nonzero()[:top, 0]
            found = Detections(found.boxes[kept], found.label[kept], found.score[kept])
            if drawn is not None:
                from outgrow.detection.pictures import side_by_side

                drawn.mkdir(parents=True, exist_ok=True)
                place = drawn / f"{number:05d}-{Path(file).stem}.jpg"
                side_by_side(place, [(Path(file).name, found)], pixels, self.classes)
            yield {
                "file": file,
                "boxes": [
                    {
                        "class": self.classes[label - 1],
                        "score": value,
                        "box": [round(edge, 2) for edge in box],
                    }
                    for box, label, value in zip(
                        found.boxes.tolist(), found.label.tolist(), found.score.tolist(), strict=True
                    )
                ],
            }


def columns(rows: Iterable[dict[str, Any]], top: int | None, classes: int) -> Iterator[list[Any]]:
    """The lines of a CSV table: a header, then one line per box."""
    yield ["file", "class", "score", "left", "top", "right", "bottom"]
    for row in rows:
        for one in row["boxes"]:
            yield [row["file"], one["class"], f"{one['score']:.6f}", *one["box"]]


def of_run(run: FinishedRun) -> Boxes:
    """The student of a run, on the default device."""
    return _boxes(load_student(run))


def of_weights(path: Path) -> Boxes:
    """A safetensors file of a run or of ``outgrow export``."""
    return _boxes(load_detector(path).eval().requires_grad_(False))


def of_program(path: Path, facts: dict[str, Any]) -> Boxes:
    """A ``.pt2`` file of ``outgrow export``."""
    from outgrow.detection.deploy.transformer_export import program_finder

    return Boxes(program_finder(path), tuple(facts["classes"]))


def of_onnx(model: OnnxModel) -> Boxes:
    """An ONNX file of ``outgrow export``."""
    return Boxes(onnx_finder(model), tuple(model.facts["classes"]))


def _boxes(detector: Detector) -> Boxes:
    device = make_accelerator(TrainConfig()).device
    detector = detector.to(device)
    return Boxes(lambda image: detector.detect([image.to(device)])[0], detector.classes)
