"""The whole path of a detection run, as its users go it: files, tables, pictures, resume, evaluation."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from outgrow.detection import student
from outgrow.detection.families.create import create_detector, save_detector
from outgrow.detection.families.detector import FrozenDetector
from outgrow.detection.run_data import open_run_scenes, train_scenes
from outgrow.detection.task import TASK
from outgrow.models import create_model, save_student
from outgrow.objective import Objective
from outgrow.run import distill
from outgrow.run.distillation import method_of, start
from outgrow.run.evaluation import evaluate_model
from outgrow.run.layers import resolve
from outgrow.run.recipes import RECIPES
from outgrow.training.checkpoint import read_state
from outgrow.training.config import build_config, merge
from outgrow.training.progress import Reporter
from outgrow.training.task import Parts, RunContext, Taught

SHAPE = "size=96&levels=3-5&rois=16&proposals=60&anchors=2"
NAME = f"fasterrcnn:timm/mobilenetv1_025_128?{SHAPE}&channels=8&head=16"


@pytest.fixture(scope="module")
def cells(shared_data):
    return f"coco:{shared_data / 'bccd'}:{shared_data / 'bccd' / 'annotations'}"


@pytest.fixture(scope="module")
def small(cells, tmp_path_factory):
    """The real data with few of its pictures: annotations cut to 6 to train on, 3 and 4 to look at."""
    folder = tmp_path_factory.mktemp("cells")
    _, images, annotations = cells.split(":")
    for split, count in (("train", 6), ("val", 3), ("test", 4)):
        whole = json.loads(Path(annotations, f"instances_{split}.json").read_text())
        kept = whole["images"][:count]
        ids = {image["id"] for image in kept}
        boxes = [a for a in whole["annotations"] if a["image_id"] in ids]
        (folder / f"instances_{split}.json").write_text(
            json.dumps({**whole, "images": kept, "annotations": boxes})
        )
    return f"coco:{images}:{folder}"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "backbone.safetensors"
    torch.manual_seed(0)
    save_student(create_model("timm/mobilenetv1_025_128", 10), path)
    return path


def layer(source, weights, out, **method):
    short = {"epochs": 2, "batch_size": 3, "lr": 1e-3, "eval_every": 1}
    return build_config(
        merge(
            RECIPES["bccd"].layer,
            {
                "data": {"source": source},
                "teacher": {
                    "name": NAME.replace("channels=8", "channels=12"),
                    "weights": str(weights),
                    "train": True,
                },
                "student": {"name": NAME, "weights": str(weights)},
                "method": {"preset": "kd", **method},
                "train": short,
                "teacher_train": short,
                "out": None if out is None else str(out),
            },
        )
    )


@pytest.fixture(scope="module")
def run(small, weights, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    config = layer(small, weights, out, loss="kd + box + fitnet", rule="pair")
    return config, distill(config), out


def test_a_run_leaves_what_its_user_needs(run):
    _, record, out = run
    assert record["metric"] == "ap"
    assert len(record["epochs"]) == 2
    assert set(record["epochs"][0]["terms"]) == {"task", "kd", "box", "fitnet"}
    assert 0 < record["epochs"][0]["wrong_rate"] <= 1
    for who in ("student", "teacher"):
        numbers = record["detection"]["numbers"][who]
        assert set(numbers) >= {"ap", "ap50", "ar100"}
        rows = record["detection"]["errors"][who]
        assert [row["class"] for row in rows] == ["RBC", "WBC", "Platelets"]
        for row in rows:
            assert row["found"] + row["missed"] == row["objects"]
    assert record["student"]["ap"] == record["epochs"][-1]["score"]
    assert len(record["detection"]["pictures"]) == 4  # as many as there are
    assert record["detection"]["pictures_of"] == "test"
    for one in (
        record["detection"]["intervals"]["student"]["numbers"]["ap"],
        record["detection"]["difference"],
    ):
        assert one == {"low": None, "high": None, "images": 4, "reason": "4 images"}
    for name in ("student.safetensors", "teacher.safetensors", "index.html", "curves.png", "config.yaml"):
        assert (out / name).stat().st_size > 100
    assert all((out / name).is_file() for name in record["detection"]["pictures"])
    assert json.loads((out / "record.json").read_text())["student"] == record["student"]
    assert "box AP" in (out / "index.html").read_text()


def test_a_teacher_is_scored_on_the_test_images_while_it_is_trained(small, weights, monkeypatch):
    looked = []
    monkeypatch.setattr(
        student,
        "evaluate_detector",
        lambda detector, data, split, device, workers: looked.append(split) or SimpleNamespace(score=1.0),
    )
    config = layer(small, weights, None)
    data = open_run_scenes(config)
    student.train_alone(config, data, create_detector(NAME, data.classes, weights=weights))
    assert looked == [data.test] * 2  # they are called test scores


def test_the_file_evaluates_to_the_runs_number(run, small):
    _, record, out = run
    scores = evaluate_model(small, NAME, weights=out / "student.safetensors", workers=0)
    assert scores["ap"] == pytest.approx(record["student"]["ap"], abs=1e-6)
    assert set(scores["per_class"]) == {"RBC", "WBC", "Platelets"}
    assert scores["metric"] == "ap"


def test_interrupted_and_resumed_is_the_same_run(run, small, weights, tmp_path):
    from outgrow.detection import evaluation as room

    config, record, _ = run
    config = config.model_copy(update={"out": str(tmp_path)})
    calls = []

    def stop(*args, **kwargs):
        calls.append(1)
        if (
            len(calls) == 6
        ):  # two epochs of the teacher, itself, before, the first epoch, and here the second: no checkpoint yet
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    original = room.coco_scores
    room.coco_scores = stop
    try:
        with pytest.raises(KeyboardInterrupt):
            distill(config)
    finally:
        room.coco_scores = original
    kept = read_state(tmp_path / "checkpoint.pt")["history"]
    assert len(kept) == 1
    again = distill(config, resume=True)
    assert [e["terms"] for e in again["epochs"]] == [e["terms"] for e in record["epochs"]]
    assert again["student"]["ap"] == record["student"]["ap"]


def test_without_a_teacher(small, weights):
    record = distill(
        layer(small, weights, None).model_copy(
            update={"method": build_config({"method": {"preset": "none"}}).method}
        )
    )
    assert record["teacher"] == {}
    assert set(record["epochs"][0]["terms"]) == {"task"}
    assert record["detection"]["numbers"]["teacher"] is None


@pytest.mark.parametrize(
    "change, message",
    [
        ({"student": {"name": "timm/resnet18"}}, "--student: needs a detector such as fasterrcnn:"),
        ({"teacher": {"name": "cifar/resnet20"}}, "--teacher: needs a detector such as fasterrcnn:"),
        ({"teacher": {"correct": "always"}}, "bias correction is for classifiers"),
        ({"teacher": {"cache": "x"}}, "got a detector, whose outputs also depend on the student's proposals"),
        (
            {"data": {"augment": {"mixup": 0.2}}},
            r"needs augmentations that move boxes along \(flip, resized_crop\), got mixup",
        ),
        ({"teacher": {"rows": "disjoint"}}, "teacher.rows: needs same for a detector, got disjoint"),
        ({"method": {"loss": "kd + crd"}}, "crd: needs the same rows in every epoch"),
        ({"method": {"loss": "kd + ppi"}}, "ppi: needs a classifier, got a detector; choose"),
        (
            {"method": {"trust": "confidence(0.8)"}},
            "method.trust=.*: needs a classifier, got a detector; leave it out",
        ),
        (
            {"train": {"label_smoothing": 0.1}},
            "train.label_smoothing: needs a classifier, got 0.1 for a detector",
        ),
        ({"train": {"sampling": "balanced"}}, "train.sampling: needs a classifier"),
        ({"train": {"layer_decay": 0.7}}, "train.layer_decay: needs a classifier"),
    ],
)
def test_errors(small, weights, change, message):
    config = build_config(merge(layer(small, weights, None).model_dump(), change))
    with pytest.raises(ValueError, match=message):
        distill(config)


def test_a_normalisation_of_ones_own_is_used_or_refused(small, weights):
    own = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    config = build_config(merge(layer(small, weights, None).model_dump(), {"student": own, "teacher": own}))
    data = open_run_scenes(config)
    run = RunContext(config, torch.device("cpu"), Reporter())
    with pytest.warns(UserWarning, match="its file states"):
        student = TASK.make_student(run, data, method_of(config)[1], None)
    assert tuple(student.net.transform.image_mean) == own["mean"]
    assert tuple(student.net.transform.image_std) == own["std"]
    for one in ("student", "teacher"):
        module = {one: create_detector(NAME, data.classes)}
        with pytest.raises(
            ValueError, match=rf"{one}.mean and {one}.std: needs a detector by name, got a module"
        ):
            distill(build_config(merge(layer(small, weights, None).model_dump(), {one: own})), **module)


def test_a_teacher_of_ones_own_and_a_student_of_ones_own(small, weights, tmp_path):
    classes = ("Platelets", "RBC", "WBC")  # another order
    torch.manual_seed(0)
    teacher = create_detector(NAME, classes)
    student = create_detector(NAME, ("RBC", "WBC", "Platelets"))
    start = {key: value.clone() for key, value in student.state_dict().items()}
    record = distill(layer(small, weights, None, loss="kd + box"), teacher=teacher, student=student)
    assert record["teacher"]["classes"] == 3
    save_detector(teacher, tmp_path / "teacher.safetensors")
    sorted_ = create_detector(NAME, ("RBC", "WBC", "Platelets"), weights=tmp_path / "teacher.safetensors")
    student.load_state_dict(start)
    again = distill(layer(small, weights, None, loss="kd + box"), teacher=sorted_, student=student)
    for one, other in zip(record["epochs"], again["epochs"], strict=True):
        assert other["terms"] == pytest.approx(one["terms"], rel=1e-4)
    with pytest.raises(ValueError, match=r"needs an outgrow\.detection\.Detector for the classes RBC"):
        distill(layer(small, weights, None), teacher=teacher, student=teacher)


@pytest.mark.slow
def test_tiny_coco_with_all_its_classes(shared_data, tmp_path):
    """One full cycle on real COCO pictures, crowds included: train, evaluate, pictures."""
    root = shared_data / "tiny_coco"
    source = f"coco:{root}:{root / 'annotations'}"
    backbone = shared_data / "weights" / "in1k_mobilenetv1_025_128.safetensors"
    config = layer(source, backbone, tmp_path, loss="kd + box")
    config = build_config(
        merge(
            config.model_dump(),
            {"train": {"epochs": 1, "batch_size": 5}, "teacher_train": {"epochs": 1, "batch_size": 5}},
        )
    )
    record = distill(config)
    assert len(record["data"]["classes"]) == 80
    scores = evaluate_model(source, NAME, weights=tmp_path / "student.safetensors", workers=0)
    assert scores["ap"] == pytest.approx(record["student"]["ap"], abs=1e-6)


def test_who_mixes_up_detectors_and_classifiers_is_told(cells):
    from outgrow.data import open_data
    from outgrow.run.listing import listing

    with pytest.raises(ValueError, match="needs images with one label each, got boxes"):
        open_data(cells)
    with pytest.raises(ValueError, match="needs a classifier, got the detector"):
        create_model("fasterrcnn:torchvision/resnet18", 3)
    lines = list(listing("features", NAME))
    assert [line.split()[0] for line in lines[1:]] == ["p3", "p4", "p5", "p6", "penultimate,"]
    assert lines[1].endswith("8 x 32 x 32")


def test_a_dry_run_moves_nothing_and_all_levels_are_compared(small, weights):
    """A student without weights has batch norms that learn: their statistics must not see the dry run."""
    config = layer(small, weights, None, loss="mgd + cwd + fitnet + fitnet(student='p3', teacher='p4')")
    data = open_run_scenes(config)
    student = create_detector(NAME, data.classes)
    before = {key: value.clone() for key, value in student.state_dict().items()}
    rectify, objective = method_of(config)
    loader = train_scenes(config, config.train, data.train, torch.device("cpu"))
    teacher = create_detector(NAME, data.classes)
    taught = Taught(FrozenDetector(teacher, data.classes))
    parts = Parts(data, student, teacher, taught, rectify, objective, loader)
    TASK.set_up(RunContext(config, torch.device("cpu"), Reporter()), parts)
    assert all((value == before[key]).all() for key, value in student.state_dict().items())
    pairs = {name: [p.student_path for p in term.loss.pairs] for name, term in objective.terms.items()}
    every = ["p3", "p4", "p5", "p6"]
    assert pairs == {"mgd": every, "cwd": every, "fitnet": every, "fitnet_2": ["p3"]}


def test_rows_are_balanced_in_a_run(small, weights, monkeypatch):
    from outgrow.detection import lesson as room

    seen, own = [], room.balance
    monkeypatch.setattr(room, "balance", lambda knowledge: seen.append(own(knowledge)) or seen[-1])
    distill(layer(small, weights, None))
    assert len(seen) == 4  # two epochs of two steps
    assert all(knowledge.weight.unique().numel() == 2 for knowledge in seen)


def test_what_means_nothing_to_a_detector_is_said(small, weights):
    notes = []

    class Notes(Reporter):
        def note(self, text):
            notes.append(text)

    config = layer(small, weights, None, loss="kd")
    config = build_config(
        merge(config.model_dump(), {"teacher": {"precision": "bf16"}, "data": {"size": 64}})
    )
    distill(config, reporter=Notes())
    assert "warning: teacher.precision, data.size have no effect on a detector" in notes


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ({}, None),
        ({"val_fraction": 0.1}, None),
        ({"val_fraction": 0.2}, "data.val_fraction"),
        ({"augment": {"crop_padding": 8, "padding": "reflect"}}, "data.augment.crop_padding, data.augment.padding"),
        ({"augment": {"crop_padding": 0}}, None),
    ],
)  # fmt: skip
def test_what_a_recipe_sets_is_nobodys_choice(typed, said):
    notes = []

    class Notes(Reporter):
        def note(self, text):
            notes.append(text)

    for recipe in (None, "finetune"):
        notes.clear()
        config = resolve(recipe, None, None, {"data": {"source": "coco:a:b", **typed}})
        TASK.check(start(config, reporter=Notes()), Objective({}))
        assert notes == ([] if said is None else [f"warning: {said} have no effect on a detector"])
