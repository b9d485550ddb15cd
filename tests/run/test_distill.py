"""Whole runs on real digits: records, folders, resumption, and what users get wrong."""

import errno
import json
import multiprocessing
import os
import platform
import re
import shutil
import subprocess
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from outgrow.classification.data import open_run_data, train_loader
from outgrow.machine import norm_relu
from outgrow.machine.files import unsealed
from outgrow.models import create_model, load_weights, save_student
from outgrow.objective import preset
from outgrow.run import distill
from outgrow.run.distillation import method_of
from outgrow.run.recipes import RECIPES
from outgrow.training import folder
from outgrow.training.checkpoint import Checkpoint, read_state
from outgrow.training.config import build_config, load_config, merge, with_checksum
from outgrow.training.guard import NonFiniteLoss
from outgrow.training.progress import Reporter, TextReporter

SMALL = {
    "data": {
        "source": "digits",
        "train_rows": 96,
        "workers": 0,
        "augment": {"crop_padding": 1, "flip": False},
    },
    "teacher": {"name": "cifar/resnet8", "train": True, "rows": "disjoint"},
    "student": {"name": "cifar/resnet8"},
    "train": {"epochs": 3, "batch_size": 32},
    "teacher_train": {"epochs": 2, "batch_size": 32, "eval_every": 2},
}


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory):
    """A teacher of the digits, trained a little, as a file."""
    folder = tmp_path_factory.mktemp("teacher")
    distill(build_config(merge(SMALL, {"out": str(folder), "train": {"epochs": 1}})))
    return folder / "teacher.safetensors"


def run(*layers, **options):
    return distill(build_config(merge(SMALL, *layers)), **options)


def with_file(path):
    return {"teacher": {"train": False, "rows": "same", "weights": str(path)}}


def test_a_run_folder_holds_what_it_promises(tmp_path):
    record = run({"out": str(tmp_path), "method": {"preset": "paper"}})
    names = {p.name for p in tmp_path.iterdir()}
    assert {
        "config.yaml",
        "record.json",
        "student.safetensors",
        "curves.png",
        "index.html",
        "teacher.safetensors",
    } <= names
    assert unsealed((tmp_path / "record.json").read_text(), where="record.json") == record
    assert record["teacher"]["top1"] > 30
    assert record["student"]["top1_best"] >= record["student"]["top1"] == record["epochs"][-1]["score"]
    assert record["metric"] == "top1"
    assert [e["epoch"] for e in record["epochs"]] == [1, 2, 3]
    for epoch in record["epochs"]:
        assert set(epoch["terms"]) == {"task", "kd"}
        assert epoch["loss"] == pytest.approx(sum(epoch["terms"].values()), rel=1e-5)
        assert 0 <= epoch["wrong_rate"] <= 1
    assert record["epochs"][0]["terms"]["task"] > 0
    assert {"versions", "commit", "command", "hardware", "seconds"} <= set(record)
    compared = record["compared"]
    assert (
        sum(compared[k] for k in ("both_right", "only_teacher", "only_student", "neither"))
        == record["data"]["test"]
    )
    student = create_model("cifar/resnet8", 10)
    report = load_weights(student, tmp_path / "student.safetensors", role="exact")
    assert report.metadata["classes"] == record["data"]["classes"]
    assert student.classes == tuple(str(i) for i in range(10))


def test_the_saved_configuration_reruns_the_run(tmp_path):
    first = run({"out": str(tmp_path / "a"), "train": {"epochs": 1}})
    again = distill(build_config(load_config(tmp_path / "a" / "config.yaml"), {"out": str(tmp_path / "b")}))
    assert again["epochs"][0]["loss"] == first["epochs"][0]["loss"]
    assert again["student"] == first["student"]


@contextmanager
def interrupted_after(monkeypatch, number):
    """Ctrl-C just after checkpoint ``number``."""
    save, calls = Checkpoint.save, []

    def interrupted(self, state):
        save(self, state)
        calls.append(self.path)
        if len(calls) == number:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            yield


