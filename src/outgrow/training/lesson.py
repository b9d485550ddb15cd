"""The outputs of both networks for one batch, and the labels of its rows.

    outgrow.classification.Classify    a row is an image
    outgrow.detection.Detect           a row is a proposal, an anchor, a point or a query

The trainer passes the teacher's outputs to the rectifier and the student's outputs to the objective. It does not
depend on the task otherwise.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from outgrow.outputs import Outputs, Target


@dataclass(frozen=True)
class Lesson:
    """The rows of a batch, with the outputs of both networks. ``task`` is the task loss; if it is None the objective
    uses cross-entropy."""

    student: Outputs
    teacher: Outputs
    target: Target
    task: Float[Tensor, ""] | None = None


def without_rows(lesson: Lesson) -> Lesson:
    """``lesson`` with its graph but without rows, for a process that has no share of a batch.

    It contributes zero gradients, which the other processes wait for.
    """
    return Lesson(
        _no_rows(lesson.student),
        _no_rows(lesson.teacher),
        lesson.target.rows(slice(0)),
        None if lesson.task is None else lesson.task * 0.0,
    )


def _no_rows(outputs: Outputs) -> Outputs:
    return Outputs(outputs.logits[:0], {name: value[:0] for name, value in outputs.features.items()})


@runtime_checkable
class Samples(Protocol):
    """A batch of any task: images, and the index of each in its split."""

    @property
    def images(self) -> Sequence[Tensor] | Tensor: ...

    @property
    def index(self) -> Tensor | None: ...

    @property
    def num_labelled(self) -> int:
        """How many of the images have a label, without a device sync."""
        ...

    def split(self, parts: int) -> Sequence["Samples"]:
        """``parts`` batches with equal shares of the images, for gradient accumulation."""
        ...


@runtime_checkable
class Batches(Protocol):
    """A loader of any task's batches; see :class:`outgrow.data.Loader`."""

    @property
    def num_samples(self) -> int: ...

    @property
    def num_indices(self) -> int: ...

    def __len__(self) -> int: ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]: ...


@runtime_checkable
class LessonMaker(Protocol):
    """Makes the lesson of a batch. It is called under the autocast of the run, with the student in training mode.
    A batch without images is the empty share of a process: the student is then called on blank images, and the
    lesson has no rows (:func:`without_rows`)."""

    @property
    def fixed_shape(self) -> bool:
        """Whether all full batches have the same shape, so that compiling pays."""
        ...

    @property
    def apart(self) -> str | None:
        """What in a lesson depends on how a batch is split among processes, as text; None if nothing does."""
        ...

    @property
    def least(self) -> int:
        """The smallest number of images that a network in training mode takes."""
        ...

    def __call__(self, student: nn.Module, teacher: nn.Module, batch: Any) -> Lesson: ...
