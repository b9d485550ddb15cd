"""Turn columns of labels into classes: choose the column, check its values and number the classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from reprlib import Repr
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from outgrow.data.classes import alike
from outgrow.data.notes import some
from outgrow.data.reading import Opening
from outgrow.data.splits import check_labels

SHORT = Repr()
"""Prints a value of any size in a few words: a label column may be one of images."""


@dataclass(frozen=True)
class Column:
    """A column of labels: integers or text. ``names`` are the class names of the integers, if known.

    ``where`` describes the column in messages.
    """

    values: Sequence[Any]
    names: tuple[str, ...] | None
    where: str


_USUAL = ("class", "classes", "class_name", "category", "target", "y")
"""Names of label columns that messages propose; none is taken unasked."""


def choose_label(columns: Sequence[str], label: str | None, *, where: str) -> str:
    """The label column: ``label`` if given, else the one named label or labels, else the only one with it in its name."""
    if label is not None and label in columns:
        return label
    candidates = [name for name in columns if "label" in name.lower()]
    if label is None:
        exact = [name for name in candidates if name.lower() in ("label", "labels")]
        for found in (exact, candidates):
            if len(found) == 1:
                return found[0]
        if candidates:
            raise ValueError(
                f"data: needs one label column in {where}, got {', '.join(exact or candidates)}; choose one of them with "
                f"--label {(exact or candidates)[0]} (label= in Python)."
            )
    likely = [*candidates, *(name for name in columns if name.lower() in _USUAL), "COLUMN"]
    needed = f"the label column {label!r}" if label is not None else "a column with 'label' in its name"
    raise ValueError(
        f"data: needs {needed} in {where}, got the columns {', '.join(columns)}; choose one of "
        f"them with --label {likely[0]} (label= in Python)."
    )


def check_same(chosen: Mapping[str, str], where: str) -> None:
    """``ValueError`` unless the label column has the same name in every split: another one may count other classes."""
    (first, column), *others = chosen.items()
    for split, other in others:
        if other != column:
            raise ValueError(
                f"data: needs one label column for all splits of {where}, got {column!r} in {first} and {other!r} in {split}; "
                f"choose a column that both have with --label (label= in Python), or rename one."
            )


def column_of(values: Any, names: tuple[str, ...] | None, where: str) -> Column:
    """Make a :class:`Column` of an Arrow array or a list; booleans get the names False and True."""
    found = values.to_pylist() if hasattr(values, "to_pylist") else list(values)
    if names is None and found and all(isinstance(value, bool) for value in found):
        names = ("False", "True")
    return Column(found, names, where)


def to_classes(
    splits: Mapping[str, Sequence[Column]], opening: Opening
) -> tuple[tuple[str, ...], dict[str, Int64[Tensor, " n"]]]:
    """The classes of all splits, and each split's labels as class numbers.

    Text labels are sorted. Integer labels get the names of the first column with names (of train, if there is
    one); other columns are matched to it by name. Without names, the classes are named by their numbers.
    """
    for columns in splits.values():
        for column in columns:
            _check(column)
    columns = [column for split in splits.values() for column in split]
    kinds = {isinstance(column.values[0], str) for column in columns if len(column.values)}
    if not kinds:
        raise ValueError(f"data: needs rows with labels, got none in {columns[0].where}; add labelled rows.")
    if len(kinds) > 1:
        texts, numbers = (
            next(c.where for c in columns if len(c.values) and isinstance(c.values[0], str) is text)
            for text in (True, False)
        )
        raise ValueError(
            f"data: needs labels of one kind, got text in {texts} and numbers in {numbers}; convert one of them."
        )
    names = _named(columns, opening)
    if kinds == {True} or names is None:
        present = sorted({value for column in columns for value in column.values})
        names = tuple(present) if kinds == {True} else _numbered(present, columns[0].where, opening)
        _note_spellings(names, columns[0].where, opening)
    place = {name: number for number, name in enumerate(names)}
    labels = {}
    for split, parts in splits.items():
        labels[split] = torch.cat([_numbers(part, place, names) for part in parts])
    return names, labels


def _check(column: Column) -> None:
    """``ValueError`` unless all values are labels of one kind and class names are unique."""
    for row, value in enumerate(column.values):
        got = _complaint(value, text=isinstance(column.values[0], str))
        if got:
            raise ValueError(
                f"data: needs an integer or a text as label in every row, got {got} at row {row} of "
                f"{column.where}; choose another label column, or correct it."
            )
    if column.names is not None:
        bad = [name for name in column.names if not str(name).strip()]
        twice = sorted({name for name in column.names if column.names.count(name) > 1})
        if bad or twice:
            got = "an empty name" if bad else f"{twice[0]!r} twice"
            raise ValueError(
                f"data: needs unique class names, got {got} in {column.where}; write the data again with other names."
            )


def _complaint(value: object, *, text: bool) -> str | None:
    """What is wrong with a label, None if it is valid; ``text`` is whether the first label is text."""
    if value is None:
        return "no label"
    if isinstance(value, str) and not value.strip():
        return "an empty text"
    if not isinstance(value, int | str):
        return f"{SHORT.repr(value)}, a {type(value).__name__}"
    if isinstance(value, str) is not text:
        return f"{SHORT.repr(value)} beside {'text' if text else 'numbers'}"
    if isinstance(value, int) and value >= 1 << 31:
        return f"the number {value}, which is too large for a class"
    return None


def _named(columns: Sequence[Column], opening: Opening) -> tuple[str, ...] | None:
    """The names of the first column that has names. The other columns are checked against it."""
    named = [column for column in columns if column.names]
    if not named:
        return None
    first = named[0].names
    assert first is not None
    for other in named[1:]:
        assert other.names is not None
        if other.names == first:
            continue
        extra = sorted(set(other.names) - set(first))
        used = {
            other.names[value]
            for value in other.values
            if isinstance(value, int) and 0 <= value < len(other.names)
        }
        if used - set(first):
            raise ValueError(
                f"data: needs the same classes in every split, got {some(extra)} in {other.where}, which "
                f"{named[0].where} does not have; write the data again with one set of class names."
            )
        opening.note(
            f"data: {other.where} has the classes in another order than {named[0].where}; they are matched by name."
        )
    return first


def _note_spellings(names: Sequence[str], where: str, opening: Opening) -> None:
    """Note labels that may be meant as one class: they differ only in case, spaces, hyphens or Unicode form."""
    if several := alike(names):
        first = " and ".join(map(ascii, several[0]))
        opening.note(
            f"data: {len(several)} labels in {where} have several spellings ({first}), which are classes of their own; "
            "write them alike if they are one class."
        )


def _numbered(present: Sequence[int], where: str, opening: Opening) -> tuple[str, ...]:
    """Class names that are the numbers from 0 up; gaps add a note or raise ``ValueError``."""
    least, largest = present[0], present[-1]
    if least >= 0:  # negative labels raise in check_labels, with their row
        missing, known = largest + 1 - len(present), set(present)
        first = list(islice((number for number in range(largest) if number not in known), 3))
        if missing > len(present):
            raise ValueError(
                f"data: needs labels that count from 0, got {len(present)} different ones up to {largest} in {where} "
                f"({some(first)} and others are missing); number the classes from 0, or use names."
            )
        if missing:
            opening.note(
                f"data: {missing} of the {largest + 1} classes in {where} have no image ({some(first)}); if labels start "
                "at 1, subtract 1."
            )
    return tuple(str(number) for number in range(max(largest, 0) + 1))


def _numbers(column: Column, place: Mapping[str, int], names: Sequence[str]) -> Int64[Tensor, " n"]:
    if len(column.values) and isinstance(column.values[0], str):
        return torch.tensor([place[value] for value in column.values], dtype=torch.int64)
    values = torch.tensor([int(value) for value in column.values], dtype=torch.int64)
    check_labels(values, len(column.names or names), where=column.where)
    if column.names is None or tuple(column.names) == tuple(names):
        return values
    return torch.tensor([place.get(name, -1) for name in column.names], dtype=torch.int64)[values]
