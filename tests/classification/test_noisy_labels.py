"""A run whose training labels are partly wrong: the rule and the task `posterior`."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from outgrow.classification import correction
from outgrow.detection import task as detection
from outgrow.models import create_model, save_student
from outgrow.run import distill
from outgrow.run.audit import audit_teacher
from outgrow.run.distillation import _check_task
from outgrow.teacher import BiasCorrection
from outgrow.training.config import build_config, merge
from outgrow.training.record import read_record
from tests.classification.test_names import Notes

RUN = {
    "data": {"workers": 0, "augment": {"crop_padding": 0, "flip": False}},
    "student": {"name": "cifar/resnet8"},
    "teacher": {"name": "cifar/resnet8"},
    "train": {"epochs": 1, "batch_size": 64},
}


def write(folder, split, rows, labels):
    digits = load_digits()
    for row, label in zip(rows, labels, strict=True):
        place = folder / split / str(label)
        place.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray((digits.images[row] * 15).astype(np.uint8))
        image.convert("RGB").save(place / f"{row}.png")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Digits in folders, a fifth of one training set labelled wrongly, and a teacher of other digits."""
    folder, digits = tmp_path_factory.mktemp("digits"), load_digits()
    generator = np.random.default_rng(0)
    order = generator.permutation(len(digits.target))
    other, train, test = order[:700], order[700:1300], order[1300:1600]
    wrong = generator.random(len(train)) < 0.2
    step = generator.integers(1, 10, len(train))
    noisy = np.where(wrong, (digits.target[train] + step) % 10, digits.target[train])
    for name, rows, labels in (
        ("other", other, digits.target[other]),
        ("clean", train, digits.target[train]),
        ("noisy", train, noisy),
    ):
        write(folder / name, "train", rows, labels)
        write(folder / name, "test", test, digits.target[test])
    teach = {
        "data": {"source": f"folder:{folder / 'other'}"},
        "teacher": {"train": True},
        "out": str(folder / "run"),
    }
    distill(
        merge(RUN, teach, {"teacher_train": {"epochs": 12, "batch_size": 32}, "method": {"preset": "kd"}})
    )
    return folder


def options(made, data: str, method: dict, *more: dict) -> dict:
    weights = {"weights": str(made / "run" / "teacher.safetensors")}
    return merge(
        RUN, {"data": {"source": f"folder:{made / data}"}, "teacher": weights, "method": method}, *more
    )


def test_the_noise_is_found_and_believed(made, tmp_path):
    report = Notes()
    out = {"out": str(tmp_path / "run")}
    record = distill(
        options(made, "noisy", {"preset": "kd", "rule": "posterior", "task": "posterior"}, out),
        reporter=report,
    )
    found = record["noise"]
    assert found["used"]
    assert found["wrong"] == pytest.approx(0.2, abs=0.05)
    assert len(found["matrix"]) == 10
    assert np.mean([found["matrix"][i][i] for i in range(10)]) == pytest.approx(0.8, abs=0.06)
    assert any("of the labels are thought wrong" in text for text in report.said)
    page = (tmp_path / "run" / "index.html").read_text()
    assert "Wrong labels" in page
    assert "of the training labels are thought wrong" in page
    assert "as far as teacher and labels tell." in page  # by its own loss, too
    read = read_record(tmp_path / "run" / "record.json")
    assert read.noise.chosen.kind == "one rate"
    assert "task posterior" in read.method_text
    kept = BiasCorrection.load(tmp_path / "run" / "correction.safetensors")
    assert torch.allclose(kept.noise_matrix, torch.tensor(found["matrix"]), atol=1e-6)
    again = distill(merge(json.loads(read.config.model_dump_json()), {"train": {"epochs": 2}}), resume=True)
    assert again["noise"] == found


@pytest.mark.parametrize("method", [{"rule": "posterior"}, {"task": "posterior"}])
def test_clean_labels_are_said_to_be_clean(made, method):
    with pytest.warns(
        UserWarning, match=r"posterior: needs labels of which some are wrong, got none that were found"
    ):
        record = distill(options(made, "clean", {"preset": "kd", **method}))
    assert record["noise"]["used"] is False
    assert record["noise"]["wrong"] == 0
    plain = distill(options(made, "clean", {"preset": "outgrow"}))
    assert plain["noise"] == record["noise"]
    assert record["student"]["nll"] == pytest.approx(plain["student"]["nll"], rel=1e-6)


