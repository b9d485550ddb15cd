"""Detectors as students and as teachers. Inputs are images of any size in [0, 1].

    detector(images, truth)               a training step: its rows, its outputs for them, its losses
    detector.classify(images, rows)       its outputs for the rows of another detector
    detector.levels_of(images)            its feature maps
    detector.detect(images)               boxes, classes, scores

Each family has a file of its own, which says what its rows are: proposals (:mod:`outgrow.detection.families.fasterrcnn`),
anchors and points (:mod:`outgrow.detection.families.dense`), or queries (:mod:`outgrow.detection.families.transformer`). The boxes of rows are passed between detectors in pixels of the
original images, so each detector may resize its input differently.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from outgrow.data.classes import match_classes
from outgrow.detection.boxes import BACKGROUND, Detections, Truth, as_shares
from outgrow.models.taps import OBJECTS
from outgrow.outputs import Outputs
from outgrow.teacher import BaseTeacher


@dataclass(frozen=True)
class Layout:
    """What a detector's rows are. A teacher of an equal layout answers for a student's rows.

    Of anchors, ``size`` and ``max_size`` are those of the input, ``levels`` the names of the maps by stride, and
    ``anchors`` the anchors of a place on each of them. Equal ones have the same anchors, in the same order.
    """

    family: str
    size: tuple[int, ...] = ()
    max_size: int | None = None
    levels: tuple[str, ...] = ()
    anchors: tuple[Any, ...] = ()
    rows: str = "anchors"


@dataclass(frozen=True)
class Proposals:
    """The rows of a step: boxes per image, in pixels of the original images.

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
    def layout(self) -> Layout | None:
        """Which anchors or queries the rows are; None if a detector of the same family classifies any box."""
        return None

    @property
    def all_classes(self) -> bool:
        """Whether a row has a logit for each class, or two: background and one class."""
        return True

    @property
    def unmatched(self) -> Bool[Tensor, " rows"]:
        """The rows of boxes that the matcher gave no object."""
        return self.label == BACKGROUND

    def in_classes(self, columns: Int64[Tensor, " classes"]) -> "Proposals":
        """The same rows for a detector with other classes: ``columns`` has its class for each of the present ones."""
        return replace(self, label=columns[self.label])


@dataclass(frozen=True)
class TrainingOutputs:
    """A training step of a detector: one row of ``outputs`` per proposal, and ``task``, the sum of its losses on the images
    with annotations."""

    outputs: Outputs
    proposals: Proposals
    task: Float[Tensor, ""]


class Detector(nn.Module):
    """``net`` (torchvision's or transformers') for ``classes``, without the background. Subclasses are the families.

    ``outputs`` is the number of classes of the net with the background, which is class 0. ``levels`` are the net's names
    of its maps and ours; those of torchvision's are found out. The features are

    p2, p3, ...     the levels by stride (``p3`` is 2**3 pixels)
    box             the box regression for the row's class, per row
    box_iou         the IoU of the regressed box with the ground truth, 0 on background
    objects         the annotated boxes of each image as shares of a map, in a training step
    objectness      the logit of there being an object, for each anchor of an image (not of detection transformers)
    """

    family = ""
    least = 1
    """The smallest number of images that it takes in training mode."""
    shows_regions = False
    """Whether :meth:`classify` returns ``objectness``, too, where that takes a pass of its own."""

    def __init__(
        self,
        net: Any,
        *,
        name: str,
        classes: tuple[str, ...],
        outputs: int,
        levels: dict[str, str] | None = None,
    ) -> None:
        super().__init__()
        if outputs != len(classes) + 1:
            raise ValueError(
                f"Detector {name}: needs one output for each of {len(classes)} classes and one for the background, got "
                f"{outputs}; pass every class once, without the background."
            )
        self.net = net
        self.name = name
        self.classes = classes
        self.levels: dict[str, str] = level_names(net) if levels is None else levels

    @property
    def num_classes(self) -> int:
        """Including the background."""
        return len(self.classes) + 1

    @property
    def layout(self) -> Layout | None:
        """Which anchors or queries its rows are; None if it classifies any box."""
        return None

    @property
    def regions(self) -> Layout | None:
        """The anchors for which it says whether an object is there; None if it has none."""
        return self.layout

    @property
    def reported(self) -> tuple[float, int]:
        """The lowest score of a detection, and the most detections of an image."""
        return self.net.score_thresh, self.net.detections_per_img

    def forward(
        self, images: Sequence[Tensor], truth: Sequence[Truth], *, rows: bool = True
    ) -> TrainingOutputs:
        """The forward pass of a training step. Without ``rows`` it has only the losses, which is all that a student without a
        teacher needs."""
        raise NotImplementedError

    def classify(self, images: Sequence[Tensor], proposals: Proposals) -> Outputs:
        """The outputs for the rows of another detector. The detector must be in eval mode."""
        raise NotImplementedError

    def detect(self, images: Sequence[Tensor]) -> list[Detections]:
        """Detections in pixels of the images, highest score first. Runs in eval mode and restores the mode."""
        raise NotImplementedError

    def levels_of(self, images: Sequence[Tensor]) -> dict[str, Tensor]:
        """The feature maps by stride."""
        batch, _ = self.net.transform(self.resizable(images))
        return {self.levels[key]: value.float() for key, value in self.net.backbone(batch.tensors).items()}

    def resizable(self, images: Sequence[Tensor]) -> list[Tensor]:
        """``images`` as a list. ``ValueError`` for one so long that its short side would be resized to no pixel."""
        longest = None if self.net.transform.fixed_size is not None else self.net.transform.max_size
        for image in images:
            height, width = image.shape[-2:]
            if longest is not None and max(height, width) > longest * min(height, width):
                raise ValueError(
                    f"Detector {self.name}: needs images at most {longest} times as long as wide (max_size), got one of "
                    f"{width}x{height}; leave it out, or cut or pad it."
                )
        return list(images)

    def check_training(self) -> None:
        if not self.training:
            raise ValueError(
                f"Detector {self.name}: needs training mode for a training step, got eval mode; call train() first."
            )


