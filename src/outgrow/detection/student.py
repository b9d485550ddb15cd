"""Create the student of a detection run, and train a detector without a teacher."""

from pathlib import Path

from torch import nn

from outgrow.detection.evaluation import evaluate_detector
from outgrow.detection.families.create import create_detector, is_detector
from outgrow.detection.families.detector import Detector, NoDetector
from outgrow.detection.lesson import Detect
from outgrow.detection.run_data import RunScenes, train_scenes
from outgrow.knowledge import Rectifier
from outgrow.objective import Objective
from outgrow.training.acceleration import make_accelerator
from outgrow.training.config import Config, ModelConfig
from outgrow.training.fitting import fit, teacher_checkpoint
from outgrow.training.meter import EpochRecord
from outgrow.training.progress import Reporter
from outgrow.training.trainer import Trainer


def student_detector(config: Config, data: RunScenes, module: nn.Module | None) -> Detector:
    """The student for the classes of the data. ``ValueError`` for a name or module that is not a detector."""
    if module is None:
        check_name("--student", config.student.name)
        return create_detector(
            config.student.name,
            data.classes,
            weights=config.student.weights,
            pretrained=config.student.pretrained,
            input_size=config.student.input_size,
            mean=config.student.mean,
            std=config.student.std,
        )
    check_module("student", config.student)
    if not isinstance(module, Detector) or module.classes != data.classes:
        got = (
            f"classes {', '.join(module.classes[:5])}"
            if isinstance(module, Detector)
            else type(module).__name__
        )
        raise ValueError(
            f"student: needs an outgrow.detection.Detector for the classes {', '.join(data.classes[:5])}, got {got}; "
            "build it with create_detector(name, data.classes)."
        )
    return module


def check_name(option: str, name: str) -> None:
    """``ValueError`` if ``name`` is not the name of a detector."""
    if not is_detector(name):
        raise ValueError(
            f"{option}: needs a detector such as fasterrcnn:torchvision/resnet18 or "
            f"fasterrcnn:timm/mobilenetv2_100, rtdetr: or dfine:, for data in COCO's layout, got {name or 'none'!r}; "
            "put fasterrcnn: before a backbone."
        )


def check_module(section: str, options: ModelConfig) -> None:
    """``ValueError`` for options of a detector by name, where a module was given."""
    if options.mean is not None or options.std is not None:
        raise ValueError(
            f"{section}.mean and {section}.std: needs a detector by name, got a module, which normalises images by itself; "
            "leave them out, and pass them to create_detector."
        )


def train_alone(
    config: Config,
    data: RunScenes,
    detector: Detector,
    *,
    out: Path | None = None,
    resume: bool = False,
    reporter: Reporter | None = None,
) -> list[EpochRecord]:
    """Train ``detector`` on the student's training images with ``config.teacher_train``, scored on the test images."""
    device = make_accelerator(config.teacher_train).device
    checkpoint = None if out is None else teacher_checkpoint(out, config, data.source.fingerprint, reporter)
    workers = config.data.workers
    trainer = Trainer(
        student=detector,
        teacher=NoDetector(detector.num_classes),
        rectify=Rectifier("identity"),
        objective=Objective({}),
        loader=train_scenes(config, config.teacher_train, data.train, device, least=detector.least),
        config=config.teacher_train,
        make_lesson=Detect(detector.least),
        evaluate=lambda model: (
            evaluate_detector(model, data.source, data.test, device, workers=workers).score
        ),
        checkpoint=checkpoint,
    )
    return fit(trainer, reporter or Reporter(), "teacher", metric="ap", resume=resume)