@pytest.mark.parametrize("steps", [1000, 1])
@pytest.mark.parametrize(
    "method", [{"preset": "paper"}, {"preset": "kd", "loss": "kd + 0.8*crd(dim=16, negatives=32)"}]
)
def test_an_interrupted_run_ends_as_the_uninterrupted_one(tmp_path, teacher_file, method, steps, monkeypatch):
    layers = (with_file(teacher_file), {"method": method}, {"train": {"checkpoint_steps": steps}})
    whole = run(*layers, {"out": str(tmp_path / "whole")})
    with interrupted_after(monkeypatch, 2):
        run(*layers, {"out": str(tmp_path / "broken")})
    assert not (tmp_path / "broken" / "record.json").exists()
    torch.rand(100)  # another process would be in another random state
    resumed = run(*layers, {"out": str(tmp_path / "broken")}, resume=True)
    assert drop_times(resumed) == drop_times(whole)
    ours, theirs = (load_file(tmp_path / name / "student.safetensors") for name in ("whole", "broken"))
    assert ours
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_resume_refuses_another_configuration(tmp_path, teacher_file):
    layers = (with_file(teacher_file), {"out": str(tmp_path), "train": {"epochs": 1}})
    run(*layers)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(
        ValueError, match=r"got other values of train.lr \(was 0.05, is 0.01\); rerun with --config"
    ):
        run(*layers, {"train": {"lr": 0.01}}, resume=True)
    with pytest.raises(
        ValueError, match=r"got other values of method.rule \(was None, is swap\), seed \(was 0, is 1\)"
    ):
        run(*layers, {"method": {"rule": "swap"}, "seed": 1}, resume=True)
    with pytest.raises(ValueError, match="--out: needs the folder of a run, got None"):
        distill(build_config(merge(SMALL, with_file(teacher_file))), resume=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("fault", [{"data": {"source": "folder:nowhere"}}, {"method": {"weight": -1.0}}])
def test_a_refused_run_leaves_its_folder_free(tmp_path, fault):
    layers = ({"out": str(tmp_path), "train": {"epochs": 1}},)
    with pytest.raises(ValueError, match=r"nowhere|weight"):
        run(*layers, fault)
    assert list(tmp_path.iterdir()) == []
    run(*layers)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="got a finished run"):
        run(*layers, fault)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_holds_one_run(tmp_path, teacher_file):
    layers = (with_file(teacher_file), {"out": str(tmp_path), "train": {"epochs": 1}})
    first = run(*layers)
    with pytest.raises(ValueError, match=r"needs a folder without a run, got a finished run .* --overwrite"):
        run(*layers, {"seed": 1})
    assert json.loads((tmp_path / "record.json").read_text())["config"]["seed"] == 0
    (tmp_path / "record.json").unlink()
    with pytest.raises(ValueError, match=r"got an unfinished run \(config.yaml\)"):
        run(*layers, {"seed": 1})
    (tmp_path / "notes.txt").write_text("mine")
    second = run(*layers, {"seed": 1}, overwrite=True)
    assert second["student"] != first["student"]
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(ValueError, match="needs at most one of them, got both"):
        run(*layers, {"seed": 1}, overwrite=True, resume=True)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_overwrite_with_a_mistake_keeps_the_run_before(tmp_path, teacher_file):
    layers = (with_file(teacher_file), {"out": str(tmp_path), "train": {"epochs": 1}})
    run(*layers)
    before = contents(tmp_path)
    for mistake, message in (
        ({"student": {"name": "cifar/resnet999"}}, "resnet999"),
        ({"data": {"source": "folder:nowhere"}}, "nowhere"),
        ({"method": {"loss": "nothing"}}, "nothing"),
        (
            {"student": {"weights": str(tmp_path / "student.safetensors")}},
            "--overwrite: .* got student.weights",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            run(*layers, {"seed": 1}, mistake, overwrite=True)
        assert contents(tmp_path) == before
    run(*layers, {"seed": 1}, overwrite=True)
    assert contents(tmp_path).keys() == before.keys()


def test_a_replacement_that_never_began_keeps_the_run_before(tmp_path, monkeypatch):
    """Killed before its checks had passed, or without room for its first file."""
    for name in ("record.json", "config.yaml", "student.safetensors", "pictures/0.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    before = contents(tmp_path)
    config = build_config({"out": str(tmp_path)})
    folder.open_folder(tmp_path, config, overwrite=True)  # and killed here
    assert contents(tmp_path) != before
    folder.open_folder(tmp_path, config, overwrite=True)
    folder.release(tmp_path)
    folder.vacate(tmp_path)
    assert contents(tmp_path) == before

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folder, "write_config", full)
    with pytest.raises(OSError, match="No space left"):
        folder.open_folder(tmp_path, config, overwrite=True)
    assert contents(tmp_path) == before


def test_a_failed_overwrite_leaves_no_record_of_the_run_before(tmp_path, teacher_file):
    layers = (with_file(teacher_file), {"out": str(tmp_path), "train": {"epochs": 1}})
    run(*layers)
    with pytest.raises(NonFiniteLoss):
        run(*layers, {"train": {"lr": 1e30, "epochs": 3}, "seed": 1}, overwrite=True)
    assert not (tmp_path / "record.json").exists()
    assert not (tmp_path / "student.safetensors").exists()


def test_more_epochs(tmp_path, teacher_file):
    layers = (with_file(teacher_file), {"out": str(tmp_path)})
    first = run(*layers, {"train": {"epochs": 1}})
    more = run(*layers, {"train": {"epochs": 3}}, resume=True)
    assert more["epochs"][0] == first["epochs"][0]
    assert [epoch["epoch"] for epoch in more["epochs"]] == [1, 2, 3]
    assert load_config(tmp_path / "config.yaml")["train"]["epochs"] == 3
    with pytest.raises(ValueError, match=r"train.epochs \(was 3, is 2: it may only rise\)"):
        run(*layers, {"train": {"epochs": 2}}, resume=True)


def test_a_kill_while_the_teacher_trains_loses_nothing(tmp_path, monkeypatch):
    whole = run({"out": str(tmp_path / "whole")})
    with interrupted_after(monkeypatch, 1):  # of the teacher's two epochs
        run({"out": str(tmp_path / "broken")})
    assert drop_times(run({"out": str(tmp_path / "broken")}, resume=True)) == drop_times(whole)
    with interrupted_after(monkeypatch, 3):  # the first of the student's
        run({"out": str(tmp_path / "later")})
    assert drop_times(run({"out": str(tmp_path / "later")}, resume=True)) == drop_times(whole)


def test_a_kill_before_the_first_checkpoint(tmp_path, teacher_file):
    """Nothing but config.yaml is there: the run starts, and resume is no error."""
    layers = (with_file(teacher_file), {"out": str(tmp_path), "train": {"epochs": 1}})
    whole = run(*layers)
    for name in ("record.json", "checkpoint.pt", "student.safetensors"):
        (tmp_path / name).unlink()
    assert drop_times(run(*layers, resume=True)) == drop_times(whole)


def test_a_killed_run_with_a_teacher_cache(tmp_path, teacher_file, monkeypatch):
    """What was read before the kill from the network is read after it from the cache: the same numbers."""
    layers = (with_file(teacher_file), {"train": {"checkpoint_steps": 1}})
    whole = run(*layers, {"out": str(tmp_path / "a"), "teacher": {"cache": str(tmp_path / "first")}})
    broken = {"out": str(tmp_path / "b"), "teacher": {"cache": str(tmp_path / "second")}}
    with interrupted_after(monkeypatch, 5):
        run(*layers, broken)
    assert drop_times(run(*layers, broken, resume=True)) == drop_times(whole)


def drop_times(record):
    """The student's numbers of a record and its epochs, without what a clock says."""
    return record["student"], [{k: v for k, v in e.items() if "second" not in k} for e in record["epochs"]]


@pytest.fixture(scope="module")
def whole(teacher_file):
    return run(with_file(teacher_file))


@pytest.mark.parametrize(
    "damage", ["truncated", pytest.param("emptied", marks=pytest.mark.slow), "flipped", "replaced"]
)
def test_a_damaged_checkpoint_is_seen(tmp_path, teacher_file, whole, monkeypatch, damage):
    notes = Notes()
    layers = (with_file(teacher_file), {"out": str(tmp_path)})
    with interrupted_after(monkeypatch, 2):
        run(*layers)
    file = tmp_path / "checkpoint.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    new = {
        "truncated": content[:1000],
        "emptied": b"",
        "flipped": content,
        "replaced": b"PK\x03\x04 something else",
    }
    file.write_bytes(new[damage])
    resumed = run(*layers, resume=True, reporter=notes)
    assert any(f"{file} is damaged; continuing from the previous one" in text for text in notes.texts)
    assert drop_times(resumed) == drop_times(whole)


TRAINS = """
import sys
from outgrow.run import distill
from outgrow.training.progress import Reporter

class Slow(Reporter):
    def event(self, kind, **fields):
        if kind == "epoch":
            print("trains", flush=True)
            sys.stdin.readline()

distill({"out": sys.argv[1], "method": {"preset": "none"}, "teacher": {"name": "none"},
         "data": {"source": "digits", "train_rows": 96, "workers": 0}, "student": {"name": "cifar/resnet8"},
         "train": {"epochs": 3, "batch_size": 32}}, reporter=Slow())
"""


def test_a_run_that_another_process_trains_is_left_to_it(tmp_path):
    """Two processes would write each other's checkpoints. After a kill, which says no farewell, it can be continued."""
    out = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", TRAINS, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        try:
            assert other.stdout.readline() == "trains\n"
            settings = load_config(out / "config.yaml")
            before = {file.name: file.read_bytes() for file in out.iterdir()}
            for option in ("resume", "overwrite"):
                with pytest.raises(
                    ValueError, match=rf"needs a folder in which no other process works.*{other.pid}"
                ):
                    distill(settings, **{option: True})
            assert {file.name: file.read_bytes() for file in out.iterdir()} == before
            shutil.copytree(out, tmp_path / "copy")
            distill(merge(settings, {"out": str(tmp_path / "copy")}), resume=True)
        finally:
            other.kill()
    record = distill(settings, resume=True)
    assert len(record["epochs"]) == 3
    assert not (out / folder.RUNNING).exists()


@pytest.mark.parametrize(
    "left",
    [
        "",
        "{",
        "[]",
        json.dumps({"pid": 1, "began": 0.0}),
        json.dumps({"pid": 2**22, "began": 0.0, "host": "?", "folder": "?"}),
    ],
)
def test_a_file_of_a_process_that_has_ended_is_no_hindrance(tmp_path, left):
    (tmp_path / folder.RUNNING).write_text(left)
    run({"out": str(tmp_path), "teacher": {"name": "none", "train": False}, "method": {"preset": "none"}})
    assert not (tmp_path / folder.RUNNING).exists()


def test_a_process_that_has_the_number_of_one_that_has_ended_is_no_hindrance(tmp_path):
    left = {"pid": os.getppid(), "began": 1.0, "host": platform.node(), "folder": str(tmp_path.resolve())}
    (tmp_path / folder.RUNNING).write_text(json.dumps(left))
    run({"out": str(tmp_path), "teacher": {"name": "none", "train": False}, "method": {"preset": "none"}})


def begins(out, barrier, results):
    barrier.wait()
    try:
        folder.open_folder(out, build_config({"out": str(out)}))
    except ValueError as error:
        results.put((os.getpid(), str(error)))
    else:
        results.put((os.getpid(), None))
    barrier.wait()  # both live until both have tried


def test_of_two_that_begin_at_once_one_has_the_folder(tmp_path):
    context = multiprocessing.get_context("fork")
    for number in range(20):
        out = tmp_path / str(number)
        barrier, results = context.Barrier(2), context.Queue()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of fork in a process with threads
            both = [context.Process(target=begins, args=(out, barrier, results)) for _ in range(2)]
            for one in both:
                one.start()
        found = dict(results.get(timeout=60) for _ in both)
        for one in both:
            one.join(timeout=60)
        (winner,) = [pid for pid, error in found.items() if error is None]
        assert json.loads((out / folder.RUNNING).read_text())["pid"] == winner


@pytest.mark.parametrize("lacks", ["locks", "numbers of files"])
def test_a_disk_of_a_cluster(tmp_path, monkeypatch, lacks):
    """It may have no locks, and give one file several numbers."""

    def no_locks(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    if lacks == "locks":
        monkeypatch.setattr(folder.fcntl, "flock", no_locks)
    else:
        monkeypatch.setattr(folder.os.path, "samestat", lambda one, other: False)
    folder.open_folder(tmp_path, build_config({"out": str(tmp_path)}))
    assert json.loads((tmp_path / folder.RUNNING).read_text())["pid"] == os.getpid()
    folder.vacate(tmp_path)
    assert not (tmp_path / folder.RUNNING).exists()


def test_a_folder_that_cannot_be_written_any_more_does_not_hide_why(tmp_path, monkeypatch):
    folder.open_folder(tmp_path, build_config({"out": str(tmp_path)}))

    def read_only(*args, **options):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", read_only)
    folder.vacate(tmp_path)


def test_when_all_checkpoints_are_damaged(tmp_path, teacher_file, monkeypatch):
    layers = (with_file(teacher_file), {"out": str(tmp_path)})
    with interrupted_after(monkeypatch, 2):
        run(*layers)
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=r"needs an undamaged checkpoint, got .* delete the damaged files"):
        run(*layers, resume=True)


def test_a_checkpoint_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    def denied(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(ValueError, match=r"readable checkpoint, got .*c\.pt \(Permission denied\); change"):
        read_state(tmp_path / "c.pt")


def test_resume_under_other_threads_says_so(tmp_path, teacher_file, monkeypatch):
    notes = Notes()
    with interrupted_after(monkeypatch, 1):
        run(with_file(teacher_file), {"out": str(tmp_path)})
    threads = torch.get_num_threads()
    # said, not done: two threads of one test are ten times slower beside another test
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    run(with_file(teacher_file), {"out": str(tmp_path)}, resume=True, reporter=notes)
    assert any(f"checkpoint: threads was {threads} and is {threads + 1}" in text for text in notes.texts)


ALONE = {"method": {"preset": "none"}, "train": {"epochs": 1}}


def test_python_is_quiet_unless_it_is_asked(capsys):
    run(ALONE)
    assert capsys.readouterr().out == ""
    run(ALONE, progress=True)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("  epoch   1/1")]
    assert lines[-2].startswith("student cifar/resnet8: ")
    assert json.loads(lines[-1])["event"] == "result"


@pytest.mark.slow  # tests/examples runs a notebook
@pytest.mark.filterwarnings("default")  # of the kernel and its sockets
def test_a_notebook_shows_a_bar():
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    code = f"import outgrow\n_ = outgrow.distill({merge(SMALL, ALONE)!r}, progress=True)"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbclient.NotebookClient(notebook).execute()
    outputs = notebook.cells[0].outputs
    (bar,) = [one.data for one in outputs if one.output_type == "display_data"]
    assert '<progress value="96" max="96"></progress> 100 %' in bar["text/html"]
    assert bar["text/plain"].startswith("student 100 %")
    printed = "".join(one.text for one in outputs if one.output_type == "stream" and one.name == "stdout")
    assert "  epoch   1/1  loss " in printed
    assert printed.splitlines()[-1].startswith("student cifar/resnet8: ")


class Notes(Reporter):
    """Keeps what is said."""

    def __init__(self):
        self.texts = []

    def note(self, text):
        self.texts.append(text)


def test_the_teachers_statistics_do_not_move(teacher_file):
    teacher = create_model("cifar/resnet8", weights=teacher_file)
    assert teacher.num_classes == 10
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    run({"train": {"epochs": 1}}, teacher=teacher.train())
    after = teacher.state_dict()
    assert len(before) > 10
    assert all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize(
    "loss", ["dkd(beta=2)", "dist", "standardize", "kd + 0.1*fitnet", "crd(dim=16, negatives=32)"]
)
def test_losses_of_every_kind_train(teacher_file, loss):
    record = run(
        with_file(teacher_file),
        {"method": {"preset": "kd", "loss": loss, "rule": "drop"}, "train": {"epochs": 1}},
    )
    assert record["epochs"][0]["terms"]
    assert "none" not in record["config"]["method"]["preset"]


def test_what_a_loss_learns_never_reaches_the_student_file(tmp_path, teacher_file):
    from safetensors import safe_open

    run(
        with_file(teacher_file),
        {"method": {"preset": "kd", "loss": "kd + fitnet"}, "out": str(tmp_path), "train": {"epochs": 1}},
    )
    with safe_open(tmp_path / "student.safetensors", "pt") as file:
        assert set(file.keys()) == set(create_model("cifar/resnet8", 10).net.state_dict())


def test_modules_of_ones_own():
    net = lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 10))  # noqa: E731
    record = run({"train": {"epochs": 1}}, teacher=net(), student=net())
    assert record["student"]["parameters"] == 1930


