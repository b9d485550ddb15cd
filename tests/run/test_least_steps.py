"""The least number of steps of a recipe: a few hundred images at ten epochs are not a training."""

from types import SimpleNamespace

import pytest

from outgrow.models import create_model, save_student
from outgrow.run import distill, fill_cache, rehearsal
from outgrow.run.distillation import assemble, start
from outgrow.run.layers import resolve
from outgrow.run.listing import listing
from outgrow.run.plan import make_plan, read_options
from outgrow.run.study import run_study
from outgrow.run.tasks import task_of
from outgrow.run.work import differences
from outgrow.training.config import build_config, merge
from outgrow.training.progress import Reporter
from outgrow.training.record import DataRecord

BASE = {
    "data": {"source": "digits", "train_rows": 64, "workers": 0, "val_fraction": 0.0},
    "student": {"name": "cifar/resnet8"},
    "method": {"preset": "kd"},
    "train": {"epochs": 2, "batch_size": 32, "min_steps": 10},
}
"""Two steps an epoch: ten steps are five epochs."""


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    file = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_student(create_model("cifar/resnet8", classes=[str(digit) for digit in range(10)]), file)
    return merge(BASE, {"teacher": {"name": "cifar/resnet8", "weights": str(file)}})


class Notes(Reporter):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def test_a_training_from_scratch_has_a_minimum_and_one_from_published_weights_has_none():
    config = resolve("default", None, None, {})
    assert config.train.min_steps == config.teacher_train.min_steps == 1000
    assert resolve("finetune", None, None, {}).train.min_steps is None
    (said,) = [line for line in listing("recipes") if line.startswith("finetune")]
    assert "no least number of steps" in said


@pytest.mark.parametrize("length", [{"epochs": 3}, {"max_steps": 2}])
def test_whoever_sets_the_length_of_a_training_gets_it(length, tmp_path):
    config = resolve("default", None, None, {"train": length})
    assert config.train.min_steps is None
    assert config.teacher_train.min_steps == 1000
    file = tmp_path / "own.yaml"
    file.write_text("recipe: default\ntrain: {epochs: 3}\n")
    assert resolve(None, file, None, {}).train.min_steps is None
    both = resolve("default", None, None, {"train": {"epochs": 3, "min_steps": 50}})
    assert both.train.min_steps == 50


def test_few_images_get_more_epochs_and_as_many_evaluations(few, tmp_path):
    notes = Notes()
    record = distill({**few, "out": str(tmp_path / "run")}, reporter=notes)
    assert [epoch["epoch"] for epoch in record["epochs"]] == [1, 2, 3, 4, 5]
    assert sum(epoch.get("score") is not None for epoch in record["epochs"]) == 2
    assert record["epochs"][-1]["score"] is not None
    assert any("5 epochs, since 2 have fewer than the 10 steps" in note for note in notes.notes)
    assert record["config"]["train"]["epochs"] == 2


def test_a_run_that_asks_for_the_epochs_is_the_same(few):
    longer = merge(few, {"train": {"epochs": 5, "min_steps": None}})
    one, other = distill(few), distill(longer)
    assert [epoch["loss"] for epoch in one["epochs"]] == [epoch["loss"] for epoch in other["epochs"]]
    assert one["student"]["top1"] == other["student"]["top1"]


def test_the_price_of_a_teacher_on_more_images_is_that_of_its_own_epochs(monkeypatch, tmp_path):
    """The student's few images need more epochs for as many steps."""
    own = {"name": "cifar/resnet8", "train": True, "rows": "disjoint"}
    base = merge(BASE, {"teacher": own, "teacher_train": BASE["train"]})
    plan = make_plan(base, read_options({"methods": ["kd"], "seeds": 1}), tmp_path)
    of_student = rehearsal.Cost(1.0, 0.1, 2, 5, 1.0, 2, 0.0, 0.0, 1000, 0, "8x8 views", 64)
    monkeypatch.setattr(rehearsal, "rehearse", lambda *_: of_student)
    record = DataRecord(source="digits", fingerprint="", train=64, val=0, test=64)
    trials = rehearsal.Trials(opened={"": (SimpleNamespace(others=range(640)), record)})
    cost = rehearsal.teacher_cost(plan.teachers[0], trials)
    assert (cost.steps, cost.epochs, cost.tests) == (20, 2, 2)


def test_a_finished_run_is_kept_and_its_rerun_is_the_same(few, tmp_path):
    methods = {"kd": {"preset": "kd"}}
    first = run_study(few, methods, [0], out=tmp_path)
    stamp = (tmp_path / "kd" / "seed0" / "record.json").stat().st_mtime_ns
    run_study(few, methods, [0], out=tmp_path)
    assert (tmp_path / "kd" / "seed0" / "record.json").stat().st_mtime_ns == stamp
    assert first["kd"][0].trained_epochs == 5
    shorter = merge(few, {"train": {"min_steps": None}})
    found = differences(tmp_path / "kd" / "seed0", build_config(merge(shorter, {"method": methods["kd"]})))
    assert found == ["train.min_steps (was 10, is None)"]
    with pytest.raises(ValueError, match="needs a folder without a run, got a finished run"):
        run_study(shorter, methods, [0], out=tmp_path)
    again = distill(resolve(None, tmp_path / "kd" / "seed0" / "config.yaml", None, {"out": None}))
    assert len(again["epochs"]) == 5


def test_a_run_continues_with_epochs_of_ones_own_but_not_with_fewer_than_it_has(few, tmp_path):
    out = {"out": str(tmp_path / "run")}
    distill({**few, **out})
    with pytest.raises(
        ValueError, match="needs at least the 5 epochs that are trained, got 3; raise --epochs"
    ):
        distill(merge(few, out, {"train": {"epochs": 3, "min_steps": None}}), resume=True)
    more = distill(merge(few, out, {"train": {"epochs": 6, "min_steps": None}}), resume=True)
    assert len(more["epochs"]) == 6


def test_the_teacher_cache_has_all_epochs(few, tmp_path):
    config = build_config(merge(few, {"teacher": {"cache": str(tmp_path)}}))
    assert fill_cache(config)["epochs"] == 5
    run = start(config)
    cached = assemble(run, task_of("digits")).taught.module
    assert cached.cache.bytes_missing(5) == 0
