"""Several processes give the gradient, and the run, of one; and they end together."""

import json
import os
import re
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from benchmarks.processes import CASES, Case, differences

import outgrow
from outgrow.classification.lesson import Classify
from outgrow.data import Batch
from outgrow.losses import DETECTOR_LOSSES, LOSSES
from outgrow.outputs import ObjectiveResult, Target
from outgrow.teacher import Teacher
from outgrow.training import processes
from outgrow.training.acceleration import make_accelerator
from outgrow.training.config import TrainConfig
from outgrow.training.meter import Meter
from outgrow.training.watch import Reason, Watch, lost_another

ROWS, SPLIT = 12, 5
"""The two processes get uneven shares: 5 and 7 rows, with other numbers of wrong ones."""
ALONE = {f"{name}, alone": Case(name, told=False) for name in ("rkd", "dist", "sp")}
"""Objectives that are not told of the other processes: the table must see it."""


def batch():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(ROWS, 6, generator=generator)
    teacher = 3 * torch.randn(ROWS, 4, generator=generator)
    return images, teacher, torch.randint(4, (ROWS,), generator=generator)


def gradient(rows, normalize, group=None, fast=True):
    images, teacher, label = (x[rows] for x in batch())
    torch.manual_seed(1)
    student = torch.nn.Linear(6, 4)
    rectify, objective = outgrow.preset("paper", normalize=normalize)
    objective.process_group, objective.fast = group, fast
    objective(student(images), rectify(teacher, label), label, 0.3).total.backward()
    return student.weight.grad


STEPS = ((0, 1, 7), (7, 20, 21), (21, 21, 24), (24, 24, 24), (24, 40, 90))
"""Rows of each step: first, first of the second process, end."""


def drawn():
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(90, 4, generator=generator)
    label = torch.randint(4, (90,), generator=generator)
    label[torch.rand(90, generator=generator) < 0.2] = outgrow.UNLABELLED
    label[torch.rand(90, generator=generator) < 0.2] = outgrow.IGNORE
    return logits, label


def epoch_shares(rank=None, group=None):
    """The statistics of an epoch of :data:`STEPS`, on two processes or on one."""
    logits, label = drawn()
    rectify, objective = outgrow.preset("kd", loss="kd + jsd")
    objective.process_group = group
    meter = Meter()
    for first, middle, end in STEPS:
        rows = {None: slice(first, end), 0: slice(first, middle), 1: slice(middle, end)}[rank]
        target = Target(label[rows], may_ignore=True)
        knowledge = rectify(logits[rows], target)
        meter.add(objective(torch.zeros_like(logits[rows]), knowledge, target, 0.0), 1)  # an image a step
    return meter.read(group)[2]


def literal_shares():
    wrong = labelled = without = 0
    for row, own in zip(*drawn(), strict=True):
        if own == outgrow.UNLABELLED:
            without += 1
        elif own != outgrow.IGNORE:
            labelled += 1
            wrong += int(row.argmax() != own)
    return {"wrong_rate": wrong / labelled, "unlabelled": without / (labelled + without)}


