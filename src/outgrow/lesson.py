"""What both networks say about one batch, and what is true of its rows: how the nouns come about.

    Classify    a row is an image
    Detect      a row is a proposal (outgrow.detection)

The trainer asks for a lesson, hands the teacher's part to the rectifier and the student's to the
objective, and knows no more of either task.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from outgrow.data import Batch
from outgrow.outputs import Outputs, Target


@dataclass(frozen=True)
class Lesson:
    """Rows that both networks spoke about. ``task`` is the task's own loss where it has one; without it
    the objective takes cross-entropy."""

    student: Outputs
    teacher: Outputs
    target: Target
    task: Float[Tensor, ""] | None = None


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

    def epoch(self, epoch: int) -> Iterator[Any]: ...


@runtime_checkable
class Ask(Protocol):
    """How a task gets its lesson from a batch; called under the run's autocast, with the student in
    training mode."""

    def __call__(self, student: nn.Module, teacher: nn.Module, batch: Any) -> Lesson: ...


@dataclass(frozen=True)
class Classify:
    """Both networks look at the same images; a row is an image."""

    channels_last: bool = False

    def __call__(self, student: nn.Module, teacher: nn.Module, batch: Batch) -> Lesson:
        images = batch.images
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return Lesson(student(images), teacher(images, index=batch.index), batch.target)
