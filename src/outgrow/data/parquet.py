"""Read Parquet shards in the layout of the Hugging Face hub.

train-00000-of-00005.parquet ...    and test-*, validation-*; in PATH or in PATH/data
img or image                        struct{bytes, path}, or plain bytes
label                               integers, text or booleans; class names in the schema's metadata
"""

import contextlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outgrow.data.files import is_hidden, unreadable
from outgrow.data.folder import SPLIT_NAMES
from outgrow.data.identity import Look, also_in, fingerprint, look_at
from outgrow.data.labels import Column, check_same, choose_label, column_of, to_classes
from outgrow.data.notes import printable, some
from outgrow.data.reading import Opening, look_inside, split_of
from outgrow.data.splits import Found, Part

_NUMBERED = re.compile(r"[-_](\d+)-of-(\d+)")


def open_parquet(root: Path, opening: Opening) -> Found:
    """Read the shards below ``root``, with the classes of the label column.

    Without class names in the metadata, text labels are the class names, and integer labels are named by their
    numbers.
    """
    opened = {split: Shards.open(files, opening) for split, files in _shards(root, opening).items()}
    check_same({split: shards.label for split, shards in opened.items()}, printable(root))
    classes: tuple[str, ...] = ()
    labels = {split: opening.no_labels(len(shards)) for split, shards in opened.items()}
    if opening.labelled:
        classes, labels = to_classes({split: shards.labels() for split, shards in opened.items()}, opening)
    parts: dict[str, Part] = {}
    facts: list[object] = [*classes]
    for split, shards in opened.items():
        files = [str(file) for file in shards.files]
        identity = fingerprint([os.path.realpath(root), split, shards.image])
        look = look_at(files, opening.store(root.stem, identity))
        _check_twice(files, look)
        facts += [split, shards.label, shards.image, look.digests.tobytes()]
        name, key = f"{root.stem}-{split}", fingerprint([look.key, shards.image])
        size = sum(os.path.getsize(file) for file in files)
        inside = look_inside(shards, size=size, name=name, identity=identity, key=key, opening=opening)
        parts[split] = split_of(
            shards, labels[split], inside, name=name, identity=identity, key=key, pack=True, opening=opening
        )
    return Found(classes, parts, fingerprint(facts))


def _check_twice(files: list[str], look: Look) -> None:
    first = also_in(look.digests, look.digests)
    for row, other in enumerate(first.tolist()):
        if row != other:
            raise ValueError(
                f"data: needs every shard once, got the same content in {printable(files[other])} and "
                f"{printable(files[row])}; remove the copy."
            )


