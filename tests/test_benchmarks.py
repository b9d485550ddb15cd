"""The side-by-side measurements run, on tiny nets and random images; what they measure is not looked at."""

import argparse
import importlib.util
import json
import re
import shlex
import sys
import warnings
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch
from benchmarks import (
    __main__,
    bccd,
    detection_step,
    growth,
    objective,
    pictures,
    records,
    step_profile,
    students,
    study,
    throughput,
    unlabelled,
)
from benchmarks.turns import Worker
from benchmarks.ways import Task
from safetensors.torch import load_file

from outgrow.data import DataWarning
from outgrow.models import create_model, save_student
from outgrow.run import distill
from outgrow.training.record import read_record
from tests.data.helpers import encoded, picture, write_shard
from tests.detection import coco_files
from tests.run.stops import stopped_after

TINY = ("cifar/resnet8", "cifar/resnet8")


@pytest.mark.slow
def test_ways_take_turns():
    ways = ("plain", "torchdistill", "cached")  # the others run below
    (row,) = throughput.measure(
        pairs=[TINY], steps=1, repeat=2, batch=4, num=16, workers=0, threads=1, ways=ways
    )
    there = importlib.util.find_spec("torchdistill") is not None
    assert set(row["ways"]) == set(ways) - (set() if there else {"torchdistill"})
    for way in row["ways"].values():
        assert way["n"] == 2
        assert 0 < way["low"] <= way["rate"] <= way["high"]
        assert way["peak_bytes"] >= way["start_bytes"] > 0
    assert row["ratios"]["cached / plain"]["ratio"] > 0


def test_an_epoch_must_hold_the_rounds():
    with pytest.raises(ValueError, match="at least 12 steps, got 4"):
        throughput.measure(pairs=[TINY], steps=4, repeat=2, batch=4, num=16)


@pytest.mark.slow
def test_an_error_in_a_way_reaches_the_parent():
    with Worker(1) as worker:
        with pytest.raises(RuntimeError, match="KeyError: 'nonsense'"):
            worker.start(Task("nonsense", *TINY, num=4, batch=2))
        assert worker.start(Task("student", *TINY, num=4, batch=2)) > 0  # it lives on
        assert worker.step(1).seconds > 0


@pytest.mark.slow
def test_students_with_and_without_a_cache():
    result = students.measure(pair=TINY, students=2, epochs=1, num=8, batch=4, threads=1)
    assert {len(seconds) for seconds in result["seconds"].values()} == {2}
    assert result["share"]["all"] > 0


@pytest.mark.slow
def test_growth_of_a_step():
    rows = growth.of_step(settings=((2, 16), (4, 8)), pair=TINY, images=4, repeat=1, threads=1)
    assert [(row["batch"], row["size"]) for row in rows] == [(2, 16), (4, 8)]


def test_profile_of_a_step():
    found = step_profile.measure(pair=TINY, steps=3, batch=4)
    assert sum(found["shares"].values()) == pytest.approx(1)
    assert {"convolution, backward", "convolution, forward", "objective", "loader"} <= set(found["shares"])


def test_the_command_saves_what_it_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmarks"])
    monkeypatch.setattr(objective, "measure", lambda device: [{"device": device}])  # seconds, not minutes
    __main__.main(["--only", "objective", "--device", "cpu", "--out", str(tmp_path)])
    saved = json.loads((tmp_path / "objective.json").read_text())
    assert saved["result"] == [{"device": "cpu"}]
    assert {"versions", "commit", "command", "hardware"} <= set(saved)


