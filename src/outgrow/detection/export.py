"""Export the detector of a run to files that can be loaded without Outgrow.

    safetensors   the state dict of torchvision's detector; the model card has the code that builds the network
    onnx          one image of any size to boxes, labels and scores, with onnxruntime alone

``.pt2`` is not possible: torch.export cannot trace a detector, whose number of boxes depends on the image. Detection
transformers are in :mod:`outgrow.detection.deploy.transformer_export`.
"""

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from outgrow.data.files import read_picture
from outgrow.data.notes import DataWarning
from outgrow.data.pixels import decode, to_tensor
from outgrow.data.transforms import to_float
from outgrow.detection.boxes import Detections
from outgrow.detection.deploy.export_code import loading_code
from outgrow.detection.families import detectron2
from outgrow.detection.families.create import load_detector, metadata_of, parse_name
from outgrow.detection.families.detector import Detector
from outgrow.detection.families.transformer import TransformerDetector
from outgrow.detection.run_data import open_run_scenes
from outgrow.models.portable import OnnxModel, write_traced_onnx
from outgrow.models.weights import write_weights
from outgrow.training.deployment import ADVICE, Exported, ExportedFile, FinishedRun, Request, public_name
from outgrow.training.progress import Reporter

WEIGHTS, ONNX = "model.safetensors", "model.onnx"
COMPARED = 8
"""Test images on which a file is compared with the student."""
PIXELS, SCORE, UNMATCHED = 0.1, 1e-3, 0.05
"""Differences that count as rounding: of a box edge in pixels, of a score, and the share of boxes that only one side
finds, as proposals of equal score may be kept or not. Measured on trained detectors: 6e-5, 7e-6 and 0."""

Finder = Callable[[Tensor], Detections]


@dataclass(frozen=True)
class Images:
    """Images in [0, 1] to compare files on. ``source`` describes them in messages."""

    images: list[Float[Tensor, "3 _ _"]]
    source: str


def export_student(run: FinishedRun, request: Request, report: Reporter) -> Exported:
    """Write the requested formats. ``ValueError`` if one cannot be written, or if its boxes differ from the student's by
    more than rounding."""
    notes = []
    detector = load_student(run)
    if request.int8:
        raise ValueError(
            "--quantize int8: needs a classifier, got a detector, for which the loss of accuracy was not measured; leave it "
            "out."
        )
    if isinstance(detector, TransformerDetector):
        from outgrow.detection.deploy.transformer_export import (
            export_transformer,  # it uses this module's parts
        )

        return export_transformer(detector, request, _images(run, request), report)
    if "torch" in request.formats:
        reason = "needs a network whose shapes do not depend on values, got a detector, which torch.export cannot trace"
        if not request.every:
            raise ValueError(f"--format torch: {reason}; export it as onnx or safetensors.")
        notes.append("model.pt2: left out, as torch.export cannot trace a detector")
    formats = request.formats
    if "safetensors" in formats and getattr(parse_name(detector.name)[1], "style", None) == detectron2.STYLE:
        if not request.every:
            raise ValueError(
                f"--format safetensors: needs a detector that torchvision alone can build, got {detector.name}, with layers that "
                "compute as Detectron2's; export it as onnx."
            )
        notes.append(
            "model.safetensors: left out, as torchvision alone cannot build a detector of Detectron2's style"
        )
        formats = tuple(one for one in formats if one != "safetensors")
    compared = _images(run, request)
    files, loading = [], []
    if "safetensors" in formats:
        path = request.folder / WEIGHTS
        write_weights(detector.net.state_dict(), path, _header(detector))
        _write_config(request.folder, detector)
        files.append(checked(path, _reloaded(path, detector), detector, compared))
        loading.append(loading_code(detector))
    if "onnx" in formats:
        path = request.folder / ONNX
        write_detector_onnx(detector, path, compared.images[0])
        files.append(checked(path, onnx_finder(OnnxModel(path)), detector, compared))
        loading.append(ONNX_LOADING)
    for one in files:
        report.note(f"{one.name} ({one.bytes / 1e6:.2f} MB): {one.check}")
    return Exported(
        files=tuple(files),
        library="torchvision",
        loading="\n\n".join(loading),
        pipeline="object-detection",
        preparation="RGB, with the EXIF orientation applied, in their own size, divided by 255; the detector resizes and normalises",
        notes=tuple(notes),
    )


def load_student(run: FinishedRun) -> Detector:
    """The student of a run, in eval mode."""
    detector = load_detector(run.student, run.record.data.classes or None)
    return detector.eval().requires_grad_(False)


