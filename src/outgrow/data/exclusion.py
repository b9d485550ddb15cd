"""Lists of training images to leave out: ``data.exclude``, as ``outgrow audit`` writes them.

A list is a CSV file. Its first column is ``file`` (a path below the source's folder) or ``row`` (the number of the
row in the training set, for sources whose images are not files of their own). Numbers of rows fit any data set, so
the labels in a column ``label`` must be those of the rows. Other columns are not read. A list only removes images
from training: a test or validation image that it names stays.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor

from outgrow.data.files import PathList
from outgrow.data.notes import printable, some
from outgrow.data.splits import Encoded, Kept, Part
from outgrow.data.table import read_table

COLUMNS = ("file", "row")
"""What the first column may be called."""


def naming(source: str, part: Part) -> tuple[str, "Names"]:
    """How the images of ``part`` of ``source`` are named in a list: the column, and the names by row of the split.

    ``source`` is the line that opened it, such as ``folder:photos``.
    """
    rows: Encoded | None = part.rows
    kept = None
    if isinstance(rows, Kept):
        kept, rows = rows.rows, rows.source
    if not isinstance(rows, PathList):
        return "row", Names(None, "", kept)
    where = source.partition(":")[2]
    return "file", Names(rows.paths, os.path.join(os.path.expanduser(where), ""), kept)


class Names:
    """The name of each row of a split. ``paths`` is None where rows are numbers."""

    def __init__(self, paths: Sequence[str] | None, folder: str, kept: Tensor | None) -> None:
        self.paths, self.folder, self.kept = paths, folder, kept

    def __call__(self, row: int) -> str:
        row = row if self.kept is None else int(self.kept[row])
        if self.paths is None:
            return str(row)
        path = self.paths[row]
        if path.startswith(self.folder):
            return Path(path[len(self.folder) :]).as_posix()
        return Path(os.path.relpath(path, self.folder)).as_posix()


def read_list(path: str | Path) -> tuple[str, list[str], list[str] | None]:
    """The column, the names and, if there is such a column, the labels of a list. ``ValueError`` if it is no list."""
    lines = read_table(path, option="data.exclude", made_by="`outgrow audit` writes one (label_errors.csv)")
    column = lines[0][0].strip() if lines else ""
    if column not in COLUMNS:
        raise ValueError(
            f"data.exclude: needs a first column called {' or '.join(COLUMNS)}, got {printable(column)[:40]!r} in "
            f"{printable(path)}; add that header."
        )
    names = [line[0].strip().removeprefix("./") for line in lines[1:]]
    at = next((at for at, name in enumerate(lines[0]) if name.strip() == "label"), None)
    labels = None if at is None else [line[at].strip() if at < len(line) else "" for line in lines[1:]]
    return column, names, labels


def excluded_rows(
    path: str | Path, source: str, parts: Mapping[str, Part], classes: Sequence[str]
) -> tuple[Int64[Tensor, " listed"], int]:
    """The rows of ``parts["train"]`` that the list at ``path`` names, and how many of the names belong to other parts.

    ``ValueError`` for names that are nowhere in the source, and for numbers of rows with other labels than in the list:
    a list for other data would leave out the wrong images.
    """
    column, listed, labels = read_list(path)
    own, names = naming(source, parts["train"])
    if column != own:
        wanted = "file names" if own == "file" else "the numbers of rows"
        raise ValueError(
            f"data.exclude: needs {wanted} (a column {own!r}) for {printable(source)}, got a column {column!r} in "
            f"{printable(path)}; write the list with `outgrow audit` on this source."
        )
    row_of = {names(row): row for row in range(len(parts["train"].split))}
    rows = {row_of[name] for name in listed if name in row_of}
    if own == "row" and labels is not None:
        _check_labels(path, source, [row_of.get(name) for name in listed], labels, parts["train"], classes)
    unknown = [name for name in dict.fromkeys(listed) if name not in row_of]
    elsewhere: set[str] = set()
    if unknown and own == "file":
        for name, part in parts.items():
            if name != "train":
                _, others = naming(source, part)
                elsewhere |= {others(row) for row in range(len(part.split))}.intersection(unknown)
    unknown = [name for name in unknown if name not in elsewhere]
    if unknown:
        raise ValueError(
            f"data.exclude: needs names of training images of {printable(source)}, got {len(unknown)} of {len(listed)} in "
            f"{printable(path)} that it does not have ({some(unknown)}); write the list again with `outgrow audit` on this "
            "source, or remove those lines."
        )
    return torch.tensor(sorted(rows), dtype=torch.int64), len(elsewhere)


def _check_labels(
    path: str | Path,
    source: str,
    rows: Sequence[int | None],
    listed: Sequence[str],
    part: Part,
    classes: Sequence[str],
) -> None:
    labels = [None if row is None else classes[int(part.split.labels[row])] for row in rows]
    other = [at for at, label in enumerate(labels) if label is not None and label.strip() != listed[at]]
    if other:
        at = other[0]
        raise ValueError(
            f"data.exclude: needs the labels of {printable(source)}, got others in {len(other)} of {len(rows)} lines of "
            f"{printable(path)} (row {rows[at]} is {printable(str(labels[at]))}, and listed as {printable(listed[at])}): the list "
            "is for other data, or another --label; write it again with `outgrow audit` on this source."
        )
