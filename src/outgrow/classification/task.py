"""The task of images with one label each."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from outgrow.classification.caching import cached_teacher
from outgrow.classification.data import RunData, eval_loader, open_run_data, train_loader
from outgrow.classification.evaluation import evaluate_classifier
from outgrow.classification.lesson import Classify
from outgrow.classification.page import page_sections, page_warnings
from outgrow.classification.record import classification_record, compare
from outgrow.classification.scores import Scores, evaluate
from outgrow.classification.student import student_network, tapped, weigh_task
from outgrow.classification.teacher import check_teachers, freeze_teacher, make_teacher
from outgrow.classification.trust import fit_reliability
from outgrow.classification.view import whole_size
from outgrow.data import Loader, Split
from outgrow.knowledge import Rectifier
from outgrow.models import Network, num_parameters, save_student
from outgrow.models.network import resized
from outgrow.models.taps import Taps
from outgrow.objective import Objective
from outgrow.outputs import Knowledge, Outputs, Target
from outgrow.report.run_page import write_run_page
from outgrow.teacher import BaseTeacher
from outgrow.training.config import Config
from outgrow.training.meter import EpochRecord, best_epoch
from outgrow.training.processes import process_group
from outgrow.training.record import DataRecord, RunRecord, StudentRecord
from outgrow.training.task import Parts, RunContext, Task, Taught
from outgrow.training.unlabelled import other_share, unseen, without_labels

FEW = 1000
"""Up to this number of training images, a run points to unlabelled images: with 500 labels they were worth more than
any choice of method."""


class Classification:
    """See :class:`outgrow.training.task.Task`. A row is an image."""

    metric = "top1"

    def lesson_maker(self, config: Config) -> Classify:
        return Classify(config.train.channels_last)

    def rectifier(self, rectify: Rectifier) -> Callable[[Outputs, Target], Knowledge]:
        return rectify

    def open_data(self, run: RunContext) -> RunData:
        return open_run_data(run.config)

    def check(self, run: RunContext, objective: Objective) -> None:
        if run.config.data.short_sides:
            raise ValueError(
                f"data.short_sides: needs a detector, got {list(run.config.data.short_sides)} for a classifier, whose images have "
                "one size; leave it out, and see data.size."
            )
        check_teachers(run.config, objective)
        for name in objective.needs_unlabelled if run.config.data.unlabelled is None else ():
            raise ValueError(
                f"{name}: needs images with and without labels, got labels for all; add some without (--unlabelled SRC), or choose "
                "another loss."
            )
        if run.config.data.unlabelled is not None and (note := without_labels(run.config, objective)):
            run.report.note(note)

    def make_student(
        self, run: RunContext, data: RunData, objective: Objective, module: nn.Module | None
    ) -> Taps:
        return tapped(student_network(run.config, data, module, run.report), objective)

    def make_teacher(self, run: RunContext, data: RunData, module: nn.Module | None) -> Network | None:
        return make_teacher(run, data, module)

    def freeze(
        self,
        run: RunContext,
        data: RunData,
        teacher: nn.Module | None,
        student: nn.Module,
        objective: Objective,
    ) -> Taught:
        network, own = cast(Network | None, teacher), network_of(student)
        if network is not None and {*map(id, network.parameters())} & {*map(id, own.parameters())}:
            raise ValueError(
                "distill: needs a teacher and a student of their own, got two that share parameters; pass copy.deepcopy(net) "
                "as one of them."
            )
        size = own.input_spec.size
        if network is not None and network.input_spec.size is None and size is not None:
            resized(network, size)  # a teacher without an input size gets that of the student
        return freeze_teacher(run, data, network, own, objective)

    def train_loader(
        self,
        run: RunContext,
        data: RunData,
        networks: Sequence[nn.Module | None],
        taught: Taught | None = None,
        *,
        whole: bool = False,
    ) -> Loader:
        nets = [None if network is None else network_of(network) for network in networks]
        unlabelled = None if data.unlabelled is None else data.unlabelled.split
        return train_loader(
            run.config, run.config.train, data.train, nets, run.device, whole=whole, unlabelled=unlabelled
        )

    def set_up(self, run: RunContext, parts: Parts) -> None:
        weigh_task(parts.objective, run.config.train, parts.data.train, parts.data.classes)
        self.learn_trust(run, parts)
        if not parts.objective.reads_features:
            return
        loader, train, teacher = parts.loader, parts.data.train, parts.taught.module.to(run.device)
        if process_group() is not None:  # the dry run of all processes uses the same whole batch
            loader = self.train_loader(run, parts.data, [parts.teacher, parts.student], whole=True)
        batch = next(loader.epoch(0))
        student = parts.student.to(run.device).eval()
        with torch.no_grad():
            student_out, teacher_out = student(batch.images), teacher(batch.images, index=batch.target.index)
        parts.objective.setup(
            student_out,
            teacher_out,
            num_samples=int(train.index.max()) + 1,
            label=train.labels,
            index=train.index,
        )

    def learn_trust(self, run: RunContext, parts: Parts) -> None:
        teacher = None if parts.teacher is None else network_of(parts.teacher)
        fit_reliability(run, parts, teacher, network_of(parts.student))

    def cache(self, run: RunContext, parts: Parts, *, epochs: int) -> BaseTeacher:
        return cached_teacher(run, parts, network_of(parts.student), epochs=epochs)

    def before_training(self, run: RunContext, parts: Parts) -> None:
        data = parts.data
        if note := other_share(run.config, parts.loader):
            run.report.note(note)
        if data.unlabelled is not None and (note := unseen(run.config, len(data.unlabelled.split))):
            run.report.note(note)
        if parts.teacher is not None and data.unlabelled is None and len(data.train) <= FEW:
            run.report.note(
                f"data: all {len(data.train):,} training images have labels. A teacher helps most on images that have none: "
                "add some with --unlabelled SRC"
            )
        if parts.teacher is not None and data.unlabelled is not None and run.config.method.weight is None:
            run.report.note(
                "data: beside images without labels the weight of the distillation decides much, and nobody has set it. On CIFAR-100 "
                "with 500 labels 2 or 4 was better than the presets' 1, by 4 to 8 points; --weight auto finds one for your data"
            )

    def evaluator(self, run: RunContext, parts: Parts) -> Callable[[nn.Module], Scores]:
        config, network = run.config, network_of(parts.student)
        test = eval_loader(parts.data.test, network, config.train, run.device, config.data.workers)
        return lambda model: evaluate(model, test)

    def student_record(
        self, student: nn.Module, scores: Scores, history: Sequence[EpochRecord]
    ) -> StudentRecord:
        best = best_epoch(history)
        network = network_of(student)
        return StudentRecord(
            name=network.name,
            parameters=num_parameters(network),
            top1=scores.top1,
            top5=scores.top5,
            nll=scores.nll,
            top1_best=best.score,
            epoch_best=best.epoch,
        )

    def data_record(self, run: RunContext, data: RunData, student: nn.Module | None) -> DataRecord:
        return DataRecord(
            source=run.config.data.source,
            fingerprint=data.source.fingerprint,
            classes=data.classes,
            train=len(data.train),
            val=0 if data.val is None else len(data.val),
            test=len(data.test),
            size=None if student is None else network_of(student).input_spec.size,
            image_size=whole_size(data.test),
            duplicates=data.source.duplicates,
            faults=data.source.faults + (() if data.unlabelled is None else data.unlabelled.faults),
            unlabelled=None if data.unlabelled is None else len(data.unlabelled.split),
            unlabelled_fingerprint=None if data.unlabelled is None else data.unlabelled.fingerprint,
            excluded=data.excluded,
            class_map=None if data.class_map is None else data.class_map.digest,
        )

    def results(self, run: RunContext, parts: Parts, scores: Scores, before: None) -> Mapping[str, Any]:
        found: dict[str, Any] = {"compared": compare(parts.data, parts.taught.scores, scores)}
        if run.out is not None:  # for the page; it takes a second
            student = network_of(parts.student)
            teacher = (
                parts.teacher if parts.taught.mixture is None else None
            )  # the cost of several is not that of one
            found["classification"] = classification_record(
                parts.data, student, scores, teacher, parts.taught.scores, run.device
            )
        return found

    def describe(self, parts: Parts) -> str:
        student = network_of(parts.student)
        return f"{student.name} ({num_parameters(student):,} parameters), {len(parts.data.train):,} images"

    def save_student(self, student: nn.Module, path: Path) -> None:
        save_student(network_of(student), path)

    def examples_from(self, record: RunRecord) -> Split:
        data = open_run_data(record.config)
        if data.source.fingerprint != record.data.fingerprint:
            raise ValueError(
                f"page: needs the images of {record.data.source} that the run was tested on, got others; restore them, or do "
                "without the pictures."
            )
        return data.test

    def write_page(self, path: Path, record: RunRecord, parts: Parts) -> None:
        write_run_page(path, record, parts.data.test, page_sections(record), page_warnings(record))

    def rehearsal(self, data: RunData, rows: int, *, cached: bool = False) -> Task:
        from outgrow.classification.rehearsal import Rehearsal

        return Rehearsal(data, rows, cached)

    def held_out(self) -> Task:
        from outgrow.classification.held_out import HeldOut

        return HeldOut()

    def evaluate_model(self, source: str, name: str, **options: Any) -> dict[str, Any]:
        return evaluate_classifier(source, name, **options)


def network_of(model: nn.Module) -> Network:
    """The network without its taps."""
    return cast(Network, model.model if isinstance(model, Taps) else model)


TASK = Classification()
