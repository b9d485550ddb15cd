"""What both networks answer for one batch, and the truth about its rows.

    outgrow.classification.Classify    a row is an image
    outgrow.detection.Detect           a row is a proposal

The trainer gets a lesson, hands the teacher's part to the rectifier and the student's to the objective,
and knows no more of either task.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from outgrow.outputs import Outputs, Target


@dataclass(frozen=True)
class Lesson:
    """The rows of a batch, with both networks' outputs. ``task`` is the task's own loss where it has one; without it
    the objective takes cross-entropy."""

    student: Outputs
    teacher: Outputs
    target: Target
    task: Float[Tensor, ""] | None = None


def without_rows(lesson: Lesson) -> Lesson:
    """``lesson`` with its graph and none of its rows: what a process says that has no share of a batch.

    The gradients of the others wait for its own, which are zero.
    """
    target = lesson.target
    return Lesson(
        _no_rows(lesson.student),
        _no_rows(lesson.teacher),
        replace(
            target,
            label=target.label[:0],
            index=None if target.index is None else target.index[:0],
            partner=None if target.partner is None else target.partner[:0],
            mix=None if target.mix is None else target.mix[:0],
            image=None if target.image is None else target.image[:0],
        ),
        None if lesson.task is None else lesson.task * 0.0,
    )


def _no_rows(outputs: Outputs) -> Outputs:
    return Outputs(outputs.logits[:0], {name: value[:0] for name, value in outputs.features.items()})


@runtime_checkable
class Samples(Protocol):
    """What any batch has: pictures, and the number of each in its split."""

    @property
    def images(self) -> Sequence[Tensor] | Tensor: ...

    @property
    def index(self) -> Tensor | None: ...


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
class Ask(Protocol):
    """How a task makes its lesson of a batch; called under the run's autocast, with the student in
    training mode. A batch without images is the empty share of one process: the student is called all the
    same, on a stand-in, and the lesson has no rows (:func:`without_rows`)."""

    @property
    def fixed_shape(self) -> bool:
        """Whether all whole batches have one shape, so that compiling pays."""
        ...

    def __call__(self, student: nn.Module, teacher: nn.Module, batch: Any) -> Lesson: ...
