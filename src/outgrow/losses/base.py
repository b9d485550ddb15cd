"""The base classes of losses, by the shape of their value.

    RowLoss     one value per row, independent of other rows
    ImageLoss   one value per image, from feature maps, independent of other images
    BatchLoss   a scalar that relates the rows of a batch; takes row weights

All are called as ``loss(student, teacher, target)``. Row and image losses are not reduced. Temperature and T^2
are applied inside. Schedules, weights and reduction belong to the objective.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn

from outgrow.knowledge.split import check_label
from outgrow.knowledge.trust import Reliability
from outgrow.outputs import Outputs, Target, as_outputs, as_target

Axis = Literal["row", "image", "batch"]


@dataclass(frozen=True)
class Fixture:
    """The input of :meth:`Loss.setup`: the outputs of a dry run, and the numbers of the training samples.

    Every :attr:`Target.index` is below ``num_samples``. ``index`` are the numbers of the training samples, None
    for all below ``num_samples``. ``label`` are their labels, in the same order.
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
        """The number of training samples."""
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
    """The base class of losses. Its attributes are declarations that the objective, a run and the tests read. A loss that wraps
    another one declares what that one does."""

    axis: Axis = "row"
    temperature: float | None = None
    """The temperature at which the loss softens the teacher's logits; None if there are several or none."""
    softens: bool = False
    """Whether the constructor's ``temperature`` softens logits (a contrastive temperature does not)."""
    transform: Callable[[Tensor], Tensor] | None = None
    """Applied to both networks' logits before the teacher is corrected (standardisation)."""
    zero_at_match: bool = True
    shift_invariant: bool = True
    """Whether adding a constant to all logits of a row changes nothing."""
    detaches: bool = False
    """Whether a part that depends on the student is detached: the gradient is then not that of the value."""
    reads: frozenset[Literal["logits", "features"]] = frozenset({"logits"})
    draws: bool = False
    """Whether random numbers are drawn in training: by the sample's number and a count that the buffer ``draw``
    holds, so that neither the row's place nor the number of processes has an effect."""
    needs_label: bool = False
    """Whether it needs labels. On a row without a label a row loss is then 0, with a zero gradient."""
    needs_unlabelled: bool = False
    """Whether it is zero unless a batch has rows of both kinds, with and without a label."""
    batch_statistics: bool = False
    """Whether each image's value depends on statistics of the batch, in eval mode too."""
    inert: Mapping[str, str] = {}
    """Rules that rewrite the teacher's logits but do not change this loss, each with the reason; ``"all"`` for
    every rule. A loss that reads no logits needs no entry."""

    reliability: Reliability
    """How often the teacher is right on a row, of a loss that asks for it. A run fits it before training, on logits after
    :attr:`transform`."""
    closed_form: bool = False
    """Whether ``outgrow.losses.kd_fast`` computes it and its gradient in one pass."""
    needs_index: bool = False
    """Whether it has a memory of samples, by their number in the training set."""
    process_group: dist.ProcessGroup | None = None
    """The processes that share each batch. The objective sets it in every module that declares it. A loss that relates
    rows is called with the rows of all processes and does not need it."""

    @property
    def wrapped(self) -> "Loss":
        """The loss that is called on transformed logits; ``self`` if it wraps none."""
        return self

    def teacher_taps(self, features: Collection[str]) -> frozenset[str]:
        """The subset of the teacher's ``features`` that it reads, after :meth:`setup`; all if it is not known."""
        return frozenset(features) if "features" in self.reads else frozenset()

    def student_taps(self, features: Collection[str]) -> frozenset[str]:
        """Which of the student's ``features`` it reads, once it is set up; all where it cannot tell."""
        return frozenset(features) if "features" in self.reads else frozenset()

    def prefer_taps(self, names: Sequence[str]) -> None:
        """Use the features ``names`` if the constructor was given no paths. For losses on feature maps."""

    def setup(self, fixture: Fixture) -> None:
        """Build adapters and memories from the outputs of a dry run. Most losses have none."""

    def at(self, progress: float) -> None:
        """Set the progress of training, in [0, 1]; the objective does so before each call.

        Few losses depend on it. Without a call the loss behaves as at the end of its ramp.
        """

    def _nouns(
        self, student: Outputs | Tensor, teacher: Outputs | Tensor, target: Target | Tensor
    ) -> tuple[Outputs, Outputs, Target]:
        """The arguments of a call. ``ValueError`` if a loss on logits gets other shapes, or labels out of range."""
        student, teacher = as_outputs(student, whose="student"), as_outputs(teacher, whose="teacher")
        target = as_target(target)
        if "logits" not in self.reads:
            return student, teacher, target
        own, other = student.logits.shape, teacher.logits.shape
        if own != other or len(target.label) != own[0]:
            raise ValueError(
                f"{type(self).__name__.lower()}: needs student and teacher logits of one shape and a label for each row, "
                f"got {tuple(own)}, {tuple(other)} and {len(target.label)} labels; pass all three for the same batch, "
                "and logits of the same classes."
            )
        check_label(target, own[1], whose="student")
        return student, teacher, target


class RowLoss(Loss):
    """A loss with one value per row. Subclasses implement :meth:`rows`."""

    axis: Axis = "row"

    def forward(
        self, student: Outputs | Tensor, teacher: Outputs | Tensor, target: Target | Tensor
    ) -> Float[Tensor, " rows"]:
        student, teacher, target = self._nouns(student, teacher, target)
        value = self.rows(student, teacher, target)
        return torch.where(target.valid, value, torch.zeros_like(value)) if self.needs_label else value

    def rows(self, student: Outputs, teacher: Outputs, target: Target) -> Float[Tensor, " rows"]:
        raise NotImplementedError


class ImageLoss(Loss):
    """A loss with one value per image of the feature maps. Subclasses implement :meth:`images`."""

    axis: Axis = "image"
    reads = frozenset({"features"})

    def forward(
        self, student: Outputs | Tensor, teacher: Outputs | Tensor, target: Target | Tensor
    ) -> Float[Tensor, " images"]:
        return self.images(*self._nouns(student, teacher, target))

    def images(self, student: Outputs, teacher: Outputs, target: Target) -> Float[Tensor, " images"]:
        raise NotImplementedError


class BatchLoss(Loss):
    """A loss with one value per batch. Subclasses implement :meth:`batch`.

    Under several processes it gets the rows of all of them, in the order of their ranks: the place of a row in the
    batch must have no effect.

    ``weight`` (float, rows, at least 0; None for ones) acts as it does on a mean over rows. Twice the weights
    give twice the value. Weights of 0 and 1 give the loss of the rows with weight 1 times their share of the
    batch. So batch losses and row losses can be added under one schedule.
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
        student, teacher, target = self._nouns(student, teacher, target)
        if weight is None:
            weight = student.logits.new_ones(len(student.logits))
        return self.batch(student, teacher, target, weight)

    def batch(
        self, student: Outputs, teacher: Outputs, target: Target, weight: Float[Tensor, " rows"]
    ) -> Float[Tensor, ""]:
        raise NotImplementedError


def positive(value: float, *, what: str) -> float:
    """``value``; ``ValueError`` if it is not positive, or NaN."""
    if not value > 0:
        raise ValueError(
            f"{what} needs a positive number, got {value}; change it, or leave it out for the default."
        )
    return value