def test_mixed_samples_train(teacher_file):
    augment = {"data": {"augment": {"mixup": 1.0}}}
    record = run(with_file(teacher_file), augment, {"method": {"preset": "paper"}, "train": {"epochs": 1}})
    assert record["epochs"][0]["loss"] > 0


def test_the_student_alone(capsys):
    record = run({"method": {"preset": "none"}, "train": {"epochs": 1}}, reporter=TextReporter())
    assert record["epochs"][0]["wrong_rate"] is None
    said = capsys.readouterr().out
    assert "  epoch   1/1" in said
    assert "teacher wrong" not in said
    assert record["teacher"] == {}
    assert set(record["epochs"][0]["terms"]) == {"task"}
    assert record["compared"] is None


class TestOtherClasses:
    """A teacher that was made for something else."""

    @pytest.fixture
    def letters(self, tmp_path):
        """A teacher of 14 classes, the digits among them under their names in another order."""
        torch.manual_seed(0)
        network = create_model("cifar/resnet8", 14)
        network.classes = (*"abcd", *"9876543210")
        save_student(network, tmp_path / "letters.safetensors")
        return tmp_path / "letters.safetensors"

    def test_are_selected_by_name(self, letters):
        record = run(with_file(letters), {"method": {"preset": "kd"}, "train": {"epochs": 1}})
        network = create_model("cifar/resnet8", weights=letters)
        data = open_run_data(build_config(SMALL))
        images = torch.stack([data.test.image(i) for i in range(len(data.test))]).float() / 255
        with torch.no_grad():
            top = network.eval()(images)[:, torch.arange(13, 3, -1)].argmax(dim=1)
        assert record["teacher"]["top1"] == pytest.approx(
            100 * (top == data.test.labels).float().mean().item()
        )

    def test_are_mapped_or_refused(self, tmp_path):
        torch.manual_seed(0)
        network = create_model("cifar/resnet8", 14)
        save_student(network, tmp_path / "w.safetensors")
        layer = with_file(tmp_path / "w.safetensors")
        with pytest.raises(
            ValueError,
            match=r"10 classes, got a model with 14 classes: .*Either fit a map .* or train a teacher",
        ):
            run(layer, {"teacher": {"correct": "never"}})
        record = run(layer, {"train": {"epochs": 1}})
        assert record["correction"]["chosen"]["source"] in ("logits", "probabilities", "features")
        assert record["teacher"]["top1"] > 15  # random features, mapped, beat chance
        assert record["teacher"]["top1_corrected"] == record["teacher"]["top1"]


