"""Lists of training images to leave out: what is named goes, from training alone, and names that are nowhere are refused."""

import shutil
import warnings

import pytest
import torch

from outgrow.classification.data import open_run_data
from outgrow.data import DataWarning
from outgrow.data.exclusion import naming, read_list
from outgrow.data.source import find_data
from outgrow.training.config import build_config
from tests.data.helpers import encoded, picture, write_folder, write_shard

COUNTS = {f"{split}/{name}": n for split, n in (("train", 6), ("val", 3)) for name in ("cat", "dog")}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def photos(tmp_path, cache):
    write_folder(tmp_path / "photos", COUNTS)
    return tmp_path / "photos"


@pytest.fixture
def shards(tmp_path, cache):
    images = [encoded(picture(k)) for k in range(20)]
    labels = {"label": [k % 2 for k in range(20)]}
    for number, at in enumerate((slice(0, 6), slice(6, 12))):
        write_shard(
            tmp_path / "p" / f"train-{number:05d}-of-00002.parquet",
            images[at],
            {"label": labels["label"][at]},
        )
    write_shard(tmp_path / "p" / "test-00000-of-00001.parquet", images[12:], {"label": labels["label"][12:]})
    return tmp_path / "p"


def write(path, *lines, column="file"):
    path.write_text(
        "\n".join(
            [f"{column},label,suggested,confidence", *(f"{line},{_label(line)},b,0.9" for line in lines)]
        )
    )
    return path


def _label(line):
    """The class of a row of ``shards``; labels of named files are not read."""
    return str(int(line) % 2) if line.isdigit() else "a"


def opened(source, **data):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DataWarning)
        run = open_run_data(build_config({"data": {"source": str(source), "workers": 0, **data}}))
    return run, " ".join(str(w.message) for w in caught)


def test_named_files_are_left_out_of_training(photos, tmp_path):
    listed = write(tmp_path / "list.csv", "train/cat/002.png", "train/dog/000.png")
    whole, _ = opened(f"folder:{photos}")
    run, said = opened(f"folder:{photos}", exclude=str(listed))
    assert run.train.index.tolist() == [i for i in whole.train.index.tolist() if i not in (2, 6)]
    assert run.train.labels.tolist() == [0] * 5 + [1] * 5
    assert (run.excluded, len(run.test)) == (2, 6)
    assert "2 images that" in said
    assert "stay" not in said
    assert run.source.fingerprint != whole.source.fingerprint
    torch.testing.assert_close(run.train.image(2), whole.train.image(3))


def test_rows_of_shards_are_left_out_by_number(shards, tmp_path):
    listed = write(tmp_path / "list.csv", "0", "7", column="row")
    run, _ = opened(f"parquet:{shards}", exclude=str(listed))
    assert run.train.index.tolist() == [1, 2, 3, 4, 5, 6, 8, 9, 10, 11]
    assert run.excluded == 2


def test_a_label_with_spaces_around_it_is_the_same_in_a_list(tmp_path, cache):
    for split in ("train", "test"):
        images = [encoded(picture(k + 10 * (split == "test"))) for k in range(6)]
        labels, names = {"label": [0, 1] * 3}, {"label": (" cat", "dog ")}
        write_shard(tmp_path / "p" / f"{split}-00000-of-00001.parquet", images, labels, names=names)
    listed = tmp_path / "list.csv"
    listed.write_text("row,label\n2, cat\n3,dog\n")
    run, _ = opened(f"parquet:{tmp_path / 'p'}", exclude=str(listed))
    assert run.train.index.tolist() == [0, 1, 4, 5]


def test_the_names_are_those_that_the_list_is_written_with(photos, shards):
    for source, column, third in (
        (f"folder:{photos}", "file", "train/cat/002.png"),
        (f"parquet:{shards}", "row", "2"),
        ("digits", "row", "2"),
    ):
        found, names = naming(source, find_data(source).parts["train"])
        assert (found, names(2)) == (column, third)


def test_rows_keep_their_numbers_where_others_cannot_be_decoded(photos, tmp_path):
    (photos / "train/cat/000.png").write_bytes((photos / "train/cat/000.png").read_bytes()[:40])
    listed = write(tmp_path / "list.csv", "train/cat/001.png")
    run, _ = opened(f"folder:{photos}", exclude=str(listed), on_fault="skip")
    assert len(run.train) == 10
    assert run.excluded == 1


