"""Small data sets in the layouts that users have, written from seeded random pictures."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def picture(number: int, *, height: int = 12, width: int = 12) -> Image.Image:
    """A random picture, smooth enough that resizing it means something."""
    small = np.random.default_rng(number).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def write_folder(root: Path, counts: Mapping[str, int], *, sides: Sequence[int] = (12,)) -> None:
    """``counts["train/cat"]`` pictures in ``root/train/cat``; sides of the pictures in turn."""
    number = 0
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for k in range(count):
            side = sides[number % len(sides)]
            picture(number, height=side, width=side).save(root / name / f"{k:03d}.png")
            number += 1


def write_shard(
    file: Path,
    images: Sequence[bytes | None],
    labels: Mapping[str, Sequence[int]],
    *,
    names: Mapping[str, Sequence[str]] | None = None,
    column: str = "img",
) -> None:
    """A Parquet shard as the hub writes it; ``names`` are the class names of a label column."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"bytes": data, "path": f"picture_{k}.png"} for k, data in enumerate(images)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table(
        {
            column: pa.array(rows, kind),
            **{name: pa.array(values, pa.int64()) for name, values in labels.items()},
        }
    )
    if names is not None:
        features: dict[str, dict] = {column: {"_type": "Image"}}
        features |= {name: {"names": list(values), "_type": "ClassLabel"} for name, values in names.items()}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file, row_group_size=7)
