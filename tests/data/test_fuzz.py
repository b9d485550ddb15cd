"""Damaged pictures and shards, drawn from a fixed seed: the right value, or a ValueError, and never for long."""

import io
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from outgrow.data import DataWarning, open_data
from outgrow.data.pixels import decode, has_frames, is_picture

from .helpers import encoded, picture, write_folder, write_shard

SECONDS = 5.0
"""For one damaged input: a thousand times what a whole one takes."""


def damaged(whole: bytes, seed: int, number: int) -> Iterator[bytes]:
    """Truncated, with bytes flipped, overwritten, removed and put in."""
    draw = np.random.default_rng(seed)
    for _ in range(number):
        data = bytearray(whole)
        for _ in range(int(draw.integers(1, 4))):
            place = int(draw.integers(0, max(1, len(data))))
            kind = int(draw.integers(0, 5))
            if kind == 0:
                del data[place:]
            elif kind == 1 and place < len(data):
                data[place] ^= 1 << int(draw.integers(0, 8))
            elif kind == 2:
                data[place : place + 8] = draw.integers(0, 256, 8, dtype=np.uint8).tobytes()
            elif kind == 3:
                del data[place : place + int(draw.integers(1, 40))]
            else:
                data[place:place] = draw.integers(0, 256, 5, dtype=np.uint8).tobytes()
        yield bytes(data)


@pytest.mark.filterwarnings("ignore")  # Pillow's own, of damaged metadata
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM"])
def test_pictures(kind: str) -> None:
    buffer = io.BytesIO()
    image = picture(3, height=40, width=48)
    image.save(buffer, format=kind)
    right = np.asarray(Image.open(io.BytesIO(buffer.getvalue())).convert("RGB"))
    refused = []
    for data in damaged(buffer.getvalue(), 1, 150):
        start = time.perf_counter()
        has_frames(data)
        is_picture(data[:64])
        try:
            pixels = np.asarray(decode(data, where=lambda: "it"))
        except ValueError as error:
            refused.append(str(error))
        else:
            assert pixels.dtype == np.uint8
            assert pixels.ndim == 3
            if kind == "PNG":  # whose chunks have checksums: nothing wrong gets through
                assert np.array_equal(pixels, right)
        assert time.perf_counter() - start < SECONDS
    assert len(refused) > 10
    assert all(text.startswith("data: needs images that Pillow can decode, got it (") for text in refused)


@pytest.mark.filterwarnings("ignore")
def test_shards(tmp_path: Path) -> None:
    names = ["cat", "dog"]
    write_shard(
        tmp_path / "whole.parquet",
        [encoded(picture(k)) for k in range(20)],
        {"label": [0, 1] * 10},
        names={"label": names},
    )
    whole = (tmp_path / "whole.parquet").read_bytes()
    refused = []
    for number, data in enumerate(damaged(whole, 2, 60)):
        root = tmp_path / f"{number}"
        root.mkdir()
        (root / "train.parquet").write_bytes(data)
        start = time.perf_counter()
        try:
            found = open_data(f"parquet:{root}", cache_dir=tmp_path / "cache")
        except ValueError as error:
            refused.append(str(error))
        else:
            assert found.train is not None
            assert len(found.train) + len(found.test) == 20
            assert found.num_classes == 2
        assert time.perf_counter() - start < SECONDS
    assert len(refused) > 20
    assert [text for text in refused if not text.startswith("data: needs ")] == []


def test_names_of_files_and_folders(tmp_path: Path) -> None:
    draw = np.random.default_rng(3)
    refused = []
    letters = [
        "a",
        "\u00e9",
        " ",
        "'",
        '"',
        "\\",
        "\n",
        "*",
        "[",
        "%",
        "\u4e2d",
        "\U0001f600",
        "{",
        "-",
        ";",
        "\x7f",
    ]
    for number in range(25):
        root = tmp_path / f"r{number}"
        classes = {"".join(draw.choice(letters, int(draw.integers(1, 6)))) for _ in range(3)}
        write_folder(root, {f"{split}/x{name}": 2 for split in ("train", "val") for name in classes})
        for name in classes:
            (root / "train" / f"x{name}" / "000.png").rename(
                root / "train" / f"x{name}" / ("".join(draw.choice(letters, 4)) + "x.png")
            )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DataWarning)
                data = open_data(f"folder:{root}", cache_dir=tmp_path / "cache")
        except ValueError as error:
            refused.append(str(error))
            continue
        assert data.train is not None
        assert data.train.labels.bincount().tolist() == [2] * len(classes)
    assert all("differ only" in text or "at least 2 classes" in text for text in refused), refused
    assert len(refused) < 10