def _worker(rank, file, out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    found = {}
    for normalize in ("rows", "subset"):
        for fast in (True, False):
            for shares in ((slice(0, SPLIT), slice(SPLIT, ROWS)), (slice(None), slice(0, 0))):
                grad = gradient(shares[rank], normalize, dist.group.WORLD, fast)
                dist.all_reduce(grad)  # what DDP does: the mean over processes
                found[normalize, fast, str(shares)] = grad / 2
    refused = None
    try:
        processes.on_main(lambda: int("three"))
    except ValueError as error:
        refused = str(error)
    done = processes.on_main(lambda: 3)
    one = processes.mean(torch.tensor(float(rank)), dist.group.WORLD).item()
    seeds = []
    for step in (0, 1, 0):
        processes.seed_step(5, step, dist.group.WORLD)
        seeds.append(torch.rand(()).item())
    found["shares"] = epoch_shares(rank, dist.group.WORLD)
    torch.save((found, refused, done, one, seeds), f"{out}-{rank}")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two processes found, by rank."""
    folder = tmp_path_factory.mktemp("two")
    mp.spawn(_worker, (str(folder / "store"), str(folder / "found")), nprocs=2)
    return [torch.load(folder / f"found-{rank}") for rank in (0, 1)]


def test_uneven_and_empty_shares_give_the_gradient_of_one(two):
    for found, *_ in two:
        grads = {key: grad for key, grad in found.items() if key != "shares"}
        assert len(grads) == 8
        for (normalize, _, _), grad in grads.items():
            torch.testing.assert_close(grad, gradient(slice(None), normalize))


def test_what_the_main_process_raises_is_raised_on_all(two):
    assert len({refused for _, refused, *_ in two}) == 1
    assert "invalid literal" in two[0][1]
    assert [done for _, _, done, *_ in two] == [3, None]
    assert [one for *_, one, _ in two] == [0.5, 0.5]


def test_processes_draw_different_numbers_that_need_not_be_kept(two):
    (a, b, again), (c, d, once_more) = (seeds for *_, seeds in two)
    assert a == again
    assert c == once_more
    assert len({a, b, c, d}) == 4


@pytest.fixture(scope="module")
def table():
    return differences({**CASES, **ALONE}, 2)


class TestEveryLoss:
    """Three steps on two processes against one: student, what the loss learns, and what it remembers."""

    def test_the_table_is_complete(self, table):
        assert {*LOSSES, *DETECTOR_LOSSES} <= table.keys()

    @pytest.mark.parametrize("name", CASES)
    def test_is_that_of_one_process(self, table, name):
        assert max(table[name].values()) < 1e-9, table[name]  # 1e-10: kd's counts are float32

    @pytest.mark.parametrize("name", ALONE)
    def test_the_table_sees_relations_inside_a_share(self, table, name):
        assert max(table[name].values()) > 1e-3

    @pytest.mark.slow
    @pytest.mark.parametrize("number, dtype, tolerance", [(4, torch.float64, 1e-9), (2, torch.float32, 5e-5)])
    def test_of_four_processes_and_in_float32(self, number, dtype, tolerance):
        table = differences(CASES, number, dtype)
        assert len(table) == len(CASES)
        # rounding in float32 is up to 1.6e-5 (dist); rkd has gradients of four digits, and ofd is a sum over a map
        loose = {"rkd": 100.0, "rkd, drop": 100.0, "rkd, proposals": 100.0, "ofd": 100.0}
        off = {
            name: parts
            for name, parts in table.items()
            if max(parts.values()) >= tolerance * loose.get(name, 1.0)
        }
        assert not off

    @pytest.mark.slow
    @pytest.mark.parametrize("number", [2, 4])
    def test_of_a_student_that_is_split(self, number):
        """torch's fully_shard (FSDP2) in place of DDP, in a plain loop."""
        table = differences(CASES, number, how="fsdp")
        assert len(table) == len(CASES)
        assert not {name: parts for name, parts in table.items() if max(parts.values()) >= 1e-9}


def test_the_guide_has_every_loss():
    page = Path(__file__).parents[2] / "docs" / "guide" / "many-processes.md"
    rows = [line for line in page.read_text().splitlines() if line.startswith("| ")]
    kinds = {"row": "of single rows", "image": "of single images", "batch": "that relate rows"}
    losses = {**LOSSES, **DETECTOR_LOSSES}
    assert len(losses) > 20
    for name, loss in losses.items():
        (row,) = [line for line in rows if f"`{name}`" in line]
        assert row.startswith(f"| {kinds[loss.axis]}"), name


def test_a_mean_weighs_steps_by_their_images():
    """Those of all processes, also where this one has no share: all weigh a step alike."""
    meter = Meter()
    for total, images, labelled in ((1.0, 16.0, 200.0), (4.0, 1.0, 100.0), (0.0, 0.0, 0.0)):
        value = torch.tensor(total)
        stats = {"wrong_rate": value / 4, "kd.easy": value / 4}
        meter.add(
            ObjectiveResult(value, {"task": value}, stats, {"wrong_rate": labelled}), torch.tensor(images)
        )
    again = Meter(meter.state())
    for one in (meter, again):
        loss, terms, stats = one.read()
        assert loss == terms["task"] == pytest.approx((16 + 4) / 17)
        assert stats["kd.easy"] == pytest.approx((16 + 4) / 17 / 4)
        assert stats["wrong_rate"] == pytest.approx((2 + 4) / 3 / 4)  # of rows that have a label
    nothing = ObjectiveResult(value, {}, {"wrong_rate": value}, {"wrong_rate": torch.tensor(0.0)})
    none = Meter()
    none.add(nothing, 3)
    assert none.read()[2] == {"wrong_rate": 0.0}


def test_shares_of_rows_are_those_of_all_processes(two):
    """Other numbers of rows in each step and on each process, and some with none: the count decides."""
    expected = literal_shares()
    assert 0.2 < expected["wrong_rate"] < 0.8
    assert 0.1 < expected["unlabelled"] < 0.5
    for found in (epoch_shares(), *(found["shares"] for found, *_ in two)):
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, rel=1e-6), name


