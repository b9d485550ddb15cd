"""Comparisons on real digits, with an epoch and few rows each: planned, shared, resumed, refused, and the same
anywhere."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from outgrow.data import DataWarning
from outgrow.models import create_model, save_student
from outgrow.report.table import read_records
from outgrow.run import cli, compare, distill, rehearsal, work
from outgrow.run.board import Board
from outgrow.run.compare import Failed, compare_runs, run_compare
from outgrow.run.demo import run_demo
from outgrow.run.executors import OnRay, make_executor
from outgrow.run.plan import PLAN_FILE, in_order, make_plan, read_options, read_plan_file, shared_caches
from outgrow.teacher import Teacher
from outgrow.training.config import build_config, merge
from outgrow.training.folder import open_folder
from outgrow.training.guard import NonFiniteLoss
from outgrow.training.progress import Reporter
from tests.run.test_distill import SMALL, interrupted_after

BASE = merge(SMALL, {"train": {"epochs": 1}, "teacher_train": {"epochs": 1}})
TWO = {"methods": ["none", "kd"], "seeds": 2}


def plan_of(out, section=TWO, *layers):
    return make_plan(merge(BASE, *layers), read_options(section), out)


def scores(out):
    return {
        str(path.parent.relative_to(out)): json.loads(path.read_text())["student"]["top1"]
        for path in sorted(Path(out).rglob("record.json"))
    }


@pytest.fixture(autouse=True)
def said(capsys):
    """What is printed is read where it matters, and is not in the way elsewhere."""
    return capsys


@pytest.fixture
def trained(monkeypatch):
    """Titles of the students and teachers that were trained."""
    titles = []
    for name in ("train_student", "train_teacher"):
        own = getattr(compare, name)

        def counted(one, *, own=own, **options):
            titles.append(one.title)
            own(one, **options)

        monkeypatch.setattr(compare, name, counted)
    return titles


@pytest.fixture(scope="module")
def biased(tmp_path_factory):
    """A teacher of the digits that confuses some of them with others."""
    folder = tmp_path_factory.mktemp("biased")
    layer = {"out": str(folder), "train": {"epochs": 1, "max_steps": 1}, "teacher_train": {"epochs": 8}}
    distill(build_config(merge(SMALL, layer)))
    network = create_model("cifar/resnet8", weights=str(folder / "teacher.safetensors"))
    with torch.no_grad():
        head = network.net.get_submodule("fc")
        for value in (head.weight, head.bias):
            value[:6] = value[[1, 0, 3, 2, 5, 4]].clone()
    save_student(network, folder / "biased.safetensors")
    return folder / "biased.safetensors"


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished comparison of three methods and two seeds."""
    out = tmp_path_factory.mktemp("done") / "compare"
    options = {
        "methods": {
            "none": {"preset": "none"},
            "kd": {"preset": "kd"},
            "kd + pair": {"preset": "kd", "rule": "pair"},
        }
    }
    run_compare(plan_of(out, {**options, "seeds": 2}), log=lambda text: None)
    return out


def test_what_a_comparison_leaves(done):
    assert {"index.html", "table.md", "table.csv", "table.tex", "table.json", PLAN_FILE} <= {
        path.name for path in done.iterdir()
    }
    assert list(scores(done)) == [f"{name}/seed{s}" for name in ("kd", "kd+pair", "none") for s in range(2)]
    assert "Every seed has its own teacher" in (done / "index.html").read_text()
    table = json.loads((done / "table.json").read_text())["studies"][""]
    assert (table["null"], table["plain"], table["together"]) == ("none", "kd", 2)


def test_methods_of_a_seed_share_teacher_and_cache(done):
    teachers = list((done / "teachers").rglob("teacher.safetensors"))
    assert len(teachers) == 2
    records = read_records(done)
    assert [run.teacher_score for run in records["kd"]] == [run.teacher_score for run in records["kd+pair"]]
    # one folder of logits for each seed, read by both methods
    assert len([path for path in (done / "cache").iterdir() if path.is_dir()]) == 2
    assert records["none"][0].config.teacher.cache is None


def test_a_second_call_trains_nothing(done, trained):
    base, section = read_plan_file(done / PLAN_FILE)
    before = scores(done)
    run_compare(make_plan(base, read_options(section), done), log=lambda text: None)
    assert trained == []
    assert scores(done) == before


@pytest.mark.parametrize("field", ["teacher.weights", "student.weights"])
def test_another_file_under_the_same_name_is_another_comparison(tmp_path, biased, trained, field):
    """Its runs would have two teachers, or two starts, and one table."""
    file = tmp_path / "weights.safetensors"
    shutil.copy(biased, file)
    given = {"teacher": {"train": False, "weights": str(biased)}}
    layer = merge(given, {field.partition(".")[0]: {"weights": str(file)}})
    section = {"methods": ["none", "kd"], "seeds": 1}
    run_compare(plan_of(tmp_path / "out", section, layer), log=str)
    torch.manual_seed(1)
    save_student(create_model("cifar/resnet8", 10), file)
    trained.clear()
    with pytest.raises(ValueError, match=rf"which differs in {field} \(its file has changed\)"):
        run_compare(plan_of(tmp_path / "out", {**section, "seeds": 2}, layer), log=str)
    assert trained == []


