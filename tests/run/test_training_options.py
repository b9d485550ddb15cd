"""Options of the training in whole runs: batches in parts, averaged weights, balanced classes, rates by layer."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from outgrow.classification.data import open_run_data, train_loader
from outgrow.classification.student import class_weights
from outgrow.data.transforms import to_float
from outgrow.models import create_model
from outgrow.run import distill
from outgrow.run.distillation import assemble, start
from outgrow.run.evaluation import evaluate_model
from outgrow.run.layers import resolve
from outgrow.run.tasks import task_of
from outgrow.training.config import build_config, merge, without_effect
from outgrow.training.progress import Reporter
from tests.run.test_distill import SMALL, drop_times, interrupted_after

ALONE = {"teacher": {"train": False}, "method": {"preset": "none"}}


def run(*layers, **options):
    return distill(build_config(merge(SMALL, ALONE, *layers)), **options)


def plain_net():
    """Without batch norm, so that a batch in parts is the batch."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 24), nn.ReLU(), nn.Linear(24, 10))


FEW_LABELS = {"unlabelled": "digits", "unlabelled_share": 0.8}


@pytest.mark.filterwarnings("ignore:data. left out:outgrow.data.notes.DataWarning")
@pytest.mark.parametrize(
    "method, data",
    [
        ({"preset": "none"}, {}),
        ({"preset": "kd", "loss": "kd", "rule": "pair"}, {}),
        ({"preset": "kd", "loss": "kd", "rule": "pair"}, FEW_LABELS),  # parts without a label
        ({"preset": "kd", "loss": "kd + 0.5*jsd", "rule": "pair"}, FEW_LABELS),
    ],
)
@pytest.mark.parametrize("parts", [3, 16])
def test_a_batch_in_parts_gives_the_weights_of_the_whole(method, data, parts):
    """80 rows are two batches and a half; the last has at most 8 parts."""
    weights = []
    for accumulate in (1, parts):
        teacher, student = plain_net(), plain_net()
        layer = {
            "data": {"train_rows": 80, **data},
            "train": {"accumulate": accumulate, "lr": 0.01},
            "method": method,
        }
        record = run(layer, teacher=None if method["preset"] == "none" else teacher, student=student)
        weights.append((list(student.parameters()), record["epochs"]))
    for whole, part in zip(weights[0][0], weights[1][0], strict=True):
        torch.testing.assert_close(part, whole, rtol=1e-4, atol=1e-6)
    for whole, part in zip(weights[0][1], weights[1][1], strict=True):
        assert part["loss"] == pytest.approx(whole["loss"], rel=1e-4)
        assert part["terms"] == pytest.approx(whole["terms"], rel=1e-3, abs=1e-6)
        assert part["wrong_rate"] == pytest.approx(whole["wrong_rate"], abs=1e-6)


def test_more_parts_than_a_batch_has_are_refused():
    with pytest.raises(
        ValueError, match=r"train\.accumulate: needs at most 16 parts of a batch of 32 images"
    ):
        run({"train": {"accumulate": 17}})


def test_the_average_is_what_is_evaluated_and_saved(tmp_path):
    ema = {"train": {"ema": 0.5, "epochs": 2}, "out": str(tmp_path / "ema")}
    record = run(ema)
    raw = run({"train": {"epochs": 2}, "out": str(tmp_path / "raw")})
    assert [e["loss"] for e in record["epochs"]] == [e["loss"] for e in raw["epochs"]]  # it changes no step
    averaged, last = (load_file(tmp_path / name / "student.safetensors") for name in ("ema", "raw"))
    assert any(not torch.equal(averaged[name], last[name]) for name in averaged)
    assert averaged.keys() == last.keys()
    again = evaluate_model("digits", "cifar/resnet8", weights=tmp_path / "ema" / "student.safetensors")
    assert again["top1"] == pytest.approx(record["student"]["top1"], abs=1e-9)


OPTIONS = {
    "train": {
        "accumulate": 2,
        "ema": 0.9,
        "label_smoothing": 0.1,
        "class_weights": "balanced",
        "sampling": "balanced",
        "head_lr": 0.1,
        "layer_decay": 0.7,
        "checkpoint_steps": 1,
    }
}


