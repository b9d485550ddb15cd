"""Sets of labelled images: decoded in one tensor, or encoded in files and decoded on demand.

Both kinds keep ``index``, each sample's number in the set as it was read, through any number of ``subset``
calls. Memories, caches, corrections and random draws are keyed by it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from outgrow.data.identity import Digests
from outgrow.data.pixels import decode, to_tensor
from outgrow.data.randomness import Stream, bits

if TYPE_CHECKING:
    from PIL.Image import Image


@runtime_checkable
class Split(Protocol):
    """A set of labelled images: an :class:`ArraySplit` or a :class:`FileSplit`."""

    @property
    def labels(self) -> Int64[Tensor, " n"]:
        """The class of each sample."""

    @property
    def index(self) -> Int64[Tensor, " n"]:
        """The number of each sample in the set as it was read."""

    def __len__(self) -> int: ...

    def subset(self, positions: Int64[Tensor, " m"]) -> "Split":
        """The samples at ``positions`` of this split, in that order; images are not copied."""

    def image(self, position: int) -> UInt8[Tensor, "3 height width"]:
        """One image, RGB, 0..255."""


@runtime_checkable
class Encoded(Protocol):
    """Encoded images (JPEG, PNG, ...) with random access, also from another process."""

    def __len__(self) -> int: ...

    def read(self, row: int) -> bytes: ...

    def describe(self, row: int) -> str:
        """Where the image is, for messages."""


@runtime_checkable
class Rows(Encoded, Protocol):
    """Encoded images that can also be streamed from first to last, which may be much faster."""

    def stream(self) -> Iterator[bytes]: ...


@dataclass(frozen=True, repr=False)
class ArraySplit:
    """Decoded images of one size.

    ``images`` (uint8, RGB, 0..255; often a memory map) is the complete set as it was read. Sample i of this
    split is ``images[index[i]]`` with class ``labels[i]``.
    """

    images: UInt8[Tensor, "rows 3 height width"]
    labels: Int64[Tensor, " n"]
    index: Int64[Tensor, " n"]

    @classmethod
    def of(cls, images: UInt8[Tensor, "n 3 height width"], labels: Int64[Tensor, " n"]) -> "ArraySplit":
        """The split of all of ``images``."""
        return cls(images, labels, torch.arange(len(labels)))

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"ArraySplit({len(self)} images of {self.images.shape[2]}x{self.images.shape[3]})"

    def subset(self, positions: Int64[Tensor, " m"]) -> "ArraySplit":
        return ArraySplit(self.images, self.labels[positions], self.index[positions])

    def image(self, position: int) -> UInt8[Tensor, "3 height width"]:
        return self.images[int(self.index[position])]


@dataclass(frozen=True, repr=False)
class FileSplit:
    """Encoded images, decoded on access: sample i is ``source.read(index[i])``."""

    source: Encoded
    labels: Int64[Tensor, " n"]
    index: Int64[Tensor, " n"]

    @classmethod
    def of(cls, source: Encoded, labels: Int64[Tensor, " n"]) -> "FileSplit":
        """The split of all of ``source``."""
        return cls(source, labels, torch.arange(len(labels)))

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"FileSplit({len(self)} images)"

    def subset(self, positions: Int64[Tensor, " m"]) -> "FileSplit":
        return FileSplit(self.source, self.labels[positions], self.index[positions])

    def picture(self, position: int) -> "Image":
        """One image as a PIL image in RGB; ``ValueError`` with the file's name if it cannot be decoded."""
        row = int(self.index[position])
        return decode(self.source.read(row), where=lambda: self.source.describe(row))

    def image(self, position: int) -> UInt8[Tensor, "3 height width"]:
        return to_tensor(self.picture(position))


