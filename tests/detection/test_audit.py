"""The audit of detectors, on small pictures: numbers of the held-out ones alone, and rows as training sees them."""

import pytest
import torch

from outgrow.data import DataWarning
from outgrow.detection.audit import choose_images
from outgrow.detection.run_data import open_run_scenes
from outgrow.run.audit import audit_teacher
from outgrow.training.audit import read_audit
from outgrow.training.config import build_config
from tests.detection import coco_files
from tests.detection.scenes import detector
from tests.report.reading import Page

pytest.importorskip("faster_coco_eval")
CLASSES = ("cat", "dog", "bird")


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def write(*splits):
        for number, split in enumerate(splits):
            images = [coco_files.image(10 * number + i) for i in range(5)]
            boxes = [
                coco_files.annotation(n, entry["id"], [5, 5, 30, 40], category_id=(7, 3, 20)[n % 3])
                for n, entry in enumerate(images, 1)
            ]
            coco_files.write_json(tmp_path / "annotations" / f"instances_{split}.json", images, boxes)
            coco_files.write_pictures(tmp_path / "images" / split, images)
        return f"coco:{tmp_path / 'images'}:{tmp_path / 'annotations'}"

    return write


def test_more_pictures_than_there_are_is_said(source):
    where = source("train", "test")
    with pytest.warns(
        DataWarning, match=r"data.train_rows: 50 images are wanted, got 5 from .*; all of them"
    ):
        open_run_scenes(build_config({"data": {"source": where, "train_rows": 50}}))


def test_a_detector_is_measured_on_held_out_pictures(source, tmp_path):
    data = open_run_scenes(build_config({"data": {"source": (where := source("train", "val", "test"))}}))
    teacher = detector(classes=data.classes)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    config = {"data": {"source": where, "workers": 0}, "out": str(tmp_path / "out")}
    record = audit_teacher(config, teacher=teacher)
    numbers = record.detection
    assert (numbers.held_out_from, numbers.pictures) == ("validation", 5)
    assert sum(line.objects for line in numbers.errors) == 5
    assert numbers.objects.rows > 0
    assert numbers.background.rows > 0
    assert {one.name for one in numbers.rules} >= {"pair", "swap", "drop"}
    assert record.verdicts[0].kind in ("below_majority", "usable")
    assert read_audit(tmp_path / "out" / "audit.json") == record
    html = (tmp_path / "out" / "index.html").read_text()
    assert "<script" not in html
    assert record.verdicts[0].text in Page(html).text
    assert not (tmp_path / "out" / "label_errors.csv").exists()
    for name, value in teacher.state_dict().items():
        torch.testing.assert_close(value, before[name], msg=name)


def test_few_annotated_pictures_are_said(source, tmp_path, monkeypatch):
    """With the command to go on; not beside pictures without annotations, nor for a teacher that finds nothing."""
    where = source("train", "val", "test")
    data = open_run_scenes(build_config({"data": {"source": where}}))

    def kinds(**options):
        config = {"data": {"source": where, "workers": 0, **options}, "out": str(tmp_path / "out")}
        record = audit_teacher(config, teacher=detector(classes=data.classes), overwrite=True)
        return [one.kind for one in record.verdicts], record.verdicts[-1]

    assert kinds()[0] == ["below_majority"]
    monkeypatch.setattr("outgrow.detection.audit.USELESS", 0.0)
    found, last = kinds()
    assert found == ["usable", "few_labels"]
    assert last.reason.startswith("5 pictures to train on.")
    assert last.command.startswith(f"outgrow distill --data {where} ")
    assert last.command.endswith(
        " --student fasterrcnn:BACKBONE --preset kd --unlabelled SRC --out runs/first"
    )
    assert last.text in Page((tmp_path / "out" / "index.html").read_text()).text
    picture = coco_files.image(99)
    coco_files.write_pictures(tmp_path / "more", [picture])
    assert kinds(unlabelled=f"folder:{tmp_path / 'more'}")[0] == ["usable"]
    monkeypatch.setattr("outgrow.detection.audit.FEW", 4)
    assert kinds()[0] == ["usable"]


def test_the_same_audit_gives_the_same_rows(source):
    where = source("train", "val")
    data = open_run_scenes(build_config({"data": {"source": where}}))
    records = [
        audit_teacher({"data": {"source": where, "workers": 0}}, teacher=detector(classes=data.classes))
        for _ in range(2)
    ]
    assert records[0].detection == records[1].detection
    assert records[0].detection.held_out_from == "training"
    assert "held out" in records[0].notes[0]


def test_the_test_pictures_are_never_used(source):
    data = open_run_scenes(
        build_config({"data": {"source": source("train", "val")}})
    )  # val is the test set here
    train, held_out, origin, note = choose_images(data, 100, 0)
    assert origin == "training"
    assert held_out.file is data.train.file
    assert sorted([*train.index.tolist(), *held_out.index.tolist()]) == data.train.index.tolist()
    assert "not used" in note


def test_more_classes_than_the_data_has(source):
    where = source("train", "val", "test")
    data = open_run_scenes(build_config({"data": {"source": where}}))
    teacher = detector(classes=("owl", *reversed(data.classes)))
    record = audit_teacher({"data": {"source": where, "workers": 0}}, teacher=teacher)
    assert record.detection.objects.rows > 0


@pytest.mark.parametrize("field", ["exclude", "class_map"])
def test_lists_for_images_with_one_label_are_refused(source, field):
    from outgrow.run import distill

    where = source("train", "val", "test")
    config = {"data": {"source": where, field: "list.csv"}, "method": {"preset": "none"}}
    with pytest.raises(ValueError, match=rf"data\.{field}: needs images with one label each, got .*; re"):
        distill({**config, "student": {"name": "fasterrcnn:timm/mobilenetv1_025_128"}})


def test_errors_say_what_to_do(source):
    where = source("train", "val", "test")
    with pytest.raises(ValueError, match=r"needs weights, got none; give --teacher-weights"):
        audit_teacher({"data": {"source": where}, "teacher": {"name": "fasterrcnn:timm/mobilenetv1_025_128"}})
    with pytest.raises(ValueError, match=r"--teacher: needs a detector .*; put fasterrcnn:"):
        audit_teacher({"data": {"source": where}, "teacher": {"name": "cifar/resnet8", "pretrained": True}})