def by_annotation(truth: Sequence[Truth]) -> tuple[list[int], list[int]]:
    """The positions of the images with annotations, and of those without."""
    known = [at for at, one in enumerate(truth) if one.labelled]
    return known, [at for at, one in enumerate(truth) if not one.labelled]


def no_task(net: nn.Module) -> Float[Tensor, ""]:
    """The task loss of a step without annotated images: 0, with a gradient of 0 for all weights, which DDP waits for."""
    return torch.stack([0.0 * one.float().sum() for one in net.parameters() if one.requires_grad]).sum()


def task_alone(task: Float[Tensor, ""], images: Sequence[Tensor], num_classes: int) -> TrainingOutputs:
    """A step without rows, which would cost a small detector up to 5 % of its time."""
    none = torch.zeros(0, 4, device=task.device)
    label = torch.zeros(0, dtype=torch.int64, device=task.device)
    outputs = Outputs(torch.zeros(0, num_classes, device=task.device))
    return TrainingOutputs(outputs, Proposals((none,) * len(images), label, none), task)


def with_objects(outputs: Outputs, targets: Sequence[dict[str, Tensor]], batch: Tensor) -> Outputs:
    """``outputs`` of a training step with the annotated boxes of each image, for losses that weight the foreground."""
    objects = as_shares([one["boxes"] for one in targets], *batch.shape[-2:])
    return replace(outputs, features={**outputs.features, OBJECTS: objects})


def full_precision(batch: Tensor) -> torch.autocast:
    return torch.autocast(batch.device.type, enabled=False)


def scale_to(own: tuple[int, int], image: Tensor) -> Float[Tensor, " 4"]:
    """The factor from boxes in the resized image, of size ``own``, to boxes in the original one."""
    height, width = image.shape[-2:]
    y, x = height / own[0], width / own[1]
    return torch.tensor([x, y, x, y], dtype=torch.float32, device=image.device)


def matched_boxes(boxes: Float[Tensor, "n 4"], which: Int64[Tensor, " rows"]) -> Float[Tensor, "rows 4"]:
    return boxes[which] if len(boxes) else boxes.new_zeros(len(which), 4)


def overlap_with_truth(
    moved: Float[Tensor, "rows 4"],
    back: Sequence[Float[Tensor, " 4"]],
    images: Sequence[Tensor],
    proposals: Proposals,
) -> Float[Tensor, " rows"]:
    """IoU of the regressed boxes, in pixels of the resized images, with the objects of their rows; 0 on background.

    Detections are clipped to the image, so the clipped boxes are compared.
    """
    image = proposals.image
    limits = moved.new_tensor([(x.shape[-1], x.shape[-2], x.shape[-1], x.shape[-2]) for x in images])
    clipped = torch.minimum((moved * torch.stack(list(back))[image]).clamp_min(0), limits[image])
    return iou(clipped, proposals.truth) * (proposals.label > 0)


def iou(a: Float[Tensor, "rows 4"], b: Float[Tensor, "rows 4"]) -> Float[Tensor, " rows"]:
    """IoU of each row of ``a`` with the same row of ``b``."""
    both = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp_min(0).prod(dim=1)
    area = [(box[:, 2:] - box[:, :2]).clamp_min(0).prod(dim=1) for box in (a, b)]
    union = area[0] + area[1] - both
    return both / torch.where(union > 0, union, torch.ones_like(union))


@torch.no_grad()
def level_names(net: Any) -> dict[str, str]:
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


def no_knowledge(proposals: Proposals, num_classes: int) -> Float[Tensor, "rows classes"]:
    """Zero logits for every row, which no loss on rows reads."""
    columns = num_classes if proposals.all_classes else 2
    return torch.zeros(len(proposals.label), columns, device=proposals.label.device)