def write_detector_onnx(detector: Detector, path: Path, example: Float[Tensor, "3 _ _"]) -> None:
    """Export to ONNX: one image of any size (3 x height x width, RGB in [0, 1]) to ``boxes``, ``labels``, ``scores``."""
    write_traced_onnx(
        _SINGLE[detector.family](detector.net).eval(),
        example,
        path,
        facts_of(detector),
        names=("image", ("boxes", "labels", "scores")),
        dynamic={
            "image": {1: "height", 2: "width"},
            **{name: {0: "found"} for name in ("boxes", "labels", "scores")},
        },
    )


def facts_of(detector: Detector) -> dict[str, Any]:
    """The metadata of an exported file. A box of label i + 1 has the class ``classes[i]``."""
    return {
        "task": "detection",
        "model": public_name(detector.name),
        "classes": list(detector.classes),
        "input": {
            "image": "float32, 3 x height x width, RGB in [0, 1], any size; resized and normalised inside"
        },
        "output": {
            "boxes": "left, top, right, bottom in pixels of the image",
            "labels": "from 1; classes[label - 1]",
        },
    }


def onnx_finder(model: OnnxModel) -> Finder:
    """A function that detects with an exported ONNX file."""

    def find(image: Tensor) -> Detections:
        boxes, labels, scores = model(image)
        return Detections(boxes.float(), labels.long(), scores.float())

    return find


