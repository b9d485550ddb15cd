"""Predictions for image files: as the run prepares pictures, and nothing left out without a word."""

import csv
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from outgrow.classification.evaluation import evaluate_classifier
from outgrow.classification.predict import Classifier
from outgrow.classification.view import EvalView
from outgrow.models import create_model, save_student
from outgrow.models.weights import read_weights, write_weights
from outgrow.run import distill
from outgrow.run.export import export_run
from outgrow.run.predict import csv_lines, find_images, predict_files, unless_all_broken
from outgrow.training.progress import Reporter

NET = "timm/mobilenetv3_small_050"


def paint(path: Path, side: int = 40) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(zlib.crc32(str(path).encode()))
    Image.fromarray(random.integers(0, 255, (side, side, 3), dtype=np.uint8)).save(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on pictures of 40 x 40, which are in memory and so are not cropped."""
    home = tmp_path_factory.mktemp("run")
    for split in ("train", "val"):
        for name in ("-1", "1"):
            for k in range(4):
                paint(home / "photos" / split / name / f"{k}.png")
    distill(
        {
            "data": {
                "source": f"folder:{home / 'photos'}",
                "workers": 0,
                "augment": {"crop_padding": 0},
            },
            "student": {"name": NET, "input_size": 32},
            "method": {"preset": "none"},
            "train": {"epochs": 1, "batch_size": 4},
            "out": str(home / "out"),
        }
    )
    return home / "out"


def predicted(model: Path, *images: str) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        predict_files(model, images, out=f"{folder}/out.json")
        return json.loads(Path(folder, "out.json").read_text())


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    """The student's file without the rest of its run."""
    return Path(shutil.copy(run / "student.safetensors", tmp_path / "copied.safetensors"))


class TestFileOfARun:
    def test_predicts_as_its_run(self, run, copied):
        pictures = str(run.parent / "photos" / "val")
        assert predicted(copied, pictures) == predicted(run, pictures)

    def test_of_a_trained_teacher_states_its_view(self, tmp_path):
        distill(
            {
                "data": {"source": "digits", "train_rows": 32, "workers": 0},
                "teacher": {"name": "cifar/resnet8", "train": True, "rows": "disjoint"},
                "student": {"name": "cifar/resnet8"},
                "train": {"epochs": 1, "batch_size": 32},
                "teacher_train": {"epochs": 1, "batch_size": 64},
                "out": str(tmp_path),
            }
        )
        views = [read_weights(tmp_path / f"{who}.safetensors")[1]["view"] for who in ("student", "teacher")]
        assert views[0] == views[1]
        assert views[0]["whole"] == [8, 8]

    def test_without_a_view_is_a_guess(self, run, copied):
        """The file of an earlier version."""
        with safe_open(copied, "pt") as file:
            metadata = {
                key: value for key, value in file.metadata().items() if key not in ("view", "checksum")
            }
        write_weights(load_file(copied), copied, metadata)
        with pytest.warns(UserWarning, match="a guess is used .the short side resized to 36 pixels"):
            assert len(predicted(copied, str(run.parent / "photos" / "val"))) == 8

    def test_is_the_same_student_elsewhere(self, run, copied, tmp_path):
        """Its view is not that of other data."""
        source = f"folder:{run.parent / 'photos'}"
        record = json.loads((run / "record.json").read_text())
        found = evaluate_classifier(
            source, NET, weights=copied, label=None, batch_size=4, workers=0, report=Reporter()
        )
        assert found["top1"] == pytest.approx(record["student"]["top1"])
        network = create_model(NET, 2, weights=copied)
        assert network.view is None
        save_student(network, tmp_path / "again.safetensors")
        assert "view" not in read_weights(tmp_path / "again.safetensors")[1]

    def test_starts_a_run_on_other_pictures(self, copied, tmp_path):
        for split in ("train", "val"):
            for name in ("-1", "1"):
                for k in range(2):
                    paint(tmp_path / "others" / split / name / f"{k}.png", side=48)
        both = {"name": NET, "input_size": 32, "weights": str(copied)}
        distill(
            {
                "data": {
                    "source": f"folder:{tmp_path / 'others'}",
                    "workers": 0,
                    "augment": {"crop_padding": 0},
                },
                "teacher": {**both, "correct": "never"},
                "student": both,
                "method": {"preset": "kd"},
                "train": {"epochs": 1, "batch_size": 4},
                "out": str(tmp_path / "out"),
            }
        )
        view = read_weights(tmp_path / "out" / "student.safetensors")[1]["view"]
        assert view["whole"] == [48, 48]
        pictures = str(tmp_path / "others" / "val")
        moved = shutil.copy(tmp_path / "out" / "student.safetensors", tmp_path / "moved.safetensors")
        assert predicted(Path(moved), pictures) == predicted(tmp_path / "out", pictures)


class TestFolder:
    def test_what_is_left_out_is_logged(self, tmp_path):
        paint(tmp_path / "a.png")
        for name in ("a.heic", "b.psd"):
            (tmp_path / name).write_bytes(b"nothing known")
        os.symlink(tmp_path / "nowhere.png", tmp_path / "z.png")
        for images in (tmp_path, f"{tmp_path}*"):
            said: list[str] = []
            assert find_images([str(images)], log=said.append) == [str(tmp_path / "a.png")]
            assert len(said) == 2
            assert "left out 2 files" in said[0]
            assert "1 .heic, 1 .psd" in said[0]
            assert said[1].startswith("left out 1 links whose target does not exist")
            assert "z.png" in said[1]

    def test_is_quiet_where_nothing_is_left_out(self, tmp_path):
        paint(tmp_path / "a.png")
        said: list[str] = []
        find_images([str(tmp_path)], log=said.append)
        assert said == []


class TestUnreadable:
    def test_no_header_is_written_if_none_can_be_read(self):
        broken: dict[str, str] = {}

        def lines() -> Iterator[str]:
            yield "file,class"
            broken["a.png"] = "unreadable"

        with pytest.raises(ValueError, match=r"needs images that can be read, got 1 unreadable one \("):
            next(unless_all_broken(lines(), ["a.png"], broken))

    @pytest.mark.parametrize("count", [0, 1, 2, 3])
    def test_all_lines_are_written(self, count):
        lines = [str(number) for number in range(count)]
        assert list(unless_all_broken(lines, ["a.png", "b.png"], {"a.png": "unreadable"})) == lines

    def test_none_at_all(self, run, tmp_path):
        (tmp_path / "a.png").write_bytes(b"none")
        with pytest.raises(
            ValueError, match=r"needs images that can be read, got 1 unreadable one \("
        ) as error:
            predict_files(run, [str(tmp_path / "a.png")], out=tmp_path / "out.csv")
        assert "on_fault" not in str(error.value)

    def test_is_advised_of_with_what_can_be_done(self, run, tmp_path):
        (tmp_path / "a.png").write_bytes(b"none")
        paint(tmp_path / "b.png")
        said: list[str] = []
        predict_files(
            run, [str(tmp_path / "a.png"), str(tmp_path / "b.png")], out=tmp_path / "out.csv", log=said.append
        )
        assert "replace the file, or leave it out" in said[0]
        assert "on_fault" not in said[0]
        assert len((tmp_path / "out.csv").read_text().splitlines()) == 2


@pytest.mark.parametrize("name", ["-1", "+1", "-0.5", "+12.25"])
def test_classes_that_are_numbers_stay_as_they_are(name):
    (line,) = csv_lines([["a.png", name]])
    assert next(csv.reader([line])) == ["a.png", name]


@pytest.mark.parametrize("name", ["-1+2", "=1", "-1\n=1", "+", "-", "-1.", "@x", "-a", "--1"])
def test_classes_that_a_spreadsheet_would_run_get_a_prefix(name):
    assert next(csv.reader(csv_lines([["a.png", name]]))) == ["a.png", f"'{name}"]


def test_a_tie_goes_to_the_class_that_an_evaluation_takes():
    """Equal logits are common with 8 bits. Close ones may have equal probabilities."""
    logits = torch.tensor([[0.0] * 10, [0.0] * 8 + [1.0, 1.0], [1e-9] * 4 + [2e-9] + [0.0] * 5])
    names = tuple("abcdefghij")
    view = EvalView(4, 1.0, "bilinear")
    pictures = [(f"{number}.png", Image.new("RGB", (4, 4))) for number in range(len(logits))]
    rows = list(Classifier(lambda images: logits, names, view).predict(pictures, top=10, batch_size=3))
    for row, own in zip(rows, logits, strict=True):
        assert row["classes"][0]["class"] == names[own.argmax()]
        assert {one["class"]: one["probability"] for one in row["classes"]} == pytest.approx(
            dict(zip(names, own.softmax(0).tolist(), strict=True))
        )
    assert [one["class"] for one in rows[0]["classes"]] == list(names)


def test_numbers_of_a_run_match_its_classes(run, tmp_path):
    predict_files(run, [str(run.parent / "photos" / "val")], top=2, out=tmp_path / "out.csv")
    rows = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    assert {name for row in rows for name in (row["class"], row["class_2"])} == {"-1", "1"}


class TestImagesOfAnExport:
    @pytest.fixture
    def a_run(self, run, tmp_path):
        """A copy of the run."""
        shutil.copytree(run, tmp_path / "run")
        return tmp_path / "run"

    def test_may_be_folders(self, a_run, monkeypatch, tmp_path):
        without_data(monkeypatch)
        paint(tmp_path / "shown" / "a.png")
        paint(tmp_path / "shown" / "below" / "b.png")
        found = export_run(a_run, out=tmp_path / "export", images=[tmp_path / "shown"])
        assert "2 of 2 (the images of --images)" in found["files"]["model.safetensors"]["check"]

    @pytest.mark.parametrize("gone", [True, False])
    def test_must_exist(self, a_run, monkeypatch, tmp_path, gone):
        if gone:
            without_data(monkeypatch)
        with pytest.raises(
            ValueError, match=r"--images: needs files, folders or globs that exist, got .*no\.png"
        ):
            export_run(a_run, out=tmp_path / "export", images=[tmp_path / "no.png"])
        assert not (tmp_path / "export").exists()

    def test_that_cannot_be_read(self, a_run, monkeypatch, tmp_path):
        without_data(monkeypatch)
        (tmp_path / "a.png").write_bytes(b"none")
        with pytest.raises(ValueError, match=r"a\.png .*or leave it out of --images\.$"):
            export_run(a_run, out=tmp_path / "export", images=[tmp_path / "a.png"])


def without_data(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(config: object) -> None:
        raise ValueError("no data")

    monkeypatch.setattr("outgrow.classification.export.open_run_data", refuse)