def test_a_finished_run_is_known_by_its_record_alone(done, tmp_path, trained):
    out = tmp_path / "copy"
    shutil.copytree(done, out)
    for file in out.rglob("seed*/config.yaml"):
        file.unlink()
    base, section = read_plan_file(out / PLAN_FILE)
    run_compare(make_plan(base, read_options(section), out), log=lambda text: None)
    assert trained == []
    assert scores(out) == scores(done)


def test_a_plan_of_one_thing_is_not_of_several(tmp_path):
    from outgrow.training.record import DataRecord

    plan = plan_of(tmp_path, {"methods": ["none"], "seeds": 1})
    data = DataRecord(source="digits", fingerprint="", classes=("zero",), train=5, val=0, test=5)
    cost = rehearsal.Cost(1.0, 0.1, 1, 1, 1.0, 1, 0.0, 0.0, 1000, 0, "8x8 views", 5)
    found = rehearsal.Estimate(data, {"/none": cost}, {}, 1, 1, 1, 0, 0, frozenset())
    lines = rehearsal.plan_lines(plan, found, workers=1)
    assert lines[0] == "1 method x 1 seed: 1 training"
    assert lines[1].endswith("5 test images, 1 class")
    assert "100 ms per step, 1 step, 1 epoch: " in lines[3]


def test_its_file_makes_the_same_plan_again(done, tmp_path, monkeypatch):
    """Resolved: what a recipe says elsewhere, or later, changes nothing."""
    seen = []
    monkeypatch.setattr(compare, "run_compare", lambda plan, **options: seen.append(plan))
    cli_run("compare", "--config", done / PLAN_FILE, "--out", done)
    base, section = read_plan_file(done / PLAN_FILE)
    assert [one.config for one in seen[0].trainings] == [
        one.config for one in make_plan(base, read_options(section), done).trainings
    ]
    assert {work.state_of(one.folder, one.config) for one in seen[0].trainings} == {"finished"}


def test_another_configuration_is_refused_before_anything(done, trained):
    with pytest.raises(ValueError, match=r"got .*seed0, which differs in train.lr \(was 0.05, is 0.3\); set"):
        run_compare(plan_of(done, TWO, {"train": {"lr": 0.3}}))
    with pytest.raises(ValueError, match=r"got the teacher .*seed0, which differs in teacher_train.lr"):
        run_compare(_only_teacher(done))
    assert trained == []


def _only_teacher(done):
    """A plan whose runs are new, and whose teacher is another one in the same folder."""
    return plan_of(
        done, {"methods": {"new": {"preset": "paper"}}, "seeds": 1}, {"teacher_train": {"lr": 0.3}}
    )


def test_the_folder_is_read_by_its_plan(done, said):
    compare_runs([done])
    assert "kd + pair" in said.readouterr().out
    assert "kd + pair" in cli_run("report", done).stdout


def test_its_tables_are_written_where_they_are_asked_for(done, tmp_path):
    """By the command that compares finished runs: to --out, and nowhere without it."""
    held = {path.name: path.read_bytes() for path in done.iterdir() if path.is_file()}
    compare_runs([done], baselines=["kd"])
    compare_runs([done], baselines=["kd"], out=tmp_path / "table")
    assert {path.name: path.read_bytes() for path in done.iterdir() if path.is_file()} == held
    assert {"index.html", "table.md", "table.json"} <= {path.name for path in (tmp_path / "table").iterdir()}
    assert json.loads((tmp_path / "table" / "table.json").read_text())["studies"][""]["baselines"] == ["kd"]


def test_pictures_are_those_that_the_runs_were_tested_on(done):
    """Or none: a record knows them by their place."""
    records = read_records(done)
    first, second = records["kd"]
    shown, test = compare._with_examples(records)
    assert len(test) == first.data.test
    assert shown == records

    def other(**changed):
        return second.model_copy(update={"data": second.data.model_copy(update=changed)})

    for run in (other(fingerprint="another"), other(test=5)):
        shown, _ = compare._with_examples({"kd": [first, run]})
        assert [one.compared is None for one in shown["kd"]] == [False, True]
    shown, test = compare._with_examples({"kd": [other(fingerprint="another"), first]})
    assert test is None
    assert all(one.compared is None for one in shown["kd"])


def test_finished_runs_of_it_compare_by_folder(done, said):
    compare_runs([done / "none", done / "kd", done / "kd+pair"], baselines=["kd"])
    out = said.readouterr().out
    assert "over kd" in out
    assert "kd + pair" in out


