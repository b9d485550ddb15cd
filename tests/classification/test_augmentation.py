"""A teacher that was trained without the run's augmentation: the run and the audit say what that costs, and what to change."""

import shlex

import pytest

from outgrow.classification.augmentation import advice, cost_text, costs_much, in_use, weaker
from outgrow.classification.page import page_warnings
from outgrow.run import distill
from outgrow.run.audit import audit_teacher
from outgrow.training.config import AugmentConfig, assignments, build_config, merge
from outgrow.training.record import AloneRecord, AugmentedRecord, read_record
from tests.classification.test_names import Notes

OFF = {"crop_padding": 0, "flip": False}
RUN = {
    "data": {"source": "digits", "workers": 0},
    "student": {"name": "cifar/resnet8"},
    "teacher": {"name": "cifar/resnet8"},
    "train": {"epochs": 1, "batch_size": 64},
    "method": {"preset": "kd"},
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A ResNet-8 that has never seen a digit moved or mirrored."""
    out = tmp_path_factory.mktemp("sloppy")
    teach = {"data": {"augment": OFF}, "teacher": {"train": True}, "out": str(out / "run")}
    distill(merge(RUN, teach, {"teacher_train": {"epochs": 12, "batch_size": 32}}))
    return str(out / "run" / "teacher.safetensors")


def run_with(weights, augment, **layer):
    report = Notes()
    config = merge(RUN, {"teacher": {"weights": weights}, "data": {"augment": augment}}, layer)
    record = distill(config, reporter=report)
    return record, [note for note in report.said if "augmented views" in note]


def test_a_run_names_the_augmentations_that_are_beyond_the_teacher(weights, tmp_path):
    record, notes = run_with(weights, {"crop_padding": 4}, out=str(tmp_path / "run"))
    found = record["teacher"]["augmented"]
    assert found["images"] == 256
    assert found["plain"] > 235
    assert found["views"] < 90
    by_name = {one["name"]: one["right"] for one in found["alone"]}
    assert by_name["crop_padding"] < 100 < by_name["flip"]
    assert len(notes) == 1
    assert notes[0].startswith("warning: ")
    assert "--set data.augment.crop_padding=0 --set data.augment.flip=false" in notes[0]
    # what it says is a command line that works, and after which nothing is said
    settings = [word for word in shlex.split(notes[0].split("off: ")[1]) if word != "--set"]
    after, none = run_with(weights, assignments(settings)["data"]["augment"])
    assert none == []
    assert after["teacher"]["augmented"] is None  # nothing is augmented
    # the page, from the record alone
    assert any(
        "augmented views" in text for text in page_warnings(read_record(tmp_path / "run" / "record.json"))
    )


def test_a_small_loss_is_recorded_and_not_said(weights):
    record, notes = run_with(weights, {"crop_padding": 0, "flip": False, "cutout": 2})
    found = record["teacher"]["augmented"]
    assert found["plain"] >= found["views"] > 200
    assert "alone" not in found
    assert notes == []


def test_mixed_views_are_looked_at_unmixed(weights):
    record, notes = run_with(weights, {"crop_padding": 0, "flip": False, "cutout": 2, "mixup": 0.8})
    plain, _ = run_with(weights, {"crop_padding": 0, "flip": False, "cutout": 2})
    assert record["teacher"]["augmented"] == plain["teacher"]["augmented"]
    assert notes == []


def test_looking_changes_no_run(weights, monkeypatch):
    """The views of the check are drawn by themselves: a student learns the same with it as without."""
    looked, _ = run_with(weights, {"crop_padding": 1, "flip": False})
    monkeypatch.setattr("outgrow.classification.teacher.look_at_augmented", lambda *args: None)
    without, _ = run_with(weights, {"crop_padding": 1, "flip": False})
    assert looked["teacher"]["augmented"] is not None
    assert looked["student"] == without["student"]


@pytest.mark.parametrize("preset", ["kd", "outgrow"])
def test_a_correction_in_the_run_is_no_part_of_the_question(weights, preset):
    record, notes = run_with(weights, {"crop_padding": 4}, method={"preset": preset})
    assert len(notes) == 1
    assert record["teacher"]["augmented"]["plain"] > 235
    assert record.get("noise") is None  # nor is it asked which labels are wrong


def test_of_several_teachers_each_is_named(weights, tmp_path):
    other = {"others": [{"name": "cifar/resnet8", "weights": weights}], "weights": weights}
    _, notes = run_with(weights, {"crop_padding": 4}, teacher=other, out=str(tmp_path / "run"))
    assert len(notes) == 2
    said = [
        text for text in page_warnings(read_record(tmp_path / "run" / "record.json")) if "augmented" in text
    ]
    assert [text.partition(",")[0] for text in said] == ["Teacher 1", "Teacher 2"]


def test_an_audit_puts_it_first_and_alone(weights):
    teacher = {"teacher": {"weights": weights}}
    record = audit_teacher(merge(RUN, teacher, {"data": {"augment": {"crop_padding": 4}}}))
    assert [one.kind for one in record.verdicts] == ["augmentation"]
    # nothing is said of labels that were judged on such views
    assert record.classification.noise is None
    assert "nothing is said of the labels" in record.classification.correction
    assert record.classification.label_errors.how.startswith(
        "Not searched: the teacher does not know the aug"
    )
    words = shlex.split(record.verdicts[0].command)
    settings = assignments([words[at + 1] for at, word in enumerate(words) if word == "--set"])
    again = audit_teacher(merge(RUN, teacher, settings))
    assert "augmentation" not in [one.kind for one in again.verdicts]
    assert build_config(settings).data.augment.crop_padding == 0


def found(views, plain=200, images=256, majority=30, p=1e-9, **more):
    return AugmentedRecord(
        whose="test", images=images, majority=majority, plain=plain, views=views, p=p, **more
    )


def test_what_is_costly():
    assert not costs_much(found(144))  # 56 of the 170 that it knows: just under a third
    assert costs_much(found(143))
    assert not costs_much(found(143, p=0.02))  # of few images, a chance
    assert not costs_much(found(0, plain=30))  # a teacher that knows nothing has nothing to lose


def test_a_view_of_another_size():
    size = found(60, unchanged=80, alone=(AloneRecord(name="flip", setting="flip", right=80),))
    assert weaker(size, AugmentConfig()) == {}
    assert "another size" in cost_text(size)
    assert "data.size" in advice(size, AugmentConfig())


def test_where_no_augmentation_is_the_culprit_by_itself_all_are():
    alone = tuple(AloneRecord(name=name, setting=name, right=195) for name in ("flip", "cutout"))
    augment = AugmentConfig(crop_padding=0, cutout=8)
    assert weaker(found(60, alone=alone, unchanged=200), augment) == {"flip": False, "cutout": 0}


def test_a_resized_crop_replaces_padding():
    augment = AugmentConfig(resized_crop=(0.1, 1.0))
    assert list(in_use(augment)) == ["flip", "resized_crop"]
    words = advice(found(60), augment).split("off: ")[1]
    settings = assignments([word for word in shlex.split(words) if word != "--set"])
    assert build_config(settings).data.augment.resized_crop is None
    assert in_use(build_config(settings).data.augment) == {}  # nor the padding, which nobody has looked at
    assert in_use(AugmentConfig(**OFF)) == {}