@dataclass(frozen=True)
class Shards:
    """The shards of one split, with their image and label columns.

    Parquet reads whole row groups, so reading single rows is fast in order and slow in any other order.
    """

    files: tuple[Path, ...]
    image: str
    label: str
    counts: tuple[int, ...]
    names: tuple[tuple[str, ...] | None, ...]

    @classmethod
    def open(cls, files: tuple[Path, ...], opening: Opening) -> "Shards":
        images, labels, counts = [], [], []
        names: list[tuple[str, ...] | None] = []
        for file in files:
            with _reading(file):
                import pyarrow.parquet as pq

                parquet = pq.ParquetFile(file)
                schema, count = parquet.schema_arrow, parquet.metadata.num_rows
            image = next((name for name in ("img", "image") if name in schema.names), None)
            if image is None:
                raise ValueError(
                    f"data: needs a column img or image in {printable(file)}, got the columns {', '.join(schema.names)}; "
                    "rename the column of encoded images."
                )
            images.append(image)
            counts.append(count)
            labels.append("")
            names.append(None)
            if opening.labelled:
                labels[-1] = choose_label(schema.names, opening.label, where=printable(file))
                names[-1] = _class_names(schema, labels[-1])
        for columns in (images, labels):
            other = next((k for k, column in enumerate(columns) if column != columns[0]), None)
            if other is not None:
                raise ValueError(
                    f"data: needs the same columns in every shard, got {columns[0]!r} in {printable(files[0])} and "
                    f"{columns[other]!r} in {printable(files[other])}; write the shards again."
                )
        if not sum(counts):
            raise ValueError(
                f"data: needs rows in the shards, got none in {some(files)}; write them again, or remove them."
            )
        return cls(files, images[0], labels[0], tuple(counts), tuple(names))

    def __len__(self) -> int:
        return sum(self.counts)

    def labels(self) -> list[Column]:
        """The label column of each shard."""
        columns = []
        for file, names in zip(self.files, self.names, strict=True):
            with _reading(file):
                import pyarrow.parquet as pq

                values = pq.ParquetFile(file).read(columns=[self.label])[self.label]
                where = f"column {self.label!r} of {printable(file)}"
                columns.append(column_of(values, names, where))
        return columns

    def stream(self) -> Iterator[bytes]:
        """The encoded images in order; only one batch of rows is in memory."""
        row = 0
        for file in self.files:
            with _reading(file):
                import pyarrow.parquet as pq

                batches = pq.ParquetFile(file).iter_batches(batch_size=256, columns=[self.image])
            while True:
                with _reading(file):
                    batch = next(batches, None)
                    column = None if batch is None else _bytes_of(batch.column(0))
                if column is None:
                    break
                for value in column:
                    yield self._checked(value.as_py(), row)
                    row += 1

    def read(self, row: int) -> bytes:
        shard, at = self._place(row)
        first, column = _GROUPS.of(self.files[shard], self.image, at)
        return self._checked(column[at - first].as_py(), row)

    def describe(self, row: int) -> str:
        shard, at = self._place(row)
        name = ""
        with contextlib.suppress(Exception):  # the path is optional: columns of plain bytes have none
            import pyarrow.parquet as pq

            paths = pq.ParquetFile(self.files[shard]).read(columns=[f"{self.image}.path"])[self.image]
            name = f" ({paths[at].as_py()['path']})"
        return f"row {at} of {printable(self.files[shard])}{name}"

    def _place(self, row: int) -> tuple[int, int]:
        for shard, count in enumerate(self.counts):
            if row < count:
                return shard, row
            row -= count
        raise AssertionError("a row beyond the last shard")

    def _checked(self, data: object, row: int) -> bytes:
        if not isinstance(data, bytes):
            raise ValueError(
                f"data: needs encoded bytes in column {self.image!r}, got none at {self.describe(row)}; "
                "embed the images in the shards (datasets does by default)."
            )
        return data


class _Groups:
    """Cache of the last row group that this process read, because neighbouring rows are in the same group."""

    def __init__(self) -> None:
        self.key: tuple[object, ...] | None = None
        self.found: tuple[int, Any] = (0, None)

    def of(self, file: Path, image: str, row: int) -> tuple[int, Any]:
        """The first row number of the row group that contains ``row``, and the group's column of bytes."""
        with _reading(file):
            import pyarrow.parquet as pq

            parquet = pq.ParquetFile(file)
            first = 0
            for group in range(parquet.num_row_groups):
                count = parquet.metadata.row_group(group).num_rows
                if row < first + count:
                    break
                first += count
            status = os.stat(file)  # it may have been written again
            key = (file, status.st_ino, status.st_mtime_ns, image, group)
            if self.key != key:
                column = parquet.read_row_group(group, columns=[image])[image].combine_chunks()
                self.key, self.found = key, (first, _bytes_of(column))
        return self.found


_GROUPS = _Groups()


def _bytes_of(column: Any) -> Any:
    import pyarrow as pa

    if not pa.types.is_struct(column.type):
        return column
    return column.field("bytes") if column.type.get_field_index("bytes") >= 0 else pa.nulls(len(column))


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Turn pyarrow's exceptions for a damaged file into a ``ValueError`` with its path."""
    try:
        yield
    except ValueError as error:
        if str(error).startswith("data: "):
            raise
        raise _damaged(file, error) from error
    except MemoryError as error:  # a damaged length field requests too much memory
        raise _damaged(file, error) from error
    except PermissionError as error:
        raise unreadable(file, error) from error
    except Exception as error:  # ArrowInvalid, OSError, KeyError: depends on the damage
        raise _damaged(file, error) from error