def test_results_are_those_of_single_runs(done, tmp_path):
    """Sharing changes nothing: a run of its own trains its own teacher, and ends with the same score."""
    from outgrow.run import distill

    record = distill({**BASE, "method": {"preset": "kd"}, "seed": 1, "out": str(tmp_path / "one")})
    shared = json.loads((done / "kd" / "seed1" / "record.json").read_text())
    assert record["teacher"]["top1"] == shared["teacher"]["top1"]
    # the shared one read its teacher's logits in float16
    assert record["student"]["nll"] == pytest.approx(shared["student"]["nll"], rel=1e-3)


def test_a_dry_run_trains_nothing(tmp_path, trained, said):
    found = run_compare(plan_of(tmp_path / "out"), dry_run=True)
    out = said.readouterr().out
    assert (found, trained, scores(tmp_path)) == ({}, [], {})
    for line in (
        "2 methods x 2 seeds: 4 trainings, and 2 of teachers",
        "teacher   cifar/resnet8: 78,042 parameters, trained here",
        "student   cifar/resnet8: 78,042 parameters, 8x8 views",
        "96 training images",
        "time      about",
        "memory    about",
        "disk      at most",
    ):
        assert line in out, line


def test_json_has_the_events_of_every_run_and_the_table(tmp_path, said):
    plan = plan_of(tmp_path, {"methods": ["none", "kd"], "seeds": 1})
    run_compare(plan, style="json")
    output = said.readouterr()
    events = [json.loads(line) for line in output.out.splitlines()]
    assert output.err == ""
    ended = [event for event in events if event["event"] == "ended"]
    titles = [one.title for one in (*plan.teachers, *plan.trainings)]
    assert [event["run"] for event in ended] == titles
    assert [(event["done"], event["total"]) for event in ended] == [(1, 3), (2, 3), (3, 3)]
    assert [event["score"] for event in ended[1:]] == list(scores(tmp_path).values())[::-1]
    assert [event["run"] for event in events if event["event"] == "epoch"] == titles
    (table,) = [event for event in events if event["event"] == "table"]
    assert [row["method"] for row in table["rows"]] == ["none", "kd"]


def test_trackers_reach_every_run(tmp_path):
    plan = plan_of(tmp_path, TWO, {"track": ["tensorboard"]})
    assert {one.config.track for one in (*plan.trainings, *plan.teachers)} == {("tensorboard",)}


def test_text_says_how_far_a_long_run_is(tmp_path):
    import io

    board = Board(plan_of(tmp_path), io.StringIO())
    now = 0.0
    board.lines.clock = lambda: now
    board.lines.printed = 0.0
    with board.reporter(board.plan.trainings[1]).bar("student", 100) as advance:
        for done in (10, 20, 30):
            now += 20
            advance(done)
    assert board.stream.getvalue().splitlines() == [
        "kd, seed 0 ...",
        "  kd, seed 0: student 20 %  0.5 images/s  3 min left",
    ]


def test_an_interrupted_comparison_continues(tmp_path, monkeypatch):
    plan = plan_of(tmp_path / "broken", {"methods": ["none"], "seeds": 2}, {"train": {"epochs": 2}})
    with interrupted_after(monkeypatch, 1):
        work.train_student(plan.trainings[0])
    states = [work.state_of(one.folder, one.config) for one in plan.trainings]
    assert states == ["begun", "new"]
    run_compare(plan)
    whole = plan_of(tmp_path / "whole", {"methods": ["none"], "seeds": 2}, {"train": {"epochs": 2}})
    work.train_student(whole.trainings[0])
    assert scores(tmp_path / "whole").items() <= scores(tmp_path / "broken").items()


def test_a_method_that_diverges_in_the_timed_steps_is_named(tmp_path):
    plan = plan_of(tmp_path, {"methods": ["none"], "seeds": 1}, {"train": {"lr": 1e12}})
    with pytest.raises(
        ValueError, match=r"method 'none': training: needs a finite loss, got .* Lower train\.lr"
    ):
        run_compare(plan)


def test_methods_may_be_added_and_the_finished_ones_are_kept(tmp_path, trained):
    run_compare(plan_of(tmp_path, {"methods": ["none", "kd"], "seeds": 1}))
    before = scores(tmp_path)
    trained.clear()
    more = plan_of(
        tmp_path,
        {
            "methods": {
                "none": {"preset": "none"},
                "kd": {"preset": "kd"},
                "dkd": {"preset": "kd", "loss": "dkd"},
            },
            "seeds": 1,
        },
    )
    run_compare(more)
    assert trained == ["dkd, seed 0"]
    assert before.items() <= scores(tmp_path).items()


def test_a_failure_is_one_of_its_own(tmp_path, monkeypatch, said):
    own = work.distill

    def broken(config, **options):
        if config.method.preset == "kd" and config.seed == 1:
            raise NonFiniteLoss("needs a finite loss, got nan; lower train.lr.")
        return own(config, **options)

    monkeypatch.setattr(work, "distill", broken)
    with pytest.raises(
        Failed, match=r"(?s)needs all 4 trainings, got 1 failures:.*kd, seed 1: needs a finite loss.*fix"
    ):
        run_compare(plan_of(tmp_path))
    assert "without seed 1" in said.readouterr().out
    monkeypatch.undo()
    run_compare(plan_of(tmp_path))
    assert "without seed" not in (tmp_path / "table.md").read_text()


