"""From the rows of a source to a split: what all readers of encoded images share."""

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
from outgrow.data.identity import Look, fingerprint, look_at_rows, read_look, write_look
from outgrow.data.notes import printable, some
from outgrow.data.pixels import VERSION, decode
from outgrow.data.splits import Kept, Part, Rows
from outgrow.machine.files import NotWritten, sealed, unsealed, write_atomically

OnFault = Literal["refuse", "skip"]
LOOKED_AT = 8 << 30
"""Bytes of files of many images that are read to know those that are there twice."""
_THREADS = 8


@dataclass
class Opening:
    """One call of ``open_data``: its options, and what it has to say.

    ``cache`` is the folder for decoded images, None where none can be written.
    """

    label: str | None
    on_fault: OnFault
    cache: Path | None
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def store(self, name: str, identity: str) -> Path | None:
        """The file that remembers what was seen of the files of ``identity``."""
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
    """The split of ``rows``; without those that cannot be decoded where they are to be skipped.

    ``key`` changes whenever the bytes may have changed; ``identity`` says where they lie.
    """
    note_look(rows, look, name, opening)
    digests = look.digests
    key = fingerprint([key, VERSION])
    kept = kept_rows(rows, name=name, identity=identity, key=key, opening=opening)
    if len(kept) < len(rows):
        rows, labels, digests = Kept(rows, kept), labels[kept], digests[kept.numpy()]
        key = fingerprint([key, *kept.tolist()])
    cache = CacheFile.of(opening.cache, name, identity, key, opening.notes)
    return Part(cached_split(rows, labels, pack=pack, cache=cache), rows, digests)


def note_look(rows: Rows, look: Look, where: object, opening: Opening) -> None:
    """What a look at encoded images has to say."""
    if look.frames.any():
        first = int(look.frames.argmax())
        opening.note(
            f"data: {int(look.frames.sum())} images in {printable(where)} have several frames or pages, of which the first is read "
            f"({rows.describe(first)})."
        )
    if look.sampled and look.known:
        opening.note(
            f"data: {look.sampled:,} of {len(rows):,} images in {printable(where)} are known by their size and three blocks each, "
            "since the whole set is large: the fingerprint may miss a change between those."
        )


def kept_rows(rows: Rows, *, name: str, identity: str, key: str, opening: Opening) -> Int64[Tensor, " kept"]:
    """The rows that can be decoded, where others are to be skipped; else all of them."""
    faults: dict[int, str] = {}
    if opening.on_fault == "skip":
        faults = _faults(rows, CacheFile.of(opening.cache, name, identity, key, opening.notes))
    if not faults:
        return torch.arange(len(rows))
    names = [rows.describe(row) for row in sorted(faults)]
    if len(faults) == len(rows):
        raise ValueError(
            f"data: needs images that can be decoded, got none in {printable(name)} ({faults[0]}); restore them."
        )
    opening.faults += names
    opening.note(
        f"data: left out {len(faults)} of {len(rows):,} images of {printable(name)} that cannot be decoded ({some(names)})."
    )
    return torch.tensor([row for row in range(len(rows)) if row not in faults])


def look_inside(rows: Rows, *, size: int, name: str, identity: str, key: str, opening: Opening) -> Look:
    """A look at every image of files that hold many; once for each content, which ``key`` tells.

    ``size`` are the bytes of the files; of very large sets no image is looked at, which is said.
    """
    if size > LOOKED_AT:
        opening.note(
            f"data: {size / 2**30:.0f} GiB of {name} are not searched for images that are there twice."
        )
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
    """The rows that cannot be decoded and why, found by decoding all of them: once for each content."""
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