def mismatch(teacher: Layout | None, student: Layout | None) -> tuple[str, str] | None:
    """Why a teacher cannot answer for a student's rows, and what to do; None if it can."""
    if teacher == student:
        return None
    if teacher is None or student is None or teacher.family != student.family:
        here, there = (
            "proposals" if one is None else f"{one.family} {one.rows}" for one in (teacher, student)
        )
        return (
            f"{here} for a student of {there}",
            "choose two detectors of one family, or distil features only (for example --loss fitnet)",
        )
    names = [key for key in ("size", "max_size", "levels") if getattr(teacher, key) != getattr(student, key)]
    names = names or ["anchors"]
    values = "; ".join(
        f"{key} {_shown(getattr(teacher, key))} and {_shown(getattr(student, key))}" for key in names
    )
    return (
        f"other anchors than the student's: {values}",
        f"set {' and '.join(names)} alike after the question mark of both names, or distil features only "
        "(for example --loss fitnet)",
    )


def anchors_of(
    net: Any, family: str, levels: Mapping[str, str], places: tuple[Any, ...], *, rows: str = "anchors"
) -> Layout:
    """The layout of the anchors of torchvision's ``net``; ``places`` are those of a place, for each level."""
    transform = net.transform
    fixed = transform.fixed_size
    return Layout(
        family=family,
        size=tuple(transform.min_size) if fixed is None else tuple(fixed),
        max_size=transform.max_size if fixed is None else None,
        levels=tuple(levels.values()),
        anchors=places,
        rows=rows,
    )


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


class NoDetector(BaseTeacher):
    """The absence of a teacher: zero logits for every row."""

    gives_logits = False

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, images: Sequence[Tensor], proposals: Proposals) -> Outputs:
        return Outputs(no_knowledge(proposals, self.num_classes))


class FrozenDetector(BaseTeacher):
    """``detector`` as a teacher: frozen, always in eval mode, without gradients.

    ``classes`` are the student's. They are matched with the teacher's by name, or by position, with a warning, if
    one side's names are only numbers. ``ValueError`` if the teacher lacks one. The probability of classes that only
    the teacher has counts as background.

    A teacher whose rows are not those of the student (another family, or other anchors) teaches with
    ``features_only``: its logits are zero, and no loss may read them. With ``regions`` the features have the detector's
    ``objectness``, which takes time in a Faster R-CNN.
    """

    columns: Tensor
    foreign: Tensor

    def __init__(
        self,
        detector: Detector,
        classes: Sequence[str],
        *,
        features_only: bool = False,
        regions: bool = False,
    ) -> None:
        super().__init__()
        match = match_classes(detector.classes, len(detector.classes), classes)
        if match.columns is None:
            raise ValueError(
                f"{detector.name}: needs the classes of the data among its own, by name, got no "
                f"{', '.join(match.missing[:5])}{', ...' if len(match.missing) > 5 else ''}; its classes are "
                f"{', '.join(detector.classes[:8])}{', ...' if len(detector.classes) > 8 else ''}. Rename the categories "
                "in the annotations, or train a detector for them (a teacher with --train-teacher)."
            )
        if match.how == "position":
            warnings.warn(f"{detector.name}: its classes are taken {match.note}.", stacklevel=2)
        self.detector = detector.requires_grad_(False)
        self.detector.shows_regions = regions
        self.features_only = features_only
        known = [1 + place for place in match.columns]  # class 0 is the background
        others = [number for number in range(1, detector.num_classes) if number not in known]
        self.register_buffer("columns", torch.tensor([0, *known]))
        self.register_buffer("foreign", torch.tensor(others, dtype=torch.long))
        self.eval()

    @property
    def gives_logits(self) -> bool:
        return not self.features_only

    def train(self, mode: bool = True) -> "FrozenDetector":
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Sequence[Tensor], proposals: Proposals) -> Outputs:
        """The outputs for the student's rows, in the student's classes."""
        if any(module.training for module in self.detector.modules()):
            self.eval()
        if self.features_only:
            return Outputs(no_knowledge(proposals, len(self.columns)), self.detector.levels_of(images))
        wrong = mismatch(self.detector.layout, proposals.layout)
        if wrong is not None:
            got, remedy = wrong
            raise ValueError(
                f"teacher {self.detector.name}: needs the rows of the student, got {got}; {remedy}, with "
                "FrozenDetector(..., features_only=True) in your own loop."
            )
        outputs = self.detector.classify(images, proposals.in_classes(self.columns))
        if not proposals.all_classes:
            return outputs
        logits = outputs.logits[:, self.columns]
        if len(self.foreign):
            rest = torch.cat([logits[:, :1], outputs.logits[:, self.foreign]], dim=1)
            logits = torch.cat([rest.logsumexp(dim=1, keepdim=True), logits[:, 1:]], dim=1)
        return Outputs(logits, outputs.features)

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
