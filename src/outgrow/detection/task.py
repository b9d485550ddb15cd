"""Detection as a task of ``outgrow.run``: how data, networks, scores and records are made."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from outgrow.detection.cost import measure_cost
from outgrow.detection.data import DetectionSplit
from outgrow.detection.evaluation import Found, evaluate_detection, evaluate_detector
from outgrow.detection.families.create import least_images, save_detector
from outgrow.detection.families.detector import Detector, NoDetector
from outgrow.detection.lesson import Balanced, Detect, levels_to_compare
from outgrow.detection.loader import MixedScenes, SceneLoader
from outgrow.detection.page import page_sections
from outgrow.detection.record import detection_record, draw, numbers_of
from outgrow.detection.run_data import RunScenes, open_run_scenes, train_scenes
from outgrow.detection.scores import check_installed
from outgrow.detection.student import student_detector
from outgrow.detection.teacher import freeze_teacher, make_teacher
from outgrow.detection.unlabelled import SURE, marked_by
from outgrow.knowledge import Rectifier
from outgrow.models import num_parameters
from outgrow.objective import Objective
from outgrow.outputs import Knowledge, Outputs, Target
from outgrow.report.run_page import write_run_page
from outgrow.teacher import BaseTeacher
from outgrow.training.config import Config, TrainConfig
from outgrow.training.meter import EpochRecord, best_epoch
from outgrow.training.processes import is_main
from outgrow.training.record import Both, CostRecord, DataRecord, RunRecord, StudentRecord
from outgrow.training.task import Parts, RunContext, Task, Taught
from outgrow.training.unlabelled import other_share, unseen, without_labels

IGNORED = (
    *(
        f"teacher.{name}"
        for name in ("precision", "compile", "cache_features", "cache_plain", "correct_views")
    ),
    *("data.label", "data.val_fraction", "data.size", "data.augment.crop_padding", "data.augment.padding"),
    *(f"{section}.{name}" for section in ("train", "teacher_train") for name in ("compile", "fused_norms")),
)
"""Configuration fields that only classifiers use."""
FEW = 100
"""Up to this number of annotated pictures, a run points to pictures without annotations: beside 20 they were worth 3 points of
AP on blood cells (results/detection.md). Our choice."""
FOR_CLASSIFIERS = ("label_smoothing", "class_weights", "sampling", "head_lr", "layer_decay")
"""Fields of the training that are refused for a detector, as they would change its results for a classifier."""


class Detection:
    """Implements :class:`outgrow.training.task.Task`. A row is a proposal, an anchor, a point or a query."""

    metric = "ap"

    def lesson_maker(self, config: Config) -> Detect:
        return Detect(least_images(config.student.name))

    def rectifier(self, rectify: Rectifier) -> Callable[[Outputs, Target], Knowledge]:
        return Balanced(rectify)

    def open_data(self, run: RunContext) -> RunScenes:
        check_installed()
        return open_run_scenes(run.config)

    def check(self, run: RunContext, objective: Objective) -> None:
        _note_ignored(run)
        _refuse(run.config, objective)
        if run.config.data.unlabelled is not None and (note := without_labels(run.config, objective)):
            run.report.note(note)

    def make_student(
        self, run: RunContext, data: RunScenes, objective: Objective, module: nn.Module | None
    ) -> Detector:
        return student_detector(run.config, data, module)

    def make_teacher(self, run: RunContext, data: RunScenes, module: nn.Module | None) -> Detector | None:
        return make_teacher(run, data, module)

    def freeze(
        self,
        run: RunContext,
        data: RunScenes,
        teacher: nn.Module | None,
        student: nn.Module,
        objective: Objective,
    ) -> Taught:
        return freeze_teacher(run, data, cast(Detector | None, teacher), cast(Detector, student), objective)

    def train_loader(
        self,
        run: RunContext,
        data: RunScenes,
        networks: Sequence[nn.Module | None],
        taught: Taught | None = None,
        *,
        whole: bool = False,
    ) -> SceneLoader | MixedScenes:
        least = max((one.least for one in networks if isinstance(one, Detector)), default=1)
        config = run.config
        return train_scenes(
            config,
            config.train,
            data.train,
            run.device,
            least=least,
            short_sides=config.data.short_sides,
            unlabelled=_marked(run, data, taught),
        )

    def set_up(self, run: RunContext, parts: Parts) -> None:
        """Create connectors from one forward pass on a batch. The student's state is restored afterwards.

        Losses on feature maps compare all levels of more than one place, unless they name some. The default for
        classifiers, the last map alone, would be a pooled copy of the one before.
        """
        objective, student = parts.objective, parts.student.to(run.device)
        if not objective.reads_features:
            return
        scenes = next(iter(parts.loader.epoch(0)))
        state = {key: value.clone() for key, value in student.state_dict().items()}
        with torch.no_grad():  # training mode, as only then a detector labels its proposals
            lesson = Detect()(student.train(), parts.taught.module.to(run.device), scenes)
        student.load_state_dict(state)
        objective.prefer_taps(levels_to_compare(lesson))
        objective.setup(lesson.student, lesson.teacher, num_samples=parts.loader.num_indices)

    def cache(self, run: RunContext, parts: Parts, *, epochs: int) -> BaseTeacher:
        return parts.taught.module  # never cached: check() refuses teacher.cache

    def before_training(self, run: RunContext, parts: Parts) -> Found | None:
        """Evaluate the untrained student, for the drawn images of the run folder."""
        data = parts.data
        if note := other_share(run.config, parts.loader):
            run.report.note(note)
        if data.unlabelled is not None and (note := unseen(run.config, len(data.unlabelled.split))):
            run.report.note(note)
        if parts.teacher is not None and data.unlabelled is None and len(data.train) <= FEW:
            run.report.note(
                f"data: all {len(data.train):,} training pictures have annotations. A teacher helps most on pictures that have "
                "none: add some with --unlabelled SRC"
            )
        return None if run.out is None else self._found(run, parts, parts.student)

    def evaluator(self, run: RunContext, parts: Parts) -> Callable[[nn.Module], Found]:
        return lambda model: self._found(run, parts, model)

    def _found(self, run: RunContext, parts: Parts, model: nn.Module) -> Found:
        data = parts.data
        return evaluate_detector(model, data.source, data.test, run.device, workers=run.config.data.workers)

    def student_record(
        self, student: nn.Module, scores: Found, history: Sequence[EpochRecord]
    ) -> StudentRecord:
        best, detector = best_epoch(history), cast(Detector, student)
        return StudentRecord(
            name=detector.name,
            parameters=num_parameters(detector),
            **numbers_of(scores.scores),
            ap_best=best.score,
            epoch_best=best.epoch,
        )

    def data_record(self, run: RunContext, data: RunScenes, student: nn.Module | None) -> DataRecord:
        return DataRecord(
            source=run.config.data.source,
            fingerprint=data.source.fingerprint,
            classes=data.classes,
            train=len(data.train),
            val=0 if data.val is None else len(data.val),
            test=len(data.test),
            duplicates=data.source.duplicates,
            faults=data.source.faults + (() if data.unlabelled is None else data.unlabelled.faults),
            unlabelled=None if data.unlabelled is None else len(data.unlabelled.split),
            unlabelled_fingerprint=None if data.unlabelled is None else data.unlabelled.fingerprint,
        )

    def results(
        self, run: RunContext, parts: Parts, scores: Found, before: Found | None
    ) -> Mapping[str, Any]:
        pictures: list[str] = []
        if run.out is not None and before is not None and is_main():
            columns = {} if parts.taught.scores is None else {"teacher": parts.taught.scores}
            columns |= {"student before": before, "student after": scores}
            pictures = draw(run.out, parts.data, columns)
        cost: Both[CostRecord] | None = None
        if run.out is not None and is_main():
            taught = parts.taught.module if parts.taught.scores is not None else None
            student, teacher = (
                None if network is None else measure_cost(network, parts.data.test, run.device)
                for network in (parts.student, taught)
            )
            assert student is not None
            cost = Both[CostRecord](student=student, teacher=teacher)
        return {
            "compared": None,
            "detection": detection_record(parts.data, scores, parts.taught.scores, pictures, cost),
        }

    def describe(self, parts: Parts) -> str:
        student = cast(Detector, parts.student)
        return f"{student.name} ({num_parameters(student):,} parameters), {len(parts.data.train):,} images"

    def save_student(self, student: nn.Module, path: Path) -> None:
        save_detector(cast(Detector, student), path)

    def examples_from(self, record: RunRecord) -> None:
        return None  # drawn images are files of the run folder

    def write_page(self, path: Path, record: RunRecord, parts: Parts) -> None:
        write_run_page(path, record, None, sections=page_sections(record, path.parent))

    def rehearsal(self, data: RunScenes, rows: int, *, cached: bool = False) -> Task:
        from outgrow.detection.rehearsal import Rehearsal

        return Rehearsal(data, rows)  # a detector is never cached

    def held_out(self) -> Task:
        raise ValueError(
            "tune: needs a classifier, got a detector, for which no images are held out; compare a few values of "
            "method.weight with `outgrow compare` instead."
        )

    def evaluate_model(self, source: str, name: str, **options: Any) -> dict[str, Any]:
        return evaluate_detection(source, name, **options)


def _marked(run: RunContext, data: RunScenes, taught: Taught | None) -> DetectionSplit | None:
    """The pictures without annotations, with the boxes that the teacher finds if there is one."""
    if data.unlabelled is None:
        return None
    pictures = data.unlabelled.split
    if taught is None or isinstance(taught.module, NoDetector):
        return pictures
    with run.report.bar("teacher on the pictures without annotations", len(pictures)) as advance:
        found = marked_by(
            taught.module, pictures, run.device, workers=run.config.data.workers, advance=advance
        )
    objects, empty = len(found.file.label), int((found.file.first.diff()[found.index] == 0).sum())
    warning = "" if objects else "warning: "
    run.report.note(
        f"{warning}teacher: finds {objects:,} objects with a score of {SURE:g} or more in {len(pictures):,} pictures without annotations; "
        f"{empty:,} of them have none"
    )
    return found


def _note_ignored(run: RunContext) -> None:
    """Warn about fields that were set and have no effect on a detector. Of those that are off, nothing is expected."""
    fields = run.chosen(IGNORED)
    if fields:
        run.report.note(f"warning: {', '.join(fields)} have no effect on a detector")


def _refuse(config: Config, objective: Objective) -> None:
    """``ValueError`` for options that need rows with a fixed identity: proposals differ from step to step."""
    options = config.teacher
    for section in ("train", "teacher_train") if options.train else ("train",):
        for name in FOR_CLASSIFIERS:
            value = getattr(getattr(config, section), name)
            if value != TrainConfig.model_fields[name].default:
                raise ValueError(
                    f"{section}.{name}: needs a classifier, got {value!r} for a detector, which has a task loss of its own; "
                    "leave it out."
                )
    if config.data.exclude is not None:
        raise ValueError(
            "data.exclude: needs images with one label each, got pictures with boxes; remove the pictures from the "
            "annotations instead."
        )
    if config.data.class_map is not None:
        raise ValueError(
            "data.class_map: needs images with one label each, got pictures with boxes; rename the categories in the "
            "annotations as the teacher's classes are called."
        )
    for name in objective.needs_unlabelled:
        raise ValueError(f"{name}: needs a classifier, got a detector; choose another loss.")
    if config.method.effective.trust is not None:
        raise ValueError(
            f"method.trust={config.method.trust}: needs a classifier, got a detector; leave it out."
        )
    for name in objective.needs_index:
        raise ValueError(
            f"{name}: needs the same rows in every epoch, got a detector's proposals; choose another loss."
        )
    if config.method.preset == "none":
        return
    if options.correct == "always":
        raise ValueError(
            "--correct-teacher always: needs the same rows in every epoch, got a detector's proposals; leave it out, "
            "as bias correction is for classifiers (rectifiers do work)."
        )
    if options.cache is not None:
        raise ValueError(
            "teacher.cache: needs outputs that depend only on the view, got a detector, whose outputs also depend on the "
            "student's proposals; leave it out."
        )
    if options.train and options.rows == "disjoint":
        raise ValueError(
            "teacher.rows: needs same for a detector, got disjoint; train the teacher on its own annotations first."
        )


TASK = Detection()