def test_the_study_from_its_splits_to_its_table(tmp_path, monkeypatch, capsys):
    """On a few pictures: the parts share none, unlabelled images go with a teacher alone, finished runs are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for split, count in (("train", 200), ("test", 40)):
        pictures = [encoded(picture(1000 * (split == "test") + k)) for k in range(count)]
        labels = {"fine_label": [k % 8 for k in range(count)], "coarse_label": [k % 4 for k in range(count)]}
        write_shard(tmp_path / "cifar" / f"{split}-00000-of-00001.parquet", pictures, labels)
    monkeypatch.setattr(study, "PARTS", {"student": 80, "teacher": 80, "unlabelled": 40})
    for name, value in {"ROWS": 64, "FEW": 48, "FEW_STEPS": 3, "EPOCHS": 3, "AMOUNTS": (10, 40)}.items():
        monkeypatch.setattr(study, name, value)
    for layer in study.TEACHERS.values():
        monkeypatch.setitem(layer, "train", {"epochs": 1, "eval_every": 1})
    monkeypatch.setitem(study.TEACHERS["weak"], "data", {"train_rows": 64})

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["study", *words, "--out", str(tmp_path / "out")])
        study.main()
        return capsys.readouterr().out

    run("prepare", "--cifar100", str(tmp_path / "cifar"))
    held = {part: read_images(tmp_path / "out" / "data" / part) for part in study.PARTS}
    assert [len(images) for images in held.values()] == [80, 80, 40]
    assert len(set().union(*held.values())) == 200

    words = ["--seeds", "0", "--regimes", "biased", "--methods", "kd"]
    run("train", *words, "features")
    run("train", "--few", *words, "--unlabelled", "0", "10", "40")
    run(
        "train",
        "--few",
        "--seeds",
        "0",
        "--regimes",
        "noisy",
        "--methods",
        "outgrow, weight 4",
        "--unlabelled",
        "40",
    )
    runs = {
        file.relative_to(tmp_path / "out").parts[:2]: json.loads(file.read_text())
        for file in (tmp_path / "out").rglob("record.json")
    }
    assert runs["few-biased", "kd, unlabelled"]["data"]["unlabelled"] == 40
    assert runs["few-biased", "kd, 10 unlabelled"]["data"]["unlabelled"] == 10
    assert runs["few-biased", "kd"]["data"]["unlabelled"] is None
    assert runs["alone-3", "none"]["data"]["train"] == 64
    assert set(runs["biased-3", "features"]["epochs"][0]["terms"]) == {"task", "kd", "fitnet"}
    assert "data/noisy" in runs["few-noisy", "none"]["config"]["data"]["source"]  # a null of its own
    wrong = read_labels(tmp_path / "out" / "data" / "noisy") != read_labels(
        tmp_path / "out" / "data" / "student"
    )
    assert 0.1 < wrong.mean() < 0.3
    assert "kd, seed 0: top-1" in run("train", *words)  # read again
    table = run("table")
    assert {"biased-3", "few-biased", "kd, 10 unlabelled", "kd, unlabelled"} <= set(
        table.replace("  ", "\n").split("\n")
    )
    score = runs["few-noisy", "outgrow, weight 4, unlabelled"]["student"]["top1"]
    assert f"| outgrow, weight 4, unlabelled |  | {score:.1f} (1) |" in table
    records.copy(tmp_path / "out", tmp_path / "kept", {})
    monkeypatch.setattr(sys, "argv", ["study", "table", "--out", str(tmp_path / "kept")])
    study.main()
    assert capsys.readouterr().out == table


def read_images(folder):
    (file,) = folder.glob("train-*.parquet")
    table = pq.read_table(file)
    column = next(name for name in ("img", "image") if name in table.column_names)
    return {row["bytes"] for row in table[column].to_pylist()}


def read_labels(folder):
    (file,) = folder.glob("train-*.parquet")
    return pq.read_table(file)["coarse_label"].to_numpy()


def test_the_page_of_the_study_has_the_tables_of_its_records():
    page = study.PAGE.read_text(encoding="utf-8")
    blocks = study.blocks_of_page(study.RECORDS)
    assert study.fill(page, blocks) == page, "run python -m benchmarks.study page"
    assert all(blocks.values())


def test_the_page_of_the_study_has_the_scores_of_the_papers_own_pair():
    section = (
        study.PAGE.read_text(encoding="utf-8").partition("## The paper's own pair")[2].partition("\n## ")[0]
    )
    names = {
        "none": "the student alone",
        "kd": "plain KD",
        "dkd": "DKD",
        "9-standardize": "standardised logits",
        "paper": "`paper`",
    }
    runs = {name: read_record(study.RECORDS.parent / "pair" / name / "seed0.json") for name in names}
    for name, called in names.items():
        assert f"| {called} | {runs[name].student_score:.1f} |" in section
    assert f"| the teacher | {runs['kd'].teacher_score:.1f} |" in section


def test_a_table_of_one_seed_has_no_other():
    def run(seed, score):
        return SimpleNamespace(config=SimpleNamespace(seed=seed), student_score=score)

    short = study.SHORT
    found = {
        f"alone-{short}": {"none": [run(0, 1.0), run(1, 9.0)]},
        f"weak-{short}": {"kd": [run(1, 2.0), run(0, 3.0)], "swap": [run(1, 5.0)]},
        f"noisy-{short}": {"none": [run(0, 7.0)]},
    }
    lines = study.first_seed(found).splitlines()
    assert lines[0] == "|  | weak | noisy |"
    assert "| none | 1.0 | 7.0 |" in lines
    assert "| kd | 3.0 |  |" in lines
    assert "| swap |  |  |" in lines


def test_a_page_of_the_study_without_a_place_for_its_tables_is_refused():
    page = "before <!-- a -->old<!-- end of a --> after"
    assert study.fill(page, {"a": "new"}) == "before <!-- a -->\n\nnew\n\n<!-- end of a --> after"
    with pytest.raises(ValueError, match="needs <!-- b --> and <!-- end of b -->"):
        study.fill(page, {"b": "new"})


def test_the_commands_of_the_results_are_those_of_the_benchmarks(monkeypatch):
    class Parsed(Exception):
        pass

    def stop(parser, words=None, namespace=None):
        parse(parser, words, namespace)
        raise Parsed

    parse = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    seen = set()
    for page in (study.PAGE.parent).glob("*.md"):
        text = re.sub(r"\\\n\s*", "", page.read_text(encoding="utf-8"))
        for line in re.findall(r"^    (python -m benchmarks.*)", text, re.M):
            # what stands in brackets is a choice, and dots are the options of the line before
            words = shlex.split(re.sub(r"\[.*?\]", "", line).replace(" ... ", " --out STUDY "), comments=True)
            name = words[2] if "." in words[2] else f"{words[2]}.__main__"
            module = importlib.import_module(name)
            if not hasattr(module, "argparse"):
                continue
            monkeypatch.setattr("sys.argv", words[2:])
            with pytest.raises(Parsed):
                module.main()
            seen.add(name)
    assert len(seen) >= 8


def test_records_in_results_say_nothing_about_a_machine(tmp_path):
    folder = tmp_path / "study" / "biased" / "kd, weight 4" / "seed0"
    config = {
        "data": {"source": "digits", "train_rows": 64, "workers": 0},
        "student": {"name": "cifar/resnet8"},
        "teacher": {"cache": str(tmp_path / "study" / "cache")},
        "method": {"preset": "none"},
        "train": {"epochs": 2, "max_steps": 1},
        "out": str(folder),
    }
    whole = distill(config)
    assert records.copy(tmp_path / "study", tmp_path / "kept", {str(tmp_path): "TEMP"}) == 1
    file = tmp_path / "kept" / "biased" / "kd-weight4" / "seed0.json"
    assert str(tmp_path) not in file.read_text()
    kept = read_record(file)
    assert kept.student_score == whole["student"]["top1"]
    assert kept.trained_epochs == 2
    assert len(kept.epochs) == 1
    assert kept.config.teacher.cache == "TEMP/study/cache"
    folder.rename(folder.parent / "seed1")  # on another machine, where the first seed is not
    for add in (True, False):
        records.copy(tmp_path / "study", tmp_path / "kept", {}, add=add)
        assert {found.name for found in file.parent.iterdir()} == ({"seed0.json"} if add else set()) | {
            "seed1.json"
        }


def test_a_detectors_step_beside_a_plain_one(capsys, tmp_path):
    """Both see the same batches and random numbers, so their losses are equal."""
    out = tmp_path / "step.json"
    words = ["--families", "fasterrcnn", "ssdlite", "--size", "64", "--batch", "2", "--steps", "2"]
    detection_step.main([*words, "--out", str(out)])
    rows = json.loads(out.read_text())
    assert [row["family"] for row in rows] == ["fasterrcnn", "ssdlite"]
    for row in rows:
        assert row["n"] == 2
        assert row["interval"][0] <= row["ratio"] <= row["interval"][1]
        assert row["loss_differs"] < 1e-5
    assert "ratio" in capsys.readouterr().out


def test_a_transformers_step_beside_a_plain_one():
    pytest.importorskip("transformers")
    scenes = detection_step.random_scenes(2, 2, 64)
    row = detection_step.of_step("rtdetr", scenes, ("a", "b", "c"), size=64, steps=1)
    assert row["loss_differs"] < 1e-5


def test_the_interval_of_a_median():
    assert [detection_step.rank_of(count) for count in (1, 5, 6, 10, 20)] == [0, 0, 0, 1, 5]


def blood_cells(folder):
    """A few pictures in the layout of the study on blood cells."""
    for at, split in enumerate(("train", "val", "test")):
        numbers = range(10 * at + 1, 10 * at + 5)  # a picture's pixels depend on its number
        images = [coco_files.image(k, height=48, width=64 if k % 2 else 40) for k in numbers]
        boxes = [coco_files.annotation(k, k, [4, 4, 20, 20]) for k in numbers]
        names = [{"id": k, "name": name} for k, name in enumerate(("RBC", "WBC", "Platelets"), start=1)]
        boxes = [{**one, "category_id": 1} for one in boxes]
        coco_files.write_json(folder / "annotations" / f"instances_{split}.json", images, boxes, names)
        coco_files.write_pictures(folder / split, images)
    return f"coco:{folder}:{folder / 'annotations'}"


def test_mixed_batches_beside_those_of_one_orientation(tmp_path):
    found = detection_step.of_orientation(blood_cells(tmp_path), size=64, batch=2, rounds=1)
    assert (found["n"], found["images"]) == (1, 4)
    assert found["pixels"] >= 1


@pytest.mark.slow
def test_the_study_on_blood_cells(tmp_path, monkeypatch, capsys):
    """A teacher and its students, a student of another family's teacher, and the table."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data, out = blood_cells(tmp_path / "cells"), tmp_path / "out"
    weights = {"student": "timm/mobilenetv1_025_128", "teacher": "timm/tf_efficientnet_lite0"}
    for part, name in weights.items():
        net = create_model(name, classes=("a", "b"))
        save_student(net, tmp_path / f"{bccd.WEIGHTS[part]}.safetensors")
    words = ["train", "--data", data, "--backbones", str(tmp_path), "--out", str(out), "--seeds", "0"]
    words += ["--size", "64", "--epochs", "1", "--teacher-epochs", "1", "--families", "fcos"]
    bccd.main([*words, "--methods", "none", "kd", "other-pkd"])
    assert {file.parts[-3] for file in out.rglob("record.json")} == {"none", "kd", "other-pkd"}
    assert (out / "retinanet" / "teacher.safetensors").is_file()
    capsys.readouterr()
    bccd.main(["table", "--out", str(out)])
    shown = capsys.readouterr().out
    assert {"fcos", "other-pkd", "AP50, last epoch"} <= set(shown.replace("  ", "\n").split("\n"))
    few = [*words, "--out", str(tmp_path / "few"), "--few", "2", "--steps", "2"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # some of the pictures have annotations
        bccd.main([*few, "--methods", "kd", bccd.UNLABELLED])
    found = {file.parts[-3]: json.loads(file.read_text()) for file in (tmp_path / "few").rglob("record.json")}
    assert {name: one["data"]["unlabelled"] for name, one in found.items()} == {
        "kd": None,
        bccd.UNLABELLED: 2,
    }
    assert (tmp_path / "few" / "fcos" / "teacher-0" / "teacher.safetensors").is_file()
    with pytest.raises(SystemExit):
        bccd.main([*words, "--methods", bccd.UNLABELLED])


def test_a_teacher_on_blood_cells_that_was_stopped_goes_on(tmp_path, monkeypatch, capsys):
    """The one of the study, stopped between two epochs, has the bits of one that was not."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = blood_cells(tmp_path / "cells")
    net = create_model("timm/tf_efficientnet_lite0", classes=("a", "b"))
    save_student(net, tmp_path / f"{bccd.WEIGHTS['teacher']}.safetensors")

    def study(name):
        args = argparse.Namespace(
            data=data, backbones=tmp_path, out=tmp_path / name, size=64, epochs=1, teacher_epochs=2, few=None
        )
        return bccd.Study(args)

    whole = study("whole").teacher("fcos", 0)
    with stopped_after(1):
        study("stopped").teacher("fcos", 0)
    folder = tmp_path / "stopped" / "fcos"
    assert (folder / "config.yaml").is_file()
    assert not (folder / "teacher.safetensors").exists()
    capsys.readouterr()
    continued = study("stopped").teacher("fcos", 0)
    assert "teacher: continues after epoch 1" in capsys.readouterr().out
    assert continued["weights"] == str(folder / "teacher.safetensors")
    assert {**continued, "weights": None} == {**whole, "weights": None}
    first, second = (load_file(one["weights"]) for one in (whole, continued))
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_unlabelled_images_of_another_kind(tmp_path, monkeypatch, capsys):
    shard = tmp_path / "cifar" / "test-00000-of-00001.parquet"
    write_shard(shard, [encoded(picture(k)) for k in range(20)], {"fine_label": [0] * 20})
    for name, value in {"STEPS": 4, "TEACHER_EPOCHS": 1}.items():
        monkeypatch.setattr(unlabelled, name, value)
    words = ["--cifar100", str(shard.parent), "--out", str(tmp_path / "out"), "--seeds", "0"]
    methods = ["none", "kd, reliability", "kd, ppi, weight 0.1"]
    unlabelled.main([*words, "--methods", *methods])
    printed = capsys.readouterr().out
    assert [line[:32].strip() for line in printed.splitlines()[-3:]] == methods
    monkeypatch.setattr(unlabelled, "distill", None)  # finished trainings are read back
    unlabelled.main([*words, "--methods", *methods])
    assert capsys.readouterr().out.splitlines()[-3:] == printed.splitlines()[-3:]


@pytest.mark.parametrize("name", list(pictures.PICTURES))
def test_the_charts_of_the_readme_are_those_of_the_records(name):
    drawn = pictures.PICTURES[name]()
    assert drawn == (pictures.ROOT / "docs" / "images" / name).read_text(encoding="utf-8")


def test_the_words_for_the_chart_of_gains_have_its_numbers():
    """They are what a reader is told who does not see the picture."""
    readme = (pictures.ROOT / "README.md").read_text(encoding="utf-8")
    alt, file = re.search(r"!\[([^]]*)\]\((docs/images/helps\.svg)\)", readme).groups()
    drawn = re.findall(r">([+-]\d+\.\d\d) \[", (pictures.ROOT / file).read_text(encoding="utf-8"))
    assert re.findall(r"[+-]\d+\.\d\d", alt) == drawn


def test_a_method_is_in_one_table_of_a_regime_beside_its_baselines():
    """Intervals are widened for the comparisons of one question: a method that answers another one does not widen them."""
    groups = study.groups_of_tables()
    short = {title: one for title, one in groups.items() if one.regimes == f"{{}}-{study.SHORT}"}
    own = [name for one in short.values() for name in one.methods]
    assert len(own) == len(set(own))
    assert {*study.METHODS} <= {*own}
    for one in short.values():
        assert not {*one.beside} & {*one.methods}
    found = {f"biased-{study.SHORT}": {"kd": [], "swap": []}, f"weak-{study.SHORT}": {"kd": []}}
    tables = {title: list(group) for title, group in study.collect(found).items()}
    assert tables == {
        f"5,000 labels, {study.SHORT} epochs": [f"weak-{study.SHORT}", f"biased-{study.SHORT}"],
        f"5,000 labels, {study.SHORT} epochs: other rules and losses": [f"biased-{study.SHORT}"],
    }
