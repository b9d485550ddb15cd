"""A detector as a student and as a teacher, and Faster R-CNN. Inputs are images of any size in [0, 1].

    detector(images, truth)               a training step: its proposals, its outputs for them, its losses
    detector.classify(images, proposals)  its outputs for the proposals of another detector
    detector.detect(images)               boxes, classes, scores

The network of a :class:`FasterRCNNDetector` is torchvision's Faster R-CNN with a feature pyramid, on any backbone.
Proposals are passed between detectors in pixels of the original images, so each detector may resize its input
differently. :mod:`outgrow.detection.transformer` has the detection transformers.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.ops import clip_boxes_to_image

from outgrow.data.classes import match_classes
from outgrow.detection.boxes import BACKGROUND, Detections, Truth
from outgrow.models.taps import BOX, BOX_IOU, PENULTIMATE
from outgrow.outputs import Outputs
from outgrow.teacher import BaseTeacher


@dataclass(frozen=True)
class Proposals:
    """Proposed boxes per image, in pixels of the original images.

    ``label`` is the class of the object that the matcher assigned to each box (0: background). ``truth`` is that
    object's box; its value on background rows is arbitrary.
    """

    boxes: tuple[Float[Tensor, "_ 4"], ...]
    label: Int64[Tensor, " rows"]
    truth: Float[Tensor, "rows 4"]

    @property
    def image(self) -> Int64[Tensor, " rows"]:
        """The position of each row's image in the batch."""
        counts = torch.tensor([len(boxes) for boxes in self.boxes], device=self.label.device)
        return torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)

    @property
    def unmatched(self) -> Bool[Tensor, " rows"]:
        """The rows of boxes that the matcher gave no object."""
        return self.label == BACKGROUND

    def renumbered(self, number: Int64[Tensor, " classes"], num_classes: int) -> "Proposals":
        """The same boxes with ``number[label]`` as labels, for a detector with ``num_classes`` (background included)."""
        return Proposals(self.boxes, number[self.label], self.truth)

    def width(self, num_classes: int) -> int:
        """The number of logits in a row of a detector with ``num_classes``, background included."""
        return num_classes


@dataclass(frozen=True)
class TrainingOutputs:
    """A training step of a detector: one row of ``outputs`` per proposal, and ``task``, the sum of its losses."""

    outputs: Outputs
    proposals: Proposals
    task: Float[Tensor, ""]


class Detector(nn.Module):
    """A detector of any family: ``net`` for ``classes``, without the background. Class 0 is the background."""

    net: Any
    name: str
    classes: tuple[str, ...]
    row = "proposal"
    """What a row is. Teacher and student must agree on it."""

    @property
    def num_classes(self) -> int:
        """Including the background."""
        return len(self.classes) + 1

    def forward(self, images: Sequence[Tensor], truth: Sequence[Truth]) -> TrainingOutputs:
        """The forward pass of a training step, in training mode."""
        raise NotImplementedError

    def classify_as(
        self,
        images: Sequence[Tensor],
        proposals: Proposals,
        columns: Int64[Tensor, " classes"],
        foreign: Int64[Tensor, " others"],
    ) -> Outputs:
        """The outputs for another detector's proposals, in its classes: ``columns`` are their numbers in this detector,
        ``foreign`` those of classes that only this one has. In eval mode."""
        raise NotImplementedError

    def detect(self, images: Sequence[Tensor]) -> list[Detections]:
        """Detections in pixels of the images, highest score first. Runs in eval mode and restores the mode."""
        raise NotImplementedError