def _damaged(file: Path, error: BaseException) -> ValueError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ValueError(
        f"data: needs Parquet files, got {printable(file)}, which cannot be read ({reason}); replace the shard."
    )


def _class_names(schema: Any, label: str) -> tuple[str, ...] | None:
    """The class names in the hub's metadata, None if there are none."""
    try:
        names = json.loads(schema.metadata[b"huggingface"])["info"]["features"][label]["names"]
        # older copies number their names: {"0": "apple", ...}
        found = [names[key] for key in sorted(names, key=int)] if isinstance(names, dict) else list(names)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return tuple(str(name) for name in found) or None


def _shards(root: Path, opening: Opening) -> dict[str, tuple[Path, ...]]:
    files = [root]
    if root.is_dir():
        inside = [
            [f for f in sorted(folder.glob("*.parquet")) if not is_hidden(f.name)]
            for folder in (root, root / "data")
        ]
        files = inside[0] or inside[1]
        if inside[0] and inside[1]:
            opening.note(
                f"data: left out {len(inside[1])} shards in {printable(root / 'data')}, because {printable(root)} has shards."
            )
    shards: dict[str, tuple[Path, ...]] = {}
    others = []
    for file in files:
        match = re.match(r"([a-z]+)(?=[-._ ])", file.name.lower())
        split = SPLIT_NAMES.get(match.group(1)) if match else None
        if split is None or not file.is_file():
            others.append(file.name)
        else:
            shards[split] = (*shards.get(split, ()), file)
    if not shards:
        got = some(others, 5) or "no .parquet files"
        raise ValueError(
            f"data: needs shards named train-*.parquet, test-*.parquet or validation-*.parquet in {printable(root)}, "
            f"got {got}; rename the files or name the folder that contains them."
        )
    if others:
        opening.note(
            f"data: left out {some(others)} in {printable(root)}: the name does not start with a split."
        )
    if root.is_dir():
        for split, found in shards.items():
            _check_numbers(root, split, found)
    return {split: shards[split] for split in ("train", "val", "test") if split in shards}


def _check_numbers(root: Path, split: str, files: tuple[Path, ...]) -> None:
    """``ValueError`` if a shard of names like ``-00000-of-00005`` is missing, extra or from another set."""
    matches = {file: _NUMBERED.search(file.name) for file in files}
    numbered = {file: (int(m.group(1)), int(m.group(2))) for file, m in matches.items() if m}
    if not numbered:
        return
    plain = [file for file in files if file not in numbered]
    totals = sorted({total for _, total in numbered.values()})
    if plain or len(totals) > 1:
        odd = plain or [next(file for file in files if numbered[file][1] == totals[0])]
        raise ValueError(
            f"data: needs {split} shards of one set in {printable(root)}, got {some([f.name for f in odd])} beside "
            f"{some([f.name for f in files if f not in odd])}; move the other set away."
        )
    (total,) = totals
    by_number: dict[int, list[Path]] = {}
    for file, (number, _) in numbered.items():
        by_number.setdefault(number, []).append(file)
    twice = next((same for same in by_number.values() if len(same) > 1), None)
    if twice:
        raise ValueError(
            f"data: needs every {split} shard once in {printable(root)}, got {some([file.name for file in twice])}; remove "
            "the copy, or the shards of an older set."
        )
    start = 0 if 0 in by_number or total not in by_number else 1
    missing = [number for number in range(start, start + total) if number not in by_number]
    if missing or len(numbered) != total:
        raise ValueError(
            f"data: needs all {total} {split} shards in {printable(root)}, got {len(numbered)} (number {some(missing)} is "
            "missing); copy the missing ones."
        )