def test_a_correction_does_not_learn_wrong_labels(made, tmp_path, monkeypatch):
    """With `outgrow` too: its map fits the wrong labels as noise, and believes as one that was fitted on right labels."""
    report = Notes()
    out = {"out": str(tmp_path / "run")}
    record = distill(options(made, "noisy", {"preset": "outgrow"}, out), reporter=report)
    assert record["noise"]["used"]
    assert record["noise"]["wrong"] == pytest.approx(0.2, abs=0.05)
    assert any("of the labels are thought wrong" in text for text in report.said)
    assert any(
        "the student's own loss learns the posterior of teacher and label" in text for text in report.said
    )
    page = (tmp_path / "run" / "index.html").read_text()
    assert "correction did not learn them. The student's own loss learnt the posterior" in page
    assert "one rate" in page
    kept = BiasCorrection.load(tmp_path / "run" / "correction.safetensors")
    monkeypatch.setattr(correction, "fitted_noise", lambda method: "none")
    distill(options(made, "noisy", {"preset": "outgrow"}, {"out": str(tmp_path / "trusting")}))
    trusting = BiasCorrection.load(tmp_path / "trusting" / "correction.safetensors")
    # labels that are taken as right make the teacher doubtful
    assert kept.source == trusting.source == "scale"
    assert float(kept.scale.mean()) > 1.5 * float(trusting.scale.mean())
    chosen = record["correction"]["chosen"]
    assert chosen["name"] == record["noise"]["map"] + " + noise"
    assert f"Why: {chosen['name']} is used: noise" in page


def test_an_audit_of_noisy_labels(made, tmp_path):
    """It blames the labels, and not the confidence of the teacher, on whose likelihood wrong labels say nothing."""
    found = audit_teacher(options(made, "noisy", {"preset": "kd"}, {"out": str(tmp_path / "audit")}))
    numbers, first = found.classification, found.verdicts[0]
    assert numbers.noise == pytest.approx(0.2, abs=0.05)
    assert numbers.correction.count("makes the labels likelier") == 1
    assert first.kind == "noisy_labels"
    assert f"{100 * numbers.noise:.1f} % of the training labels are thought wrong" in first.text
    page = (tmp_path / "audit" / "index.html").read_text()
    assert "improves its likelihood" not in page
    assert "count the labels as they are" in page


def test_the_student_of_outgrow_does_not_learn_them_either(made):
    """Unless it is told to: the target of its own loss is the posterior, as with `method.task=posterior`."""
    usual = distill(options(made, "noisy", {"preset": "outgrow"}))
    asked = distill(options(made, "noisy", {"preset": "outgrow", "task": "posterior"}))
    label = distill(options(made, "noisy", {"preset": "outgrow", "task": "label"}))
    assert usual["noise"]["task"] == asked["noise"]["task"] == "posterior"
    assert label["noise"]["task"] == "label"
    assert usual["student"]["nll"] == asked["student"]["nll"]
    assert usual["epochs"][0]["terms"]["task"] != label["epochs"][0]["terms"]["task"]
    clean = distill(options(made, "clean", {"preset": "outgrow"}))
    assert clean["noise"]["task"] == "label"


def test_plain_distillation_learns_labels_as_they_are(made):
    """Also where its teacher is corrected: a baseline has the loss that it is known for."""
    record = distill(options(made, "noisy", {"preset": "kd"}, {"teacher": {"correct": "always"}}))
    assert record["noise"]["used"]
    assert record["noise"]["task"] == "label"


def beside(path):
    return {"teacher": {"others": [{"name": "cifar/resnet8", "weights": str(path)}]}}


