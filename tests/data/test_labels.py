"""Label columns: which one, which classes, and what is refused by name."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from outgrow.data import DataWarning, ImageData, open_data
from outgrow.data.hub import HubImages
from outgrow.data.labels import choose_label
from outgrow.data.pixels import to_tensor

from .helpers import encoded, picture

NUMBER = iter(range(10_000))


def write(file: Path, names: Sequence[str] | None = None, **columns: Any) -> None:
    """A shard of other pictures each time; ``names`` are those of the column "label"."""
    num = len(next(iter(columns.values())))
    images = pa.array([encoded(picture(next(NUMBER))) for _ in range(num)], pa.binary())
    table = pa.table({"image": images, **{name: pa.array(values) for name, values in columns.items()}})
    if names is not None:
        features = {"label": {"names": list(names), "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file)


def opened(root: Path, **options: Any) -> ImageData:
    return open_data(f"parquet:{root}", cache_dir=root.parent / "cache", **options)


@pytest.mark.parametrize(
    "columns, label, expected",
    [
        (["image", "num_labels", "label"], None, "label"),
        (["image", "label_source", "labels", "old_label"], None, "labels"),
        (["image", "Label"], None, "Label"),
        (["image", "fine_label"], None, "fine_label"),
        (["image", "fine_label", "coarse_label"], "coarse_label", "coarse_label"),
        (["image", "label", "kind"], "kind", "kind"),
        (["image", "fine_label", "coarse_label"], None, "fine_label, coarse_label; choose one of them with --label fine_label"),
        (["image", "label", "labels"], None, "label, labels; choose one"),
        (["image", "class"], None, "'label' in its name in here, got the columns image, class; choose one of them with --label class"),
        (["image", "label"], "fine", "the label column 'fine' in here, got the columns image, label"),
    ],
)  # fmt: skip
def test_which_column(columns: list[str], label: str | None, expected: str) -> None:
    if expected in columns:
        assert choose_label(columns, label, where="here") == expected
    else:
        with pytest.raises(ValueError, match=expected):
            choose_label(columns, label, where="here")


def test_the_column_called_label(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path / "p" / f"{split}.parquet", num_labels=[1] * 6, label=[0, 1, 2] * 2)
    assert opened(tmp_path / "p").test.labels.tolist() == [0, 1, 2] * 2


def test_classes_of_all_splits(tmp_path: Path) -> None:
    write(tmp_path / "p" / "train.parquet", label=[0, 1, 2] * 2)
    write(tmp_path / "p" / "test.parquet", label=[0, 1] * 2)
    data = opened(tmp_path / "p")
    assert data.classes == ("0", "1", "2")
    assert data.test.labels.tolist() == [0, 1] * 2


def test_text_is_sorted(tmp_path: Path) -> None:
    write(tmp_path / "p" / "train.parquet", label=["dog", "cat", "zebra"])
    write(tmp_path / "p" / "test.parquet", label=pa.array(["dog", "ant"]).dictionary_encode())
    with pytest.warns(DataWarning, match=r"1 of 4 classes have test images but no training images \(ant\)"):
        data = opened(tmp_path / "p")
    assert data.classes == ("ant", "cat", "dog", "zebra")
    assert data.train is not None
    assert (data.train.labels.tolist(), data.test.labels.tolist()) == ([2, 1, 3], [2, 0])


def test_spellings_of_one_label_are_said(tmp_path: Path) -> None:
    write(tmp_path / "p" / "train.parquet", label=["cat", "cat ", "dog", "Dog"])
    write(tmp_path / "p" / "test.parquet", label=["cat", "dog"])
    with pytest.warns(DataWarning, match=r"2 labels in .* have several spellings \('Dog' and 'dog'\)"):
        assert opened(tmp_path / "p").num_classes == 4


def test_one_label_column_for_all_splits(tmp_path: Path) -> None:
    """The column that only train calls label, and one of coarser classes that test has alone."""
    write(tmp_path / "p" / "train.parquet", label=[0, 1, 2], coarse_label=[0, 0, 1])
    write(tmp_path / "p" / "test.parquet", coarse_label=[0, 0, 1])
    with pytest.raises(ValueError, match=r"got 'label' in train and 'coarse_label' in test; .* --label"):
        opened(tmp_path / "p")
    assert opened(tmp_path / "p", label="coarse_label").num_classes == 2


def test_a_column_of_images_is_not_printed(tmp_path: Path) -> None:
    write(tmp_path / "p" / "train.parquet", label=[0, 1, 2])
    with pytest.raises(ValueError, match="a bytes at row 0") as error:
        opened(tmp_path / "p", label="image")
    assert len(str(error.value)) < 500


def test_truth_values(tmp_path: Path) -> None:
    write(tmp_path / "p" / "train.parquet", label=[True, False, True])
    write(tmp_path / "p" / "test.parquet", label=[False, True])
    data = opened(tmp_path / "p")
    assert (data.classes, data.test.labels.tolist()) == (("False", "True"), [0, 1])


def test_names_in_another_order(tmp_path: Path) -> None:
    write(tmp_path / "p" / "train.parquet", ["cat", "dog", "eel"], label=[0, 1, 2])
    write(tmp_path / "p" / "test.parquet", ["dog", "cat"], label=[0, 1, 1])
    with pytest.warns(DataWarning, match="the classes in another order .* matched by name"):
        data = opened(tmp_path / "p")
    assert (data.classes, data.test.labels.tolist()) == (("cat", "dog", "eel"), [1, 0, 0])


def test_other_names(tmp_path: Path) -> None:
    write(tmp_path / "p" / "train.parquet", ["cat", "dog"], label=[0, 1])
    write(tmp_path / "p" / "test.parquet", ["cat", "wolf"], label=[0, 1])
    with pytest.raises(
        ValueError, match=r"same classes in every split, got wolf in column 'label' of .*test"
    ):
        opened(tmp_path / "p")
    write(tmp_path / "p" / "test.parquet", ["cat", "cat"], label=[0, 1])
    with pytest.raises(ValueError, match=r"unique class names, got 'cat' twice in column 'label' of .*test"):
        opened(tmp_path / "p")
    write(tmp_path / "p" / "test.parquet", ["cat", " "], label=[0, 1])
    with pytest.raises(ValueError, match=r"unique class names, got an empty name"):
        opened(tmp_path / "p")


@pytest.mark.parametrize(
    "label, message",
    [
        ([0, None, 1], "got no label at row 1 of column 'label' of .*train"),
        ([0.0, 1.0, 2.0], r"got 0\.0, a float at row 0"),
        ([0, 1, -1], "got -1 at row 2 of column 'label'.* usually marks an unlabelled split"),
        ([0, 1, 2**40], "got the number 1099511627776, which is too large for a class at row 2"),
        (pa.array([0, 1, 2**64 - 1], pa.uint64()), "too large for a class at row 2"),
        ([0, 1, 900], r"labels that count from 0, got 3 different ones up to 900 .*\(2, 3, 4 and others are missing\)"),
        ([[0], [1], [0, 1]], r"got \[0\], a list at row 0"),
        (["cat", "", "dog"], "got an empty text at row 1"),
        (["cat", None, "dog"], "got no label at row 1"),
        ([0, 0, 0], r"at least 2 classes, got 1 \(0\)"),
    ],
)  # fmt: skip
def test_what_is_no_label(tmp_path: Path, label: Any, message: str) -> None:
    write(tmp_path / "p" / "train.parquet", label=label)
    with pytest.raises(ValueError, match=message):
        opened(tmp_path / "p")


def test_names_bound_the_labels(tmp_path: Path) -> None:
    write(tmp_path / "p" / "train.parquet", ["cat", "dog"], label=[0, 1, 2])
    with pytest.raises(
        ValueError, match=r"needs labels from 0 to 1, got 2 at row 2 of column 'label' of .*train"
    ):
        opened(tmp_path / "p")


def test_a_class_without_images_is_said(tmp_path: Path) -> None:
    write(tmp_path / "p" / "train.parquet", label=[1, 2, 3] * 3)
    with pytest.warns(
        DataWarning, match=r"1 of the 4 classes in .* have no image \(0\); if labels start at 1"
    ):
        assert opened(tmp_path / "p").num_classes == 4


def test_text_beside_numbers(tmp_path: Path) -> None:
    write(tmp_path / "p" / "train.parquet", label=[0, 1, 0])
    write(tmp_path / "p" / "test.parquet", label=["cat", "dog"])
    with pytest.raises(ValueError, match=r"labels of one kind, got text in .*test.* and numbers in .*train"):
        opened(tmp_path / "p")


HUB = "train-{:05d}-of-{:05d}{}.parquet"


@pytest.mark.parametrize(
    "names, message",
    [
        ([HUB.format(0, 3, "-0a1b2c3d4e5f6071"), HUB.format(2, 3, "-0a1b2c3d4e5f6071")], r"all 3 train shards .* got 2 \(number 1 is"),
        ([HUB.format(0, 3, "")], r"all 3 train shards .* got 1 \(number 1, 2 is missing\)"),
        ([HUB.format(0, 2, ""), HUB.format(0, 2, "-0a1b2c3d4e5f6071"), HUB.format(1, 2, "")], r"every train shard once .* remove the copy"),
        ([HUB.format(0, 2, ""), HUB.format(1, 2, ""), HUB.format(1, 2, " (1)")], "every train shard once"),
        ([HUB.format(0, 2, ""), HUB.format(1, 3, "")], r"train shards of one set in .*, got train-00000-of-00002\.parquet beside"),
        ([HUB.format(0, 1, ""), "train.parquet"], r"one set in .*, got train\.parquet beside"),
        ([HUB.format(0, 2, ""), HUB.format(2, 2, "")], r"all 2 train shards .* got 2 \(number 1 is missing"),
        (["other.parquet"], r"shards named train-\*\.parquet.* got other\.parquet"),
    ],
)  # fmt: skip
def test_shards_that_are_missing_or_there_twice(tmp_path: Path, names: list[str], message: str) -> None:
    for name in names:
        write(tmp_path / "p" / name, label=[0, 1])
    with pytest.raises(ValueError, match=message):
        opened(tmp_path / "p")


def test_shards_of_the_same_content(tmp_path: Path) -> None:
    write(tmp_path / "p" / "train-a.parquet", label=[0, 1])
    shutil.copy(tmp_path / "p" / "train-a.parquet", tmp_path / "p" / "train-b.parquet")
    with pytest.raises(
        ValueError, match=r"every shard once, got the same content in .*train-a.* and .*train-b"
    ):
        opened(tmp_path / "p")


def test_shards_by_other_names(tmp_path: Path) -> None:
    for k in (1, 2):
        write(tmp_path / "p" / f"Train-{k:05d}-of-00002.parquet", label=[0, 1])
    write(tmp_path / "p" / "dev.parquet", label=[0, 1, 1])
    (tmp_path / "p" / "._train-00001-of-00002.parquet").write_bytes(b"a resource fork")
    data = opened(tmp_path / "p")
    assert data.train is not None
    assert (len(data.train), len(data.test)) == (4, 3)
    write(tmp_path / "p" / "extra.parquet", label=[0, 1, 1])
    with pytest.warns(
        DataWarning, match=r"left out extra\.parquet in .*: the name does not start with a split"
    ):
        opened(tmp_path / "p")


def test_shards_that_differ(tmp_path: Path) -> None:
    write(tmp_path / "p" / "train-a.parquet", label=[0, 1])
    write(tmp_path / "p" / "train-b.parquet", kind_label=[0, 1])
    with pytest.raises(
        ValueError, match=r"same columns in every shard, got 'label' in .*-a.* and 'kind_label' in .*-b"
    ):
        opened(tmp_path / "p")
    write(tmp_path / "p" / "train-b.parquet", ["cat", "dog"], label=[0, 1])
    write(tmp_path / "p" / "train-a.parquet", ["dog", "cat"], label=[0, 0])
    with pytest.warns(DataWarning, match="matched by name"):
        data = opened(tmp_path / "p")
    assert data.classes == ("dog", "cat")
    assert data.train is not None
    assert sorted([*data.train.labels.tolist(), *data.test.labels.tolist()]) == [0, 0, 0, 1]


def test_no_rows(tmp_path: Path) -> None:
    write(tmp_path / "p" / "train.parquet", label=pa.array([], pa.int64()))
    with pytest.raises(ValueError, match=r"needs rows in the shards, got none in .*train\.parquet"):
        opened(tmp_path / "p")
    (tmp_path / "p" / "train.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match=r"needs Parquet files, got .*train\.parquet, which cannot be read"):
        opened(tmp_path / "p")


def test_rows_are_read_in_any_order_without_a_cache(tmp_path: Path) -> None:
    """Of large images in shards: slow, and right."""
    for split in ("train", "test"):
        images = pa.array([encoded(picture(k, height=100, width=100)) for k in range(9)], pa.binary())
        if split == "test":
            images = pa.array(
                [encoded(picture(50 + k, height=100, width=100)) for k in range(9)], pa.binary()
            )
        (tmp_path / "p").mkdir(exist_ok=True)
        table = pa.table({"image": images, "label": [0, 1, 2] * 3})
        pq.write_table(table, tmp_path / "p" / f"{split}.parquet", row_group_size=4)
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.warns(DataWarning, match="cannot be written .* XDG_CACHE_HOME"):
        data = opened(tmp_path / "p")
    for k in (8, 0, 5, 3, 4):
        assert torch.equal(data.test.image(k), to_tensor(picture(50 + k, height=100, width=100)))


def test_hub_names_in_another_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    datasets.disable_progress_bars()

    def of(labels: list[int], names: list[str]) -> Any:
        kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
        images = [{"bytes": encoded(picture(next(NUMBER))), "path": None} for _ in labels]
        return datasets.Dataset.from_dict({"image": images, "label": labels}, features=kinds)

    saved = tmp_path / "h"
    both = datasets.DatasetDict(train=of([0, 1] * 4, ["cat", "dog"]), test=of([0, 1, 1], ["dog", "cat"]))
    both.save_to_disk(saved)
    with pytest.warns(DataWarning, match="matched by name"):
        data = open_data(f"hf:{saved}", cache_dir=tmp_path / "cache")
    assert (data.classes, data.test.labels.tolist()) == (("cat", "dog"), [1, 0, 0])
    copied = tmp_path / "copy"
    shutil.copytree(saved, copied, copy_function=shutil.copyfile)
    with pytest.warns(DataWarning, match="matched by name"):
        assert open_data(f"hf:{copied}", cache_dir=tmp_path / "cache").fingerprint == data.fingerprint
    arrow = next((copied / "test").glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:-500])
    with pytest.raises(ValueError, match="data set"):
        open_data(f"hf:{copied}", cache_dir=tmp_path / "cache")


def test_a_hub_data_set_that_was_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small one may be kept in memory on request. Then no file says that it is another one."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "IN_MEMORY_MAX_SIZE", 1 << 30)

    def shown(first: int) -> torch.Tensor:
        images = [{"bytes": encoded(picture(first + k)), "path": None} for k in range(6)]
        features = datasets.Features(image=datasets.Image(), label=datasets.Value("int64"))
        data = datasets.Dataset.from_dict({"image": images, "label": [0, 1] * 3}, features=features)
        shutil.rmtree(tmp_path / "h", ignore_errors=True)
        datasets.DatasetDict(train=data).save_to_disk(tmp_path / "h")
        found = open_data(f"hf:{tmp_path / 'h'}", cache_dir=tmp_path / "cache").train
        assert found is not None
        return found.image(0)

    assert not torch.equal(shown(0), shown(20))


def test_one_label_column_for_all_splits_of_the_hub(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()

    def of(column: str) -> Any:
        kinds = datasets.Features({"image": datasets.Image(), column: datasets.Value("int64")})
        images = [{"bytes": encoded(picture(next(NUMBER))), "path": None} for _ in range(4)]
        return datasets.Dataset.from_dict({"image": images, column: [0, 1, 0, 1]}, features=kinds)

    datasets.DatasetDict(train=of("label"), test=of("species_label")).save_to_disk(tmp_path / "h")
    with pytest.raises(ValueError, match="got 'label' in train and 'species_label' in test"):
        open_data(f"hf:{tmp_path / 'h'}", cache_dir=tmp_path / "cache")


def test_hub_paths_stay_inside(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    inside, outside = tmp_path / "h" / "files", tmp_path / "secret"
    kinds = datasets.Features({"image": datasets.Image(decode=False)})
    for folder in (inside, outside):
        folder.mkdir(parents=True)
        picture(0).save(folder / "0.png")
    (inside / "link.png").symlink_to(outside / "0.png")
    home = os.path.realpath(tmp_path / "h")

    def rows(path: Path) -> HubImages:
        images = [{"bytes": None, "path": str(path)}]
        return HubImages(datasets.Dataset.from_dict({"image": images}, features=kinds), "image", "it", home)

    assert rows(inside / "0.png").paths() == [str(inside / "0.png")]
    assert rows(inside / "0.png").read(0) == (inside / "0.png").read_bytes()
    for path in (outside / "0.png", inside / ".." / ".." / "secret" / "0.png", inside / "link.png"):
        with pytest.raises(ValueError, match=r"images below .*h, got .* at row 0 of it, which is outside"):
            rows(path).read(0)
        with pytest.raises(ValueError, match="which is outside"):
            rows(path).paths()