@pytest.mark.parametrize("net", [torch.nn.Flatten, lambda: torch.nn.Unflatten(1, (1, 3))])
def test_a_process_without_a_share_calls_the_student_and_has_no_rows(net):
    """Even one that cannot reshape an empty batch."""

    class View(torch.nn.Module):
        def forward(self, images):
            return images.view(len(images), -1)

    student = torch.nn.Sequential(View(), torch.nn.Linear(12, 2))
    empty = Batch(
        torch.zeros(0, 3, 2, 2), Target(torch.zeros(0, dtype=torch.long), index=torch.zeros(0).long())
    )
    with pytest.raises(RuntimeError, match="reshape"):
        student(empty.images)
    lesson = Classify()(
        outgrow.Taps(student), Teacher(torch.nn.Sequential(View(), torch.nn.Linear(12, 2))), empty
    )
    assert len(lesson.student.logits) == len(lesson.teacher.logits) == len(lesson.target.label) == 0
    lesson.student.logits.sum().backward()
    assert all((p.grad == 0).all() for p in student.parameters())


@pytest.mark.parametrize("kind, variable", [("FSDP", "FSDP"), ("DeepSpeed", "DEEPSPEED")])
def test_a_split_student_is_refused(monkeypatch, kind, variable):
    monkeypatch.setenv(f"ACCELERATE_USE_{variable}", "true")
    with pytest.raises(
        ValueError, match=rf"needs plain data parallelism, got {kind}, which .*; leave its options"
    ):
        make_accelerator(TrainConfig(device="cpu"))