class _Single(nn.Module):
    """torchvision's detector for one image, with a tensor for each output. Subclasses find the boxes.

    When traced, torchvision computes the resize factor in float32. For some image sizes the result is then one pixel
    smaller than in eager mode. Here the factor is a double, as in eager mode.
    """

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        net, transform = self.net, self.net.transform
        small = self.resize(transform.normalize(image))
        sizes = [small.shape[-2:]]
        batch = ImageList(transform.batch_images([small], transform.size_divisible), sizes)
        [found] = transform.postprocess(
            self.find(batch, net.backbone(batch.tensors)), sizes, [image.shape[-2:]]
        )
        return found["boxes"], found["labels"], found["scores"]

    def resize(self, image: Tensor) -> Tensor:
        transform = self.net.transform
        return _resize(image, transform.min_size[-1], transform.max_size)

    def find(self, batch: ImageList, maps: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """The detections of a batch of one image, in pixels of the resized image."""
        raise NotImplementedError


class _OfProposals(_Single):
    def find(self, batch: ImageList, maps: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        boxes, _ = self.net.rpn(batch, maps)
        return self.net.roi_heads(maps, boxes, batch.image_sizes)[0]


class _OfLevels(_Single):
    """RetinaNet and FCOS. torchvision splits the outputs of all levels by numbers that a trace holds fast, so here each
    level has outputs of its own."""

    def __init__(self, net: Any) -> None:
        super().__init__(net)
        own = net.anchor_generator
        self.generators = [
            AnchorGenerator((sizes,), (ratios,))
            for sizes, ratios in zip(own.sizes, own.aspect_ratios, strict=True)
        ]

    def find(self, batch: ImageList, maps: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        levels = list(maps.values())
        heads = [self.net.head([level]) for level in levels]
        anchors = [
            generator(batch, [level])[0] for generator, level in zip(self.generators, levels, strict=True)
        ]
        outputs = {key: [head[key] for head in heads] for key in heads[0]}
        found = self.net.postprocess_detections(outputs, [anchors], batch.image_sizes)
        return [_without_background(one) for one in found]


class _OfSquare(_Single):
    """SSDLite, whose input has one size."""

    def resize(self, image: Tensor) -> Tensor:
        width, height = self.net.transform.fixed_size
        return F.interpolate(image[None], size=[height, width], mode="bilinear", align_corners=False)[0]

    def find(self, batch: ImageList, maps: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        levels = list(maps.values())
        anchors = self.net.anchor_generator(batch, levels)
        return self.net.postprocess_detections(self.net.head(levels), anchors, batch.image_sizes)


_SINGLE = {"fasterrcnn": _OfProposals, "retinanet": _OfLevels, "fcos": _OfLevels, "ssdlite": _OfSquare}


def _without_background(found: dict[str, Tensor]) -> dict[str, Tensor]:
    kept = found["labels"] > 0
    return {key: value[kept] for key, value in found.items()}


def _resize(image: Tensor, short: int, long: int) -> Tensor:
    """Resize the short side to ``short`` pixels, or the long side to ``long`` if it would be longer."""
    shape = torch._shape_as_tensor(image)[1:].to(torch.float64)
    # tensor / tensor: number / tensor is traced as a product with the reciprocal, which rounds twice
    limits = torch.tensor([short, long], dtype=torch.float64)
    scale = (limits / torch.stack([shape.min(), shape.max()])).min()
    height, width = (shape * scale).to(torch.int64).unbind()
    return F.interpolate(image[None], size=[height, width], mode="bilinear", align_corners=False)[0]  # type: ignore[list-item]


def _images(run: FinishedRun, request: Request) -> Images:
    """Test images of the run; if they cannot be opened, those of ``--images``; else noise."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)
            test = open_run_scenes(run.record.config).test
        count = min(COMPARED, len(test))
        chosen = torch.linspace(0, len(test) - 1, count).round().long().tolist()
        return Images([to_float(test.image(at)[None])[0] for at in chosen], f"{count} test images of the run")
    except (ValueError, OSError):
        pass
    if request.images:
        given = [
            decode(read_picture(str(path)), where=lambda path=path: str(path), advice=ADVICE)  # type: ignore[misc]
            for path in request.images[:COMPARED]
        ]
        return Images([to_float(to_tensor(one)[None])[0] for one in given], "the images of --images")
    noise = torch.Generator().manual_seed(0)
    sizes = [(240, 320), (320, 240), (200, 200), (300, 400)]
    return Images(
        [torch.rand(3, *size, generator=noise) for size in sizes],
        "4 random images, as the run's own cannot be opened; set --images to compare on yours",
    )


@torch.no_grad()
def checked(path: Path, exported: Finder, detector: Detector, compared: Images) -> ExportedFile:
    """Compare a file with the student; ``ValueError`` if they differ by more than rounding."""
    edge, score, alone, total = 0.0, 0.0, 0, 0
    for image in compared.images:
        ours, found = detector.detect([image])[0], exported(image)
        ours_at, found_at = matched(ours, found)
        total += len(ours.label)
        alone += _unmatched(ours, ours_at, detector) + _unmatched(found, found_at, detector)
        if len(ours_at):
            edge = max(edge, float((ours.boxes[ours_at] - found.boxes[found_at]).abs().max()))
            score = max(score, float((ours.score[ours_at] - found.score[found_at]).abs().max()))
    check = (
        f"{total} boxes, {alone} found by only one of the two, the others within {edge:.1e} pixels and {score:.1e} of the score "
        f"({compared.source})"
    )
    if not (edge <= PIXELS and score <= SCORE and alone <= UNMATCHED * total):
        raise ValueError(
            f"export: needs the detections of {path.name} to equal the student's, got {check}; nothing was written. Leave this "
            "format out (--format), and please report the name of the detector."
        )
    return ExportedFile(path.name, path.stat().st_size, check)


def _unmatched(found: Detections, paired: list[int], detector: Detector) -> int:
    """The number of boxes that the other side did not find.

    Boxes with a score near the lowest one that is reported do not count, as rounding can drop them. This is the
    detector's threshold, or the score of the last box if the number of boxes is at its limit.
    """
    edge, most = detector.reported
    if len(found.score) >= most:
        edge = max(edge, float(found.score.min()))
    kept = torch.ones(len(found.score), dtype=torch.bool)
    kept[paired] = False
    return int((found.score[kept] > edge + SCORE).sum())


def matched(ours: Detections, theirs: Detections) -> tuple[list[int], list[int]]:
    """Match the boxes of two sides: same label, IoU of at least 0.9, largest IoU first, each box once.

    Returns the indices of the matched boxes on either side.
    """
    if not len(ours.label) or not len(theirs.label):
        return [], []
    overlap = box_iou(ours.boxes, theirs.boxes) * (ours.label[:, None] == theirs.label[None])
    # if several boxes coincide, those with the closest scores match
    overlap = overlap - 1e-3 * (ours.score[:, None] - theirs.score[None]).abs()
    pairs: tuple[list[int], list[int]] = ([], [])
    for at in overlap.flatten().argsort(descending=True, stable=True).tolist():
        here, there = divmod(at, len(theirs.label))
        if float(overlap[here, there]) < 0.9:
            break
        if here not in pairs[0] and there not in pairs[1]:
            pairs[0].append(here)
            pairs[1].append(there)
    return pairs


def _header(detector: Detector) -> dict[str, str]:
    """The metadata of the safetensors file; those of save_detector, with the task."""
    return {**metadata_of(detector), "task": "detection"}


def _write_config(folder: Path, detector: Detector) -> None:
    text = json.dumps(facts_of(detector), indent=2, ensure_ascii=False)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")


def _reloaded(path: Path, detector: Detector) -> Finder:
    """Load the file with the code of the model card, so that this code is what is tested."""
    code = loading_code(detector).partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {}
    exec(code.replace('"model.safetensors"', repr(str(path))).partition("found =")[0], names)

    def find(image: Tensor) -> Detections:
        found = names["model"]([image])[0]
        return Detections(found["boxes"], found["labels"], found["scores"])

    return find


ONNX_LOADING = """`model.onnx` needs only onnxruntime. It takes one float32 RGB image in [0, 1], 3 x height x width, of any
size. Its metadata has the classes:

```python
import json, onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
boxes, labels, scores = session.run(None, {"image": image})
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])  # of label i: classes[i - 1]
```"""
