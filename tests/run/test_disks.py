"""Disks that are small, fill up or cannot be written: one message in three parts, the documented exit code, no wreck.

What can be known at the start is said then (code 2: nothing was done); what happens later ends the command (code 4)
and a resumed run goes on. They are real disks: the file systems of a name space of their own.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from benchmarks.reliability import three_parts
from PIL import Image

from outgrow.run import distill
from outgrow.training.config import build_config

NAMESPACE = ["unshare", "--map-root-user", "--mount"]
DIGITS = [
    *("--data", "digits", "--preset", "kd", "--teacher", "cifar/resnet8", "--student", "cifar/resnet8"),
    *("--epochs", "1", "--set", "data.train_rows=96", "--set", "data.workers=0"),
]
PHOTOS = ["--preset", "none", "--student", "cifar/resnet8", "--epochs", "1", "--set", "data.workers=0"]
REFUSED, MACHINE = 2, 4


def cases(folder: Path, run: Path, photos: Path) -> dict[str, dict[str, object]]:
    """Each case: the size of its disk, and what is done."""
    digits = ["distill", *DIGITS, "--teacher-weights", str(run / "teacher.safetensors")]
    pictures = ["distill", "--data", f"folder:{photos}", *PHOTOS, "--set", "data.val_fraction=0"]
    export = ["export", str(run), "--out"]

    def case(name, size, *steps):
        disk = folder / name
        text = json.dumps({"disk": str(disk), "size": size, "steps": steps})
        return json.loads(text.replace("DISK", str(disk)))

    def command(*words, **rest):
        return {"command": list(words), **rest}

    made = [
        ("out on a small disk", "4m", command(*digits, "--out", "DISK/run")),
        ("out on a read-only disk", "4m", "read-only", command(*digits, "--out", "DISK/run")),
        (
            "out is a file",
            "4m",
            {"file": "DISK/run"},
            command(*digits, "--out", "DISK/run"),
            command(*digits, "--out", "DISK/run/below"),
        ),
        (
            "the disk of out fills up",
            "80m",
            command(*digits, "--out", "DISK/run", fills_once="run/config.yaml"),
            "free",
            command("distill", "--config", "DISK/run/config.yaml", "--resume"),
        ),
        ("teacher cache on a small disk", "8k", command(*digits, "--set", "teacher.cache=DISK/cache")),
        (
            "teacher cache on a read-only disk",
            "4m",
            "read-only",
            command(*digits, "--set", "teacher.cache=DISK/cache"),
        ),
        (
            "teacher cache is a file",
            "4m",
            {"file": "DISK/cache"},
            command(*digits, "--set", "teacher.cache=DISK/cache"),
            command(*digits, "--set", "teacher.cache=DISK/cache/below"),
        ),
        (
            "the disk of the teacher cache fills up",
            "4m",
            command(
                *digits, "--set", "teacher.cache=DISK/cache", fills_once="cache/*/.epoch00000.npy.*.part"
            ),
        ),
        (
            "a whole teacher cache on a read-only disk",
            "4m",
            command(*digits, "--set", "teacher.cache=DISK/cache"),
            "read-only",
            command(*digits, "--set", "teacher.cache=DISK/cache"),
            command(*digits, "--set", "teacher.cache=DISK/cache", "--epochs", "2"),
            command(*digits, "--set", "teacher.cache=DISK/cache", "--seed", "1"),
        ),
        ("data cache on a small disk", "16k", {"XDG_CACHE_HOME": "DISK"}, command(*pictures)),
        ("data cache on a read-only disk", "4m", "read-only", {"XDG_CACHE_HOME": "DISK"}, command(*pictures)),
        ("export to a small disk", "100k", command(*export, "DISK/export")),
        ("export to a read-only disk", "4m", "read-only", command(*export, "DISK/export")),
        (
            "export to a file",
            "4m",
            {"file": "DISK/x"},
            command(*export, "DISK/x"),
            command(*export, "DISK/x/y"),
        ),
        ("export to a disk itself", "4m", command(*export, "DISK")),
        *(
            (
                f"the disk of an export as {kind} fills up",
                "4m",
                command(*export, "DISK/export", "--format", kind, fills_once=".export.*.part"),
            )
            for kind in ("safetensors", "torch")
        ),
        (
            "predictions on a read-only disk",
            "4m",
            "read-only",
            command("predict", str(run), str(photos), "--out", "DISK/found.csv"),
        ),
        (
            "predictions on a full disk",
            "4m",
            "full",
            command("predict", str(run), str(photos), "--out", "DISK/found.csv"),
        ),
    ]
    return {name: case(name.replace(" ", "-"), *steps) for name, *steps in made}


EXPECTED = {
    "out on a small disk": [(REFUSED, "--out: needs about 64.0 MiB, got .* free")],
    "out on a read-only disk": [(REFUSED, "--out: needs a folder that can be written, .*Read-only")],
    "out is a file": [
        (REFUSED, "--out: needs a folder, got the file"),
        (REFUSED, "--out: needs a folder that can"),
    ],
    "the disk of out fills up": [
        (MACHINE, "needs to write .*No space left on device; .*--resume"),
        (0, None),
    ],
    "teacher cache on a small disk": [
        (REFUSED, "teacher.cache: needs .* KiB for 1 epoch of .*, got .* free in")
    ],
    "teacher cache on a read-only disk": [(REFUSED, "teacher.cache: needs a folder that can be written")],
    "teacher cache is a file": [
        (REFUSED, "teacher.cache: needs a folder, got the file"),
        (REFUSED, "teacher.cache: needs a folder, got the file"),
    ],
    "the disk of the teacher cache fills up": [
        (MACHINE, "needs (to write|[0-9.]+ .iB for) .*No space left on device")
    ],
    "a whole teacher cache on a read-only disk": [
        (0, None),
        (0, None),
        (REFUSED, "teacher.cache: needs all 2 epochs in a folder that cannot be written, got .*; fill it"),
        (REFUSED, "teacher.cache: needs a folder that can be written"),
    ],
    "data cache on a small disk": [(0, "warning: data: the cache .* cannot be written .No space left")],
    "data cache on a read-only disk": [(0, "warning: data: the cache .* cannot be written .Read-only")],
    "export to a small disk": [(REFUSED, "--out: needs about .* KiB, got 100.0 KiB free")],
    "export to a read-only disk": [(REFUSED, "--out: needs a folder that can be written")],
    "export to a file": [(REFUSED, "--out: needs a folder, got"), (REFUSED, "--out: needs a folder, got")],
    "export to a disk itself": [(0, None)],
    "the disk of an export as safetensors fills up": [
        (MACHINE, "needs to write .*No space left on device; free")
    ],
    "the disk of an export as torch fills up": [(MACHINE, "needs to write .*No space left on device; free")],
    "predictions on a read-only disk": [(REFUSED, "--out: needs a folder that can be written")],
    "predictions on a full disk": [(REFUSED, "--out: needs a folder that can be written")],
}
LEFT = {
    "the disk of out fills up": "run/record.json",
    "export to a disk itself": "model.safetensors",
    "a whole teacher cache on a read-only disk": "epoch00000.npy",
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare (util-linux)")
    folder = tmp_path_factory.mktemp("disks")
    trial = [*NAMESPACE, "mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(folder)]
    if subprocess.run(trial, capture_output=True).returncode:
        pytest.skip("needs name spaces of the user's own, in which it may mount")
    run, photos = folder / "run", folder / "photos"
    teacher = {"name": "cifar/resnet8", "train": True, "rows": "disjoint"}
    one = {"epochs": 1, "max_steps": 2}
    layer = {
        "data": {"train_rows": 96, "workers": 0},
        "teacher": teacher,
        "student": {"name": "cifar/resnet8"},
    }
    distill(build_config({**layer, "train": one, "teacher_train": one, "out": str(run)}))
    for number, part in enumerate(f"{split}/{kind}" for split in ("train", "val") for kind in "ab"):
        (photos / part).mkdir(parents=True)
        for image in range(10):
            pixels = np.random.default_rng(100 * number + image).integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(photos / part / f"{image}.png")
    file = folder / "cases.json"
    file.write_text(json.dumps(cases(folder, run, photos)))
    program = [*NAMESPACE, sys.executable, "-m", "tests.run.disks", str(file)]
    done = subprocess.run(program, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, (done.returncode, done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", EXPECTED)
def test_a_disk_that_cannot_is_a_message(outcomes, name):
    assert outcomes.keys() == EXPECTED.keys()
    one = outcomes[name]
    for found, (code, message) in zip(one["found"], EXPECTED[name], strict=True):
        assert found["code"] == code, found
        if message is None:
            assert found["said"] == []
            continue
        (said,) = found["said"]
        assert three_parts(said) or code == 0, said
        assert re.search(message, said), said
    assert not [path for path in one["left"] if ".part" in path or ".tmp" in path or "outgrow-test" in path]
    assert name not in LEFT or any(path.endswith(LEFT[name]) for path in one["left"])
