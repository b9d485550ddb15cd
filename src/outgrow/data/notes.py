"""Warnings about a data set, and how paths and lists are printed in messages."""

import os
import warnings
from collections.abc import Iterable, Sequence


class DataWarning(UserWarning):
    """Something about a data set that may change what a result means."""


def warn_notes(notes: Iterable[str]) -> None:
    """Warn each of ``notes`` as a :class:`DataWarning`."""
    for note in notes:
        warnings.warn(note, DataWarning, stacklevel=3)


def fewer(option: str, wanted: int | None, source: str, left: int) -> list[str]:
    """A note if ``option`` wants more images of ``source`` than are left.

    >>> fewer("data.train_rows", 5000, "digits", 1437)
    ['data.train_rows: 5,000 images are wanted, got 1,437 from digits; all of them are used.']
    """
    if wanted is None or wanted <= left:
        return []
    return [
        f"{option}: {wanted:,} images are wanted, got {left:,} from {printable(source)}; all of them are used."
    ]


def printable(path: object) -> str:
    """A path for messages; bytes that are not UTF-8 are escaped.

    >>> printable(b"caf\\xe9.jpg".decode("utf-8", "surrogateescape"))
    'caf\\\\xe9.jpg'
    """
    text = os.fspath(path) if isinstance(path, os.PathLike) else str(path)
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a surrogate that does not encode a byte
        return text.encode("utf-8", "backslashreplace").decode("utf-8")


def some(names: Sequence[object], limit: int = 3) -> str:
    """The first ``limit`` names, and how many more there are.

    >>> some(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    shown = ", ".join(printable(name) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
