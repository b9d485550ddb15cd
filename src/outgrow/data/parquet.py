"""Parquet shards in the layout of the Hugging Face hub.

train-00000-of-00005.parquet ...    and test-*, validation-*; in PATH or in PATH/data
img or image                        struct{bytes, path}, or plain bytes
*label*                             integers; class names in the schema's metadata
"""

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from outgrow.data.cache import CacheFile, cached_split, file_facts, fingerprint
from outgrow.data.splits import Found, Split, check_labels

SPLITS = {"train": "train", "test": "test", "validation": "val", "valid": "val", "val": "val", "dev": "val"}
"""What the hub and others call a split, and what it is called here."""


def open_parquet(root: Path, *, label: str | None, cache_dir: Path) -> Found:
    """The shards below ``root`` by split, with the classes of the label column.

    ``label=None`` takes the first column whose name contains "label". Without class names in the
    metadata classes are called by their numbers.
    """
    splits: dict[str, Split] = {}
    facts: list[object] = []
    classes: tuple[str, ...] | None = None
    for split, files in _shards(root).items():
        shards = Shards.open(files, label=label)
        labels = shards.labels()
        names = shards.class_names()
        if names is None:
            names = classes or tuple(str(number) for number in range(int(labels.max()) + 1))
        if classes is not None and names != classes:
            raise ValueError(
                f"data: needs the same classes in every split of {root}, got other names for {split} than before; "
                "write the shards again with one set of class names."
            )
        classes = names
        check_labels(labels, len(classes), where=f"column {shards.label!r} of {files[0].parent}/{split}")
        found_facts = list(file_facts(files))
        facts += [split, shards.label, shards.image, *found_facts]
        cache = CacheFile(
            folder=cache_dir,
            stem=f"{root.stem}-{split}-{fingerprint([root.resolve(), shards.image])[:8]}",
            fingerprint=fingerprint([shards.image, *found_facts]),
        )
        splits[split] = cached_split(
            shards.stream, labels, describe=shards.describe, encoded=None, cache=cache
        )
    assert classes is not None
    return Found(classes, splits, fingerprint([*classes, *facts]))


@dataclass(frozen=True)
class Shards:
    """The shards of one split, the image column and the label column chosen."""

    files: tuple[Path, ...]
    image: str
    label: str
    schema: Any

    @classmethod
    def open(cls, files: tuple[Path, ...], *, label: str | None) -> "Shards":
        import pyarrow.parquet as pq

        try:
            schema = pq.read_schema(files[0])
        except Exception as error:  # ArrowInvalid and OSError, according to how the file is damaged
            raise ValueError(
                f"data: needs Parquet files, got {files[0]}, which cannot be read ({error}); replace the shard."
            ) from error
        image = next((name for name in ("img", "image") if name in schema.names), None)
        if image is None:
            raise ValueError(
                f"data: needs a column img or image in {files[0]}, got {', '.join(schema.names)}; rename the "
                "column of encoded images."
            )
        return cls(files, image, choose_label(schema.names, label, where=str(files[0])), schema)

    def class_names(self) -> tuple[str, ...] | None:
        """The label's names in the hub's metadata, None where there are none."""
        try:
            features = json.loads(self.schema.metadata[b"huggingface"])["info"]["features"]
            names = features[self.label]["names"]
        except (KeyError, TypeError, ValueError):
            return None
        # older copies number their names: {"0": "apple", ...}
        return (
            tuple(names[key] for key in sorted(names, key=int)) if isinstance(names, dict) else tuple(names)
        )

    def labels(self) -> Int64[Tensor, " n"]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        column = pa.chunked_array(
            [
                chunk
                for file in self.files
                for chunk in pq.read_table(file, columns=[self.label])[self.label].chunks
            ]
        )
        if not pa.types.is_integer(column.type) or column.null_count or not len(column):
            got = f"{column.type} with {column.null_count} missing of {len(column)}"
            raise ValueError(
                f"data: needs an integer in every row of column {self.label!r} of {self.files[0]}, got {got}; "
                "choose another label column or fill it."
            )
        return torch.tensor(column.to_numpy()).to(torch.int64)

    def stream(self) -> Iterator[bytes]:
        """The encoded images in order, a few at a time in memory."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        row = 0
        for file in self.files:
            for batch in pq.ParquetFile(file).iter_batches(batch_size=256, columns=[self.image]):
                column = batch.column(0)
                if pa.types.is_struct(column.type):
                    column = column.field("bytes")
                for value in column:
                    data = value.as_py()
                    if not isinstance(data, bytes):
                        raise ValueError(
                            f"data: needs encoded bytes in column {self.image!r}, got none at {self.describe(row)}; "
                            "embed the images when writing the shards (datasets does by default)."
                        )
                    yield data
                    row += 1

    def describe(self, row: int) -> str:
        import pyarrow.parquet as pq

        for file in self.files:
            count = pq.read_metadata(file).num_rows
            if row < count:
                name = ""
                with contextlib.suppress(Exception):  # the path is a courtesy: columns of bytes have none
                    paths = pq.ParquetFile(file).read(columns=[f"{self.image}.path"])[self.image]
                    name = f" ({paths[row].as_py()['path']})"
                return f"row {row} of {file}{name}"
            row -= count
        raise AssertionError("a row beyond the last shard")


def choose_label(columns: list[str], label: str | None, *, where: str) -> str:
    """The label column: ``label`` itself, or the first of ``columns`` with "label" in its name."""
    candidates = [name for name in columns if "label" in name.lower()]
    if label is None and candidates:
        return candidates[0]
    if label is None or label not in columns:
        wanted = f"the label column {label!r}" if label else "a column with 'label' in its name"
        raise ValueError(
            f"data: needs {wanted} in {where}, got the columns {', '.join(columns)}; choose one of them "
            f"with label={(candidates or columns)[0]!r}."
        )
    return label


def _shards(root: Path) -> dict[str, tuple[Path, ...]]:
    files = (
        [root]
        if root.is_file()
        else sorted(root.glob("*.parquet")) or sorted((root / "data").glob("*.parquet"))
    )
    shards: dict[str, tuple[Path, ...]] = {}
    for file in files:
        match = re.match(r"([a-z]+)(?=[-._])", file.name)
        split = SPLITS.get(match.group(1)) if match else None
        if split is not None:
            shards[split] = (*shards.get(split, ()), file)
    if not shards:
        got = ", ".join(file.name for file in files[:5]) or "no .parquet files"
        raise ValueError(
            f"data: needs shards named train-*.parquet, test-*.parquet or validation-*.parquet in {root}, "
            f"got {got}; rename the files or give the folder that holds them."
        )
    # a complete hub name counts its shards: a missing one would silently be a smaller data set
    for split, found in shards.items():
        total = re.search(r"-of-(\d+)\.parquet$", found[0].name)
        if root.is_dir() and total and int(total.group(1)) != len(found):
            raise ValueError(
                f"data: needs all {int(total.group(1))} {split} shards in {root}, got {len(found)}; copy the missing ones."
            )
    return shards