def test_one_teacher_for_all_seeds(tmp_path):
    section = {"methods": ["kd"], "seeds": 2, "same_teacher": True}
    plan = plan_of(tmp_path, section, {"teacher": {"rows": "same"}})
    assert [one.folder.name for one in plan.teachers] == ["all-seeds"]
    run_compare(plan)
    runs = read_records(tmp_path)["kd"]
    assert runs[0].teacher_score == runs[1].teacher_score
    assert "students of this one teacher" in (tmp_path / "index.html").read_text()
    with pytest.raises(
        ValueError, match="--same-teacher: needs a teacher that may be trained on the rows of every seed, got"
    ):
        plan_of(tmp_path, section)


def test_pairs_share_a_teacher_and_have_their_tables(tmp_path):
    section = {
        "methods": ["kd"],
        "seeds": 1,
        "pairs": "cifar/resnet8->cifar/resnet8, cifar/resnet8->cifar/resnet14",
    }
    plan = plan_of(tmp_path, section)
    assert plan.pairs == ("resnet8 -> resnet8", "resnet8 -> resnet14")
    assert len(plan.teachers) == 1
    tables = run_compare(plan)
    assert list(tables) == list(plan.pairs)
    assert {"index.html", "pair1.html", "pair2.html"} <= {path.name for path in tmp_path.iterdir()}


def test_the_cache_is_for_what_two_runs_read(tmp_path):
    def cached(section, *layers):
        return sorted(
            one.method
            for group in shared_caches(plan_of(tmp_path, {**section, "seeds": 1}, *layers))
            for one in group.runs
        )

    methods = {
        "kd": {"preset": "kd"},
        "dkd": {"preset": "kd", "loss": "dkd"},
        "outgrow": {"preset": "outgrow"},
        "fitnet": {"preset": "kd", "loss": "kd + fitnet"},
        "none": {"preset": "none"},
    }
    assert cached({"methods": methods}) == ["dkd", "kd", "outgrow"]
    assert cached({"methods": methods, "cache": False}) == []
    assert cached({"methods": methods}, {"teacher": {"correct": "always"}}) == ["dkd", "kd", "outgrow"]
    assert cached({"methods": ["kd", "none"]}) == []
    assert cached({"methods": methods}, {"teacher": {"cache": "mine"}}) == []


def test_one_run_fills_the_caches_of_a_seed(tmp_path):
    """The one that corrects the teacher has its logits before and after. It runs first."""
    methods = {
        "kd": {"preset": "kd"},
        "dkd": {"preset": "kd", "loss": "dkd"},
        "outgrow": {"preset": "outgrow"},
        "none": {"preset": "none"},
    }

    def shared(*names, **options):
        plan = plan_of(tmp_path, {"methods": {name: methods[name] for name in names}, "seeds": 1, **options})
        (found,) = shared_caches(plan) or [None]
        kept = [one.method for one in plan.trainings if one.config.teacher.cache_plain]
        fills = None if found is None else [one.method for one in found.fills]
        return fills, kept, found and found.kinds, [one.method for one in in_order(plan)]

    assert shared("none", "kd", "outgrow") == (["outgrow"], ["outgrow"], 2, ["outgrow", "none", "kd"])
    assert shared("none", "kd", "dkd") == (["kd"], [], 1, ["kd", "none", "dkd"])
    assert shared("kd", "none") == (None, [], None, ["kd", "none"])
    assert shared("kd", "outgrow", cache=False) == (None, [], None, ["kd", "outgrow"])
    twice = {"more": {"preset": "outgrow", "weight": 4.0}}
    methods |= twice
    assert shared("kd", "outgrow", "more")[:3] == (["outgrow"], ["outgrow"], 2)
    methods["posterior"] = {"preset": "outgrow", "rule": "posterior"}
    methods["posterior 2"] = {"preset": "outgrow", "rule": "posterior", "weight": 2.0}
    assert shared("kd", "outgrow", "posterior") == (
        ["outgrow"],
        ["outgrow"],
        2,
        ["outgrow", "kd", "posterior"],
    )
    assert shared("kd", "posterior", "posterior 2", "outgrow")[:3] == (["posterior"], ["posterior"], 2)


def test_a_teacher_is_computed_once_for_runs_with_and_without_its_correction(tmp_path, biased, monkeypatch):
    rows = []
    forward = Teacher.forward

    def counted(self, images, *, index=None):
        rows.append(0 if index is None else len(index))
        return forward(self, images, index=index)

    monkeypatch.setattr(Teacher, "forward", counted)
    given = {"teacher": {"train": False, "rows": "same", "weights": str(biased)}}
    computed = {}
    for methods in (["outgrow"], ["none", "kd", "outgrow"]):
        rows.clear()
        plan = plan_of(tmp_path / str(len(methods)), {"methods": methods, "seeds": 1}, given)
        run_compare(plan)
        computed[len(methods)] = sum(rows)
    records = read_records(tmp_path / "3")
    assert records["outgrow"][0].correction.used
    assert computed[1] == computed[3]
    read = [run.config.teacher.cache is not None for name in ("kd", "outgrow") for run in records[name]]
    assert read == [True, True]


