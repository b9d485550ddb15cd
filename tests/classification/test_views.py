"""A run whose teacher believes in images, not in views."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from outgrow.classification.caching import cache_facts
from outgrow.classification.data import open_run_data
from outgrow.data import DataWarning
from outgrow.detection import task as detection
from outgrow.models import create_model, save_student
from outgrow.run import distill
from outgrow.run.distillation import _check_task, fill_cache
from outgrow.teacher import AveragedTeacher, NoTeacher
from outgrow.training.config import build_config, merge
from outgrow.training.task import RunContext
from tests.classification.test_names import Notes

RUN = {
    "data": {
        "source": "digits",
        "workers": 0,
        "train_rows": 150,
        "augment": {"crop_padding": 2, "flip": False},
    },
    "student": {"name": "cifar/resnet8"},
    "method": {"preset": "outgrow"},
    "train": {"epochs": 2, "batch_size": 50},
    "teacher": {"name": "cifar/resnet8", "views": 3},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("teachers")
    first = {"teacher": {"train": True, "rows": "disjoint", "views": 1}, "out": str(folder / "run")}
    distill(merge(RUN, first, {"teacher_train": {"epochs": 3, "batch_size": 50}}))
    (folder / "run" / "teacher.safetensors").rename(folder / "good.safetensors")
    torch.manual_seed(0)
    save_student(create_model("cifar/resnet8", 7), folder / "foreign.safetensors")
    return {path.stem: str(path) for path in folder.glob("*.safetensors")}


@pytest.fixture
def photos(tmp_path):
    """Images that are not square, so that each network's input size decides the size of the views."""
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 20), ("val", 6)):
        for number in range(count):
            folder = tmp_path / "photos" / split / "ab"[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = torch.randint(256, (48, 40, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
    return tmp_path / "photos"


def options(files, name="good", *more: dict) -> dict:
    return merge(RUN, {"teacher": {"weights": files[name]}}, *more)


@pytest.mark.parametrize("name", ["good", "foreign"])
def test_the_teacher_is_computed_before_the_training_and_not_in_it(files, name, monkeypatch, tmp_path):
    added, asked = [], []
    add, forward = AveragedTeacher.add, AveragedTeacher.forward

    def counted(self, images, index):
        added.append(len(images))
        return add(self, images, index)

    def watched(self, images, *, index=None):
        if index is not None:
            asked.append(bool(self.known(index).all()))
        return forward(self, images, index=index)

    monkeypatch.setattr(AveragedTeacher, "add", counted)
    monkeypatch.setattr(AveragedTeacher, "forward", watched)
    report = Notes()
    record = distill(options(files, name, {"out": str(tmp_path / "run")}), reporter=report)
    assert sum(added) == 3 * 150
    assert asked
    assert all(asked)
    assert any("its belief in each training image is the mean over 3 views" in text for text in report.said)
    assert record["correction"]["num_images"] == 150
    assert record["config"]["teacher"]["views"] == 3


def test_beliefs_are_kept_on_disk(files, tmp_path, monkeypatch):
    cached = {"teacher": {"cache": str(tmp_path / "cache")}}
    first = distill(options(files, "good", cached))
    monkeypatch.setattr(AveragedTeacher, "add", lambda *_: pytest.fail("computed again"))
    report = Notes()
    again = distill(options(files, "good", cached), reporter=report)
    assert any("means over 3 views of each image, are those in" in text for text in report.said)
    assert again["student"]["nll"] == first["student"]["nll"]
    fill_cache(build_config(options(files, "good", cached)), epochs=2)
    monkeypatch.undo()
    plain = distill(options(files, "good"))
    assert plain["student"]["nll"] == pytest.approx(first["student"]["nll"], abs=0.05)


def test_beliefs_do_not_depend_on_the_size_of_batches(files, tmp_path, monkeypatch):
    """149 of 150 images leave a last batch of one, too small to train on. A teacher looks at it as well."""
    added = []
    add = AveragedTeacher.add

    def counted(self, images, index):
        added.append(len(images))
        return add(self, images, index)

    monkeypatch.setattr(AveragedTeacher, "add", counted)
    cached = {"teacher": {"cache": str(tmp_path / "cache")}, "train": {"epochs": 1}}
    trust = {"method": {"trust": "reliability"}}
    record = distill(options(files, "good", cached, trust, {"train": {"batch_size": 149}}))
    assert sum(added) == 3 * 150
    assert record["correction"]["num_images"] == 150
    shared, alone = (
        distill(options(files, "good", trust, cached, {"teacher": {"cache": str(tmp_path / name)}}))
        for name in ("cache", "other")
    )
    assert shared["student"]["nll"] == alone["student"]["nll"]
    assert shared["correction"] == alone["correction"]


@pytest.mark.parametrize("name", ["good", pytest.param("foreign", marks=pytest.mark.slow)])
def test_beliefs_of_fewer_images_are_not_those_of_more(files, tmp_path, name, monkeypatch):
    """Nor are the correction and the trust, which read them."""

    def run(rows: int, folder: str) -> tuple[dict, Notes]:
        layer = {
            "data": {"train_rows": rows},
            "method": {"trust": "reliability"},
            "teacher": {"cache": str(tmp_path / folder)},
            "train": {"epochs": 1},
        }
        report = Notes()
        return distill(options(files, name, layer), reporter=report), report

    believed = []
    forward = AveragedTeacher.forward

    def watched(self, images, *, index=None):
        if index is not None:
            believed.append(bool(self.known(index).all()))
        return forward(self, images, index=index)

    run(280, "shared")
    monkeypatch.setattr(AveragedTeacher, "forward", watched)
    record, report = run(300, "shared")
    assert believed
    assert all(believed)
    assert any("its belief in each training image is the mean over 3 views" in text for text in report.said)
    alone, _ = run(300, "alone")
    assert record["student"]["nll"] == alone["student"]["nll"]
    assert record["correction"] == alone["correction"]
    _, again = run(280, "shared")
    assert any("views of each image, are those in" in text for text in again.said)


def test_beliefs_in_views_of_another_size_are_computed_again(files, tmp_path, photos):
    def said(size: int, *others: str) -> list[str]:
        report = Notes()
        layer = {
            "data": {"source": f"folder:{photos}", "train_rows": None},
            "student": {"input_size": size},
            "teacher": {
                "cache": str(tmp_path / "cache"),
                "others": [{"name": "cifar/resnet8", "weights": files[other]} for other in others],
            },
            "train": {"epochs": 1, "batch_size": 10},
        }
        distill(options(files, "foreign", layer), reporter=report)
        return [text for text in report.said if "views of each image, are those in" in text]

    assert not said(16)
    assert len(said(16)) == 1
    assert not said(24)
    assert len(said(24, "good")) == 1
    assert len(said(24, "good")) == 2
    assert not said(32, "good")


def test_a_cache_knows_the_crop_of_the_student(photos):
    """It decides which part of a photograph the teacher sees."""

    def facts(source: str, **changed: object) -> dict[str, str]:
        config = build_config(merge(RUN, {"data": {"source": source, "train_rows": None}}))
        teacher, student = create_model("cifar/resnet8", 10), create_model("cifar/resnet8", 10)
        student.input_spec = replace(student.input_spec, size=16, **changed)
        run = RunContext(config, torch.device("cpu"), Notes(), None, False)
        return cache_facts(run, open_run_data(config), NoTeacher(10), [teacher, student])

    folder = f"folder:{photos}"
    kinds = [facts(folder), facts(folder, crop_pct=0.875), facts(folder, interpolation="bilinear")]
    assert all(kinds.count(one) == 1 for one in kinds)
    assert facts("digits", crop_pct=0.875) == facts("digits")  # they are not cropped


@pytest.mark.parametrize("augment", [{}, {"mixup": 0.2}, {"cutmix": 1.0}])
def test_a_cache_knows_the_images_that_views_are_blended_with(augment):
    """The partner of an image is one of those that the run trains on: of fewer, it is another one."""
    net = create_model("cifar/resnet8", 10)

    def facts(rows: int) -> dict[str, str]:
        config = build_config({"data": {"source": "digits", "train_rows": rows, "augment": augment}})
        run = RunContext(config, torch.device("cpu"), Notes(), None, False)
        return cache_facts(run, open_run_data(config), NoTeacher(10), [net, net])

    assert (facts(40) == facts(50)) is (not augment)
    assert facts(40) == facts(40)


def test_a_resumed_run_goes_on(files, tmp_path):
    settings = options(files, "good", {"out": str(tmp_path / "run")})
    distill(settings)
    again = distill(merge(settings, {"train": {"epochs": 3}}), resume=True)
    assert len(again["epochs"]) == 3


def test_unlabelled_images_have_the_belief_in_the_view(files):
    layer = {"data": {"unlabelled": "digits", "unlabelled_rows": 60}}
    with pytest.warns(DataWarning, match="also training images"):
        record = distill(options(files, "good", layer))
    assert record["data"]["unlabelled"] == 60


def test_it_goes_with_several_teachers_and_with_wrong_labels(files):
    others = {"teacher": {"others": [{"name": "cifar/resnet8", "weights": files["foreign"]}]}}
    record = distill(options(files, "good", others))
    assert record["mixture"]["num_images"] == 150
    noisy = distill(options(files, "good", {"method": {"preset": "kd", "rule": "posterior(noise=0.1)"}}))
    assert noisy["noise"]["used"]


def test_a_mean_over_views_is_no_memory(files):
    """It is right on more training images than one view of a test image is; the check compares single views."""
    record = distill(options(files, "good", {"teacher": {"views": 8}}))
    assert "memorised" not in record["correction"]["reason"]
    assert len(record["correction"]["candidates"]) > 2


def test_what_it_cannot(files):
    for layer, got in (
        ({"method": {"loss": "kd + fitnet"}}, "losses on features"),
        ({"data": {"augment": {"mixup": 0.2}}}, "data.augment.mixup"),
        ({"teacher": {"correct_views": 2}}, "teacher.correct_views"),
    ):
        with pytest.raises(ValueError, match=rf"teacher.views: needs losses on logits, .*, got {got}; leave"):
            distill(options(files, "good", layer))
    with pytest.raises(
        ValueError, match=r"teacher.views: needs images with one label each, got --data coco:x"
    ):
        _check_task(build_config(options(files, "good", {"data": {"source": "coco:x"}})), detection.TASK)