class TestCorrection:
    def test_a_memorised_teacher_is_left_alone(self):
        long = {
            "teacher": {"rows": "same"},
            "teacher_train": {"epochs": 30, "eval_every": 30},
            "train": {"epochs": 1},
        }
        record = run(long, {"data": {"train_rows": 64}})
        assert not record["correction"]["used"]
        assert "memorised" in record["correction"]["reason"]

    def test_never_and_presets_that_do_not_ask(self, teacher_file):
        assert (
            run(with_file(teacher_file), {"method": {"preset": "kd"}, "train": {"epochs": 1}})["correction"]
            is None
        )
        always = {"teacher": {"correct": "always"}, "method": {"preset": "kd"}, "train": {"epochs": 1}}
        assert run(with_file(teacher_file), always)["correction"] is not None


class TestErrors:
    def test_no_teacher_weights(self):
        with pytest.raises(
            ValueError, match=r"--teacher cifar/resnet8: needs weights, got none; give --teacher-weights"
        ):
            run({"teacher": {"train": False}})

    def test_no_models(self):
        with pytest.raises(ValueError, match=r"--teacher: needs a model such as"):
            run({"teacher": {"name": ""}})
        with pytest.raises(ValueError, match=r"--student: needs a model such as"):
            run({"student": {"name": ""}, "method": {"preset": "none"}})

    def test_no_other_rows(self):
        with pytest.raises(ValueError, match="needs rows that the student does not train on"):
            run({"data": {"train_rows": None}})

    def test_a_loss_that_is_not_finite_stops_before_the_step(self):
        class Breaks(nn.Module):
            def __init__(self):
                super().__init__()
                self.linear = nn.Linear(192, 10)
                self.steps = 0

            def forward(self, images):
                self.steps += self.training
                logits = self.linear(images.flatten(1))
                if self.steps == 3:
                    self.before = self.linear.weight.detach().clone()
                return logits * float("nan") if self.steps >= 3 else logits

        student = Breaks()
        with pytest.raises(
            NonFiniteLoss, match=r"got nan in epoch 1, step 3 \(task nan, kd nan\). Its samples: \["
        ):
            run(
                {"method": {"preset": "kd"}},
                teacher=nn.Sequential(nn.Flatten(), nn.Linear(192, 10)),
                student=student,
            )
        assert torch.equal(student.linear.weight, student.before)

    def test_configuration(self):
        with pytest.raises(ValueError, match=r"there is no field train.epoch; did you mean train.epochs"):
            build_config({"train": {"epoch": 3}})
        for section, field in (("train", "epochs"), ("train", "lr"), ("data", "val_fraction")):
            with pytest.raises(ValueError, match=f"{section}.{field}: needs a number, got true"):
                build_config({section: {field: True}})
        with pytest.raises(ValueError, match="seed: input should be less than 4611686018427387904, got"):
            build_config({"seed": 10**20})
        with pytest.raises(ValueError, match=r"train.lr: input should be greater than 0, got -1; correct"):
            build_config({"train": {"lr": -1}})
        with pytest.raises(ValueError, match=r"train.milestones: needs rising .*, got \[0.5, 0.1\]; write"):
            build_config({"train": {"milestones": [0.5, 0.1]}})
        with pytest.raises(ValueError, match=r"train: needs compile or fused_norms, got both; leave one out"):
            build_config({"train": {"compile": True, "fused_norms": True}})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:data. 10 of 10,000 test images are among the training images")