def test_the_watch_of_one_process_prints_its_reason(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    said = []
    watch = Watch(said.append, lost=4, terminated=130)
    with watch():
        assert watch.failed(Reason("why", 2)) == 2
    assert said == ["why"]
    assert not lost_another(RuntimeError("gloo: connection closed by peer"))
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert lost_another(RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer"))
    assert not lost_another(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


NET = """
import torch
from torch import nn

class Conv(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.deep = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.head = nn.Linear(12, num_classes)
    def forward(self, x):
        return self.head(self.deep(self.stem(x).relu()).relu().mean(dim=(2, 3)))

def net(num_classes=10):
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 24), nn.ReLU(), nn.Linear(24, num_classes))

def conv(num_classes=10):
    return Conv(num_classes)
"""

BROKEN = """
import os, signal, time
import outgrow.training.trainer as trainer

step, calls = trainer.Trainer._step, []

def broken(self, *arguments):
    calls.append(None)
    if len(calls) == 3 and os.environ["RANK"] == os.environ["BROKEN_RANK"]:
        how = os.environ["BROKEN_HOW"]
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "asleep":
            time.sleep(600)
        if how == "refused":
            raise ValueError("data: needs more, got less; add some.")
        result = step(self, *arguments)
        return type(result)(result.total * float("nan"), result.terms, result.stats)
    return step(self, *arguments)

trainer.Trainer._step = broken
"""
COMMAND = "from outgrow.run.cli import main\nmain()\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A net without batch norm, the command as a script, and the same with one process that breaks."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "net.py").write_text(NET)
    (folder / "run.py").write_text(COMMAND)
    (folder / "broken.py").write_text(BROKEN + COMMAND)
    return folder


def launch(folder, number, *options, script="run.py", **environment):
    """The command on ``number`` processes, through torchrun unless it is one."""
    program = [sys.executable]
    if number > 1:
        program += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(number)]
    return subprocess.run(
        [*program, str(folder / script), "distill", *options],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def options(folder, out, *sets, model="net", epochs=2):
    """801 rows: 33 in the last batch. The device is found out."""
    name = f"py:{folder / 'net.py'}:{model}"
    common = ["--data", "digits", "--teacher", name, "--student", name, "--preset", "paper"]
    common += ["--epochs", str(epochs), "--out", str(folder / out)]
    sets = ("data.workers=0", "data.train_rows=801", "data.augment.flip=false", *sets)
    return [*common, *(part for item in sets for part in ("--set", item))]


@pytest.fixture(scope="module")
def trained(folder):
    """The run on one process, which trains the teacher too; its weights serve all others."""
    done = launch(folder, 1, *options(folder, "first", "teacher_train.epochs=2"), "--train-teacher")
    assert done.returncode == 0, done.stderr
    return folder / "first" / "teacher.safetensors"


def weights(folder, out):
    return safetensors.torch.load_file(folder / out / "student.safetensors")


def check_equal(folder, one, other):
    a, b = weights(folder, one), weights(folder, other)
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(b[key], a[key], rtol=1e-4, atol=1e-5)
    first, second = (json.loads((folder / name / "record.json").read_text()) for name in (one, other))
    assert first["epochs"]
    for x, y in zip(first["epochs"], second["epochs"], strict=True):
        assert y["loss"] == pytest.approx(x["loss"], rel=1e-4)
        assert y["terms"] == pytest.approx(x["terms"], rel=1e-4, abs=1e-6)  # the fast path subtracts
        assert y["wrong_rate"] == pytest.approx(x["wrong_rate"], abs=1e-6)
    assert second["student"]["top1"] == pytest.approx(first["student"]["top1"], abs=0.3)


MIXED = ("method.loss=kd + 0.5*dist", "data.augment.mixup=0.3")


UNLABELLED = ("data.train_rows=301", "data.unlabelled=digits", "data.unlabelled_share=0.6")

PARTS = (
    "method.normalize=rows",
    "train.accumulate=3",
    "train.ema=0.9",
    "train.sampling=balanced",
    "train.class_weights=balanced",
    "train.label_smoothing=0.1",
)


@pytest.mark.parametrize(
    "name, sets",
    [
        pytest.param("mixed", MIXED, marks=pytest.mark.slow),
        pytest.param("unlabelled", (*MIXED, *UNLABELLED), marks=pytest.mark.slow),
        ("parts", (*PARTS, *UNLABELLED)),
    ],
)
def test_a_run_on_two_processes_is_the_run_on_one(folder, trained, name, sets):
    """Through torchrun, with a relation, mixup and an uneven last batch; with unlabelled images; with batches in parts
    and an average of the weights."""
    for number, out in ((1, f"{name}-1"), (2, f"{name}-2")):
        call = options(folder, out, *sets)
        call += ["--log-format", "json", *(["--track", "tensorboard"] if find_spec("tensorboard") else [])]
        done = launch(folder, number, *call, "--teacher-weights", str(trained))
        assert done.returncode == 0, done.stderr[-3000:]
        if find_spec("tensorboard"):  # written by the main process alone
            assert len(list((folder / out / "tensorboard").iterdir())) == 1
        assert sum('"event": "result"' in line for line in done.stdout.splitlines()) == 1
        assert "Traceback" not in done.stderr
    check_equal(folder, f"{name}-1", f"{name}-2")


@pytest.mark.slow
def test_memories_and_connectors_on_three_processes(folder):
    """801 rows in batches of 64 and 33: shares are uneven in every step."""
    sets = ("method.loss=kd + 0.02*crd(dim=8, negatives=64) + fitnet + 0.02*rkd", "teacher_train.epochs=1")
    sets = (*sets, "data.train_rows=130", "teacher.correct=never")
    call = [*options(folder, "parts-1", *sets, model="conv"), "--train-teacher"]
    done = launch(folder, 1, *call)
    assert done.returncode == 0, done.stderr
    teacher = folder / "parts-1" / "teacher.safetensors"
    for number, out in ((1, "parts-one"), (3, "parts-three")):
        call = options(folder, out, *sets, model="conv")
        done = launch(folder, number, *call, "--teacher-weights", str(teacher))
        assert done.returncode == 0, done.stderr[-3000:]
    check_equal(folder, "parts-one", "parts-three")


def test_what_is_refused_ends_all_processes_with_one_message(folder):
    """A folder that cannot be written: only the main process looks at it."""
    (folder / "a-file").write_text("")
    done = launch(folder, 2, *options(folder, "a-file"))
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("outgrow:")]
    assert len(said) == 1
    assert re.search("--out: needs a folder, got the file .*a-file; name another", said[0])


ENDS = [
    ("1", "refused", "outgrow: process 1 of 2: data: needs more, got less; add some"),
    ("0", "refused", "outgrow: data: needs more, got less; add some"),
    ("1", "killed", "outgrow: needs all 2 processes, got no response from process 1, which was killed"),
    ("0", "killed", "outgrow: needs all 2 processes, got no response from process 0, which was killed"),
    (
        "1",
        "diverged",
        r"outgrow: training: needs a finite loss, got nan in epoch 1, step 3 .*Its samples: \[",
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("rank, how, expected", ENDS)
def test_a_process_that_fails_ends_the_run_with_its_reason(folder, trained, rank, how, expected):
    call = options(folder, f"broken-{rank}-{how}")
    started = time.monotonic()
    done = launch(
        folder,
        2,
        *call,
        "--teacher-weights",
        str(trained),
        script="broken.py",
        BROKEN_RANK=rank,
        BROKEN_HOW=how,
    )
    assert done.returncode != 0
    assert time.monotonic() - started < 60
    said = [line for line in done.stderr.splitlines() if line.startswith("outgrow:")]
    assert len(said) == 1
    assert re.match(expected, said[0])
    assert "gloo" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("before, after", [(1, 2), (2, 1)])
def test_a_run_goes_on_with_another_number_of_processes(folder, trained, before, after):
    whole, parts = f"whole-{before}", f"resumed-{before}"
    teacher = ["--teacher-weights", str(trained)]
    assert launch(folder, 1, *options(folder, whole, epochs=3), *teacher).returncode == 0
    # broken off in the middle of the second epoch
    (folder / "stop.py").write_text(
        BROKEN.replace("len(calls) == 3", "len(calls) == 20").replace('"RANK"', '"BROKEN_RANK"') + COMMAND
    )
    environment = {"BROKEN_RANK": "0", "BROKEN_HOW": "refused"}
    call = options(folder, parts, "train.checkpoint_steps=3", epochs=3)
    stopped = launch(folder, before, *call, *teacher, script="stop.py", **environment)
    assert "data: needs more" in stopped.stderr
    done = launch(folder, after, *call, *teacher, "--resume")
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"processes was {before} and is {after}; results may differ by rounding" in done.stdout
    check_equal(folder, whole, parts)


@pytest.mark.slow
def test_accelerate_launch(folder, trained):
    """On a CPU it starts several processes only where it is told --multi_gpu."""
    program = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    call = options(folder, "accelerate", *MIXED)
    done = subprocess.run(
        [*program, str(folder / "run.py"), "distill", *call, "--teacher-weights", str(trained)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    plain = launch(folder, 1, *options(folder, "accelerate-1", *MIXED), "--teacher-weights", str(trained))
    assert plain.returncode == 0
    check_equal(folder, "accelerate-1", "accelerate")
