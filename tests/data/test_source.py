import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from outgrow.data import ArraySplit, FileSplit, ImageData, Split, open_data
from outgrow.data.pixels import to_tensor
from outgrow.data.splits import check_labels, stratified_cut

from .helpers import encoded, picture, write_folder, write_shard

Open = Callable[..., ImageData]


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    """open_data with a cache of the test's own."""

    def call(spec: str, **options: object) -> ImageData:
        return open_data(spec, cache_dir=tmp_path / "cache", **options)  # type: ignore[arg-type]

    return call


def test_digits(opened: Open) -> None:
    data = opened("digits")
    assert data.classes == tuple("0123456789")
    assert data.train is not None
    assert data.val is None
    assert len(data.train) + len(data.test) == 1797
    assert isinstance(data.train, ArraySplit)
    assert data.train.images.shape[1:] == (3, 8, 8)
    assert data.train.images.max() == 255
    assert torch.equal(data.train.images[:, 0], data.train.images[:, 2])
    counts = torch.stack([data.train.labels.bincount(), data.test.labels.bincount()])
    assert (counts[0] - counts[1]).abs().max() <= 1
    assert torch.equal(data.train.index, torch.arange(len(data.train)))
    again = opened("digits")
    assert again.fingerprint == data.fingerprint
    assert torch.equal(again.test.labels, data.test.labels)


def test_val_is_cut_from_train_by_seed(opened: Open) -> None:
    whole, cut = opened("digits"), opened("digits", val_fraction=0.2, seed=1)
    assert whole.train is not None
    assert cut.train is not None
    assert cut.val is not None
    indices = torch.cat([cut.train.index, cut.val.index])
    assert torch.equal(indices.sort().values, whole.train.index)
    assert torch.equal(cut.test.labels, whole.test.labels)
    for split in (cut.train, cut.val):
        assert torch.equal(split.labels, whole.train.labels[split.index])
        assert torch.equal(split.image(3), whole.train.image(int(split.index[3])))
    shares = cut.val.labels.bincount() / whole.train.labels.bincount()
    assert (shares - 0.2).abs().max() < 0.01
    other = opened("digits", val_fraction=0.2, seed=2)
    assert other.val is not None
    assert not torch.equal(other.val.index, cut.val.index)
    assert len({whole.fingerprint, cut.fingerprint, other.fingerprint}) == 3
    with pytest.raises(ValueError, match=r"fraction between 0 and 1, got 1\.5"):
        opened("digits", val_fraction=1.5)


def test_stratified_cut_keeps_and_takes_one_of_each() -> None:
    labels = torch.tensor([0] * 100 + [1] * 2 + [2])
    keep, taken = stratified_cut(labels, 0.1, seed=0)
    assert labels[taken].bincount().tolist() == [10, 1]
    assert labels[keep].bincount().tolist() == [90, 1, 1]
    keep, taken = stratified_cut(labels, 0.99, seed=0)
    assert labels[keep].bincount().tolist() == [1, 1, 1]
    assert len(stratified_cut(torch.tensor([], dtype=torch.int64), 0.5, seed=0)[0]) == 0


def test_subset_of_subset_keeps_the_original_numbers(opened: Open) -> None:
    train = opened("digits").train
    assert train is not None
    part: Split = train.subset(torch.arange(100, 200)).subset(torch.tensor([5, 3]))
    assert part.index.tolist() == [105, 103]
    assert torch.equal(part.image(1), train.image(103))
    assert isinstance(part, Split)


@pytest.mark.parametrize("held_out", ["val", "test"])
def test_folder_with_splits(tmp_path: Path, opened: Open, held_out: str) -> None:
    root = tmp_path / "photos"
    write_folder(
        root, {"train/cat": 3, "train/dog": 4, f"{held_out}/cat": 2, f"{held_out}/dog": 1}, sides=(100, 120)
    )
    (root / "train" / ".hidden").mkdir()
    (root / "train" / "cat" / "notes.txt").write_text("not an image")
    data = opened(f"folder:{root}")
    assert data.classes == ("cat", "dog")
    assert data.train is not None
    assert data.val is None
    assert isinstance(data.train, FileSplit)
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert data.test.labels.tolist() == [0, 0, 1]
    assert torch.equal(data.train.image(4), to_tensor(picture(4, height=100, width=100)))


