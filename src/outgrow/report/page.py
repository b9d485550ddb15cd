"""One self-contained HTML page for a study."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from outgrow.data import Split
from outgrow.report.text import text_table
from outgrow.study.study import Records, Table


def write_page(
    path: str | Path,
    *,
    title: str,
    records: Records,
    table: Table,
    about: Mapping[str, str],
    test: Split,
    notes: Sequence[str] = (),
) -> None:
    """Write the page of a study."""
    Path(path).write_text(f"<pre>{text_table(table, about)}</pre>")
