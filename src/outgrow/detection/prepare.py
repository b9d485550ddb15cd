"""What a detection run needs: pictures, detectors, the teacher, a measure.

The counterpart of :mod:`outgrow.classification.prepare` and :mod:`outgrow.classification.teaching`; the configuration is the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from outgrow.classification.prepare import fit, is_main, process_group
from outgrow.classification.scores import num_parameters
from outgrow.data import drops_last
from outgrow.detection.boxes import Detections, Scenes
from outgrow.detection.create import create_detector, is_detector, save_detector
from outgrow.detection.data import DetectionData, DetectionSplit, open_coco
from outgrow.detection.detector import Detector, FrozenDetector, Proposals
from outgrow.detection.lesson import Detect
from outgrow.detection.loader import SceneLoader, make_scene_loader
from outgrow.detection.scores import CocoScores, coco_scores
from outgrow.knowledge import Rectifier
from outgrow.losses.adapters import MapLoss
from outgrow.losses.crd import CRD
from outgrow.models.taps import NOT_TAPS
from outgrow.objective import Objective
from outgrow.outputs import Outputs
from outgrow.training.checkpoint import fingerprint
from outgrow.training.config import Config, TrainConfig
from outgrow.training.progress import Reporter
from outgrow.training.trainer import Trainer, make_accelerator

EVAL_BATCH = 1
"""Pictures at a time in evaluation: beside a larger one a picture would be padded, which changes what is found."""
IGNORED = {
    "teacher": ("fold", "precision", "compile", "cache_features", "correct_views"),
    "data": ("label", "val_fraction", "size"),
    "train": ("compile", "fused_norms"),
    "teacher_train": ("compile", "fused_norms"),
}
"""Fields that classifiers have a use for."""
UNMOVED = ("cutout", "randaugment", "mixup", "cutmix")


class NoDetector(nn.Module):
    """A teacher that says nothing about every proposal."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, images: Sequence[Tensor], proposals: Proposals) -> Outputs:
        return Outputs(torch.zeros(len(proposals.label), self.num_classes, device=proposals.label.device))


@dataclass
class Found:
    """What a detector found in a split, and what that is worth."""

    detections: list[Detections]
    scores: CocoScores

    @property
    def ap(self) -> float:
        """0 where the split has no object at all."""
        return self.scores.ap or 0.0


def open_run_scenes(config: Config) -> tuple[DetectionData, DetectionSplit]:
    """The data of a run, and the pictures to train on."""
    data = open_coco(config.data.source)
    if data.train is None:
        raise ValueError(
            f"--data {config.data.source}: needs annotations to train on, got only some to evaluate; give the folder "
            "that holds instances_train*.json and instances_val*.json."
        )
    wanted = config.data.train_rows
    if wanted is None or wanted >= len(data.train):
        return data, data.train
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(config.seed))
    return data, data.train.subset(order[:wanted])


def train_scenes(
    config: Config, train: TrainConfig, split: DetectionSplit, device: torch.device
) -> SceneLoader:
    """The training views: this process's share of them."""
    augment = config.data.augment
    asked = [name for name in UNMOVED if getattr(augment, name)]
    if asked:
        raise ValueError(
            f"data.augment: needs views in which boxes move along (flip, resized_crop), got {', '.join(asked)}; "
            "set them to 0."
        )
    group = process_group()
    batch_size = min(train.batch_size, len(split))
    world_size = 1 if group is None else dist.get_world_size(group)
    return make_scene_loader(
        split,
        batch_size=batch_size,
        device=device,
        seed=config.seed,
        shuffle=True,
        drop_last=drops_last(len(split), batch_size, world_size, least=1),
        flip=augment.flip,
        resized_crop=augment.resized_crop,
        num_workers=config.data.workers,
        rank=0 if group is None else dist.get_rank(group),
        world_size=world_size,
    )


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


def say_what_is_ignored(config: Config, report: Reporter) -> None:
    """Fields that were set and mean nothing to a detector."""
    default = Config()
    fields = [
        f"{section}.{name}"
        for section, names in IGNORED.items()
        for name in names
        if getattr(getattr(config, section), name) != getattr(getattr(default, section), name)
    ]
    if fields:
        report.note(f"warning: {', '.join(fields)} change nothing for a detector")


def check_losses(objective: Objective) -> None:
    """ValueError for a loss that a detector's rows cannot have."""
    for name, term in objective.terms.items():
        if isinstance(term.loss, CRD):
            raise ValueError(
                f"{name}: needs rows that come back in every epoch, got a detector's proposals; take another loss."
            )


