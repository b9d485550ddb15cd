"""Images without labels, from any source: :func:`open_unlabelled`. Labels that a source has are not used.

folder:PATH             every picture below PATH, at any depth; in a folder with splits those of train alone
parquet:PATH, hf:NAME   the image column of the train split, or of all splits if none is called train
digits, cifar10:ROOT... their training images
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from outgrow.data.identity import Digests, also_in, fingerprint
from outgrow.data.notes import fewer, printable
from outgrow.data.randomness import Stream, bits
from outgrow.data.reading import OnFault
from outgrow.data.source import find_data
from outgrow.data.splits import Part, Split


@dataclass(frozen=True)
class UnlabelledImages:
    """``split`` has the label -1 everywhere. ``fingerprint`` changes whenever the images may have changed."""

    source: str
    split: Split
    fingerprint: str = field(repr=False)
    faults: tuple[str, ...] = field(default=(), repr=False)
    notes: tuple[str, ...] = field(default=(), repr=False)


def open_unlabelled(
    spec: str,
    *,
    known: Mapping[str, tuple[Part, Split]] | None = None,
    rows: int | None = None,
    seed: int = 0,
    on_fault: OnFault = "refuse",
    cache_dir: Path | None = None,
) -> UnlabelledImages:
    """The images of ``spec``, as in :func:`outgrow.data.open_data`, without labels.

    ``known`` are labelled splits by name, each with the part that it was cut from. Images that are in one of them,
    byte for byte, are left out: a test image must not be trained on, and a training image has a label. ``rows`` keeps
    the first of a seeded shuffle.

    ``ValueError`` for what :func:`outgrow.data.open_data` refuses, and if no image is left.
    """
    found = find_data(spec, labelled=False, on_fault=on_fault, cache_dir=cache_dir)
    part = found.parts["train"] if "train" in found.parts else next(iter(found.parts.values()))
    same = {name: _same(part, other, split) for name, (other, split) in (known or {}).items()}
    positions, notes = left_over(spec, len(part.split), same, rows=rows, seed=seed)
    identity = fingerprint([found.fingerprint, *_ranges(positions.tolist())])
    return UnlabelledImages(
        spec, part.split.subset(positions), identity, found.faults, (*found.notes, *notes)
    )


def left_over(
    spec: str, total: int, same: Mapping[str, np.ndarray | None], *, rows: int | None, seed: int
) -> tuple[Int64[Tensor, " left"], list[str]]:
    """Which of ``total`` unlabelled images are in none of the labelled splits, and what there is to say of the others.

    ``same`` marks by the name of a split the images that are in it, byte for byte; None where that cannot be known. ``rows``
    keeps the first of a seeded shuffle. ``ValueError`` if no image is left.
    """
    notes = []
    if unchecked := [name for name, mask in same.items() if mask is None]:
        notes.append(
            f"data: it was not checked whether unlabelled images of {printable(spec)} are also {' or '.join(unchecked)} images: "
            "the sets are too large, or kept in other ways."
        )
    keep = np.ones(total, bool)
    for name, mask in same.items():
        here = np.zeros(total, bool) if mask is None else mask & keep
        if here.any():
            keep &= ~here
            notes.append(
                f"data: left out {int(here.sum()):,} of {total:,} unlabelled images of {printable(spec)} that are also {name} "
                "images, byte for byte."
            )
    positions = torch.from_numpy(keep).nonzero()[:, 0]
    if not len(positions):
        raise ValueError(
            f"--unlabelled {spec}: needs images that are not in the labelled data, got {total:,} that all are; name other images."
        )
    notes += fewer("data.unlabelled_rows", rows, spec, len(positions))
    if rows is not None and rows < len(positions):
        order = bits(seed, 0, positions, [Stream.SPLIT])[0].argsort(stable=True)
        positions = positions[order[:rows]].sort().values
    return positions, notes


def _same(part: Part, other: Part, split: Split) -> np.ndarray | None:
    """Which images of ``part`` are in ``split``, which was cut from ``other``; None if their digests are of other kinds: of
    files and of pixels, or of whole files and of parts of them."""
    mine, theirs = part.digests, other.digests
    if mine is None or theirs is None or not mine.any() or not theirs.any():
        return None
    if (part.rows is None, part.sampled) != (other.rows is None, other.sampled):
        return None
    own: Digests = mine[part.split.index.numpy()]
    return np.asarray(also_in(own, theirs[split.index.numpy()]) >= 0)


def _ranges(positions: Sequence[int]) -> list[str]:
    """Ascending numbers in short: ``[0, 1, 2, 5]`` is ``["0-2", "5-5"]``."""
    found: list[list[int]] = []
    for position in positions:
        if found and found[-1][1] == position - 1:
            found[-1][1] = position
        else:
            found.append([position, position])
    return [f"{first}-{last}" for first, last in found]