class FasterRCNNDetector(Detector):
    """``net`` (torchvision's FasterRCNN) for ``classes``, without the background.

    Logits have one class more than ``classes``: class 0 is the background. The features are

    p2, p3, ...     the levels of the pyramid by stride (``p3`` is 2**3 pixels)
    PENULTIMATE     the input of the classification layer, per row
    box             the box regression for the row's class, per row
    box_iou         the IoU of the regressed box with the ground truth, 0 on background
    """

    def __init__(self, net: FasterRCNN, *, name: str, classes: tuple[str, ...]) -> None:
        super().__init__()
        predicted = net.roi_heads.box_predictor.cls_score.out_features
        if predicted != len(classes) + 1:
            raise ValueError(
                f"Detector {name}: needs one output for each of {len(classes)} classes and one for the background, got "
                f"{predicted}; pass every class once, without the background."
            )
        self.net = net
        self.name = name
        self.classes = classes
        self.levels = _level_names(net)

    def forward(self, images: Sequence[Tensor], truth: Sequence[Truth]) -> TrainingOutputs:
        """The forward pass of a training step. torchvision draws the proposals at random."""
        if not self.training:
            raise ValueError(
                f"Detector {self.name}: needs training mode for a training step, got eval mode; call train() first."
            )
        targets = [{"boxes": t.boxes, "labels": t.label} for t in truth]
        batch, targets = self.net.transform(list(images), targets)
        maps = self._maps(batch.tensors)
        with _full_precision(batch.tensors):
            boxes, region_losses = self.net.rpn(batch, maps, targets)
            heads = self.net.roi_heads
            boxes, matched, labels, moves = heads.select_training_samples(boxes, targets)
            vectors, logits, deltas = self._heads(maps, boxes, batch.image_sizes)
            class_loss, box_loss = fastrcnn_loss(logits, deltas, labels, moves)
            label = torch.cat(labels)
            back = [_scale(own, image) for own, image in zip(batch.image_sizes, images, strict=True)]
            proposals = Proposals(
                boxes=tuple(b * s for b, s in zip(boxes, back, strict=True)),
                label=label,
                truth=torch.cat([_matched(t.boxes, which) for t, which in zip(truth, matched, strict=True)]),
            )
            outputs = self._outputs(maps, vectors, logits, deltas, boxes, back, images, proposals)
            task = torch.stack([*region_losses.values(), class_loss, box_loss]).sum()
        return TrainingOutputs(outputs, proposals, task)

    def classify(self, images: Sequence[Tensor], proposals: Proposals) -> Outputs:
        """The outputs for the proposals of another detector. The detector must be in eval mode."""
        batch, _ = self.net.transform(list(images))
        maps = self._maps(batch.tensors)
        with _full_precision(batch.tensors):
            back = [_scale(own, image) for own, image in zip(batch.image_sizes, images, strict=True)]
            boxes = [b / s for b, s in zip(proposals.boxes, back, strict=True)]
            vectors, logits, deltas = self._heads(maps, boxes, batch.image_sizes)
            return self._outputs(maps, vectors, logits, deltas, boxes, back, images, proposals)

    def classify_as(
        self,
        images: Sequence[Tensor],
        proposals: Proposals,
        columns: Int64[Tensor, " classes"],
        foreign: Int64[Tensor, " others"],
    ) -> Outputs:
        outputs = self.classify(images, proposals.renumbered(columns, self.num_classes))
        logits = outputs.logits[:, columns]
        if len(foreign):  # count as background
            rest = torch.cat([logits[:, :1], outputs.logits[:, foreign]], dim=1)
            logits = torch.cat([rest.logsumexp(dim=1, keepdim=True), logits[:, 1:]], dim=1)
        return Outputs(logits, outputs.features)

    @torch.no_grad()
    def detect(self, images: Sequence[Tensor]) -> list[Detections]:
        """Detections in pixels of the images, highest score first. Runs in eval mode and restores the mode."""
        training = self.training
        self.eval()
        try:
            batch, _ = self.net.transform(list(images))
            maps = self._maps(batch.tensors)
            with _full_precision(batch.tensors):
                boxes, _ = self.net.rpn(batch, maps, None)
                found, _ = self.net.roi_heads(maps, boxes, batch.image_sizes, None)
                sizes = [tuple(image.shape[-2:]) for image in images]
                found = self.net.transform.postprocess(found, batch.image_sizes, sizes)
        finally:
            self.train(training)
        return [Detections(f["boxes"].float(), f["labels"], f["scores"].float()) for f in found]

    def _maps(self, batch: Tensor) -> dict[str, Tensor]:
        """The pyramid in float32, as the heads do not run in half precision."""
        return {key: value.float() for key, value in self.net.backbone(batch).items()}

    def _heads(
        self, maps: dict[str, Tensor], boxes: list[Tensor], sizes: list[tuple[int, int]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        heads = self.net.roi_heads
        vectors = heads.box_head(heads.box_roi_pool(maps, boxes, sizes))
        return vectors, *heads.box_predictor(vectors)

    def _outputs(
        self,
        maps: dict[str, Tensor],
        vectors: Tensor,
        logits: Tensor,
        deltas: Tensor,
        boxes: list[Tensor],
        back: list[Tensor],
        images: Sequence[Tensor],
        proposals: Proposals,
    ) -> Outputs:
        rows = torch.arange(len(logits), device=logits.device)
        # background rows read class 0's regression, which is neither trained nor used
        own = deltas.view(len(logits), -1, 4)[rows, proposals.label]
        moved = self.net.roi_heads.box_coder.decode_single(own.detach(), torch.cat(list(boxes)))
        counts = [len(b) for b in boxes]
        clipped = [
            # detections are clipped to the image, so the clipped boxes are compared
            clip_boxes_to_image(part * scale, tuple(image.shape[-2:]))
            for part, scale, image in zip(moved.split(counts), back, images, strict=True)
        ]
        overlap = iou(torch.cat(clipped), proposals.truth) * (proposals.label > 0)
        levels = {self.levels[key]: value for key, value in maps.items()}
        return Outputs(logits, {**levels, PENULTIMATE: vectors, BOX: own, BOX_IOU: overlap})


def _full_precision(batch: Tensor) -> torch.autocast:
    return torch.autocast(batch.device.type, enabled=False)


def _scale(own: tuple[int, int], image: Tensor) -> Float[Tensor, " 4"]:
    """The factor from boxes in the resized image, of size ``own``, to boxes in the original one."""
    height, width = image.shape[-2:]
    y, x = height / own[0], width / own[1]
    return torch.tensor([x, y, x, y], dtype=torch.float32, device=image.device)


def _matched(boxes: Float[Tensor, "n 4"], which: Int64[Tensor, " rows"]) -> Float[Tensor, "rows 4"]:
    return boxes[which] if len(boxes) else boxes.new_zeros(len(which), 4)


def iou(a: Float[Tensor, "rows 4"], b: Float[Tensor, "rows 4"]) -> Float[Tensor, " rows"]:
    """IoU of each row of ``a`` with the same row of ``b``."""
    both = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp_min(0).prod(dim=1)
    area = [(box[:, 2:] - box[:, :2]).clamp_min(0).prod(dim=1) for box in (a, b)]
    union = area[0] + area[1] - both
    return both / torch.where(union > 0, union, torch.ones_like(union))


@torch.no_grad()
def _level_names(net: FasterRCNN) -> dict[str, str]:
    """The backbone's name of each level and ours, by its stride. A second level of a stride gets the suffix _2."""
    side = 128
    names: dict[str, str] = {}
    training = net.backbone.training
    net.backbone.eval()
    parameter = next(net.backbone.parameters())
    for key, value in net.backbone(torch.zeros(1, 3, side, side, device=parameter.device)).items():
        name = f"p{(side // value.shape[2]).bit_length() - 1}"
        again = sum(other.split("_")[0] == name for other in names.values())
        names[key] = f"{name}_{again + 1}" if again else name
    net.backbone.train(training)
    return names


def check_rows(student: nn.Module, teacher: nn.Module | None) -> None:
    """``ValueError`` if the rows of the two detectors are not the same thing."""
    if isinstance(student, Detector) and isinstance(teacher, Detector) and student.row != teacher.row:
        raise ValueError(
            f"teacher {teacher.name}: needs the student's kind of detector, whose rows are one {student.row} each, got one "
            f"with one {teacher.row} each; teach {student.name} by a detector of its own kind."
        )


class NoDetector(BaseTeacher):
    """The absence of a teacher: zero logits for every proposal."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, images: Sequence[Tensor], proposals: Proposals) -> Outputs:
        width = proposals.width(self.num_classes)
        return Outputs(torch.zeros(len(proposals.label), width, device=proposals.label.device))


class FrozenDetector(BaseTeacher):
    """``detector`` as a teacher: frozen, always in eval mode, without gradients.

    ``classes`` are the student's. They are matched with the teacher's by name, or by position, with a warning, if
    one side's names are only numbers. ``ValueError`` if the teacher lacks one. The probability of classes that only
    the teacher has counts as background, where a row has one.
    """

    columns: Tensor
    foreign: Tensor

    def __init__(self, detector: Detector, classes: Sequence[str]) -> None:
        super().__init__()
        match = match_classes(detector.classes, len(detector.classes), classes)
        if match.columns is None:
            raise ValueError(
                f"teacher {detector.name}: needs the student's classes among its own, by name, got no "
                f"{', '.join(match.missing[:5])}{', ...' if len(match.missing) > 5 else ''}; its classes are "
                f"{', '.join(detector.classes[:8])}{', ...' if len(detector.classes) > 8 else ''}. Rename the categories "
                "in the annotations, or train a teacher for them (--train-teacher)."
            )
        if match.how == "position":
            warnings.warn(f"teacher {detector.name}: its classes are taken {match.note}.", stacklevel=2)
        self.detector = detector.requires_grad_(False)
        known = [1 + place for place in match.columns]  # class 0 is the background
        others = [number for number in range(1, detector.num_classes) if number not in known]
        self.register_buffer("columns", torch.tensor([0, *known]))
        self.register_buffer("foreign", torch.tensor(others, dtype=torch.long))
        self.eval()

    def train(self, mode: bool = True) -> "FrozenDetector":
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Sequence[Tensor], proposals: Proposals) -> Outputs:
        """The outputs for the student's proposals, in the student's classes."""
        if any(module.training for module in self.detector.modules()):
            self.eval()
        return self.detector.classify_as(images, proposals, self.columns, self.foreign)

    def detect(self, images: Sequence[Tensor]) -> list[Detections]:
        """Detections in the student's classes; those of other classes are left out."""
        place = torch.full((self.detector.num_classes,), -1, device=self.columns.device)
        place[self.columns] = torch.arange(len(self.columns), device=place.device)
        found = []
        for one in self.detector.detect(images):
            label = place[one.label]
            keep = label > 0
            found.append(Detections(one.boxes[keep], label[keep], one.score[keep]))
        return found