def test_folder_with_val_and_test(tmp_path: Path, opened: Open) -> None:
    write_folder(
        tmp_path / "p", {f"{split}/{name}": 2 for split in ("train", "val", "test") for name in "ab"}
    )
    data = opened(f"folder:{tmp_path / 'p'}")
    assert data.val is not None
    assert torch.equal(data.test.image(0), to_tensor(picture(8)))
    assert torch.equal(data.val.image(0), to_tensor(picture(4)))
    with pytest.raises(ValueError, match="got a validation set in"):
        opened(f"folder:{tmp_path / 'p'}", val_fraction=0.5)


def test_one_folder_of_class_folders_is_cut(tmp_path: Path, opened: Open) -> None:
    write_folder(tmp_path / "p", {"a": 10, "b": 5})
    data = opened(f"folder:{tmp_path / 'p'}", seed=0)
    assert data.train is not None
    assert data.test.labels.tolist() == [0, 0, 1]
    assert len(data.train) == 12
    assert not set(data.train.index.tolist()) & set(data.test.index.tolist())
    other = opened(f"folder:{tmp_path / 'p'}", seed=9, val_fraction=0.5)
    assert torch.equal(other.test.index, data.test.index), "no option moves the test set"


def test_only_val_is_to_evaluate_on(tmp_path: Path, opened: Open) -> None:
    write_folder(tmp_path / "p", {"val/a": 2, "val/b": 2})
    data = opened(f"folder:{tmp_path / 'p'}")
    assert data.train is None
    assert data.val is None
    assert len(data.test) == 4
    with pytest.raises(ValueError, match=r"needs a source with training images .* got no training images"):
        opened(f"folder:{tmp_path / 'p'}", val_fraction=0.1)