def test_test_and_validation_images_stay(photos, tmp_path):
    listed = write(tmp_path / "list.csv", "train/cat/002.png", "val/cat/000.png")
    run, said = opened(f"folder:{photos}", exclude=str(listed))
    assert (run.excluded, len(run.train), len(run.test)) == (1, 11, 6)
    assert "1 others that it lists are validation or test images, and stay" in said


def test_a_test_set_that_is_cut_off_is_the_same_with_a_list(photos, tmp_path):
    flat = tmp_path / "flat"
    shutil.copytree(photos / "train", flat)
    whole, _ = opened(f"folder:{flat}", val_fraction=0.2)
    named = [f"{name}/{k:03d}.png" for name in ("cat", "dog") for k in range(6)]
    train, test = whole.train.index.tolist(), whole.test.index.tolist()
    listed = write(tmp_path / "list.csv", named[train[0]], named[test[0]], named[whole.val.index.tolist()[0]])
    run, said = opened(f"folder:{flat}", exclude=str(listed), val_fraction=0.2)
    assert run.test.index.tolist() == test
    assert run.val.index.tolist() == whole.val.index.tolist()
    assert run.train.index.tolist() == train[1:]
    assert "2 others" in said


def test_rows_are_chosen_before_the_list(photos, tmp_path):
    few, _ = opened(f"folder:{photos}", train_rows=8)
    kept, other = few.train.index.tolist(), few.others.index.tolist()
    named = [f"train/{name}/{k:03d}.png" for name in ("cat", "dog") for k in range(6)]
    listed = write(tmp_path / "list.csv", named[kept[3]], named[other[0]])
    run, said = opened(f"folder:{photos}", train_rows=8, exclude=str(listed))
    assert run.train.index.tolist() == kept[:3] + kept[4:]
    assert run.others.index.tolist() == other[1:]
    assert run.excluded == 1
    assert "stay" not in said


def test_names_that_are_nowhere_are_refused(photos, shards, tmp_path):
    listed = write(tmp_path / "list.csv", "train/cat/002.png", "train/cat/999.png")
    with pytest.raises(
        ValueError, match=r"needs names of training images of .*, got 1 of 2 .*999\.png.*; write"
    ):
        opened(f"folder:{photos}", exclude=str(listed))
    listed = write(tmp_path / "list.csv", "12", column="row")
    with pytest.raises(ValueError, match=r"needs names .*, got 1 of 1 .* \(12\); write"):
        opened(f"parquet:{shards}", exclude=str(listed))
    with pytest.raises(ValueError, match=r"needs file names .*, got a column 'row' .*; write"):
        opened(f"folder:{photos}", exclude=str(listed))


def test_a_class_must_not_become_empty(photos, tmp_path):
    listed = write(tmp_path / "list.csv", *(f"train/cat/{k:03d}.png" for k in range(6)))
    with pytest.raises(ValueError, match=r"needs to leave images of every class, got none of cat .*; remove"):
        opened(f"folder:{photos}", exclude=str(listed))


@pytest.mark.parametrize(
    "content, error",
    [
        (b"", "needs a first column called file or row, got ''"),
        (b"name,label\na,b\n", "got 'name'"),
        (b'file,label\n"a,b\n', "cannot be read"),
    ],
)
def test_what_is_no_list_is_refused(tmp_path, content, error):
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(ValueError, match=error):
        read_list(tmp_path / "list.csv")
    with pytest.raises(ValueError, match=r"needs a CSV file, got .* not there; `outgrow audit`"):
        read_list(tmp_path / "other.csv")


def test_a_spreadsheet_may_have_saved_the_list(tmp_path):
    path = tmp_path / "list.csv"
    path.write_bytes(b"\xef\xbb\xbffile;label\r\n./=1.png;cat\r\na\xff.png;dog\r\n\r\n")
    assert read_list(path)[:2] == ("file", ["=1.png", "a\udcff.png"])


def test_numbers_of_rows_of_other_data_are_refused(shards, tmp_path):
    """Any set has a row 3; its label tells whether the list is for this one."""
    listed = tmp_path / "list.csv"
    listed.write_text("row,label,suggested\n2,0,1\n3,0,1\n")
    message = r"data.exclude: needs the labels of .*, got others in 1 of 2 lines of .* \(row 3 is 1, and listed as 0\): .*; write"
    with pytest.raises(ValueError, match=message):
        opened(f"parquet:{shards}", exclude=str(listed))
    listed.write_text("row\n2\n3\n")  # one's own list, without labels
    run, _ = opened(f"parquet:{shards}", exclude=str(listed))
    assert run.excluded == 2
