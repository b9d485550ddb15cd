"""Make a split of a source's encoded images; all readers use these functions."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Int64
from torch import Tensor

from outgrow.data.cache import CacheFile, cached_split
from outgrow.data.identity import Look, also_in, fingerprint, look_at_rows, read_look, write_look
from outgrow.data.notes import printable, some
from outgrow.data.pixels import VERSION, decode
from outgrow.data.splits import Kept, Part, Rows
from outgrow.machine.files import NotWritten, sealed, unsealed, write_atomically
from outgrow.outputs import UNLABELLED

OnFault = Literal["refuse", "skip"]
SEARCHED = 8 << 30
"""Bytes up to which files of many images are searched for duplicates."""
MANY_COPIES = 1e-3
"""Share of copies with the same label from which they are said. Our choice."""
_THREADS = 8


@dataclass
class Opening:
    """The options of one call of ``open_data``, and the notes and faults it collects.

    ``cache`` is the folder for decoded images, None if it cannot be written.
    """

    label: str | None
    on_fault: OnFault
    cache: Path | None
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    labelled: bool = True
    """False: labels are not read, and each is :data:`outgrow.UNLABELLED`."""

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def no_labels(self, num: int) -> Int64[Tensor, " num"]:
        return torch.full((num,), UNLABELLED)

    def store(self, name: str, identity: str) -> Path | None:
        """The file that caches the digests of the files of ``identity``; None without a cache."""
        file = CacheFile.of(self.cache, name, identity, "", self.notes)
        return None if file.folder is None else file.folder / f"{file.stem}.looks"


def split_of(
    rows: Rows,
    labels: Int64[Tensor, " n"],
    look: Look,
    *,
    name: str,
    identity: str,
    key: str,
    pack: bool,
    opening: Opening,
) -> Part:
    """The split of ``rows``; with ``on_fault="skip"`` without those that cannot be decoded.

    ``key`` changes whenever the bytes may have changed. ``identity`` is a hash of their location.
    """
    note_look(rows, look, name, opening)
    digests = look.digests
    key = fingerprint([key, VERSION])
    kept = kept_rows(rows, name=name, identity=identity, key=key, opening=opening)
    if len(kept) < len(rows):
        rows, labels, digests = Kept(rows, kept), labels[kept], digests[kept.numpy()]
        key = fingerprint([key, *kept.tolist()])
    cache = CacheFile.of(opening.cache, name, identity, key, opening.notes)
    part = Part(cached_split(rows, labels, pack=pack, cache=cache), rows, digests, bool(look.sampled))
    if opening.labelled:
        _note_copies(part, name, opening)
    return part


def _note_copies(part: Part, name: str, opening: Opening) -> None:
    """Note images that a split has more than once, byte for byte: with another label, and with the same one.

    The latter only if they are many: CIFAR-100 has five among its 50,000 training images.
    """
    assert part.digests is not None
    assert part.rows is not None
    labels, first = part.split.labels, torch.from_numpy(also_in(part.digests, part.digests))
    copies = (first >= 0) & (first != torch.arange(len(first)))
    other = labels != labels[first]
    for which, least, what in (
        (other, 1, "are in another class too, byte for byte ({}); one of the labels is wrong."),
        (
            ~other,
            MANY_COPIES * len(labels),
            "are copies, byte for byte ({}), and each counts; remove them if that is not meant.",
        ),
    ):
        found = [(row, int(first[row])) for row in (copies & which).nonzero()[:, 0].tolist()]
        if part.sampled:
            # the digest of a large file is of some of its blocks
            found = [pair for pair in found if part.rows.read(pair[0]) == part.rows.read(pair[1])]
        if found and len(found) >= least:
            places = " is ".join(part.describe(row) for row in found[0])
            opening.note(
                f"data: {len(found)} of {len(labels):,} images in {printable(name)} {what.format(places)}"
            )


def note_look(rows: Rows, look: Look, where: object, opening: Opening) -> None:
    """Note animations, and digests that cover only part of a file."""
    if look.frames.any():
        first = int(look.frames.argmax())
        opening.note(
            f"data: {int(look.frames.sum())} images in {printable(where)} have several frames or pages; only the first is read "
            f"({rows.describe(first)})."
        )
    if look.sampled and look.known:
        opening.note(
            f"data: the fingerprint covers only the size and three blocks of {look.sampled:,} of {len(rows):,} images in "
            f"{printable(where)}, because the set is large; it may miss a change between the blocks."
        )


def kept_rows(rows: Rows, *, name: str, identity: str, key: str, opening: Opening) -> Int64[Tensor, " kept"]:
    """All rows, or with ``on_fault="skip"`` those that can be decoded."""
    faults: dict[int, str] = {}
    if opening.on_fault == "skip":
        faults = _faults(rows, CacheFile.of(opening.cache, name, identity, key, opening.notes))
    if not faults:
        return torch.arange(len(rows))
    names = [rows.describe(row) for row in sorted(faults)]
    if len(faults) == len(rows):
        raise ValueError(
            f"data: needs images that can be decoded, got none in {printable(name)} ({faults[0]}); restore the files."
        )
    opening.faults += names
    opening.note(
        f"data: left out {len(faults)} of {len(rows):,} images of {printable(name)} that cannot be decoded ({some(names)})."
    )
    return torch.tensor([row for row in range(len(rows)) if row not in faults])


def look_inside(rows: Rows, *, size: int, name: str, identity: str, key: str, opening: Opening) -> Look:
    """The digests of all images in files that hold many images, cached by ``key`` (their content).

    ``size`` is the files' number of bytes. Sets over :data:`SEARCHED` are not read, which adds a note.
    """
    if size > SEARCHED:
        opening.note(f"data: {size / 2**30:.0f} GiB of {name} are not searched for duplicate images.")
        return Look.unknown(len(rows))
    cache = CacheFile.of(opening.cache, name, identity, fingerprint([key, "rows"]), opening.notes)
    store = cache.path(".rows")
    known = read_look(store, len(rows))
    if known is not None:
        return known
    look = look_at_rows(rows.stream(), len(rows))
    write_look(store, look)
    if store is not None:
        cache.remove_stale(".rows")
    return look


def _faults(rows: Rows, cache: CacheFile) -> dict[int, str]:
    """The rows that cannot be decoded and the reasons. All rows are decoded once; the result is cached."""
    path = cache.path(".faults")
    if path is not None and path.is_file():
        try:
            found = unsealed(path.read_text(encoding="utf-8"), where=str(path))
            return {int(row): reason for row, reason in found["faults"].items()}
        except (OSError, ValueError, KeyError):
            cache.damaged(path)
    faults = _decode_all(rows)
    if path is not None:
        try:
            write_atomically(path, sealed({"faults": {str(row): faults[row] for row in faults}}))
            cache.remove_stale(".faults")
        except NotWritten as error:
            cache.not_written(error)
    return faults


def _decode_all(rows: Rows) -> dict[int, str]:
    def work(items: Sequence[tuple[int, bytes]]) -> dict[int, str]:
        bad = {}
        for row, data in items:
            try:
                decode(data, where=lambda row=row: rows.describe(row))  # type: ignore[misc]
            except ValueError as error:
                bad[row] = str(error)
        return bad

    found: dict[int, str] = {}
    numbered = enumerate(rows.stream())
    with ThreadPoolExecutor(_THREADS) as pool:
        while chunk := list(islice(numbered, 32 * _THREADS)):
            for bad in pool.map(work, [chunk[at::_THREADS] for at in range(_THREADS)]):
                found |= bad
    return found
