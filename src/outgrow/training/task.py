"""The interface between a run and its task.

A task (``outgrow.classification``, ``outgrow.detection``) defines how its data are opened, how its networks are
made, how a batch becomes a lesson, the metric of a run, and the contents of its page.
:func:`outgrow.run.distillation.assemble` calls its methods in order. A third task is a folder with a ``TASK`` and
a line in ``outgrow.run.tasks``.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from outgrow.data.reading import OnFault
from outgrow.knowledge import Rectifier
from outgrow.objective import Objective
from outgrow.outputs import Knowledge, Outputs, Target
from outgrow.teacher import BaseTeacher
from outgrow.training.config import Config, leaves
from outgrow.training.lesson import Batches, LessonMaker
from outgrow.training.meter import EpochRecord
from outgrow.training.progress import Reporter
from outgrow.training.record import (
    CorrectionRecord,
    DataRecord,
    MixtureRecord,
    NoiseRecord,
    StudentRecord,
    TeacherRecord,
)


@dataclass(frozen=True)
class RunContext:
    """The context of one run: configuration, device, folder and reporter.

    ``recipe`` are the fields that its recipe sets, which nobody has chosen for this run.
    """

    config: Config
    device: torch.device
    report: Reporter
    out: Path | None = None
    resume: bool = False
    recipe: Mapping[str, Any] = field(default_factory=dict)

    def chosen(self, names: Iterable[str]) -> list[str]:
        """The fields among ``names`` that somebody has set for this run, and that are not off."""
        values, default, recipe = (
            dict(leaves(one)) for one in (self.config.model_dump(), Config().model_dump(), self.recipe)
        )
        return [
            name
            for name in names
            if values[name] and values[name] not in (default[name], recipe.get(name, default[name]))
        ]


@dataclass
class Taught:
    """The teacher that the student learns from, and its part of the record.

    ``module`` is a ``NoTeacher`` if the student trains alone. ``scores`` are those of the task on the test split,
    None if they were not computed.
    """

    module: BaseTeacher
    record: TeacherRecord | None = None
    correction: CorrectionRecord | None = None
    scores: Any = None
    mixture: MixtureRecord | None = None
    """What was found of several teachers."""
    noise: Float[Tensor, "classes classes"] | None = None
    """``[true, given]`` of the training labels, where some are wrong."""
    noise_record: NoiseRecord | None = None


@dataclass
class Parts:
    """All parts of a run before its first step. The types of ``data``, ``student`` and ``teacher`` depend on the task.
    ``teacher`` is the network with its own classes, ``taught`` the teacher after mapping and correction."""

    data: Any
    student: nn.Module
    teacher: nn.Module | None
    taught: Taught
    rectify: Rectifier
    objective: Objective
    loader: Batches


@runtime_checkable
class Scored(Protocol):
    """The scores of a network on a split."""

    @property
    def score(self) -> float:
        """The metric of the task, in percent."""
        ...


@runtime_checkable
class Task(Protocol):
    """The methods of a task, in the order of a run. Errors that users can cause are ``ValueError``."""

    metric: str
    """The metric of a run: a key of ``outgrow.training.record.METRICS``."""

    def lesson_maker(self, config: Config) -> LessonMaker:
        """The function that makes a lesson of a batch."""
        ...

    def rectifier(self, rectify: Rectifier) -> Callable[[Outputs, Target], Knowledge]:
        """``rectify``, extended by the task if it needs to."""
        ...

    def open_data(self, run: RunContext) -> Any:
        """The data of a run, with training and test images."""
        ...

    def check(self, run: RunContext, objective: Objective) -> None:
        """Raise ``ValueError`` for options that the task does not support, and warn of ignored ones."""
        ...

    def make_student(
        self, run: RunContext, data: Any, objective: Objective, module: nn.Module | None
    ) -> nn.Module:
        """The student for the classes of the data: ``module``, or the configured one."""
        ...

    def make_teacher(self, run: RunContext, data: Any, module: nn.Module | None) -> nn.Module | None:
        """The teacher network with its weights, trained first if configured; None for no teacher."""
        ...

    def freeze(
        self,
        run: RunContext,
        data: Any,
        teacher: nn.Module | None,
        student: nn.Module,
        objective: Objective,
    ) -> Taught:
        """The frozen teacher with the classes of the student, corrected if that helps."""
        ...

    def train_loader(
        self,
        run: RunContext,
        data: Any,
        networks: Sequence[nn.Module | None],
        taught: Taught | None = None,
        *,
        whole: bool = False,
    ) -> Batches:
        """The loader of the training views: the share of this process, or with ``whole`` all of them. Without ``taught`` it
        has the same batches, but nothing in them that a teacher has to find first."""
        ...

    def set_up(self, run: RunContext, parts: Parts) -> None:
        """Build the connectors and memories of the losses from one dry run."""
        ...

    def cache(self, run: RunContext, parts: Parts, *, epochs: int) -> BaseTeacher:
        """The teacher with the configured cache; the teacher itself without one."""
        ...

    def before_training(self, run: RunContext, parts: Parts) -> Any:
        """Results of the untrained student that the task needs later, passed to :meth:`results`."""
        ...

    def evaluator(self, run: RunContext, parts: Parts) -> Callable[[nn.Module], Scored]:
        """The function that scores a student on the test split."""
        ...

    def student_record(
        self, student: nn.Module, scores: Any, history: Sequence[EpochRecord]
    ) -> StudentRecord:
        """The student's part of the record."""
        ...

    def data_record(self, run: RunContext, data: Any, student: nn.Module | None) -> DataRecord:
        """The data's part of the record; without a student it lacks the size of the images."""
        ...

    def results(self, run: RunContext, parts: Parts, scores: Any, before: Any) -> Mapping[str, Any]:
        """The parts of the record that depend on the task: ``compared``, ``classification``, ``detection``."""
        ...

    def describe(self, parts: Parts) -> str:
        """The student and its data in one line."""
        ...

    def save_student(self, student: nn.Module, path: Path) -> None:
        """Write the weights of the student for deployment."""
        ...

    def examples_from(self, record: Any) -> Any:
        """The test images of a run, which the page of a study shows; None if it shows none. ``ValueError`` if they are no
        longer those that it was tested on."""
        ...

    def write_page(self, path: Path, record: Any, parts: Parts) -> None:
        """Write the page of a run."""
        ...

    def rehearsal(self, data: Any, rows: int, *, cached: bool = False) -> "Task":
        """The same task on the first ``rows`` of ``data``, to check that the parts fit and to time a step. The teacher is
        not trained, scored or corrected. With ``cached`` it is not even called, if it can be cached."""
        ...

    def held_out(self) -> "Task":
        """The same task with held-out training images in place of the test images. It opens data and teacher once, for
        several trainings. ``ValueError`` if the task holds out none."""
        ...

    def evaluate_model(
        self,
        source: str,
        name: str,
        *,
        weights: str | Path | None,
        label: str | None,
        batch_size: int,
        workers: int,
        report: Reporter,
        on_fault: OnFault,
    ) -> dict[str, Any]:
        """The result of ``outgrow evaluate`` for a model on the test split of a source."""
        ...
