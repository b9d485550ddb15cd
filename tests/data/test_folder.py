"""Folders as people have them: which are splits, which are classes, and which files count."""

import os
import shutil
import socket
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from outgrow.data import DataWarning, FileSplit, ImageData, Split, open_data
from outgrow.data.folder import check_outside
from outgrow.data.pixels import to_tensor

from .helpers import picture, write_folder

Open = Callable[..., ImageData]
CAFE, CAFE_APART = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    """open_data of a folder with a its own cache; warnings are only in ``notes``."""

    def call(root: Path, **options: object) -> ImageData:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)
            return open_data(f"folder:{root}", cache_dir=tmp_path / "cache", **options)  # type: ignore[arg-type]

    return call


def quiet(data: ImageData) -> ImageData:
    assert data.notes == ()
    return data


def noted(data: ImageData, *parts: str) -> ImageData:
    for part in parts:
        assert any(part in note for note in data.notes), data.notes
    return data


@pytest.mark.parametrize(
    ("layout", "out", "read"),
    [
        (("a", "b"), "run", True),
        (("a", "b"), "a/run", True),
        (("train/a", "train/b"), "train/run", True),
        (("train/a", "train/b"), "run", False),
        (("a", "b"), ".runs/1", False),
        (("a", "b"), "../run", False),
    ],
)
def test_a_run_is_no_class(tmp_path: Path, layout: tuple[str, ...], out: str, read: bool) -> None:
    """The folder of a run among the class folders would be one of them at the next run."""
    write_folder(tmp_path / "p", dict.fromkeys(layout, 3))
    if read:
        with pytest.raises(ValueError, match="--out: needs a folder outside of the images, got"):
            check_outside(tmp_path / "p" / out, f"folder:{tmp_path / 'p'}")
    else:
        check_outside(tmp_path / "p" / out, f"folder:{tmp_path / 'p'}")