@pytest.mark.filterwarnings("ignore:data. . of .* images in cifar100-(train|test) are in another class too")
@pytest.mark.filterwarnings("ignore:evaluate .* its classes are matched by position")
def test_published_accuracies(shared_data: Path):
    """The third-party CIFAR-100 nets at what their README states, on all 10,000 images."""
    from outgrow.run.evaluation import evaluate_model

    source = f"parquet:{shared_data / 'cifar100'}"
    for name, file, stated in [
        ("cifar/resnet56", "c100_resnet56_chenyaofo", 72.63),
        ("cifar/densenet_bc_100_12", "c100_densenet_bc_100_12", 74.38),
    ]:
        file_name = shared_data / "weights" / f"{file}.safetensors"
        scores = evaluate_model(source, name, weights=file_name, label="fine_label")
        assert scores["top1"] == pytest.approx(stated, abs=0.05)


def test_a_commit_is_ours_or_none(tmp_path, monkeypatch):
    """A copy that is installed inside somebody's repository must not claim that repository's commit."""
    import subprocess

    from outgrow.training import provenance

    copy = tmp_path / "site" / "provenance.py"
    copy.parent.mkdir()
    copy.write_text("")
    monkeypatch.setattr(provenance, "__file__", str(copy))
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    assert provenance._commit() is None


