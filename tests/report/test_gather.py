"""Finished runs of any name: grouped, named by what differs, and refused where they do not compare."""

import copy
import json
import re

import pytest

from outgrow.report.gather import gather, gather_study, method_name
from outgrow.report.table import compare
from outgrow.training.config import MethodConfig
from tests.report.records import detector, record


def put(folder, name, run, **changes):
    """A run folder; changes are by section of its configuration."""
    run = copy.deepcopy(run)
    for section, fields in changes.items():
        run["config"][section] |= fields
    (folder / name).mkdir(parents=True)
    (folder / name / "record.json").write_text(json.dumps(run))
    return folder / name


def test_runs_are_grouped_by_configuration_and_paired_by_seed(tmp_path):
    folders = [put(tmp_path, f"first-{s}", record("kd", s, 91.0 + s)) for s in (2, 0, 1)]
    folders += [put(tmp_path, f"alone-{s}", record("none", s, 90.0, teacher=None)) for s in range(3)]
    found = gather(folders)
    assert {name: [run.seed for run in runs] for name, runs in found.records.items()} == {
        "none": [0, 1, 2],
        "kd": [0, 1, 2],
    }
    assert found.conditions == {}
    table = compare({"": found.records})[""]
    assert (table.null, table.plain, table.baselines) == ("none", "kd", ("none", "kd"))
    assert table.rows[1].versus[0].difference.mean == pytest.approx(2.0)


def test_a_folder_may_hold_runs(tmp_path):
    for s in range(2):
        put(tmp_path, f"a/{s}", record("none", s, 90.0, teacher=None))
        put(tmp_path, f"b/{s}", record("kd", s, 91.0))
    assert list(gather([tmp_path]).records) == ["none", "kd"]


def test_methods_are_named_by_what_differs(tmp_path):
    put(tmp_path, "a", record("none", 0, 90.0, teacher=None))
    put(tmp_path, "b", record("kd", 0, 91.0))
    put(tmp_path, "c", record("kd", 0, 92.0), method={"rule": "pair"})
    put(tmp_path, "d", record("kd", 0, 93.0), train={"lr": 0.01})
    put(tmp_path, "e", record("kd", 0, 94.0), method={"loss": "dkd(beta=6)"})
    assert set(gather([tmp_path]).records) == {
        "none",
        "kd (train.lr 0.05)",
        "kd + pair",
        "kd (train.lr 0.01)",
        "dkd(beta=6)",
    }


def test_a_student_alone_has_no_teacher_to_differ_in(tmp_path):
    put(tmp_path, "a", record("none", 0, 90.0, teacher=None))
    put(
        tmp_path,
        "b",
        record("none", 1, 90.5, teacher=None),
        teacher={"name": "cifar/resnet20", "train": True},
    )
    put(tmp_path, "c", record("kd", 0, 91.0))
    put(tmp_path, "d", record("kd", 1, 91.0))
    assert [len(runs) for runs in gather([tmp_path]).records.values()] == [2, 2]


def test_teachers_by_seed_are_one_method(tmp_path):
    for s in range(2):
        put(tmp_path, f"a{s}", record("none", s, 90.0, teacher=None))
        put(tmp_path, f"b{s}", record("kd", s, 91.0), teacher={"weights": f"teacher{s}.safetensors"})
    assert list(gather([tmp_path]).records) == ["none", "kd"]


def test_two_teachers_of_one_seed_are_two_methods(tmp_path):
    for s in range(2):
        for teacher in "xy":
            put(
                tmp_path,
                f"{teacher}{s}",
                record("kd", s, 91.0),
                teacher={"weights": f"{teacher}.safetensors"},
            )
    assert set(gather([tmp_path]).records) == {
        "kd (teacher.weights x.safetensors)",
        "kd (teacher.weights y.safetensors)",
    }


DIFFERENCES = {
    "epochs": lambda run: run.update(epochs=run["epochs"][:2]),
    "batch size": lambda run: run["config"]["train"].update(batch_size=7),
    "training rows": lambda run: run["data"].update(train=7),
    "test images": lambda run: run["data"].update(test=7),
    "images (fingerprint)": lambda run: run["data"].update(fingerprint="other"),
    "student": lambda run: run["student"].update(parameters=7),
    "classes": lambda run: run["data"].update(classes=["a", "b"]),
    "steps an epoch": lambda run: run["config"]["train"].update(max_steps=7),
    "train.lr": lambda run: run["config"]["train"].update(lr=0.001),
    "train.optimizer": lambda run: run["config"]["train"].update(optimizer="adamw"),
    "train.label_smoothing": lambda run: run["config"]["train"].update(label_smoothing=0.3),
    "data.size": lambda run: run["config"]["data"].update(size=16),
    "data.augment.cutout": lambda run: run["config"]["data"]["augment"].update(cutout=30),
    "student.input_size": lambda run: run["config"]["student"].update(input_size=16),
}


