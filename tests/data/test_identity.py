"""What files hold, told by their bytes; and a cache that is never old, never damaged and never needed."""

import errno
import os
import shutil
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import outgrow.data.cache as cache
import outgrow.data.identity as identity
from outgrow.data import ArraySplit, DataWarning, ImageData, open_data
from outgrow.data.identity import also_in, look_at

from .helpers import encoded, picture, write_folder, write_shard


def opened(root: Path, **options: Any) -> ImageData:
    kind = "parquet" if any(root.glob("*.parquet")) else "folder"
    return open_data(f"{kind}:{root}", cache_dir=root.parent / "cache", **options)


def set_of_bmp(root: Path, colour: int) -> None:
    for split in ("train", "val"):
        for name in "ab":
            for k in range(4):
                path = root / split / name / f"{k}.bmp"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (32, 32), (colour, k, ord(name) + 2 * (split == "val"))).save(path)
                os.utime(path, (0, 0))


@pytest.mark.parametrize("settled", [True, False])
def test_pictures_of_the_same_size_and_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settled: bool
) -> None:
    """Changed in place, or replaced; long ago (their times are told apart), or just now (they may not be)."""
    monkeypatch.setattr(identity, "_SETTLED", 0 if settled else 10**12)
    seen = set()
    for colour in (10, 20):
        set_of_bmp(tmp_path / "p", colour)
        if settled:
            time.sleep(0.05)  # a tick of the file system's clock
        for _ in range(2):
            data = opened(tmp_path / "p")
            assert data.train is not None
            assert data.train.image(0)[0, 0, 0] == colour
            seen.add(data.fingerprint)
    assert len(seen) == 2
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 2, "old files are removed"


def test_what_is_remembered_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "_SETTLED", 0)
    write_folder(tmp_path / "p", {"train/a": 3, "train/b": 3, "val/a": 1, "val/b": 1})
    time.sleep(0.05)
    first = opened(tmp_path / "p")
    looked: list[str] = []
    look = identity._look
    monkeypatch.setattr(
        identity, "_look", lambda path, *rest, **more: looked.append(path) or look(path, *rest, **more)
    )
    assert opened(tmp_path / "p").fingerprint == first.fingerprint
    assert looked == []
    for store in (tmp_path / "cache").rglob("*.looks"):
        store.write_bytes(store.read_bytes()[:-3])
    assert opened(tmp_path / "p").fingerprint == first.fingerprint
    assert len(looked) == 8, "a damaged memory is none"


def test_a_copy_is_the_same_data(tmp_path: Path) -> None:
    write_folder(tmp_path / "p", {"train/a": 3, "train/b": 3, "val/a": 1, "val/b": 1})
    shutil.copytree(tmp_path / "p", tmp_path / "elsewhere" / "q", copy_function=shutil.copyfile)
    assert opened(tmp_path / "p").fingerprint == opened(tmp_path / "elsewhere" / "q").fingerprint
    for split, start in (("train", 0), ("test", 50)):
        pictures = [encoded(picture(start + k)) for k in range(6)]
        write_shard(tmp_path / "r" / f"{split}.parquet", pictures, {"label": [0, 1] * 3})
    shutil.copytree(tmp_path / "r", tmp_path / "elsewhere" / "s", copy_function=shutil.copyfile)
    assert opened(tmp_path / "r").fingerprint == opened(tmp_path / "elsewhere" / "s").fingerprint


def test_what_changes_a_fingerprint(tmp_path: Path) -> None:
    write_folder(tmp_path / "p", {"train/a": 3, "train/b": 3, "val/a": 1, "val/b": 1})
    folder = tmp_path / "p" / "train"
    seen = [opened(tmp_path / "p").fingerprint]
    (folder / "a" / "001.png").rename(folder / "b" / "201.png")  # into another class
    seen.append(opened(tmp_path / "p").fingerprint)
    picture(77).save(folder / "b" / "201.png")
    seen.append(opened(tmp_path / "p").fingerprint)
    one, other = (folder / "b" / f"{k:03d}.png" for k in (0, 1))
    content = one.read_bytes(), other.read_bytes()
    one.write_bytes(content[1])  # in another order
    other.write_bytes(content[0])
    seen.append(opened(tmp_path / "p").fingerprint)
    (tmp_path / "p" / "val" / "a").rename(tmp_path / "p" / "val" / "A")
    with pytest.warns(DataWarning, match="another spelling"):
        seen.append(opened(tmp_path / "p").fingerprint)
    assert len(set(seen)) == 5