def test_folder_errors(tmp_path: Path, opened: Open) -> None:
    with pytest.raises(
        ValueError, match=r"needs an existing path in 'folder:.*does not exist; check the path"
    ):
        opened(f"folder:{tmp_path / 'nowhere'}")
    with pytest.raises(ValueError, match=r"needs readable files and folders in .* got File name too long"):
        opened(f"folder:{'long' * 100}")
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"one folder per class in .*none, got no folders"):
        opened(f"folder:{tmp_path / 'none'}")
    write_folder(tmp_path / "empty", {"train/a": 1, "train/b": 0, "val/a": 1, "val/b": 1})
    with pytest.raises(ValueError, match=r"at least one image in every class folder, got none in .*b"):
        opened(f"folder:{tmp_path / 'empty'}")
    write_folder(tmp_path / "differ", {"train/a": 1, "train/b": 1, "val/a": 1, "val/c": 1})
    with pytest.raises(ValueError, match=r"missing from val: \['b'\]; only in val: \['c'\]"):
        opened(f"folder:{tmp_path / 'differ'}")
    write_folder(tmp_path / "single", {"a": 1, "b": 1})
    with pytest.raises(ValueError, match="two or more images of a class to make a test set"):
        opened(f"folder:{tmp_path / 'single'}")
    write_folder(tmp_path / "broken", {"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 1})
    (tmp_path / "broken" / "train" / "b" / "001.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"images that Pillow can decode, got .*train/b/001\.png \(13 bytes"):
        opened(f"folder:{tmp_path / 'broken'}")


def test_spec_errors(opened: Open) -> None:
    with pytest.raises(ValueError, match="got 'cifar:x'; did you mean cifar10"):
        opened("cifar:x")
    with pytest.raises(ValueError, match="got '/some/photos'; for a folder of images use folder:PATH"):
        opened("/some/photos")
    with pytest.raises(ValueError, match="needs folder:WHERE, got 'folder'; for example folder:photos"):
        opened("folder")
    with pytest.raises(ValueError, match="needs digits without a path, got 'digits:x'"):
        opened("digits:x")
    with pytest.raises(ValueError, match="label columns"):
        opened("digits", label="fine_label")
    with pytest.raises(ValueError, match=r"got 7 at row 1 of here \(1 such rows\)"):
        check_labels(torch.tensor([0, 7]), 3, where="here")
    with pytest.raises(ValueError, match="-1 usually marks an unlabelled split"):
        check_labels(torch.tensor([0, -1]), 3, where="here")


def write_cifar(root: Path, *, hundred: bool) -> np.ndarray:
    """CIFAR's pickles with a few random images; returns the test images, n x 32 x 32 x 3."""
    rng = np.random.default_rng(0)
    folder = root / ("cifar-100-python" if hundred else "cifar-10-batches-py")
    folder.mkdir(parents=True)
    files = ["train", "test"] if hundred else [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]
    for name in files:
        images = rng.integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
        key = "fine_labels" if hundred else "labels"
        with (folder / name).open("wb") as file:
            pickle.dump({"data": images.reshape(4, -1), key: [1, 0, 3, 2]}, file)
    names = [f"class{k}" for k in range(100 if hundred else 10)]
    with (folder / ("meta" if hundred else "batches.meta")).open("wb") as file:
        pickle.dump({"fine_label_names" if hundred else "label_names": names}, file)
    return images


@pytest.mark.parametrize("hundred", [False, True])
def test_cifar_of_torchvision(
    tmp_path: Path, opened: Open, monkeypatch: pytest.MonkeyPatch, hundred: bool
) -> None:
    from torchvision.datasets import CIFAR10
    from torchvision.datasets import cifar as module

    images = write_cifar(tmp_path, hundred=hundred)
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(module, "check_integrity", lambda *arguments: True)
    data = opened(f"cifar{100 if hundred else 10}:{tmp_path}")
    assert data.train is not None
    assert data.num_classes == (100 if hundred else 10)
    assert data.classes[2] == "class2"
    assert len(data.train) == (4 if hundred else 20)
    assert data.test.labels.tolist() == [1, 0, 3, 2]
    assert np.array_equal(data.test.image(1).numpy(), images[1])


def test_cifar_that_cannot_be_downloaded(
    tmp_path: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import CIFAR10

    def offline(self: CIFAR10) -> None:
        raise OSError("no network")

    monkeypatch.setattr(CIFAR10, "download", offline)
    with pytest.raises(ValueError, match=r"the download failed \(no network\); copy"):
        opened(f"cifar10:{tmp_path}")
    with pytest.raises(ValueError, match="create the folder to download into it"):
        opened(f"cifar10:{tmp_path / 'typo'}")


def test_imagenet_folders(tmp_path: Path, opened: Open) -> None:
    write_folder(
        tmp_path / "in", {f"{split}/{wnid}": 2 for split in ("train", "val") for wnid in ("n02", "n01")}
    )
    data = opened(f"imagenet:{tmp_path / 'in'}")
    assert data.classes == ("n01", "n02")
    assert data.train is not None
    assert len(data.test) == 4
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match=r"or the archives ILSVRC2012_img_\*\.tar"):
        opened(f"imagenet:{tmp_path / 'nothing'}")


def test_hub_local_directories(tmp_path: Path, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    datasets.disable_progress_bars()
    names = {"label": ["cat", "dog"]}
    for split, numbers in (("train", range(10)), ("test", range(10, 14))):
        pictures = [encoded(picture(k)) for k in numbers]
        write_shard(
            tmp_path / "set" / f"{split}-00000-of-00001.parquet", pictures,
            {"label": [k % 2 for k in numbers]}, names=names, column="image",
        )  # fmt: skip
    read = datasets.load_dataset(
        "parquet",
        data_files={"train": str(tmp_path / "set" / "train-*"), "test": str(tmp_path / "set" / "test-*")},
    )
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=names["label"])}
    )
    read.cast(features).save_to_disk(tmp_path / "saved")
    for where in (tmp_path / "saved", tmp_path / "set"):
        data = opened(f"hf:{where}")
        assert data.train is not None
        assert data.classes == (("cat", "dog")), where
        assert isinstance(data.train, ArraySplit)
        assert data.train.labels.tolist() == [0, 1] * 5
        assert torch.equal(data.test.image(2), to_tensor(picture(12)))
    with pytest.raises(
        ValueError, match=r"needs the label column 'fine'.*choose one of them with --label label"
    ):
        opened(f"hf:{tmp_path / 'saved'}", label="fine")
    (tmp_path / "hollow").mkdir()
    with pytest.raises(ValueError, match="which cannot be loaded"):
        opened(f"hf:{tmp_path / 'hollow'}")


def test_importing_loads_no_data_libraries() -> None:
    code = (
        "import sys, outgrow.data; heavy = {'torchvision', 'pyarrow', 'sklearn', 'datasets', 'scipy'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