@pytest.mark.parametrize("number", [2, 4])
def test_an_interrupted_run_with_all_options_ends_in_the_same_bits(tmp_path, monkeypatch, number):
    whole = run(OPTIONS, {"out": str(tmp_path / "whole")})
    with interrupted_after(monkeypatch, number):
        run(OPTIONS, {"out": str(tmp_path / "broken")})
    resumed = run(OPTIONS, {"out": str(tmp_path / "broken")}, resume=True)
    assert drop_times(resumed) == drop_times(whole)
    one, other = (load_file(tmp_path / name / "student.safetensors") for name in ("whole", "broken"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_class_weights_by_name():
    labels = torch.tensor([0, 0, 1])
    assert class_weights({"b": 0.0}, labels, ("a", "b", "c")).tolist() == [1.0, 0.0, 1.0]
    assert class_weights("balanced", labels, ("a", "b", "c")).tolist() == [0.75, 1.5, 0.0]
    with pytest.raises(
        ValueError, match=r"train\.class_weights: needs names of classes, got dig; did you mean dog"
    ):
        class_weights({"dig": 2.0}, labels, ("cat", "dog"))
    assert build_config({"train": {"class_weights": {3: 2}}}).train.class_weights == {"3": 2.0}
    for wrong in ("foo", {"a": -1.0}, {"a": float("nan")}, {"a": "x"}, {"a": 0}, {}, [1.0]):
        with pytest.raises(
            ValueError, match=r"train\.class_weights: needs balanced, or weights of zero or more"
        ):
            build_config({"train": {"class_weights": wrong}})


def test_nesterov_needs_momentum():
    with pytest.raises(ValueError, match=r"train: needs a momentum above zero for nesterov, got 0; raise it"):
        build_config({"train": {"nesterov": True, "momentum": 0}})


@pytest.mark.parametrize("field", ["lr", "ema", "weight_decay", "head_lr"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_numbers_are_finite(field, value):
    with pytest.raises(ValueError, match=rf"train\.{field}: .*got (inf|nan); correct it"):
        build_config({"train": {field: value}})


def test_class_weights_reach_student_and_teacher(tmp_path):
    """Nets that were only ever asked for 3 and 7 predict nothing else."""
    only = {str(digit): float(digit in (3, 7)) for digit in range(10)}
    layer = {"teacher": {"train": True, "rows": "same"}, "method": {"preset": "kd"}}
    weights = {"class_weights": only, "epochs": 6}
    run(layer, {"train": weights, "teacher_train": weights, "out": str(tmp_path)})
    test = open_run_data(build_config(SMALL)).test
    for name in ("student", "teacher"):
        network = create_model("cifar/resnet8", weights=tmp_path / f"{name}.safetensors").eval()
        with torch.no_grad():
            predicted = network(to_float(test.images[test.index[:300]])).argmax(dim=1)
        assert set(predicted.tolist()) == {3, 7}


def test_balanced_sampling_draws_rare_classes_as_often():
    config = build_config(merge(SMALL, ALONE, {"train": {"sampling": "balanced"}}))
    data = open_run_data(config)
    kept = torch.cat([(data.train.labels == label).nonzero()[: 3 + label, 0] for label in range(10)])
    uneven = data.train.subset(kept)
    loader = train_loader(config, config.train, uneven, [None], torch.device("cpu"))
    shown = torch.cat([batch.target.label for batch in loader.epoch(0)])
    assert len(shown) == len(uneven)
    assert int(shown.bincount().max()) <= -(-len(uneven) // 10)
    assert int(shown.bincount()[0]) > 3  # the images of 0 that there are
    run({"train": {"sampling": "balanced"}})


def test_a_correction_is_fitted_on_every_image_once(tmp_path):
    layer = {
        "teacher": {"train": True, "rows": "disjoint", "correct": "always"},
        "method": {"preset": "outgrow"},
        "train": {"epochs": 1},
    }
    records = [run(layer, {"train": {"sampling": sampling}}) for sampling in ("uniform", "balanced")]
    assert records[0]["correction"] == records[1]["correction"]


def test_few_images_with_labels_point_to_images_without():
    class Notes(Reporter):
        def __init__(self):
            self.notes = []

        def note(self, text):
            self.notes.append(text)

    taught, alone = Notes(), Notes()
    run({"teacher": {"train": True}, "method": {"preset": "kd"}, "train": {"epochs": 1}}, reporter=taught)
    run({"train": {"epochs": 1}}, reporter=alone)
    assert sum("add some with --unlabelled SRC" in note for note in taught.notes) == 1
    assert not any("--unlabelled" in note for note in alone.notes)


@pytest.mark.parametrize(
    ("recipe", "typed", "said"),
    [
        ("coco/resnet101-resnet18", {"train": {"lr_schedule": "cosine"}}, []),
        ("default", {"train": {"nesterov": True, "optimizer": "adamw"}}, ["train.nesterov"]),
        ("default", {"train": {"milestones": [0.5], "lr_decay": 0.2}}, ["train.milestones", "train.lr_decay"]),
        ("default", {"train": {"milestones": [0.5], "lr_schedule": "step"}}, []),
        ("default", {"teacher_train": {"momentum": 0.5, "optimizer": "adamw"}}, []),
        ("default", {"data": {"unlabelled_share": 0.75}}, ["data.unlabelled_share"]),
        ("finetune", {"data": {"augment": {"padding": "reflect"}}}, ["data.augment.padding"]),
    ],
)  # fmt: skip
def test_what_nothing_reads_is_said(recipe, typed, said):
    """Unless the recipe has set it, as for another schedule than the user's."""
    context = start(resolve(recipe, None, None, {"data": {"source": "digits"}, **typed}))
    assert context.chosen(dict(without_effect(context.config))) == said


def test_it_is_said_before_the_training():
    notes = []

    class Notes(Reporter):
        def note(self, text):
            notes.append(text)

    train = {"nesterov": True, "optimizer": "adamw"}
    config = build_config(merge(SMALL, ALONE, {"train": train, "student": {"name": ""}}))
    with pytest.raises(ValueError, match="needs a model such as"):
        assemble(start(config, reporter=Notes()), task_of("digits"))
    assert "warning: train.nesterov has no effect: train.optimizer is adamw" in notes