def student_detector(config: Config, data: DetectionData, module: nn.Module | None) -> Detector:
    """The student, for the data's classes."""
    if module is None:
        _check_name("--student", config.student.name)
        return create_detector(
            config.student.name,
            data.classes,
            weights=config.student.weights,
            pretrained=config.student.pretrained,
            input_size=config.student.input_size,
        )
    if not isinstance(module, Detector) or module.classes != data.classes:
        got = (
            f"classes {', '.join(module.classes[:5])}"
            if isinstance(module, Detector)
            else type(module).__name__
        )
        raise ValueError(
            f"student: needs an outgrow.detection.Detector for the classes {', '.join(data.classes[:5])}, got {got}."
        )
    return module


def teacher_detector(
    config: Config,
    data: DetectionData,
    split: DetectionSplit,
    module: nn.Module | None,
    out: Path | None,
    resume: bool,
    report: Reporter,
) -> Detector | None:
    """The teacher in whatever classes it has, trained first where asked for; None for no teacher."""
    options = config.teacher
    if config.method.preset == "none":
        return None
    if options.correct == "always":
        raise ValueError(
            "--correct-teacher always: needs rows that stay the same from epoch to epoch, got a detector's proposals; "
            "the correction of bias is for classifiers: leave it out, rules work."
        )
    if options.cache is not None:
        raise ValueError(
            "teacher.cache: needs outputs that depend on the view alone, got a detector, which is asked about the "
            "student's proposals; leave it out."
        )
    if module is not None:
        if not isinstance(module, Detector):
            raise ValueError(f"teacher: needs an outgrow.detection.Detector, got {type(module).__name__}.")
        return module
    _check_name("--teacher", options.name)
    if not options.train:
        return create_detector(
            options.name,
            weights=options.weights,
            pretrained=options.pretrained,
            input_size=options.input_size,
        )
    if options.rows == "disjoint":
        raise ValueError(
            "teacher.rows=disjoint: is for classifiers; train the teacher on its own annotations first."
        )
    detector = create_detector(
        options.name,
        data.classes,
        weights=options.weights,
        pretrained=options.pretrained,
        input_size=options.input_size,
    )
    _train_teacher(config, data, split, detector, out, resume, report)
    return detector


def _train_teacher(
    config: Config,
    data: DetectionData,
    split: DetectionSplit,
    detector: Detector,
    out: Path | None,
    resume: bool,
    report: Reporter,
) -> None:
    """Train it alone, on the student's pictures; what is looked at meanwhile is the validation split."""
    report.note(f"teacher {detector.name} ({num_parameters(detector):,} parameters), {len(split):,} pictures")
    device = make_accelerator(config.teacher_train).device
    checkpoint = out / "teacher.pt" if out is not None else None
    trainer = Trainer(
        student=detector,
        teacher=NoDetector(detector.num_classes),
        rectify=Rectifier("identity"),
        objective=Objective({}),
        loader=train_scenes(config, config.teacher_train, split, device),
        config=config.teacher_train,
        ask=Detect(),
        evaluate=lambda model: (
            evaluate_detector(model, data, data.val or data.test, device, workers=config.data.workers).ap
        ),
        checkpoint=checkpoint,
        run=fingerprint(config),
    )
    fit(
        trainer,
        resume and checkpoint is not None and checkpoint.is_file(),
        report,
        "teacher",
        metric="ap",
    )
    if out is not None and is_main():
        save_detector(detector, out / "teacher.safetensors")


def frozen_teacher(data: DetectionData, detector: Detector | None) -> FrozenDetector | NoDetector:
    """What the student listens to."""
    if detector is None:
        return NoDetector(data.num_classes + 1)
    return FrozenDetector(detector, data.classes)


def set_up_detection(
    objective: Objective, student: Detector, teacher: nn.Module, loader: SceneLoader, device: torch.device
) -> None:
    """Connectors, from one dry run on a batch; nothing of the student moves.

    Losses on maps compare all levels of the pyramid, unless they name some: the last one alone, a choice for
    classifiers, would be a pooled copy of the one before.
    """
    if not objective.reads_features:
        return
    scenes: Scenes = next(iter(loader.epoch(0)))
    student.to(device)
    teacher.to(device)
    state = {key: value.clone() for key, value in student.state_dict().items()}
    with torch.no_grad():  # in training mode, as only then a detector labels its proposals
        lesson = Detect()(student.train(), teacher, scenes)
    student.load_state_dict(state)
    levels = [name for name in lesson.student.features if name not in NOT_TAPS]
    for term in objective.terms.values():
        if isinstance(term.loss, MapLoss) and term.loss.student_paths is term.loss.teacher_paths is None:
            term.loss.student_paths = term.loss.teacher_paths = levels
    objective.setup(lesson.student, lesson.teacher, num_samples=loader.num_indices)


def _check_name(option: str, name: str) -> None:
    if not is_detector(name):
        raise ValueError(
            f"{option}: needs a detector such as fasterrcnn:torchvision/resnet18 or "
            f"fasterrcnn:timm/mobilenetv2_100 for data in COCO's layout, got {name or 'none'!r}."
        )
