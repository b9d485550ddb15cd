"""The teacher of a detection run.

make_teacher        a detector in its own classes; trained first with ``teacher.train``
freeze              frozen, in the student's classes, for the student's rows or for features only
freeze_teacher      the same, scored
"""

from torch import nn

from outgrow.detection.evaluation import evaluate_detector
from outgrow.detection.families.create import create_detector, save_detector
from outgrow.detection.families.detector import Detector, FrozenDetector, NoDetector, mismatch
from outgrow.detection.record import numbers_of
from outgrow.detection.run_data import RunScenes
from outgrow.detection.student import check_module, check_name, train_alone
from outgrow.losses.box import Box
from outgrow.losses.objectness import Objectness
from outgrow.machine.files import counted
from outgrow.models import num_parameters
from outgrow.objective import Objective
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
        check_module("teacher", options)
        return module
    check_name("--teacher", options.name)
    detector = create_detector(
        options.name,
        data.classes if options.train else None,
        weights=options.weights,
        pretrained=options.pretrained,
        input_size=options.input_size,
        mean=options.mean,
        std=options.std,
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


def freeze(
    run: RunContext, classes: tuple[str, ...], detector: Detector, student: Detector, objective: Objective
) -> FrozenDetector:
    """The frozen teacher. One that cannot answer for the student's rows teaches by its features alone: ``ValueError``
    for a loss on rows then."""
    regions = any(isinstance(term.loss, Objectness) for term in objective.terms.values())
    if regions:
        _check_regions(detector, student)
    wrong = mismatch(detector.layout, student.layout)
    if wrong is not None:
        got, remedy = wrong
        on_rows = [
            name
            for name, term in objective.terms.items()
            if isinstance(term.loss, Box) or "logits" in getattr(term.loss, "reads", ("logits",))
        ]
        if on_rows:
            raise ValueError(
                f"{', '.join(on_rows)}: needs a teacher that answers for the student's rows, got {got}; {remedy}."
            )
        run.report.note(f"teacher {detector.name}: only its features are distilled, as it has {got}")
    return FrozenDetector(detector, classes, features_only=wrong is not None, regions=regions).to(run.device)


def _check_regions(teacher: Detector, student: Detector) -> None:
    """``ValueError`` if the two have no anchors in common."""
    for whose, one in (("student", student), ("teacher", teacher)):
        if one.regions is None:
            raise ValueError(
                f"objectness: needs a detector with anchors, got {one.name} as the {whose}, whose queries are at places of "
                "their own; leave objectness out (kd says which of the student's queries have an object)."
            )
    wrong = mismatch(teacher.regions, student.regions)
    if wrong is not None:
        got, remedy = wrong
        raise ValueError(f"objectness: needs a teacher with the student's anchors, got {got}; {remedy}.")


def freeze_teacher(
    run: RunContext, data: RunScenes, detector: Detector | None, student: Detector, objective: Objective
) -> Taught:
    """The teacher for distillation: frozen, in the student's classes, scored on the test images."""
    if detector is None:
        return Taught(NoDetector(data.num_classes + 1))
    frozen = freeze(run, data.classes, detector, student, objective)
    with run.report.bar("teacher on the test images", len(data.test)) as advance:
        found = evaluate_detector(
            frozen, data.source, data.test, run.device, workers=run.config.data.workers, advance=advance
        )
    run.report.note(
        f"teacher {detector.name}: box AP {found.score:.2f} on {counted(len(data.test), 'image')}"
    )
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
