"""What every loss is, by the axis on which it can be taken apart.

    RowLoss     one value per row; rows do not look at each other
    ImageLoss   one value per image, of feature maps; images do not look at each other
    BatchLoss   relates the rows of a batch; takes their weights and returns a scalar

All are called as ``loss(student, teacher, target)``: student first, unreduced as far as the axis
allows, temperature and T^2 inside. Schedules, weights and reduction live in the objective.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn

from outgrow.outputs import Outputs, Target, as_outputs, as_target

Axis = Literal["row", "image", "batch"]


@dataclass(frozen=True)
class Fixture:
    """What a loss may look at before the first step: one dry run, and which samples training will show.

    ``num_samples`` is how many numbers samples may have (:attr:`Target.index` lies below it). ``index`` are
    the numbers of the training samples, None for all of them; ``label`` are the labels of exactly those, in
    the same order.
    """

    student: Outputs
    teacher: Outputs
    num_samples: int
    label: Int[Tensor, " labels"] | None = None
    index: Int[Tensor, " samples"] | None = None

    def __post_init__(self) -> None:
        if self.index is not None:
            self._check_index(self.index)
        if self.label is not None and len(self.label) != self.num_shown:
            raise ValueError(
                f"setup: needs one label for each of {self.num_shown} training samples, got {len(self.label)}; "
                "give the labels in the order of index, or of all samples where there is no index."
            )

    @property
    def num_shown(self) -> int:
        """How many samples training will show."""
        return self.num_samples if self.index is None else len(self.index)

    def _check_index(self, index: Tensor) -> None:
        low, high = map(int, index.aminmax()) if len(index) else (-1, -1)
        if low < 0 or high >= self.num_samples:
            raise ValueError(
                f"setup: needs numbers of training samples in 0..{self.num_samples - 1}, got "
                f"{f'{low} to {high}' if len(index) else 'none'}; num_samples is how many numbers there are, not how "
                "many samples are shown."
            )
        if (distinct := len(index.unique())) < len(index):
            raise ValueError(
                f"setup: needs each training sample once, got {len(index)} numbers of {distinct} samples; "
                "take repetitions out, and their labels."
            )


class Loss(nn.Module):
    """Facts that a loss declares, for the objective and for the contract suite."""

    axis: Axis = "row"
    temperature: float | None = None
    """The temperature at which the loss softens the teacher's logits; None for several or none."""
    softens: bool = False
    """Whether the constructor's ``temperature`` is that one (a contrastive temperature is not)."""
    transform: Callable[[Tensor], Tensor] | None = None
    """Applied to both networks' logits before the teacher is corrected (standardisation)."""
    zero_at_match: bool = True
    shift_invariant: bool = True
    """Whether adding a constant to all logits of a row changes nothing."""
    detaches: bool = False
    """Whether something of the student is held constant: the gradient is then not the value's own."""
    reads: frozenset[Literal["logits", "features"]] = frozenset({"logits"})
    draws: bool = False
    """Whether random numbers are drawn in training: by the sample's number and a count that the buffer ``draw``
    holds, so that neither the row's place nor the number of processes has an effect."""
    needs_label: bool = False
    """Whether it says nothing of a row without a label: a row loss is then 0 there, with a zero gradient."""
    batch_statistics: bool = False
    """Whether statistics of the batch enter each image's value, in eval mode too."""
    inert: Mapping[str, str] = {}
    """Rules that rewrite the teacher's logits and change nothing here, each with the reason; ``"all"`` for
    every one. What reads no logits needs no entry."""

    needs_index: bool = False
    """Whether it remembers samples by their number in the training set."""
    process_group: dist.ProcessGroup | None = None
    """The processes that share each batch; the objective sets it in every module that declares it. A loss that
    relates rows is called with those of all processes and need not look at it."""

    @property
    def wrapped(self) -> "Loss":
        """The loss that is called on transformed logits; itself where it wraps none."""
        return self

    def teacher_taps(self, features: Collection[str]) -> frozenset[str]:
        """Which of the teacher's ``features`` it reads, once it is set up; all where it cannot tell."""
        return frozenset(features) if "features" in self.reads else frozenset()

    def student_taps(self, features: Collection[str]) -> frozenset[str]:
        """Which of the student's ``features`` it reads, once it is set up; all where it cannot tell."""
        return frozenset(features) if "features" in self.reads else frozenset()

    def prefer_taps(self, names: Sequence[str]) -> None:
        """Compare the features called ``names`` where nobody chose any. For losses on feature maps."""

    def setup(self, fixture: Fixture) -> None:
        """Build adapters and memories from one dry run. Most losses have none."""

    def at(self, progress: float) -> None:
        """Told before each call how far training is, in [0, 1]. Few losses depend on it; one that is
        never told works as at the end of its own ramp."""


class RowLoss(Loss):
    """Implements :meth:`rows`; see the module's text."""

    axis: Axis = "row"

    def forward(
        self, student: Outputs | Tensor, teacher: Outputs | Tensor, target: Target | Tensor
    ) -> Float[Tensor, " rows"]:
        student, teacher, target = _nouns(student, teacher, target)
        value = self.rows(student, teacher, target)
        return torch.where(target.valid, value, torch.zeros_like(value)) if self.needs_label else value

    def rows(self, student: Outputs, teacher: Outputs, target: Target) -> Float[Tensor, " rows"]:
        raise NotImplementedError


class ImageLoss(Loss):
    """Implements :meth:`images`: one value for each image of the feature maps."""

    axis: Axis = "image"
    reads = frozenset({"features"})

    def forward(
        self, student: Outputs | Tensor, teacher: Outputs | Tensor, target: Target | Tensor
    ) -> Float[Tensor, " images"]:
        return self.images(*_nouns(student, teacher, target))

    def images(self, student: Outputs, teacher: Outputs, target: Target) -> Float[Tensor, " images"]:
        raise NotImplementedError


class BatchLoss(Loss):
    """Implements :meth:`batch`.

    Under several processes it gets the rows of all of them, in the order of their ranks: a row's place in the
    batch must have no effect.

    ``weight`` (float, rows, at least 0; None for ones) scales as a loss does: twice the weights give
    twice the value, and weights of 0 and 1 give the loss of the rows that are left times their share
    of the batch. So a batch loss adds up with row losses under one schedule.
    """

    axis: Axis = "batch"

    def forward(
        self,
        student: Outputs | Tensor,
        teacher: Outputs | Tensor,
        target: Target | Tensor,
        *,
        weight: Float[Tensor, " rows"] | None = None,
    ) -> Float[Tensor, ""]:
        student, teacher, target = _nouns(student, teacher, target)
        if weight is None:
            weight = student.logits.new_ones(len(student.logits))
        return self.batch(student, teacher, target, weight)

    def batch(
        self, student: Outputs, teacher: Outputs, target: Target, weight: Float[Tensor, " rows"]
    ) -> Float[Tensor, ""]:
        raise NotImplementedError


def _nouns(
    student: Outputs | Tensor, teacher: Outputs | Tensor, target: Target | Tensor
) -> tuple[Outputs, Outputs, Target]:
    return as_outputs(student, whose="student"), as_outputs(teacher, whose="teacher"), as_target(target)


def positive(value: float, *, what: str) -> float:
    """``value`` if it is a positive number; refuses NaN too."""
    if not value > 0:
        raise ValueError(f"{what} needs a positive number, got {value}.")
    return value
