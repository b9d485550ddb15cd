"""What an opening found out about its data and goes on in spite of: said once, and kept with the data."""

import os
import warnings
from collections.abc import Iterable, Sequence


class DataWarning(UserWarning):
    """Something about a data set that may make a number another one than was meant."""


def say(notes: Iterable[str]) -> None:
    """Each of ``notes`` as a :class:`DataWarning`."""
    for note in notes:
        warnings.warn(note, DataWarning, stacklevel=3)


def printable(path: object) -> str:
    """A path for messages: names that are not UTF-8 with their bytes spelt out.

    >>> printable(b"caf\\xe9.jpg".decode("utf-8", "surrogateescape"))
    'caf\\\\xe9.jpg'
    """
    text = os.fspath(path) if isinstance(path, os.PathLike) else str(path)
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a surrogate that stands for no byte
        return text.encode("utf-8", "backslashreplace").decode("utf-8")


def some(names: Sequence[object], limit: int = 3) -> str:
    """The first of ``names``, and how many more there are.

    >>> some(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    shown = ", ".join(printable(name) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
