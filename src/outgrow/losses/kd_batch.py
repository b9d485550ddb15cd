"""What a pass of :mod:`outgrow.losses.kd_fast` is asked, and what it answers.

A step needs three sums over the rows and one matrix, the gradient; no vector of losses is kept.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from outgrow.outputs import Rule

Scale = Float[Tensor, ""] | float


class Scales(NamedTuple):
    """What multiplies each row's losses: the cross-entropy, and ``T^2 KL`` on right and on wrong rows."""

    task: Scale
    easy: Scale
    hard: Scale


class Batch(NamedTuple):
    """The rows of one step. ``weight`` is each row's own beside ``scales``; its type is the one to compute in."""

    student: Float[Tensor, "rows classes"]
    teacher: Float[Tensor, "rows classes"]
    label: Int[Tensor, " rows"]
    wrong: Bool[Tensor, " rows"]
    weight: Float[Tensor, " rows"]
    scales: Scales
    rule: Rule
    temperature: float

    def kd_weight(self) -> Float[Tensor, " rows"]:
        """What multiplies ``T^2 KL`` of each row."""
        # as tensors of that type: of two plain numbers torch would make float32, even for double
        easy, hard = (
            torch.as_tensor(scale, dtype=self.weight.dtype, device=self.weight.device)
            for scale in (self.scales.easy, self.scales.hard)
        )
        return self.weight * torch.where(self.wrong, hard, easy)


class Sums(NamedTuple):
    """Over all rows the cross-entropy, over right and over wrong ones their weight times ``KL``, all before
    ``Batch.scales``; and the gradient of the scaled sum (``KL`` times ``T^2``), where it was wanted.

    Numbers from the pass in C, where a tensor of one number would cost as much as one of many.
    """

    task: Scale
    easy: Scale
    hard: Scale
    gradient: Float[Tensor, "rows classes"] | None


def summed(
    batch: Batch,
    task: Float[Tensor, " rows"],
    kl: Float[Tensor, " rows"],
    gradient: Float[Tensor, "rows classes"] | None,
) -> Sums:
    """The answer of a pass that has both losses row by row."""
    kl = kl * batch.weight
    hard = kl * batch.wrong
    sums = torch.stack((task, kl - hard, hard)).sum(dim=1)
    return Sums(sums[0], sums[1], sums[2], gradient)