@pytest.mark.parametrize("what", DIFFERENCES)
def test_what_does_not_compare_is_refused_by_name(tmp_path, what):
    other = record("kd", 0, 91.0)
    DIFFERENCES[what](other)
    folders = [put(tmp_path, "alone", record("none", 0, 90.0, teacher=None)), put(tmp_path, "first", other)]
    with pytest.raises(
        ValueError,
        match=rf"(?s)needs runs that differ in their method alone, got.*{re.escape(what)}: .*--anyway",
    ) as error:
        gather(folders)
    assert str(folders[1]) in str(error.value)
    found = gather(folders, anyway=True)
    assert "kd" in found.conditions
    assert "compared anyway" in found.notes[0]


@pytest.mark.parametrize(
    "section, field, value", [("data", "class_map", "map.csv"), ("train", "progress", "step")]
)
def test_what_a_student_alone_does_not_read_may_differ(tmp_path, section, field, value):
    other = record("kd", 0, 91.0)
    other["config"][section][field] = value
    put(tmp_path, "alone", record("none", 0, 90.0, teacher=None))
    put(tmp_path, "first", other)
    assert set(gather([tmp_path]).records) == {"none", "kd"}


def test_every_difference_is_named_at_once(tmp_path):
    other = record("kd", 1, 91.0)
    for change in DIFFERENCES.values():
        change(other)
    put(tmp_path, "a", record("none", 0, 90.0, teacher=None))
    put(tmp_path, "b", other)
    with pytest.raises(ValueError, match="differ") as error:
        gather([tmp_path])
    assert all(f"  {what}: " in str(error.value) for what in (*DIFFERENCES, "seeds"))


def test_measures_do_not_compare_even_so(tmp_path):
    put(tmp_path, "a", record("kd", 0, 90.0))
    put(tmp_path, "b", detector("none", 0, 40.0, teacher=None))
    with pytest.raises(ValueError, match=r"metric: ap in .*; top1 in "):
        gather([tmp_path])
    with pytest.raises(ValueError, match="runs with the same metric"):
        compare({"": gather([tmp_path], anyway=True).records})


def test_a_cut_of_validation_images_depends_on_the_seed(tmp_path):
    for s in range(2):
        for preset in ("none", "kd"):
            run = record(preset, s, 90.0)
            run["data"]["fingerprint"] = f"cut{s}"
            put(tmp_path, f"{preset}{s}", run, data={"val_fraction": 0.1})
    assert len(gather([tmp_path]).records) == 2


def test_seeds_that_are_missing_take_the_common_ones_anyway(tmp_path):
    for s in range(3):
        put(tmp_path, f"a{s}", record("none", s, 90.0, teacher=None))
    for s in range(1, 3):
        put(tmp_path, f"b{s}", record("kd", s, 91.0 + s))
    with pytest.raises(ValueError, match="seeds: 0, 1, 2 of none; 1, 2 of kd"):
        gather([tmp_path])
    found = gather([tmp_path], anyway=True)
    (contrast,) = compare({"": found.records}, ["none"])[""].rows[1].versus
    assert (contrast.difference.n, contrast.difference.mean) == (2, 2.5)
    assert found.conditions == {"kd": ("seeds 1, 2",)}


def test_what_is_no_comparison_is_refused(tmp_path):
    with pytest.raises(ValueError, match="which is not there; give"):
        gather([tmp_path / "nowhere"])
    with pytest.raises(ValueError, match=r"got no record.json in or under .*; finish"):
        gather([tmp_path])
    one = put(tmp_path, "a", record("kd", 0, 90.0))
    with pytest.raises(ValueError, match="needs runs of two methods or more, got 1 of kd; add"):
        gather([one])
    put(tmp_path, "b", record("kd", 0, 91.0))
    with pytest.raises(ValueError, match=r"got seed 0 of kd twice, in .*a and .*b; leave"):
        gather([tmp_path])


def test_names_of_methods():
    assert method_name(MethodConfig(preset="paper", loss="dkd")) == "paper + dkd"
    assert method_name(MethodConfig(preset="kd", loss="dkd", rule="swap")) == "dkd + swap"


def test_a_folder_of_methods_is_judged_on_the_same_images(tmp_path):
    """The methods of a study may differ in anything, and it is shown; but not in what they are judged on."""
    for s in range(2):
        put(tmp_path, f"none/seed{s}", record("none", s, 90.0, teacher=None))
        put(tmp_path, f"longer/seed{s}", record("kd", s, 91.0), train={"batch_size": 7})
    found = gather_study(tmp_path)
    assert list(found.records) == ["longer", "none"]
    assert found.conditions == {"longer": ("batch size 7",)}
    for field, value in (("fingerprint", "0" * 64), ("classes", ["a", "b"]), ("test", 3)):
        other = record("none", 0, 90.0, teacher=None)
        other["data"][field] = value
        (tmp_path / "none/seed0/record.json").write_text(json.dumps(other))
        with pytest.raises(
            ValueError, match=r"report: needs runs that were judged on the same images, got(?s:.*)none/seed0"
        ):
            gather_study(tmp_path)