@dataclass(frozen=True)
class ImageData:
    """A classification data set.

    ``train`` is None if there are only images to evaluate on. ``val`` is for choosing between models: a part of
    the training images, or the source's own validation set if it has a test set too. ``test`` is for reporting.
    ``fingerprint`` changes whenever images, labels or the cut between train and val may have changed; a copy of
    the data has the same one.

    ``duplicates`` counts the test images whose bytes are among the training images too; None if there are no
    training images or they were not compared. ``faults`` names the images that were left out because they
    cannot be decoded. ``notes`` are the warnings from opening the source.
    """

    name: str
    classes: tuple[str, ...]
    train: Split | None
    val: Split | None
    test: Split
    fingerprint: str = field(repr=False)
    duplicates: int | None = field(default=None, repr=False)
    faults: tuple[str, ...] = field(default=(), repr=False)
    notes: tuple[str, ...] = field(default=(), repr=False)

    @property
    def num_classes(self) -> int:
        return len(self.classes)


@dataclass(frozen=True)
class Part:
    """A split as it was read, with its encoded images ``rows`` and their ``digests``; None if not available."""

    split: Split
    rows: Rows | None = None
    digests: Digests | None = None
    sampled: bool = False
    """Whether digests of large files cover only a part of them, as in large sets."""

    def describe(self, row: int) -> str:
        """Where an image is, for messages."""
        return f"image {row}" if self.rows is None else self.rows.describe(row)


@dataclass(frozen=True)
class Found:
    """The contents of a source before its splits are arranged; ``parts`` has any of "train", "val" and "test".

    ``flat``: the source has no splits.
    """

    classes: tuple[str, ...]
    parts: Mapping[str, Part]
    fingerprint: str
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    flat: bool = False


@dataclass(frozen=True, repr=False)
class Kept:
    """A subset of a source's images, in the source's order."""

    source: Rows
    rows: Int64[Tensor, " kept"]

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, row: int) -> bytes:
        return self.source.read(int(self.rows[row]))

    def describe(self, row: int) -> str:
        return self.source.describe(int(self.rows[row]))

    def stream(self) -> Iterator[bytes]:
        selected = set(self.rows.tolist())
        return (data for row, data in enumerate(self.source.stream()) if row in selected)


def stratified_cut(
    labels: Int64[Tensor, " n"], fraction: float, *, seed: int
) -> tuple[Int64[Tensor, " kept"], Int64[Tensor, " taken"]]:
    """Take ``fraction`` of every class; returns the positions kept and the positions taken, both ascending.

    Of a class with two or more samples, at least one is taken and at least one is kept. The only sample of a
    class is kept. The same labels, fraction and seed give the same cut on every machine.

    >>> stratified_cut(torch.tensor([0, 0, 0, 0, 1, 1]), 0.5, seed=0)
    (tensor([0, 2, 5]), tensor([1, 3, 4]))
    """
    if not 0 < fraction < 1:
        raise ValueError(
            f"data: needs a fraction between 0 and 1, got {fraction}; pass the share of every class to hold out, "
            "such as 0.1."
        )
    order = bits(seed, 0, torch.arange(len(labels)), [Stream.SPLIT])[0].argsort(stable=True)
    taken = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        members = order[labels[order] == label]
        count = int(len(members) * fraction + 0.5)
        taken[members[: min(max(count, 1), len(members) - 1)]] = True
    return (~taken).nonzero().squeeze(1), taken.nonzero().squeeze(1)


def check_labels(labels: Int64[Tensor, " n"], num_classes: int, *, where: str) -> None:
    """``ValueError`` unless every label is in range. Checked once here, so training steps need not check."""
    bad = ((labels < 0) | (labels >= num_classes)).nonzero().squeeze(1)
    if len(bad):
        first = int(bad[0])
        hint = (
            "-1 usually marks an unlabelled split: leave it out"
            if int(labels[first]) == -1
            else "check the labels"
        )
        raise ValueError(
            f"data: needs labels from 0 to {num_classes - 1}, got {int(labels[first])} at row {first} of {where} "
            f"({len(bad)} such rows); {hint}, or choose another label column."
        )