@pytest.mark.parametrize(
    "method",
    [
        {"preset": "outgrow"},
        pytest.param({"preset": "kd", "rule": "posterior", "task": "posterior"}, marks=pytest.mark.slow),
    ],
)
def test_the_same_teacher_twice_is_that_teacher(made, method):
    """Also where labels are wrong: the mean, its noise, and what the student learns."""
    one = distill(options(made, "noisy", method))
    two = distill(options(made, "noisy", method, beside(made / "run" / "teacher.safetensors")))
    assert one["noise"]["used"]
    assert two["noise"] == one["noise"] | {"judge": "cifar/resnet8"}
    assert [member["weight"] for member in two["mixture"]["members"]] == [0.5, 0.5]
    assert two["mixture"]["nll"] == pytest.approx(one["correction"]["chosen"]["nll"], rel=5e-3)
    for name, value in one["epochs"][0]["terms"].items():
        assert two["epochs"][0]["terms"][name] == pytest.approx(value, rel=1e-4)


def test_of_several_teachers_the_one_that_makes_the_labels_likeliest_judges_them(made, tmp_path):
    torch.manual_seed(0)
    save_student(create_model("cifar/resnet8", classes=tuple("0123456789")), tmp_path / "useless.safetensors")
    report, out = Notes(), {"out": str(tmp_path / "run")}
    record = distill(
        options(made, "noisy", {"preset": "outgrow"}, beside(tmp_path / "useless.safetensors"), out),
        reporter=report,
    )
    assert record["noise"]["wrong"] == pytest.approx(0.2, abs=0.05)
    assert record["noise"]["task"] == "posterior"
    assert [member["weight"] for member in record["mixture"]["members"]] == pytest.approx(
        [1.0, 0.0], abs=0.05
    )
    said = [text for text in report.said if "makes them likeliest" in text or "own loss" in text]
    assert len(said) == 2
    page = (tmp_path / "run" / "index.html").read_text()
    assert "Of the teachers, cifar/resnet8 makes the labels likeliest." in page
    clean = distill(options(made, "clean", {"preset": "outgrow"}, beside(tmp_path / "useless.safetensors")))
    assert not clean["noise"]["used"]


def test_a_rate_that_is_given(made, tmp_path):
    report, out = Notes(), {"out": str(tmp_path / "run")}
    method = {"preset": "kd", "rule": "posterior(noise=0.2)"}
    record = distill(options(made, "noisy", method, out), reporter=report)
    # of the rule alone: nobody has asked for the task
    assert any("own loss still learns the labels as they are" in text for text in report.said)
    page = (tmp_path / "run" / "index.html").read_text()
    assert "in the distillation alone: its own loss learnt the labels as they are" in page
    assert record["noise"]["matrix"][0][0] == pytest.approx(0.8)
    assert record["noise"]["reason"] == "the rate was given."


def test_a_share_that_is_given_beside_a_teacher_that_has_memorised(made, monkeypatch):
    """The share is used, and that is what is said."""
    monkeypatch.setattr("outgrow.teacher.correction.memorised", lambda *args: (1.0, 0.5))
    plain = distill(options(made, "noisy", {"preset": "kd"}))
    with pytest.warns(UserWarning, match="the share that you gave is used, so that a label counts twice"):
        given = distill(options(made, "noisy", {"preset": "kd", "rule": "posterior(noise=0.2)"}))
    assert given["epochs"][0]["terms"]["kd"] != pytest.approx(plain["epochs"][0]["terms"]["kd"], rel=1e-2)
    with pytest.warns(UserWarning, match="got a teacher that has memorised them. The teacher is believed as"):
        found = distill(options(made, "noisy", {"preset": "kd", "rule": "posterior"}))
    assert found["epochs"][0]["terms"]["kd"] == pytest.approx(plain["epochs"][0]["terms"]["kd"], rel=1e-6)


def test_what_it_cannot(made):
    method = {"preset": "kd", "rule": "posterior"}
    with pytest.raises(
        ValueError, match=r"posterior: needs a teacher .*, got --correct-teacher never; leave"
    ):
        distill(options(made, "noisy", method, {"teacher": {"correct": "never"}}))
    with pytest.raises(ValueError, match=r"posterior: needs images with one label each, got --data coco:x"):
        _check_task(
            build_config(options(made, "noisy", method, {"data": {"source": "coco:x"}})), detection.TASK
        )