def test_one_process_may_train_in_several_precisions():
    from outgrow.training.acceleration import make_accelerator
    from outgrow.training.config import TrainConfig

    for precision, name in (("bf16", "bf16"), ("fp32", "no"), ("bf16", "bf16")):
        assert make_accelerator(TrainConfig(precision=precision, device="cpu")).mixed_precision == name


FAST = {
    "train": {"precision": "fp32", "channels_last": True, "fused_norms": True, "epochs": 1, "device": "cpu"}
}


@pytest.mark.skipif(
    norm_relu.library(torch.float32) is None, reason="the fused pass needs gcc and torch's OpenMP"
)
def test_fused_norms_are_taken_where_they_are_asked_for(monkeypatch):
    taken, own = [], norm_relu._NormReLU.apply
    monkeypatch.setattr(norm_relu._NormReLU, "apply", lambda *x: taken.append(1) or own(*x))
    alone = {"method": {"preset": "none"}}
    apart = run(FAST, alone, {"train": {"fused_norms": False}})
    assert not taken
    fused = run(FAST, alone)
    # three steps of 32; of a ResNet-8's nine norms two stand in projections, without a ReLU
    assert len(taken) == 3 * 7
    assert fused["epochs"][0]["loss"] == pytest.approx(apart["epochs"][0]["loss"], rel=1e-4)


