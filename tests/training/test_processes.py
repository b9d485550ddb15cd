"""Several processes give the gradient, and the run, of one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import outgrow

ROWS, SPLIT = 12, 5
"""The two processes get uneven shares: 5 and 7 rows, with other numbers of wrong ones."""


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


def _worker(rank, normalize, file, out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    for fast in (True, False):
        rows = slice(0, SPLIT) if rank == 0 else slice(SPLIT, ROWS)
        grad = gradient(rows, normalize, dist.group.WORLD, fast)
        dist.all_reduce(grad)  # what DDP does: the mean over processes
        torch.save(grad / 2, f"{out}-{rank}-{fast}")
    dist.destroy_process_group()


@pytest.mark.parametrize("normalize", ["rows", "subset"])
def test_uneven_shares_give_the_gradient_of_one(tmp_path, normalize):
    mp.spawn(_worker, (normalize, str(tmp_path / "store"), str(tmp_path / "grad")), nprocs=2)
    whole = gradient(slice(None), normalize)
    for rank in (0, 1):
        for fast in (True, False):
            torch.testing.assert_close(torch.load(tmp_path / f"grad-{rank}-{fast}"), whole)


NET = """
from torch import nn

def net(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 24), nn.ReLU(), nn.Linear(24, num_classes))
"""


def test_a_run_on_two_processes_is_the_run_on_one(tmp_path):
    """Through torchrun, with nets without batch norm: losses, wrong rate and accuracy agree."""
    (tmp_path / "net.py").write_text(NET)
    model = f"py:{tmp_path / 'net.py'}:net"
    common = [
        "distill",
        "--data",
        "digits",
        "--teacher",
        model,
        "--student",
        model,
        "--train-teacher",
        "--preset",
        "paper",
    ]
    common += [
        "--epochs",
        "2",
        "--set",
        "teacher_train.epochs=2",
        "--set",
        "data.workers=0",
        "--set",
        "data.augment.flip=false",
    ]
    common += [
        "--set",
        "train.device=cpu",
        "--set",
        "teacher_train.device=cpu",
        "--set",
        "data.train_rows=256",
    ]
    call = ["-c", "from outgrow.run.cli import main; main()"]
    script = tmp_path / "run.py"
    script.write_text("from outgrow.run.cli import main\nmain()\n")
    subprocess.run(
        [sys.executable, *call, *common, "--out", str(tmp_path / "one")], check=True, capture_output=True
    )
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(script),
    ]
    done = subprocess.run([*launch, *common, "--out", str(tmp_path / "two")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (json.loads(Path(tmp_path / name / "record.json").read_text()) for name in ("one", "two"))
    assert one["epochs"]
    for a, b in zip(one["epochs"], two["epochs"], strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)
        assert b["terms"] == pytest.approx(a["terms"], rel=1e-4, abs=1e-6)  # the fast path subtracts
        assert b["wrong_rate"] == pytest.approx(a["wrong_rate"], abs=1e-6)
    assert two["student"]["top1"] == pytest.approx(one["student"]["top1"], abs=0.3)