def test_large_sets_are_sampled_and_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "WHOLE_SET", 1000)
    monkeypatch.setattr(identity, "WHOLE_FILE", 100)
    monkeypatch.setattr(identity, "_BLOCK", 20)
    files = [tmp_path / f"{k}" for k in range(3)]
    for k, file in enumerate(files):
        file.write_bytes(bytes([k]) * 5000)
    names = [str(file) for file in files]
    before = look_at(names, None)
    assert before.sampled == 3
    seen = {before.digests.tobytes()}
    keys = {before.key}
    for place in (0, 2500, 4999, 1000):
        content = bytearray(files[0].read_bytes())
        content[place] ^= 1
        files[0].write_bytes(content)
        os.utime(files[0], (0, 0))
        time.sleep(0.02)
        after = look_at(names, None)
        seen.add(after.digests.tobytes())
        keys.add(after.key)
    assert len(seen) == 4, "a change between the blocks is not seen"
    assert len(keys) == 5, "but a decoded copy goes by the times of the files, too"
    write_folder(tmp_path / "p", {"train/a": 3, "train/b": 3, "val/a": 1, "val/b": 1}, sides=(100,))
    with pytest.warns(DataWarning) as caught:
        opened(tmp_path / "p")
    assert [str(warning.message).partition(",")[0] for warning in caught] == [
        "data: the fingerprint covers only the size and three blocks of 6 of 6 images in p-train",
        "data: the fingerprint covers only the size and three blocks of 2 of 2 images in p-val",
    ]


def test_the_same_rows() -> None:
    draw = np.random.default_rng(0).integers(0, 256, (10, 16), dtype=np.uint8)
    draw[7], draw[3] = draw[2], 0
    assert also_in(draw, draw).tolist() == [0, 1, 2, -1, 4, 5, 6, 2, 8, 9]
    assert also_in(draw[:2], draw[4:]).tolist() == [-1, -1]
    assert also_in(draw[:2], draw[:0]).tolist() == [-1, -1]


def test_many_openings_at_once(tmp_path: Path) -> None:
    write_folder(tmp_path / "p", {"train/a": 30, "train/b": 30, "val/a": 5, "val/b": 5})

    def total(_: int) -> int:
        data = opened(tmp_path / "p")
        assert isinstance(data.train, ArraySplit)
        return int(data.train.images.sum())

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(total, range(12)))) == 1
    assert not list((tmp_path / "cache").rglob("*.tmp"))


@pytest.mark.parametrize("side", [12, 100])
def test_a_full_disk_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: int) -> None:
    for split, start in (("train", 0), ("test", 50)):
        pictures = [encoded(picture(start + k, height=side, width=side)) for k in range(6)]
        write_shard(tmp_path / "r" / f"{split}.parquet", pictures, {"label": [0, 1] * 3})

    def full(fileno: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache.os, "fsync", full)
    with pytest.warns(DataWarning, match=r"cannot be written \(No space left on device\).* XDG_CACHE_HOME"):
        data = opened(tmp_path / "r")
    assert torch.equal(
        data.test.image(2), torch.from_numpy(np.array(picture(52, height=side, width=side))).permute(2, 0, 1)
    )
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.suffix in (".npy", ".pack", ".tmp")]


def test_a_pack_that_is_damaged_while_it_is_read(tmp_path: Path) -> None:
    for split, start in (("train", 0), ("test", 50)):
        pictures = [encoded(picture(start + k, height=100, width=100)) for k in range(6)]
        write_shard(tmp_path / "r" / f"{split}.parquet", pictures, {"label": [0, 1] * 3})
    data = opened(tmp_path / "r")
    (pack,) = (tmp_path / "cache").rglob("r_test*.pack")
    content = bytearray(pack.read_bytes())
    content[-50] ^= 1
    pack.write_bytes(content)
    assert data.test.image(0).shape == (3, 100, 100)
    with pytest.raises(ValueError, match=r"needs the packed images .* got a damaged file; remove it"):
        data.test.image(5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        assert opened(tmp_path / "r").test.image(5).shape == (3, 100, 100)


def test_sizes_are_cached_with_the_digests(tmp_path, monkeypatch):
    exif = Image.Exif()
    exif[274] = 6
    paths = [str(tmp_path / name) for name in ("upright.png", "turned.jpg", "broken.jpg")]
    Image.new("RGB", (30, 20)).save(paths[0])
    Image.new("RGB", (30, 20)).save(paths[1], exif=exif)
    Path(paths[2]).write_bytes(b"no image")
    for path in paths:
        os.utime(path, ns=(1, 1))
    monkeypatch.setattr(
        "outgrow.data.identity._SETTLED", -(10**12)
    )  # files that were just written are cached, too
    store = tmp_path / "store.looks"
    expected = [[[30, 20], [30, 20]], [[30, 20], [20, 30]], [[0, 0], [0, 0]]]
    assert look_at(paths, store).sizes is None
    for _ in range(2):  # read, because the first look had no need of them; then from the cache
        sizes = look_at(paths, store, with_sizes=True).sizes
        assert sizes is not None
        assert sizes.tolist() == expected
        monkeypatch.setattr("outgrow.data.identity.sizes_of", None)
    assert look_at(paths, store).digests.any(1).all()
