"""Shards as on the hub, and the cache of decoded and packed images."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import outgrow.data.cache as cache
from outgrow.data import ArraySplit, DataWarning, FileSplit, ImageData, open_data
from outgrow.data.pixels import to_tensor

from .helpers import encoded, picture, write_shard

FINE = [f"fine{k}" for k in range(4)]
COARSE = ["animal", "thing"]


def write_set(root: Path, *, side: int = 12, fine: list[int] | None = None, names: bool = True) -> Path:
    for split, start, shards in (("train", 0, 2), ("test", 100, 1)):
        for shard in range(shards):
            numbers = range(start + 20 * shard, start + 20 * shard + 20)
            labels = fine if fine is not None else [k % 4 for k in numbers]
            write_shard(
                root / f"{split}-{shard:05d}-of-{shards:05d}.parquet",
                [encoded(picture(k, height=side, width=side)) for k in numbers],
                {"fine_label": labels, "coarse_label": [label % 2 for label in labels]},
                names={"fine_label": FINE, "coarse_label": COARSE} if names else None,
            )
    return root


def opened(root: Path, **options: str) -> ImageData:
    options = {"label": "fine_label", **options}
    return open_data(f"parquet:{root}", cache_dir=root.parent / "cache", **options)  # type: ignore[arg-type]


def plain(root: Path, **options: str) -> ImageData:
    """With the label column that is found."""
    return open_data(f"parquet:{root}", cache_dir=root.parent / "cache", **options)  # type: ignore[arg-type]


def cached(root: Path, suffix: str) -> list[Path]:
    return sorted((root.parent / "cache").rglob(f"*{suffix}"))


def test_small_images_are_decoded(tmp_path: Path) -> None:
    data = opened(write_set(tmp_path / "set"))
    assert data.classes == tuple(FINE)
    assert isinstance(data.train, ArraySplit)
    assert data.train.labels.tolist() == [k % 4 for k in range(40)]
    for k in (0, 19, 20, 39):
        assert torch.equal(data.train.image(k), to_tensor(picture(k)))
    assert torch.equal(data.test.image(5), to_tensor(picture(105)))
    coarse = opened(tmp_path / "set", label="coarse_label")
    assert coarse.classes == tuple(COARSE)
    assert coarse.fingerprint != data.fingerprint
    assert len(cached(tmp_path / "set", ".npy")) == 2, "labels do not matter to decoded images"
    numbered = opened(write_set(tmp_path / "numbered", names=False))
    assert numbered.classes == ("0", "1", "2", "3")


def test_second_opening_does_not_decode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = opened(write_set(tmp_path / "set"))

    def refuse(data: bytes, *, where: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(cache, "decode", refuse)
    second = opened(tmp_path / "set")
    assert second.fingerprint == first.fingerprint
    assert isinstance(second.train, ArraySplit)
    assert isinstance(first.train, ArraySplit)
    assert torch.equal(second.train.images, first.train.images)


@pytest.mark.parametrize("damage", ["truncated", "foreign", "empty", "flipped"])
@pytest.mark.parametrize("suffix", [".npy", ".pack"])
def test_damaged_cache_is_rebuilt(tmp_path: Path, damage: str, suffix: str) -> None:
    side = 12 if suffix == ".npy" else 100
    opened(write_set(tmp_path / "set", side=side))
    files = cached(tmp_path / "set", suffix)
    assert len(files) == 2
    for file in files:
        whole = file.read_bytes()
        flipped = whole[:-200] + bytes([whole[-200] ^ 1]) + whole[-199:]
        file.write_bytes(
            {
                "truncated": whole[:-100],
                "foreign": b"something else" * 50,
                "empty": b"",
                "flipped": flipped,
            }[damage]
        )
    with pytest.warns(DataWarning, match="are damaged and are built again"):
        data = opened(tmp_path / "set")
    assert data.train is not None
    assert torch.equal(data.train.image(39), to_tensor(picture(39, height=side, width=side)))
    assert cached(tmp_path / "set", suffix) == files
    assert not cached(tmp_path / "set", ".tmp")


def test_changed_source_is_decoded_again_and_its_old_file_removed(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set")
    before, files = opened(root), cached(root, ".npy")
    shard = root / "test-00000-of-00001.parquet"
    write_shard(
        shard,
        [encoded(picture(200 + k)) for k in range(20)],
        {"fine_label": [0, 1] * 10},
        names={"fine_label": FINE},
    )
    after = opened(root)
    assert torch.equal(after.test.image(3), to_tensor(picture(203)))
    assert after.fingerprint != before.fingerprint
    assert len(cached(root, ".npy")) == 2
    assert cached(root, ".npy") != files


def test_large_images_are_packed(tmp_path: Path) -> None:
    import copy
    import pickle

    data = opened(write_set(tmp_path / "set", side=100))
    assert isinstance(data.train, FileSplit)
    expected = to_tensor(picture(21, height=100, width=100))
    assert torch.equal(data.train.image(21), expected)
    assert torch.equal(pickle.loads(pickle.dumps(data.train)).image(21), expected), "workers open it anew"
    assert torch.equal(copy.deepcopy(data.train).subset(torch.tensor([21])).image(0), expected)
    assert len(pickle.dumps(data.train)) < 5000


def test_small_images_of_several_sizes_are_packed(tmp_path: Path) -> None:
    for split, first in (("train", 0), ("validation", 10)):
        images = [encoded(picture(first + k, height=12 + k % 2, width=12)) for k in range(10)]
        write_shard(tmp_path / "set" / f"{split}.parquet", images, {"label": [0, 1] * 5})
    data = plain(tmp_path / "set")
    assert isinstance(data.train, FileSplit)
    assert data.train.image(1).shape == (3, 13, 12)
    assert len(data.test) == 10


def test_unwritable_cache_still_works(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set")
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.warns(DataWarning, match="cannot be written .* XDG_CACHE_HOME"):
        data = opened(root)
    assert torch.equal(data.test.image(0), to_tensor(picture(100)))


@pytest.mark.filterwarnings("ignore:.*cannot be written")
def test_a_shard_that_was_written_anew_is_read_anew_without_a_cache(tmp_path: Path) -> None:
    """In one process: the last rows that it read are kept."""
    root = write_set(tmp_path / "set", side=100)
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert torch.equal(opened(root).test.image(0), to_tensor(picture(100, height=100, width=100)))
    write_shard(
        root / "test-00000-of-00001.parquet",
        [encoded(picture(300 + k, height=100, width=100)) for k in range(20)],
        {"fine_label": [0, 1] * 10},
        names={"fine_label": FINE},
    )
    assert torch.equal(opened(root).test.image(0), to_tensor(picture(300, height=100, width=100)))


def test_errors(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set")
    with pytest.raises(
        ValueError, match=r"needs the label column 'fine'.*img, fine_label, coarse_label; choose one"
    ):
        opened(root, label="fine")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"shards named train-\*\.parquet.*got no \.parquet files"):
        opened(tmp_path / "empty")
    with pytest.raises(ValueError, match="needs labels from 0 to 3, got 9 at row 3 of column 'fine_label'"):
        opened(write_set(tmp_path / "range", fine=[0, 1, 2, 9] * 5))
    (root / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(ValueError, match=r"needs all 2 train shards in .*, got 1"):
        opened(root)
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / "train.parquet").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"needs Parquet files, got .*junk/train\.parquet"):
        plain(tmp_path / "junk")
    pictures = [encoded(picture(k)) for k in range(3)]
    write_shard(tmp_path / "column" / "train.parquet", pictures, {"label": [0, 1, 1]}, column="photo")
    with pytest.raises(ValueError, match=r"column img or image in .*got the columns photo, label"):
        plain(tmp_path / "column")
    write_shard(tmp_path / "bytes" / "train.parquet", [*pictures, None], {"label": [0, 1, 1, 0]})
    with pytest.raises(ValueError, match=r"got none at row 3 of .*train\.parquet \(picture_3\.png\)"):
        plain(tmp_path / "bytes")
    table = pa.table({"image": [{"path": "0.png"}, {"path": "1.png"}], "label": [0, 1]})
    (tmp_path / "paths").mkdir()
    pq.write_table(table, tmp_path / "paths" / "train.parquet")
    with pytest.raises(
        ValueError, match=r"got none at row 0 of .*train\.parquet \(0\.png\); embed the images"
    ):
        plain(tmp_path / "paths")
    write_shard(tmp_path / "broken" / "train.parquet", [*pictures, b"no"], {"label": [0, 1, 1, 0]})
    with pytest.raises(
        ValueError, match=r"Pillow can decode, got row 3 of .*train\.parquet \(picture_3\.png\)"
    ):
        plain(tmp_path / "broken")
    assert not cached(tmp_path / "broken", ".tmp")


def test_cifar100(shared_data: Path, tmp_path: Path) -> None:
    # the test shard alone: decoding all 60,000 takes 12 s of one core
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "test-00000-of-00001.parquet").symlink_to(
        shared_data / "cifar100" / "test-00000-of-00001.parquet"
    )
    with pytest.warns(DataWarning, match="2 of 10,000 images in set-test are in another class too"):
        data = opened(tmp_path / "set", label="fine_label")
    assert data.train is None
    assert isinstance(data.test, ArraySplit)
    assert data.test.images.shape == (10_000, 3, 32, 32)
    assert data.classes[:3] == ("apple", "aquarium_fish", "baby")
    assert data.test.labels.bincount().tolist() == [100] * 100
    coarse = opened(tmp_path / "set", label="coarse_label")
    assert coarse.test.labels.bincount().tolist() == [500] * 20
    # the mean and deviation that everybody normalises CIFAR-100 with, to two digits
    pixels = data.test.images.float() / 255
    torch.testing.assert_close(
        pixels.mean((0, 2, 3)), torch.tensor([0.507, 0.487, 0.441]), atol=0.005, rtol=0
    )
    torch.testing.assert_close(pixels.std((0, 2, 3)), torch.tensor([0.267, 0.256, 0.276]), atol=0.005, rtol=0)
