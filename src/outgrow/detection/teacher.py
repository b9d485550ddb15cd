"""The teacher of a detection run.

make_teacher        a detector in its own classes; trained first with ``teacher.train``
freeze_teacher      frozen, in the student's classes, scored
"""

from torch import nn

from outgrow.detection.create import create_detector, save_detector
from outgrow.detection.detector import Detector, FrozenDetector, NoDetector
from outgrow.detection.evaluation import evaluate_detector
from outgrow.detection.record import numbers_of
from outgrow.detection.run_data import RunScenes
from outgrow.detection.student import check_name, train_alone
from outgrow.models import num_parameters
from outgrow.training.config import Config
from outgrow.training.processes import is_main
from outgrow.training.record import TeacherRecord
from outgrow.training.task import RunContext, Taught


def make_teacher(run: RunContext, data: RunScenes, module: nn.Module | None) -> Detector | None:
    """The teacher in its own classes, trained first with ``teacher.train``; None for a run without a teacher."""
    config, options = run.config, run.config.teacher
    if config.method.preset == "none":
        return None
    if module is not None:
        if not isinstance(module, Detector):
            raise ValueError(
                f"teacher: needs an outgrow.detection.Detector, got {type(module).__name__}; build it with "
                "create_detector."
            )
        return module
    check_name("--teacher", options.name)
    detector = create_detector(
        options.name,
        data.classes if options.train else None,
        weights=options.weights,
        pretrained=options.pretrained,
        input_size=options.input_size,
    )
    if options.train:
        _train(run, data, detector)
    return detector


def _train(run: RunContext, data: RunScenes, detector: Detector) -> None:
    """Train the teacher on the student's training images."""
    run.report.note(
        f"teacher {detector.name} ({num_parameters(detector):,} parameters), {len(data.train):,} images"
    )
    train_alone(run.config, data, detector, out=run.out, resume=run.resume, reporter=run.report)
    if run.out is not None and is_main():
        save_detector(detector, run.out / "teacher.safetensors")


def freeze_teacher(run: RunContext, data: RunScenes, detector: Detector | None) -> Taught:
    """The teacher for distillation: frozen, in the student's classes, scored on the test images."""
    if detector is None:
        return Taught(NoDetector(data.num_classes + 1))
    frozen = FrozenDetector(detector, data.classes).to(run.device)
    with run.report.bar("teacher on the test images", len(data.test)) as advance:
        found = evaluate_detector(
            frozen, data.source, data.test, run.device, workers=run.config.data.workers, advance=advance
        )
    run.report.note(f"teacher {detector.name}: box AP {found.score:.2f} on {len(data.test):,} images")
    record = TeacherRecord(
        name=detector.name,
        parameters=num_parameters(detector),
        weights=_origin(run.config),
        classes=len(detector.classes),
        **numbers_of(found.scores),
    )
    return Taught(frozen, record, scores=found)


def _origin(config: Config) -> str:
    options = config.teacher
    return options.weights or (
        "trained here" if options.train else "published" if options.pretrained else "own"
    )
