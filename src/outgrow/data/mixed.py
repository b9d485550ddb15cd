"""Batches of labelled and unlabelled images: :class:`Mixed`, and :class:`MixedLoader` for images with one label.

    labelled loader    its epochs are the epochs of the training
    unlabelled loader  has epochs of its own: its batches follow one another across the epochs of the training

A batch has the labelled rows first. Rows without a label have the label :data:`outgrow.UNLABELLED`.
"""

from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Int64
from torch import Tensor

from outgrow.data.plan import Batch, Plan
from outgrow.outputs import UNLABELLED, Target

UNLABELLED_SEED = 1_000_003
"""Added to the seed for unlabelled images, so that image 7 of both kinds has different views."""

B = TypeVar("B")
B_co = TypeVar("B_co", covariant=True)


@runtime_checkable
class Shuffled(Protocol[B_co]):
    """What both loaders are."""

    @property
    def plan(self) -> Plan: ...

    @property
    def num_samples(self) -> int: ...

    @property
    def num_indices(self) -> int: ...

    def __len__(self) -> int: ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[B_co]: ...


class Mixed(Generic[B]):
    """Each batch of ``labelled``, with a batch of ``unlabelled`` appended to it by :meth:`joined`.

    An epoch is one pass over the labelled images. Step s of epoch e has the unlabelled batch number
    ``e * len(labelled) + s`` of an endless sequence of shuffled passes over the unlabelled images. A view of an
    unlabelled image depends on the seed, on the number of that pass and on the image.
    """

    def __init__(self, labelled: Shuffled[B], unlabelled: Shuffled[B]) -> None:
        plan = unlabelled.plan
        if plan.num % plan.batch_size and not plan.drop_last:
            raise ValueError(
                f"{type(self).__name__}: needs unlabelled batches of one size, got a last one of {plan.num % plan.batch_size} instead "
                f"of {plan.batch_size}; make that loader with drop_last=True."
            )
        self.labelled, self.unlabelled = labelled, unlabelled
        self.batch = unlabelled.plan.batch_size
        """Unlabelled images in a batch, over all processes."""
        self._next: tuple[int, Iterator[B]] | None = None

    @property
    def num_samples(self) -> int:
        """Images in an epoch, over all processes: the labelled ones once, and the unlabelled ones of all steps."""
        return self.labelled.num_samples + len(self) * self.batch

    @property
    def num_indices(self) -> int:
        return self.labelled.num_indices + len(self) * self.batch

    def __len__(self) -> int:
        return len(self.labelled)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[B]:
        number = epoch * len(self) + start
        # the stream of the epoch before goes on: its workers have decoded the next batches already
        stream = self._next[1] if self._next and self._next[0] == number else self._stream(number)
        for step, batch in enumerate(self.labelled.epoch(epoch, start), start=start):
            more, number = next(stream), number + 1
            self._next = (number, stream)
            yield self.joined(batch, more, step)

    def joined(self, batch: B, more: B, step: int) -> B:
        """``batch`` with the unlabelled images ``more`` appended to it."""
        raise NotImplementedError

    def _stream(self, number: int) -> Iterator[B]:
        """The unlabelled batches from ``number`` on, without end."""
        epoch, start = divmod(number, len(self.unlabelled))
        while True:
            yield from self.unlabelled.epoch(epoch, start)
            epoch, start = epoch + 1, 0


class MixedLoader(Mixed[Batch]):
    """:class:`Mixed` of images with one label.

    ``target.index`` of an unlabelled row is its place in the epoch, after the numbers of the labelled images. It is
    unique within an epoch, so a teacher cache holds such rows too. It does not name the image.

    The labels of ``unlabelled`` are never read.
    """

    def joined(self, batch: Batch, more: Batch, step: int) -> Batch:
        own = self.unlabelled.plan.share(torch.arange(self.batch)).to(more.images.device)
        place = self.labelled.num_indices + step * self.batch + own
        return Batch(
            torch.cat([batch.images, more.images]),
            _extended(batch.target, place),
            labelled=len(batch.images),
        )


def _extended(target: Target, place: Int64[Tensor, " rows"]) -> Target:
    """``target`` with a row without a label for each of ``place``. Such rows are not blended."""
    none = torch.full_like(place, UNLABELLED)
    assert target.index is not None
    blended = {}
    if target.partner is not None and target.mix is not None:
        blended = {
            "partner": torch.cat([target.partner, none]),
            "mix": torch.cat([target.mix, target.mix.new_ones(len(none))]),
        }
    return Target(
        torch.cat([target.label, none]), index=torch.cat([target.index, place]), may_ignore=True, **blended
    )