def test_fused_norms_that_cannot_be_say_so():
    with pytest.warns(UserWarning, match=r"train\.fused_norms: needs a CPU.*separate operations"):
        run(FAST, {"method": {"preset": "none"}}, {"train": {"channels_last": False}})


def test_fused_norms_of_another_net_say_so():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    net.append(nn.Linear(4, 10))
    layer = merge(SMALL, FAST, {"method": {"preset": "none"}})
    with pytest.warns(
        UserWarning, match=r"got a network that does not call norm_relu .* separate operations"
    ):
        distill(build_config(layer), student=net)


def test_fused_norms_without_a_compiler_say_so(monkeypatch):
    monkeypatch.setattr("outgrow.training.acceleration.library", lambda dtype: None)
    with pytest.warns(UserWarning, match="got a machine on which the C code cannot be compiled"):
        run(FAST, {"method": {"preset": "none"}})


@pytest.mark.filterwarnings("ignore:data. .* no training images")  # 20 digits are not of all classes
@pytest.mark.parametrize(
    "rows, batches", [(96, [32, 32, 32]), (97, [32, 32, 32]), (98, [32, 32, 32, 2]), (20, [20])]
)
def test_no_row_is_left_out_but_a_lone_one(rows, batches):
    config = build_config(merge(SMALL, {"data": {"train_rows": rows}}))
    data = open_run_data(config)
    loader = train_loader(config, config.train, data.train, [], torch.device("cpu"))
    assert [len(batch.images) for batch in loader.epoch(0)] == batches


