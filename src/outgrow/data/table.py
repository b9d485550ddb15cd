"""Read the small CSV files that options name, with errors in three parts."""

import csv
import io
import os
from pathlib import Path

from outgrow.data.files import read_bytes
from outgrow.data.notes import printable

MAX_BYTES = 256 << 20


def read_table(path: str | Path, *, option: str, made_by: str) -> list[list[str]]:
    """The lines of a CSV file that are not empty, header first, separated by commas, semicolons or tabs.

    ``option`` is the field that names the file, ``made_by`` the advice if there is none. ``ValueError`` if it is no
    such file.
    """
    if not Path(path).is_file():
        raise ValueError(f"{option}: needs a CSV file, got {printable(path)}, which is not there; {made_by}.")
    if os.path.getsize(path) > MAX_BYTES:
        raise ValueError(
            f"{option}: needs a CSV file of at most {MAX_BYTES >> 20} MiB, got {os.path.getsize(path) >> 20} MiB in "
            f"{printable(path)}; {made_by}."
        )
    # names that are not UTF-8 keep their bytes; a spreadsheet may have put a mark before the first
    text = read_bytes(path).removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    first = text.partition("\n")[0].strip()
    delimiter = next((mark for mark in ";\t" if mark in first and "," not in first), ",")
    try:
        return [line for line in csv.reader(io.StringIO(text), delimiter=delimiter, strict=True) if line]
    except csv.Error as error:
        raise ValueError(
            f"{option}: needs a CSV file, got {printable(path)}, which cannot be read ({error}); write it again."
        ) from None