def test_notes_are_warnings(tmp_path: Path) -> None:
    write_folder(tmp_path / "p" / "p", {"a": 5, "b": 5})
    with pytest.warns(DataWarning, match="contains only the folder p, which is used instead"):
        open_data(f"folder:{tmp_path / 'p'}", cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("train", ["train", "Train", "TRAINING", "training"])
@pytest.mark.parametrize("held_out", ["val", "valid", "validation", "Validation", "dev", "test", "Testing"])
def test_splits_by_other_names(tmp_path: Path, opened: Open, train: str, held_out: str) -> None:
    write_folder(tmp_path / "p", {f"{train}/a": 3, f"{train}/b": 2, f"{held_out}/a": 1, f"{held_out}/b": 2})
    data = quiet(opened(tmp_path / "p"))
    assert data.classes == ("a", "b")
    assert data.train is not None
    assert (len(data.train), len(data.test)) == (5, 3)


def test_val_and_test_by_other_names(tmp_path: Path, opened: Open) -> None:
    write_folder(
        tmp_path / "p", {f"{split}/{name}": 2 for split in ("Training", "valid", "Test") for name in "ab"}
    )
    data = quiet(opened(tmp_path / "p"))
    assert data.val is not None
    assert (len(data.val), len(data.test)) == (4, 4)


@pytest.mark.parametrize(
    "counts, message",
    [
        ({"train/a": 2, "train/b": 2, "Train/a": 2, "Train/b": 2}, r"one folder of train images .* Train and train"),
        ({"train/a": 2, "train/b": 2, "val/a": 1, "valid/b": 1}, r"one folder of val images .* val and valid"),
        ({"train/a": 2}, r"at least 2 classes, got 1 \(a\)"),
        ({"a": 5}, r"at least 2 classes, got 1 \(a\)"),
        ({"train": 5, "val": 2}, r"one folder per class in .*train, got 5 images and no folders"),
        ({"train/a": 2, "train/b": 2, "val": 3}, r"one folder per class in .*val, got 3 images and no folders"),
        ({"train/a": 2, "train/b": 0}, r"at least one image in every class folder, got none in .*b"),
        ({"train/a": 2, "train/b": 2, "val/a": 0, "val/b": 0}, r"at least one image in every class folder"),
        ({"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 1, "val/c": 1}, r"only in val: \['c'\]"),
        ({"Cat": 2, "cat": 2}, "'Cat' and 'cat', which differ only in case, spaces or Unicode form"),
        ({"cat": 2, "cat ": 2}, "differ only in case, spaces or Unicode form"),
        ({CAFE: 2, CAFE_APART: 2}, r"'caf\\xe9'.* differ only in case, spaces or Unicode form"),
        ({"set1/a": 2, "set1/b": 2, "set2/a": 2, "set2/b": 2}, r"set1, set2, which all contain folders named a, b"),
        (
            {"seg_test/seg_test/a": 2, "seg_test/seg_test/b": 2, "seg_train/seg_train/a": 2, "seg_train/seg_train/b": 2},
            r"seg_test, seg_train, which each hold one folder with folders named a, b in it, as if they were splits",
        ),
        ({"train/ ": 2, "train/b": 2}, r"class folders with names in UTF-8, got ' '"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, opened: Open, counts: dict[str, int], message: str) -> None:
    write_folder(tmp_path / "p", counts)
    with pytest.raises(ValueError, match=message) as caught:
        opened(tmp_path / "p")
    assert str(caught.value).startswith("data: needs ")


def test_images_without_class_folders(tmp_path: Path, opened: Open) -> None:
    write_folder(tmp_path, {"p": 4})
    with pytest.raises(
        ValueError, match=r"one folder per class in .*p, got 4 images and no folders; arrange"
    ):
        opened(tmp_path / "p")


def test_a_folder_in_a_folder(tmp_path: Path, opened: Open) -> None:
    write_folder(
        tmp_path / "p" / "photos" / "Photos",
        {f"{split}/{name}": 2 for split in ("train", "val") for name in "ab"},
    )
    write_folder(tmp_path / "p", {"__MACOSX/photos": 2, ".git/x": 1})
    data = noted(opened(tmp_path / "p"), "contains only the folder photos, which is used instead")
    assert (data.classes, len(data.test)) == (("a", "b"), 4)
    write_folder(tmp_path / "q", {"train/deep/a": 2, "train/deep/b": 2, "val/a": 1, "val/b": 1})
    assert len(noted(opened(tmp_path / "q"), "contains only the folder deep").test) == 2


def test_folders_beside_the_splits(tmp_path: Path, opened: Open) -> None:
    write_folder(tmp_path / "p", {"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 1, "docs/pages": 3})
    data = noted(opened(tmp_path / "p"), "left out docs")
    assert data.train is not None
    assert len(data.train) == 4
    write_folder(tmp_path / "q", {"train/a": 5, "train/b": 5, "test": 4})
    data = noted(opened(tmp_path / "q"), "4 images and no folders, so its images have no labels")
    assert len(data.test) == 2
    write_folder(tmp_path / "r", {"bus": 5, "car": 5, "train": 5})
    data = noted(opened(tmp_path / "r"), "train in", "is used as a class, like bus, car")
    assert data.classes == ("bus", "car", "train")


def test_images_beside_class_folders(tmp_path: Path, opened: Open) -> None:
    write_folder(tmp_path, {"p/train/a": 3, "p/train/b": 3, "p/val/a": 1, "p/val/b": 1, "p/train": 2})
    assert len(noted(opened(tmp_path / "p"), "left out 2 images in").test) == 2


def test_spellings_of_a_class(tmp_path: Path, opened: Open) -> None:
    write_folder(tmp_path / "p", {f"train/{CAFE}": 3, "train/Zoo": 2, f"val/{CAFE_APART}": 1, "val/zoo": 4})
    data = noted(
        opened(tmp_path / "p"), "2 class folders of", "(case, spaces or Unicode form) and are matched"
    )
    assert data.classes == ("Zoo", CAFE)
    assert data.test.labels.tolist() == [0, 0, 0, 0, 1]


def test_a_class_that_a_held_out_set_lacks(tmp_path: Path, opened: Open) -> None:
    write_folder(tmp_path / "p", {"train/a": 3, "train/b": 2, "train/c": 2, "val/a": 1, "val/c": 1})
    data = noted(opened(tmp_path / "p"), "1 of 3 classes have no folder in", "(b)")
    assert (data.classes, data.test.labels.tolist()) == (("a", "b", "c"), [0, 2])
    (tmp_path / "p" / "val" / "b").mkdir()
    assert noted(opened(tmp_path / "p"), "contain no image (b)").test.labels.tolist() == [0, 2]


def test_folders_below_a_class(tmp_path: Path, opened: Open) -> None:
    write_folder(tmp_path / "p", {"a": 3, "a/more": 2, "b": 5})
    data = noted(opened(tmp_path / "p"), "2 images in", "a/more is a")
    assert data.train is not None
    assert torch.cat([data.train.labels, data.test.labels]).bincount().tolist() == [5, 5]


def test_all_of_a_folder_without_splits_is_evaluated(tmp_path: Path, opened: Open) -> None:
    write_folder(tmp_path / "p", {"a": 10, "b": 5})
    data = noted(opened(tmp_path / "p", whole=True), "all 15 images of", "a run on it trains on 80%")
    assert (data.train, len(data.test)) == (None, 15)
    write_folder(tmp_path / "q", {"train/a": 10, "train/b": 5})
    data = noted(opened(tmp_path / "q", whole=True), "3 of the 15 training images of")
    assert torch.equal(data.test.index, opened(tmp_path / "q").test.index), "what a run on it reports on"
    write_folder(tmp_path / "r", {"train/a": 10, "train/b": 5, "val/a": 1, "val/b": 1})
    assert len(quiet(opened(tmp_path / "r", whole=True)).test) == 2


LITTER = (
    ".ipynb_checkpoints/0-checkpoint.png", "__MACOSX/._0.png", "@eaDir/0.png", ".hidden.png", "._0.png", "Thumbs.db",
    "more/.ipynb_checkpoints/1.png",
)  # fmt: skip


def test_hidden_files_and_folders_at_every_depth(tmp_path: Path, opened: Open) -> None:
    write_folder(tmp_path / "p", {"train/a": 3, "train/b": 3, "val/a": 1, "val/b": 1})
    for place in ("", "train", "train/a", "val/b"):
        for name in LITTER:
            path = tmp_path / "p" / place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(99).save(path, format="PNG")
    shutil.rmtree(tmp_path / "p" / "more")
    shutil.rmtree(tmp_path / "p" / "train" / "more")
    data = quiet(opened(tmp_path / "p"))
    assert data.train is not None
    assert (data.classes, len(data.train), len(data.test)) == (("a", "b"), 6, 2)


@pytest.mark.parametrize(
    "suffix, kind",
    [
        (".jfif", "JPEG"), (".jpe", "JPEG"), (".JPG", "JPEG"), (".JPEG", "JPEG"), (".webp", "WEBP"), (".bmp", "BMP"),
        (".tif", "TIFF"), (".TIFF", "TIFF"), (".gif", "GIF"), ("", "PNG"), (".0", "JPEG"), (".picture", "WEBP"),
        (".avif", "AVIF"), (".jp2", "JPEG2000"), (".ppm", "PPM"),
    ],
)  # fmt: skip
def test_every_picture_counts(tmp_path: Path, opened: Open, suffix: str, kind: str) -> None:
    write_folder(tmp_path / "p", {"train/a": 1, "train/b": 3, "val/a": 1, "val/b": 1})
    for k in range(4):
        picture(100 + k, height=32, width=32).save(
            tmp_path / "p" / "train" / "a" / f"x{k}{suffix}", format=kind
        )
    data = quiet(opened(tmp_path / "p"))
    assert data.train is not None
    assert data.train.labels.tolist() == [0] * 5 + [1] * 3
    assert all(data.train.image(k).shape[0] == 3 for k in range(8))


def test_what_is_left_out_is_counted_by_suffix(tmp_path: Path, opened: Open) -> None:
    write_folder(tmp_path / "p", {"train/a": 3, "train/b": 3, "val/a": 1, "val/b": 1})
    for name in ("1.heic", "2.heic", "3.pdf", "noise"):
        (tmp_path / "p" / "train" / "a" / name).write_bytes(b"\0\0\0 ftypheic or another thing that is none")
    (tmp_path / "p" / "train" / "a" / "labels.csv").write_text("companions of pictures are not counted")
    data = noted(opened(tmp_path / "p"), "left out 4 files", "2 .heic", "1 .pdf", "1 no suffix")
    assert data.train is not None
    assert len(data.train) == 6


def test_a_file_that_links_show_again_counts_once(tmp_path: Path, opened: Open) -> None:
    write_folder(tmp_path / "p", {"train/a": 3, "train/b": 3, "val/a": 1, "val/b": 1})
    folder = tmp_path / "p" / "train" / "a"
    (folder / "000-before.png").symlink_to(folder / "001.png")
    (folder / "loop").symlink_to(folder)
    (folder / "up").symlink_to(tmp_path / "p")
    (folder / "up").unlink()
    data = noted(opened(tmp_path / "p"), "a link to something already counted in")
    assert data.train is not None
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_links_to_pictures_elsewhere_are_followed(tmp_path: Path, opened: Open) -> None:
    write_folder(tmp_path / "p", {"train/a": 1, "train/b": 3, "val/a": 1, "val/b": 1})
    write_folder(tmp_path / "store", {"x": 3})
    for k in range(3):
        (tmp_path / "p" / "train" / "a" / f"l{k}.png").symlink_to(tmp_path / "store" / "x" / f"{k:03d}.png")
    data = opened(tmp_path / "p")
    assert data.train is not None
    assert data.train.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_a_broken_link_is_named(tmp_path: Path, opened: Open) -> None:
    write_folder(tmp_path / "p", {"train/a": 3, "train/b": 3, "val/a": 1, "val/b": 1})
    (tmp_path / "p" / "train" / "a" / "z.png").symlink_to("/nowhere/z.png")
    with pytest.raises(
        ValueError, match=r"links to existing files, got .*a/z\.png, whose target does not exist"
    ):
        opened(tmp_path / "p")
    data = noted(opened(tmp_path / "p", on_fault="skip"), "left out 1 links")
    assert data.train is not None
    assert len(data.train) == 6
    assert data.faults == (str(tmp_path / "p" / "train" / "a" / "z.png"),)


def test_pipes_sockets_and_devices_are_not_opened(tmp_path: Path, opened: Open) -> None:
    write_folder(tmp_path / "p", {"train/a": 3, "train/b": 3, "val/a": 1, "val/b": 1})
    folder = tmp_path / "p" / "train" / "a"
    os.mkfifo(folder / "pipe.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "folder.png").mkdir()
    here = os.getcwd()
    os.chdir(folder)  # the path of a socket has at most 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("socket.png")
    finally:
        os.chdir(here)
    data = noted(opened(tmp_path / "p"), "pipe.png", "not a regular file")
    assert data.train is not None
    assert len(data.train) == 6


def test_names_that_are_not_utf8(tmp_path: Path, opened: Open) -> None:
    write_folder(tmp_path / "p", {"train/a": 3, "train/b": 3, "val/a": 1, "val/b": 1}, sides=(100,))
    folder = tmp_path / "p" / "train" / "a"
    os.rename(folder / "000.png", os.fsencode(folder) + b"/caf\xe9.png")
    data = quiet(opened(tmp_path / "p"))
    assert isinstance(data.train, FileSplit)
    assert data.train.source.describe(2).endswith(r"caf\xe9.png")
    assert data.train.image(2).shape == (3, 100, 100)
    os.rename(tmp_path / "p" / "train" / "b", os.fsencode(tmp_path / "p" / "train") + b"/\xe9")
    with pytest.raises(ValueError, match=r"names in UTF-8, got '\\\\xe9' in"):
        opened(tmp_path / "p")


def test_a_file_for_a_folder(tmp_path: Path, opened: Open) -> None:
    (tmp_path / "p.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"needs a folder in .* got the file .*p\.zip; unpack it"):
        opened(tmp_path / "p.zip")
    for kind in ("imagenet", "cifar10", "cifar100"):
        with pytest.raises(ValueError, match=r"needs a folder in .* got the file"):
            open_data(f"{kind}:{tmp_path / 'p.zip'}")


def test_the_same_image_for_training_and_testing(tmp_path: Path, opened: Open) -> None:
    write_folder(tmp_path / "p", {"train/a": 3, "train/b": 3, "val/a": 2, "val/b": 2}, sides=(100,))
    assert quiet(opened(tmp_path / "p")).duplicates == 0
    shutil.copy(tmp_path / "p" / "train" / "a" / "001.png", tmp_path / "p" / "val" / "b" / "000.png")
    data = noted(
        opened(tmp_path / "p"),
        "1 of 4 test images are among the training images",
        "val/b/000.png is",
        "train/a/001.png",
    )
    assert data.duplicates == 1


def test_duplicates_follow_the_cuts(tmp_path: Path, opened: Open) -> None:
    """Those of a test set that is cut off, and none of training images that became validation images."""
    write_folder(tmp_path / "p", {"a": 10, "b": 10})
    test = opened(tmp_path / "p").test
    held, kept = (tmp_path / "p" / "a" / f"{k:03d}.png" for k in (int(test.index[0]), 0))
    assert int(test.index[0]) != 0
    shutil.copy(held, kept)
    whole = opened(tmp_path / "p")
    assert whole.duplicates == 1
    cuts = [opened(tmp_path / "p", val_fraction=0.5, seed=seed) for seed in range(6)]
    assert {data.duplicates for data in cuts} == {0, 1}
    for data in cuts:
        assert data.train is not None
        assert data.duplicates == int(0 in data.train.index.tolist())


def test_the_same_image_in_two_classes(tmp_path: Path, opened: Open) -> None:
    write_folder(tmp_path / "p", {"train/a": 3, "train/b": 3, "val/a": 1, "val/b": 1})
    shutil.copy(tmp_path / "p" / "train" / "a" / "001.png", tmp_path / "p" / "train" / "b" / "copy.png")
    noted(opened(tmp_path / "p"), "1 of 7 images in p-train are in another class too, byte for byte")


def test_copies_in_one_class(tmp_path: Path, opened: Open) -> None:
    write_folder(tmp_path / "p", {"train/a": 3, "train/b": 3, "val/a": 2, "val/b": 2})
    shutil.copy(tmp_path / "p" / "val" / "a" / "000.png", tmp_path / "p" / "val" / "a" / "000 (1).png")
    noted(opened(tmp_path / "p"), "1 of 5 images in p-val are copies, byte for byte", "and each counts")


def test_a_few_copies_of_many_are_nothing_to_say(tmp_path: Path, opened: Open, monkeypatch) -> None:
    monkeypatch.setattr("outgrow.data.reading.MANY_COPIES", 0.25)
    write_folder(tmp_path / "p", {"train/a": 3, "train/b": 3, "val/a": 2, "val/b": 2})
    shutil.copy(tmp_path / "p" / "val" / "a" / "000.png", tmp_path / "p" / "val" / "a" / "000 (1).png")
    assert not opened(tmp_path / "p").notes


def test_a_class_that_loses_all_its_training_images(tmp_path: Path, opened: Open) -> None:
    write_folder(tmp_path / "p", {"train/a": 3, "train/b": 2, "val/a": 1, "val/b": 1})
    for file in (tmp_path / "p" / "train" / "b").iterdir():
        file.write_bytes(file.read_bytes()[:40])
    noted(
        opened(tmp_path / "p", on_fault="skip"), "1 of 2 classes have test images but no training images (b)"
    )


def test_skipped_images_are_counted_and_named(tmp_path: Path, opened: Open) -> None:
    write_folder(tmp_path / "p", {"train/a": 4, "train/b": 3, "val/a": 2, "val/b": 1}, sides=(100,))
    bad = [tmp_path / "p" / name for name in ("train/a/001.png", "val/a/000.png")]
    bad[0].write_bytes(bad[0].read_bytes()[:300])
    bad[1].write_bytes(b"")
    for _ in range(2):  # found, then remembered
        data = noted(
            opened(tmp_path / "p", on_fault="skip"),
            "left out 1 of 7 images of p-train that cannot be decoded",
        )
        assert data.train is not None
        assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
        assert data.test.labels.tolist() == [0, 1]
        assert data.faults == tuple(map(str, bad))
        for k, number in enumerate((0, 2, 3)):
            assert torch.equal(data.train.image(k), to_tensor(picture(number, height=100, width=100)))
    assert isinstance(data.train, Split)
    bad[0].write_bytes(bad[1].with_name("001.png").read_bytes())
    mended = opened(tmp_path / "p", on_fault="skip")
    assert mended.train is not None
    assert (len(mended.train), len(mended.faults)) == (7, 1)
    with pytest.raises(ValueError, match=r"Pillow can decode, got .*val/a/000\.png \(0 bytes: an empty file"):
        opened(tmp_path / "p").test.image(0)


def test_small_images_are_skipped_alike(tmp_path: Path, opened: Open) -> None:
    write_folder(tmp_path / "p", {"train/a": 4, "train/b": 3, "val/a": 2, "val/b": 1})
    (tmp_path / "p" / "train" / "a" / "000.png").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"Pillow can decode, got .*a/000\.png \(2 bytes"):
        opened(tmp_path / "p")
    data = opened(tmp_path / "p", on_fault="skip")
    assert data.train is not None
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.equal(data.train.index, torch.arange(6))