@pytest.mark.parametrize("data", [{}, {"unlabelled": "digits", "unlabelled_share": 0.75}])
def test_the_plan_counts_what_the_cache_will_take(tmp_path, data):
    """All numbers of training images, also those that a student does not see, and unlabelled ones."""
    methods = {"kd": {"preset": "kd"}, "dkd": {"preset": "kd", "loss": "dkd"}}
    plan = plan_of(tmp_path, {"methods": methods, "seeds": 1}, {"data": data})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        stated = rehearsal.estimate(plan, report=Reporter()).cache_bytes
        run_compare(plan)
    files = list((tmp_path / "cache").rglob("*.npy"))
    held = sum(file.stat().st_size - 128 for file in files)  # without the header
    assert held == stated > 0


def test_a_disk_too_small_is_refused_or_costs_the_cache(tmp_path, monkeypatch):
    methods = {"kd": {"preset": "kd"}, "dkd": {"preset": "kd", "loss": "dkd"}}
    plan = plan_of(tmp_path, {"methods": methods, "seeds": 1})
    monkeypatch.setattr(rehearsal, "disk_free", lambda folder: 1000)
    with pytest.raises(ValueError, match=r"--out: needs about .* MiB for 2 runs, got 1000 bytes free at"):
        run_compare(plan)
    monkeypatch.setattr(rehearsal, "SHARE", 0.0)
    monkeypatch.undo()
    monkeypatch.setattr(rehearsal, "SHARE", 0.0)
    run_compare(plan)
    assert not (tmp_path / "cache").exists()
    assert read_plan_file(tmp_path / PLAN_FILE)[1]["cache"] is False


def test_a_disk_that_has_become_too_small_costs_begun_runs_nothing(tmp_path, biased, monkeypatch):
    """What has begun with a cache goes on with it; what is new has none."""
    given = {"teacher": {"train": False, "rows": "same", "weights": str(biased)}}
    methods = ["none", "kd", "outgrow"]
    run_compare(plan_of(tmp_path, {"methods": methods, "seeds": 1}, given))
    with monkeypatch.context() as patch:
        patch.setattr(rehearsal, "SHARE", 0.0)
        run_compare(plan_of(tmp_path, {"methods": methods, "seeds": 2}, given))
    cached = [run.config.teacher.cache is not None for run in read_records(tmp_path)["outgrow"]]
    assert cached == [True, False]
    run_compare(plan_of(tmp_path, {"methods": methods, "seeds": 3}, given))