ELSEWHERE = {
    "loss": "dkd(beta=8)",
    "rule": "posterior",
    "task": "posterior",
    "schedule": "linear",
    "weight": 4.0,
    "task_weight": 0.5,
    "temperature": 2.0,
    "normalize": "subset",
    "trust": "confidence(0.8)",
}


def test_a_student_alone_reads_nothing_about_a_teacher():
    """As where `--preset none` is set over the file of another run: the baseline of every table is the same."""
    alone = {"data": {"train_rows": 64}, "train": {"epochs": 1}, "teacher": {"train": False, "name": "none"}}
    base = merge(SMALL, alone)
    plain = distill(build_config(merge(base, {"method": {"preset": "none"}})))
    notes = Notes()
    layer = {"method": {"preset": "none", **ELSEWHERE}}
    again = distill(build_config(merge(base, layer)), reporter=notes)
    assert (again["student"], again["epochs"][0]["loss"]) == (plain["student"], plain["epochs"][0]["loss"])
    assert {
        name for name in ELSEWHERE if any(f"method.{name} has no effect" in s for s in notes.texts)
    } == set(ELSEWHERE)


def test_no_recipe_changes_the_loss_of_a_student_alone():
    _, plain = preset("none")
    for name, recipe in RECIPES.items():
        _, objective = method_of(build_config(merge(recipe.layer, {"method": {"preset": "none"}})))
        assert (len(objective.terms), objective.task_weight, str(objective.schedule(0.9))) == (
            0,
            1.0,
            str(plain.schedule(0.9)),
        ), name


def test_a_changed_configuration_is_said(tmp_path, teacher_file):
    run(with_file(teacher_file), {"out": str(tmp_path), "train": {"epochs": 1}})
    file = tmp_path / "config.yaml"
    text = file.read_text()
    assert load_config(file)["train"]["lr"] == 0.05
    file.write_text(text.replace("lr: 0.05", "lr: 0.15", 1))
    with pytest.warns(
        UserWarning, match=r"config.yaml was changed or damaged .* remove its lines '# checksum"
    ):
        assert load_config(file)["train"]["lr"] == 0.15
    own = [line for line in file.read_text().splitlines() if not line.startswith("# checksum")]
    file.write_text("\n".join(own))  # the change is the user's
    assert load_config(file)["train"]["lr"] == 0.15


def test_every_cut_of_a_configuration_is_said_or_refused(tmp_path):
    """Cut between two lines it is YAML, and other values."""
    whole = with_checksum(build_config(SMALL).to_yaml())
    file = tmp_path / "config.yaml"
    file.write_text(whole)
    content = load_config(file)
    lines = whole.splitlines(keepends=True)
    assert len(lines) > 80
    for end in range(len(lines)):
        file.write_text("".join(lines[:end]))
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                same, message = load_config(file) == content, ""
            except ValueError as error:
                same, message = False, str(error)
        assert same or re.search(
            "was changed or damaged|needs .*, got .*; see", message + "".join(map(str, said))
        )


@pytest.mark.parametrize("text", ["", "# a comment\n", "- 1\n", "3\n", "a: [\n", "\0", "a: &x 1\nb: *x\n"])
def test_what_is_no_configuration_is_refused_in_three_parts(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(
        ValueError, match=r"(?s)--config: needs .*, got .*config\.yaml.*; see OUT/config\.yaml"
    ):
        load_config(tmp_path / "config.yaml")


def test_excluded_images_are_counted_and_the_test_set_stays(tmp_path):
    listed = tmp_path / "list.csv"
    listed.write_text("row\n" + "\n".join(map(str, range(450))) + "\n")
    layer = {"data": {"exclude": str(listed)}, "method": {"preset": "none"}, "train": {"epochs": 1}}
    with pytest.warns(UserWarning, match="are left out of training"):
        record = run(layer)
    whole = run({"method": {"preset": "none"}, "train": {"epochs": 1}})
    assert record["data"]["excluded"] + record["data"]["train"] == whole["data"]["train"] == 96
    assert 24 < record["data"]["excluded"] < 72
    assert whole["data"]["excluded"] == 0
    assert record["data"]["test"] == whole["data"]["test"]
    assert record["data"]["fingerprint"] != whole["data"]["fingerprint"]
