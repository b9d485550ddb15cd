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

from outgrow.data.identity import Digests, also_in, fingerprint
from outgrow.data.notes import printable
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
    notes = [*found.notes]
    keep = np.ones(len(part.split), bool)
    unchecked = [name for name, (other, _) in (known or {}).items() if not _comparable(part, other)]
    if unchecked:
        notes.append(
            f"data: it was not checked whether unlabelled images of {printable(spec)} are also {' or '.join(unchecked)} images: "
            "the sets are too large, or kept in other ways."
        )
    for name, (other, split) in (known or {}).items():
        same = _same(part, other, split) & keep
        if same.any():
            keep &= ~same
            notes.append(
                f"data: left out {int(same.sum()):,} of {len(part.split):,} unlabelled images of {printable(spec)} that are "
                f"also {name} images, byte for byte."
            )
    positions = torch.from_numpy(keep).nonzero()[:, 0]
    if not len(positions):
        raise ValueError(
            f"--unlabelled {spec}: needs images that are not in the labelled data, got {len(part.split):,} that all are; "
            "name other images."
        )
    if rows is not None and rows < len(positions):
        order = bits(seed, 0, positions, [Stream.SPLIT])[0].argsort(stable=True)
        positions = positions[order[:rows]].sort().values
    identity = fingerprint([found.fingerprint, *_ranges(positions.tolist())])
    return UnlabelledImages(spec, part.split.subset(positions), identity, found.faults, tuple(notes))


def _comparable(part: Part, other: Part) -> bool:
    """Whether both have digests of the same kind: of encoded files, or of pixels."""
    digests = (part.digests, other.digests)
    return all(held is not None and held.any() for held in digests) and (part.rows is None) == (
        other.rows is None
    )


def _same(part: Part, other: Part, split: Split) -> np.ndarray:
    """Which images of ``part`` are in ``split``, which was cut from ``other``."""
    mine, theirs = part.digests, other.digests
    if mine is None or theirs is None or not _comparable(part, other):
        return np.zeros(len(part.split), bool)
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