def test_a_cache_that_is_written_counts_as_free_room(tmp_path):
    methods = {"kd": {"preset": "kd"}, "dkd": {"preset": "kd", "loss": "dkd"}}
    plan = plan_of(tmp_path, {"methods": methods, "seeds": 1})
    found = rehearsal.estimate(plan, report=Reporter())
    free = 2 * found.cache_bytes
    small = replace(found, free=free - found.cache_bytes // 2, disk=found.cache_bytes)
    assert not rehearsal.check_disk(plan, small)
    file = tmp_path / "cache" / "of-a-teacher" / "epoch00000.npy"
    file.parent.mkdir(parents=True)
    file.write_bytes(bytes(found.cache_bytes // 2 + 1))
    assert rehearsal.check_disk(plan, small)


def test_methods_that_are_added_write_no_cache_for_finished_runs(tmp_path, biased):
    given = {"teacher": {"train": False, "rows": "same", "weights": str(biased)}}

    def plan(*names):
        every = {"kd": {"preset": "kd"}, "outgrow": {"preset": "outgrow"}}
        every["heavier"] = {"preset": "outgrow", "weight": 4.0}
        methods = {name: every[name] for name in names}
        return plan_of(tmp_path / names[0], {"methods": methods, "seeds": 1}, given)

    run_compare(plan("kd"))
    added = plan("kd", "outgrow")
    assert shared_caches(added) == []
    run_compare(plan("outgrow", "heavier"))
    (shared,) = shared_caches(plan("outgrow", "heavier", "kd"))
    assert [one.method for one in shared.runs] == ["outgrow", "heavier"]
    assert not any(one.config.teacher.cache_plain for one in shared.runs)


REFUSED = [
    ({"methods": ["kdd"]}, {}, "preset: needs one of .*; got 'kdd'; did you mean 'kd'"),
    (
        {"methods": {"x": {"preset": "kd", "loss": "dkdd"}}},
        {},
        "method 'x': loss: needs one of .* got 'dkdd'",
    ),
    (
        {"methods": {"x": {"preset": "kd", "rule": "pear"}}},
        {},
        "method 'x': rule: needs one of .* got 'pear'",
    ),
    (
        {"methods": {"x": {"preset": "kd", "losss": "kd"}}},
        {},
        r"there is no field compare.methods.x.losss; did you mean loss\?",
    ),
    ({"seed": 3}, {}, r"there is no field compare.seed; did you mean seeds\?"),
    ({"seeds": [1, 1]}, {}, r"compare.seeds: needs numbers from 0 on, each once, got \[1, 1\]; write"),
    ({"pairs": ["a"]}, {}, "compare.pairs: needs pairs such as TEACHER->STUDENT, got 'a'; name"),
    ({"baselines": ["x"]}, {}, "--baseline: needs one of the methods 'none', 'kd', 'outgrow', got 'x'; add"),
    ({}, {"student": {"name": ""}}, "--student: needs a model such as .*, got none"),
    (
        {},
        {"teacher": {"name": "", "train": False}},
        "--teacher: needs a model such as .* for the method 'kd', got none",
    ),
]


@pytest.mark.parametrize("section, layer, message", REFUSED)
def test_what_cannot_be_done_is_said_when_it_is_planned(tmp_path, section, layer, message):
    with pytest.raises(ValueError, match=message):
        plan_of(tmp_path, section, layer)


TRIED = [
    ({"teacher": {"train": False}}, "method 'kd': --teacher cifar/resnet8: needs weights, got none"),
    (
        {"teacher": {"train": False, "weights": "nowhere.safetensors"}},
        "method 'kd': load_weights: needs a file of weights",
    ),
    ({"student": {"name": "cifar/resnet9"}}, "method 'kd': create_model: needs a known model"),
    ({"method": {"loss": "at(taps='nothing')"}}, "method 'kd': .*at"),
]


@pytest.mark.parametrize("layer, message", TRIED)
def test_what_would_fail_after_hours_fails_when_it_is_tried_out(tmp_path, trained, layer, message):
    with pytest.raises(ValueError, match=message):
        run_compare(plan_of(tmp_path, {"methods": {"kd": {"preset": "kd"}}, "seeds": 1}, layer))
    assert trained == []


def test_from_flags_and_from_one_file_it_is_the_same_plan(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(compare, "run_compare", lambda plan, **options: seen.append((plan, options)))
    flags = [
        "--data",
        "digits",
        "--teacher",
        "cifar/resnet20",
        "--train-teacher",
        "--student",
        "cifar/resnet8",
        "--epochs",
        "2",
    ]
    flags += [
        "--losses",
        "kd,dkd(beta=6)",
        "--rules",
        "pair,swap",
        "--seeds",
        "4,7",
        "--baseline",
        "kd",
        "--out",
        str(tmp_path),
    ]
    cli_run("compare", *flags)
    (tmp_path / "study.yaml").write_text(
        """
recipe: default
data: {source: digits}
teacher: {name: cifar/resnet20, train: true}
student: {name: cifar/resnet8}
train: {epochs: 2}
compare:
  methods:
    none: {preset: none}
    kd: {preset: kd}
    dkd(beta=6): {preset: kd, loss: dkd(beta=6)}
    kd + pair: {preset: kd, rule: pair}
    kd + swap: {preset: kd, rule: swap}
  seeds: [4, 7]
  baselines: [kd]
"""
    )
    cli_run("compare", "--config", tmp_path / "study.yaml", "--out", tmp_path)
    (first, _), (second, _) = seen
    assert first.trainings == second.trainings
    assert first.options == second.options
    cli_run(
        "compare",
        "--config",
        tmp_path / "study.yaml",
        "--out",
        tmp_path,
        "--seeds",
        "1",
        "--workers",
        "2",
        "--set",
        "train.lr=0.3",
    )
    assert (len(seen[2][0].trainings), seen[2][1]["workers"], seen[2][0].trainings[0].config.train.lr) == (
        5,
        2,
        0.3,
    )


def test_a_recipes_constants_are_taken_for_a_bare_loss(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(compare, "run_compare", lambda plan, **options: seen.append(plan))
    cli_run("compare", "--recipe", "cifar100/resnet56-resnet20", "--losses", "dkd", "--out", tmp_path)
    assert "beta=2.0" in seen[0].options.methods["dkd"].loss
    cli_run("compare", "--recipe", "cifar100/resnet56-resnet20", "--losses", "kd", "--out", tmp_path)
    method = seen[1].options.methods["kd"]
    assert (list(seen[1].options.methods), method.task_weight, method.weight) == (["none", "kd"], 0.1, 0.9)
    with pytest.raises(
        ValueError, match=r"--losses kd: .* preset kd .* constants \(loss=kd.*task_weight=0.1"
    ):
        cli_run(
            "compare",
            *("--recipe", "cifar100/resnet56-resnet20", "--methods", "none,kd", "--losses", "kd"),
            *("--out", tmp_path),
        )


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--data", "digits"], "compare: needs --out FOLDER for its runs, got none"),
        (["--out", "x"], r"compare: needs --data SRC \(or --recipe, or --config\), got none"),
        (["runs", "--data", "digits"], "compare: needs finished runs, or options for training, got both"),
        (["runs", "--dry-run"], "compare: needs finished runs, or options for training, got both"),
        (["runs", "--workers", "2"], "compare: needs finished runs, or options for training, got both"),
        (["runs", "--executor", "ray"], "compare: needs finished runs, or options for training, got both"),
        (["runs", "--no-cache"], "compare: needs finished runs, or options for training, got both"),
        (["runs", "--same-teacher"], "compare: needs finished runs, or options for training, got both"),
        (["--data", "digits", "--anyway"], "--anyway: needs finished runs to compare, got none; name"),
        (
            ["--data", "digits", "--out", "x", "--seeds", "many"],
            "--seeds: needs a number of seeds, .* got 'many'",
        ),
    ],
)
def test_flags_that_do_not_fit_together(flags, message):
    with pytest.raises(ValueError, match=message):
        cli_run("compare", *flags)


def cli_run(*arguments):
    return CliRunner().invoke(cli.app, [str(one) for one in arguments], catch_exceptions=False)


def test_executors_by_name(tmp_path, monkeypatch):
    assert make_executor("local", workers=1, folder=tmp_path).in_process
    assert make_executor("local", workers=2, folder=tmp_path).threads == max(1, (os.cpu_count() or 1) // 2)
    for text in ("slurm", "ray + local", "ray(4)"):
        with pytest.raises(
            ValueError, match="--executor: needs one of local, ray, submitit, with options by name"
        ):
            make_executor(text, workers=1, folder=tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name in ("ray", "submitit"):
        with pytest.raises(
            ValueError, match=rf"--executor {name}: needs the package {name}, got none installed; pip install"
        ):
            make_executor(name, workers=1, folder=tmp_path)


class Batches:
    """An executor that notes which steps may run at the same time."""

    in_process, threads = False, 1

    def __init__(self, seen):
        self.seen = seen

    def map(self, function, jobs):
        self.seen.append([f"{step.__name__} {one.title}" for step, one in jobs])
        for job in jobs:
            yield job, function(job)


def test_students_that_wait_for_nothing_train_beside_teachers_and_caches(tmp_path, biased, monkeypatch, said):
    seen = []
    monkeypatch.setattr(compare, "make_executor", lambda *args, **options: Batches(seen))
    own = {"teacher": {"train": False, "weights": str(biased)}}
    run_compare(plan_of(tmp_path / "given", {"methods": ["none", "kd", "outgrow"], "seeds": [4]}, own))
    assert seen == [
        ["fill outgrow, seed 4", "train_student none, seed 4"],
        ["train_student outgrow, seed 4", "train_student kd, seed 4"],
    ]
    assert "teacher cache: filled first, for the 2 runs that read it" in said.readouterr().err
    seen.clear()
    run_compare(plan_of(tmp_path / "trained", {**TWO, "seeds": [4]}))
    assert len(seen) == 2
    assert [one.split()[0] for one in seen[0]] == ["train_teacher", "train_student"]
    assert seen[1] == ["train_student kd, seed 4"]


def test_a_plan_counts_the_threads_of_one_worker(tmp_path, monkeypatch):
    """Several workers share the cores, so each has fewer than a single one."""
    found, own = [], compare.estimate
    monkeypatch.setattr(compare, "make_executor", lambda *args, **options: Batches([]))
    monkeypatch.setattr(
        compare,
        "estimate",
        lambda *args, **options: found.append(torch.get_num_threads()) or own(*args, **options),
    )
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run_compare(plan_of(tmp_path), dry_run=True)
        assert (found, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(before)


def test_the_live_table_has_a_cell_for_each_run(done):
    import io

    from rich.console import Console

    from outgrow.run.board import LiveBoard

    base, section = read_plan_file(done / PLAN_FILE)
    plan = make_plan(base, read_options(section), done)
    board = LiveBoard(plan, io.StringIO())
    board.ended(plan.trainings[0], None)
    board.ended(plan.trainings[1], "it broke")
    with board.reporter(plan.trainings[2]).bar("student", 10) as advance:
        advance(5)
    console = Console(file=io.StringIO(), width=100)
    console.print(board.table())
    drawn = console.file.getvalue()
    assert "failed" in drawn
    assert "50 %" in drawn
    assert f"{scores(done)['none/seed0']:.2f} %" in drawn
    assert isinstance(board, Board)


def test_the_time_that_is_left_is_that_of_trainings_of_this_call(done):
    """Runs that are kept took none of it."""
    import io

    from rich.console import Console

    from outgrow.run.board import LiveBoard

    base, section = read_plan_file(done / PLAN_FILE)
    plan = make_plan(base, read_options(section), done)
    board = LiveBoard(plan, io.StringIO())
    board.begin(kept=board.total - 3)
    board.ended(plan.trainings[0], None)
    board.started -= 600
    console = Console(file=io.StringIO(), width=100)
    console.print(board.table())
    assert "about 20 minutes left" in console.file.getvalue()


def test_the_live_table_has_the_scores_of_runs_that_are_kept(done):
    """They are not running."""
    import io

    from outgrow.run.board import LiveBoard

    base, section = read_plan_file(done / PLAN_FILE)
    board = LiveBoard(make_plan(base, read_options(section), done), io.StringIO())
    with board.shown():
        cells = [board.cell(one) for one in board.plan.trainings]
    assert sorted(cells) == sorted(f"{score:.2f} %" for score in scores(done).values())


def test_a_folder_is_of_a_run_or_of_a_comparison(done, tmp_path):
    """Both write index.html: one would replace the page of the other."""
    (tmp_path / "record.json").write_text("{}")
    for begin in (
        lambda: run_compare(plan_of(tmp_path, TWO), log=str),
        lambda: run_demo(tmp_path),
        lambda: compare_runs([done / "none", done / "kd"], out=tmp_path),
    ):
        with pytest.raises(
            ValueError,
            match=r"needs a folder of its own for a comparison, got that of a run \(record\.json\)",
        ):
            begin()
    page = (done / "index.html").read_text()
    for options in ({}, {"overwrite": True}):
        with pytest.raises(
            ValueError,
            match=r"needs a folder of its own for a run, got that of a comparison \(compare\.yaml\)",
        ):
            open_folder(done, build_config(BASE), **options)
    assert (done / "index.html").read_text() == page


def test_two_runs_begin_in_one_folder(tmp_path, monkeypatch):
    """The second one passes the checks before the first one has written anything."""
    settings = build_config(BASE)
    monkeypatch.setattr("outgrow.training.folder.check_folder", lambda *_, **__: None)
    open_folder(tmp_path, settings)
    with pytest.raises(ValueError, match="got one in which another process has just begun"):
        open_folder(tmp_path, settings)


def test_seeds_on_other_images_are_no_study(tmp_path):
    """A picture is replaced between two calls of the command: the seeds of one table would be of two data sets."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for place, name in enumerate(("cat", "dog")):
            for number in range(6):
                path = tmp_path / "pets" / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = generator.integers(0, 99, (16, 16, 3), dtype=np.uint8)
                pixels[..., place] += 99
                Image.fromarray(pixels).save(path)
    section = {"methods": ["none"], "seeds": 1}
    pets = {"data": {"source": f"folder:{tmp_path / 'pets'}", "train_rows": None}, "train": {"batch_size": 4}}
    out = tmp_path / "out"
    run_compare(plan_of(out, section, pets), log=str)
    Image.fromarray(pixels // 2).save(path)
    run_compare(plan_of(out, section, pets), log=str)  # nothing to train: the table stays that of its runs
    for more in ({"seeds": 2}, {"methods": {"none": {"preset": "none"}, "again": {"preset": "none"}}}):
        plan = plan_of(out, {**section, **more}, pets)
        with pytest.raises(
            ValueError, match=r"needs the images that its finished runs had, got others in folder:.*seed0"
        ):
            run_compare(plan, log=str)
    work.train_student(plan.trainings[1])
    with pytest.raises(ValueError, match=r"needs runs on the same images, got .*none/seed0.*again/seed0"):
        run_compare(plan, log=str)


def test_a_cluster_with_more_room_runs_no_more_than_the_workers_that_were_asked_for(monkeypatch):
    """The plan counts on that number."""
    running, most = [], []

    class Remote:
        @staticmethod
        def remote(function, job):
            running.append(job)
            most.append(len(running))
            return job

    def wait(jobs, num_returns):
        running.remove(jobs[0])
        return jobs[:1], jobs[1:]

    cluster = SimpleNamespace(
        is_initialized=lambda: True,
        remote=lambda **_: lambda _: Remote,
        wait=wait,
        get=lambda job: f"ended {job}",
    )
    monkeypatch.setitem(sys.modules, "ray", cluster)
    monkeypatch.setattr("outgrow.run.executors._require", lambda name: None)
    ended = list(OnRay(2, {"address": "auto"}).map(str, [1, 2, 3, 4, 5]))
    assert ended == [(job, f"ended {job}") for job in (1, 2, 3, 4, 5)]
    assert max(most) == 2
    assert list(OnRay(2, {}).map(str, [])) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "executor, workers",
    [("local", 2), ("ray", 2), ("submitit(cluster='local')", 2), ("submitit(cluster='debug')", 1)],
)
def test_every_executor_gives_the_same_numbers(tmp_path, done, executor, workers):
    """In a process of its own, as a user starts it: an engine's threads and warnings stay there."""
    if not executor.startswith("local"):
        pytest.importorskip(executor.partition("(")[0])
    arguments = [
        "compare",
        "--config",
        str(done / PLAN_FILE),
        "--out",
        str(tmp_path / "out"),
        "--executor",
        executor,
        "--workers",
        str(workers),
    ]
    command = [sys.executable, "-c", "from outgrow.run.cli import main; main()", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ended.returncode == 0, ended.stderr
    assert scores(tmp_path / "out") == scores(done)
