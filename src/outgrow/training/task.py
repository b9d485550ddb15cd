"""What a task gives a run, and what a run gives its task.

A task (``outgrow.classification``, ``outgrow.detection``) declares how its data are opened, how its networks
are made, how a batch becomes a lesson, what a run is judged by and what its page shows. The order in which
it is asked is that of :func:`outgrow.run.distillation.assemble`. A third task is a folder with a ``TASK``
and a line in ``outgrow.run.tasks``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from outgrow.knowledge import Rectifier
from outgrow.objective import Objective
from outgrow.outputs import Knowledge, Outputs, Target
from outgrow.teacher import BaseTeacher
from outgrow.training.config import Config
from outgrow.training.lesson import Ask, Batches
from outgrow.training.meter import EpochRecord
from outgrow.training.progress import Reporter
from outgrow.training.record import CorrectionRecord, DataRecord, StudentRecord, TeacherRecord


@dataclass(frozen=True)
class RunContext:
    """The conditions of one run: its configuration, its device, its folder, and who is told of it."""

    config: Config
    device: torch.device
    report: Reporter
    out: Path | None = None
    resume: bool = False


@dataclass
class Taught:
    """The teacher as the student sees it, and what the record says of it.

    ``module`` is a ``NoTeacher`` where the student trains alone; ``scores`` are the task's own on the test
    split, None where they were not taken.
    """

    module: BaseTeacher
    record: TeacherRecord | None = None
    correction: CorrectionRecord | None = None
    scores: Any = None


@dataclass
class Parts:
    """All parts of a run before its first step. ``data``, ``student`` and ``teacher`` are the task's own kinds;
    ``teacher`` is the network in whatever classes it has, ``taught`` what became of it."""

    data: Any
    student: nn.Module
    teacher: nn.Module | None
    taught: Taught
    rectify: Rectifier
    objective: Objective
    loader: Batches


@runtime_checkable
class Scored(Protocol):
    """What a task measures of a network on a split."""

    @property
    def score(self) -> float:
        """In the task's metric, percent."""
        ...


@runtime_checkable
class Task(Protocol):
    """See the module's text. Errors that users can meet are ``ValueError``."""

    metric: str
    """What a run is judged by: a key of ``outgrow.training.record.METRICS``."""

    def ask(self, config: Config) -> Ask:
        """How a batch becomes a lesson."""
        ...

    def rectifier(self, rectify: Rectifier) -> Callable[[Outputs, Target], Knowledge]:
        """``rectify``, with what the task adds to it."""
        ...

    def open_data(self, run: RunContext) -> Any:
        """The data of a run: there is something to train on, and something to test on."""
        ...

    def check(self, run: RunContext, objective: Objective) -> None:
        """Refuse what the task cannot do, and note what it ignores, before anything is trained."""
        ...

    def make_student(
        self, run: RunContext, data: Any, objective: Objective, module: nn.Module | None
    ) -> nn.Module:
        """The student for the data's classes: ``module``, or the one that the configuration names."""
        ...

    def make_teacher(self, run: RunContext, data: Any, module: nn.Module | None) -> nn.Module | None:
        """The teacher network with its weights, trained first where asked for; None for no teacher."""
        ...

    def freeze(
        self,
        run: RunContext,
        data: Any,
        teacher: nn.Module | None,
        student: nn.Module,
        objective: Objective,
    ) -> Taught:
        """What the student learns from: frozen, in the student's classes, corrected where that helps."""
        ...

    def train_loader(
        self, run: RunContext, data: Any, networks: Sequence[nn.Module | None], *, whole: bool = False
    ) -> Batches:
        """The training views: this process's share, or all of them."""
        ...

    def set_up(self, run: RunContext, parts: Parts) -> None:
        """Build what the losses learn (connectors, memories) from one dry run."""
        ...

    def cache(self, run: RunContext, parts: Parts, *, epochs: int) -> BaseTeacher:
        """The teacher behind the cache that the configuration names; the teacher itself without one."""
        ...

    def before_training(self, run: RunContext, parts: Parts) -> Any:
        """What the task wants to keep of the untrained student; handed to :meth:`results`."""
        ...

    def evaluator(self, run: RunContext, parts: Parts) -> Callable[[nn.Module], Scored]:
        """What scores a student on the test split."""
        ...

    def student_record(
        self, student: nn.Module, scores: Any, history: Sequence[EpochRecord]
    ) -> StudentRecord:
        """What the record says of the student."""
        ...

    def data_record(self, run: RunContext, data: Any) -> DataRecord:
        """What the record says of the data."""
        ...

    def results(self, run: RunContext, parts: Parts, scores: Any, before: Any) -> Mapping[str, Any]:
        """The task's own parts of the record: ``compared``, ``detection``."""
        ...

    def describe(self, parts: Parts) -> str:
        """The student and its data in a line."""
        ...

    def save_student(self, student: nn.Module, path: Path) -> None:
        """Write the student alone: the file that is deployed."""
        ...

    def examples_from(self, config: Config) -> Any:
        """The test images that records point into, for the page of a study; None where pages show none."""
        ...

    def write_page(self, path: Path, record: Any, parts: Parts) -> None:
        """Write the page of a run."""
        ...

    def rehearsal(self, data: Any, rows: int, *, cached: bool = False) -> "Task":
        """The same task on the first ``rows`` of ``data``, to see whether the parts fit and how long a step takes. The
        teacher is neither trained, scored nor corrected; with ``cached`` it costs nothing, where it can be cached."""
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
    ) -> dict[str, Any]:
        """What ``outgrow evaluate`` says of a model on the test split of a source."""
        ...
