"""Counts of outcomes under kills, damaged files, random configurations and many steps.

    python -m benchmarks.reliability [--out results/records/reliability.json] [--scale 1.0] [--only kills damage ...]

Each part returns counts by outcome; only the outcomes in ``GOOD`` are correct. It takes minutes on two cores. The
tests run each part with small numbers.
"""

import argparse
import gc
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from outgrow.knowledge import RULES
from outgrow.losses import LOSSES
from outgrow.models import create_model, load_weights
from outgrow.objective import PRESETS, SCHEDULES
from outgrow.run import distill
from outgrow.teacher import BiasCorrection
from outgrow.training.config import build_config, load_config, merge
from outgrow.training.guard import NonFiniteLoss
from outgrow.training.provenance import provenance
from outgrow.training.record import read_record

GOOD = {"same", "refused", "ran", "diverged, said", "rebuilt", "flat"}
BASE: dict[str, Any] = {
    "data": {
        "source": "digits",
        "train_rows": 96,
        "workers": 0,
        "augment": {"crop_padding": 1, "flip": False},
    },
    "teacher": {"name": "cifar/resnet8", "train": True, "rows": "disjoint"},
    "student": {"name": "cifar/resnet8"},
    "train": {"epochs": 2, "batch_size": 32, "checkpoint_steps": 2},
    "teacher_train": {"epochs": 1, "batch_size": 64, "checkpoint_steps": 3},
}
DETECTOR = (
    "fasterrcnn:timm/mobilenetv1_025_128?size=64&levels=3-5&channels=8&head=16&rois=32&proposals=80&anchors=4"
)
KILLED: dict[str, dict[str, Any]] = {
    "kd": {"method": {"preset": "kd"}},
    "paper": {"method": {"preset": "paper"}},
    "outgrow": {"method": {"preset": "outgrow"}},
    "crd": {"method": {"preset": "kd", "loss": "kd + 0.8*crd(dim=16, negatives=32)"}},
    "ctkd": {"method": {"preset": "kd", "loss": "ctkd"}},
    "mixup": {"method": {"preset": "kd"}, "data": {"augment": {"mixup": 0.5}}},
    "detector": {
        "teacher": {"name": DETECTOR, "rows": "same"},
        "student": {"name": DETECTOR},
        "method": {"preset": "kd", "loss": "kd + box"},
        "train": {"batch_size": 3, "lr": 1e-3},
        "teacher_train": {"batch_size": 3, "lr": 1e-3, "checkpoint_steps": 2},
    },
}
KILL = "kill"
"""What is counted under a name that starts so is where a kill fell, and no outcome."""


def is_bad(outcome: str) -> bool:
    return outcome not in GOOD and not outcome.startswith(KILL)


def three_parts(message: str) -> bool:
    """Whether an error says what is needed, what was got, and what to do."""
    return bool(re.search(r"(?s)needs .*\bgot .*[;.,:] \S", message)) or bool(
        re.search(r"(?s)there is no field .*; |input should .*got .*; ", message)
    )


@contextmanager
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp())
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def kills(number: int, seed: int = 0, methods: Sequence[str] = tuple(KILLED)) -> Counter[str]:
    """Runs that are killed with SIGKILL at random moments, again and again, and resumed: do they end in the same bits?

    The first kill falls while the teacher is trained, two more anywhere in the run. Every other run has a teacher
    cache where it can have one, which is filled by the run that is killed.
    """
    chance, outcomes = random.Random(seed), Counter[str]()
    with folder() as root:
        for turn in range(number):
            name = methods[turn % len(methods)]
            cached = turn // len(methods) % 2 == 1 and name not in ("crd", "detector")
            layer = merge(BASE, KILLED[name])
            if name == "detector":
                layer["data"] = {"source": write_scenes(root / "scenes"), "workers": 0}
            whole, broken = root / f"{turn}-whole", root / f"{turn}-broken"
            begun, taught, ended = _run(layer, whole, cached=cached)
            for attempt in range(12):
                # imports take the first seconds; a kill there would prove nothing
                when: dict[str, float] = {}
                if attempt == 0:
                    # counted from the opening of the folder, and not to the end: another load shifts the moments
                    when = {"after": chance.uniform(0, 0.6 * (taught - begun))}
                elif attempt < 3:
                    when = {"limit": chance.uniform(begun, ended)}
                moments = _run(layer, broken, cached=cached, resume=attempt > 0, **when)
                if when:
                    outcomes[_moment(*moments)] += 1
                if (broken / "record.json").is_file():
                    break
            outcomes[_same_run(whole, broken)] += 1
            for path in (whole, broken):
                shutil.rmtree(path, ignore_errors=True)
    return outcomes


def write_scenes(out: Path) -> str:
    """A data set in COCO's layout, with bright rectangles to find: ``coco:IMAGES:ANNOTATIONS``."""
    if not out.is_dir():
        for split, count in (("train", 12), ("val", 4)):
            (out / split).mkdir(parents=True)
            images, objects = [], []
            for number in range(count):
                pixels = np.random.default_rng(number + len(split)).integers(0, 128, (64, 80, 3), np.uint8)
                x, y = 4 + 3 * number, 6 + 2 * number
                pixels[y : y + 24, x : x + 32, number % 2] = 255
                Image.fromarray(pixels).save(out / split / f"{number}.png")
                images.append({"id": number, "file_name": f"{number}.png", "height": 64, "width": 80})
                box = {"bbox": [x, y, 32, 24], "category_id": number % 2 + 1, "iscrowd": 0, "area": 32 * 24}
                objects.append({"id": number + 1, "image_id": number, **box})
            kinds = [{"id": 1, "name": "red"}, {"id": 2, "name": "green"}]
            content = {"images": images, "annotations": objects, "categories": kinds}
            (out / f"instances_{split}.json").write_text(json.dumps(content))
    return f"coco:{out}:{out}"


def _run(
    layer: dict[str, Any],
    out: Path,
    *,
    cached: bool,
    limit: float = math.inf,
    after: float = math.inf,
    resume: bool = False,
) -> tuple[float, float, float]:
    """One run in a process of its own, killed ``limit`` seconds after its start or ``after`` its folder was opened.

    Returns the seconds until its folder was opened, until its teacher was saved, and until it ended; infinite for an
    event that did not happen.
    """
    layer = merge(layer, {"out": str(out)})
    if cached:
        layer = merge(layer, {"teacher": {"cache": str(out) + "-cache"}})
    resume = resume and (out / "config.yaml").is_file()
    code = (
        "import sys, json, torch; torch.set_num_threads(1)\n"
        "from outgrow.run import distill; from outgrow.training.config import build_config\n"
        f"distill(build_config(json.loads(sys.argv[1])), resume={resume}, overwrite={not resume})"
    )
    seconds = dict.fromkeys(("config.yaml", "teacher.safetensors"), math.inf)
    with tempfile.TemporaryFile() as said:
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code, json.dumps(layer)],
            stdout=subprocess.DEVNULL,
            stderr=said,
        )
        while process.poll() is None and time.perf_counter() - start < min(
            limit, seconds["config.yaml"] + after
        ):
            for name, when in seconds.items():
                if when == math.inf and (out / name).is_file():
                    seconds[name] = time.perf_counter() - start
            time.sleep(0.005)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        if process.wait() not in (0, -signal.SIGKILL):
            said.seek(0)
            print(said.read().decode(errors="replace"), file=sys.stderr)
    ended = (out / "record.json").is_file()
    return *seconds.values(), time.perf_counter() - start if ended else math.inf


def _moment(begun: float, taught: float, ended: float) -> str:
    """Where a kill fell."""
    if ended < math.inf:
        return f"{KILL}ed too late"
    if begun == math.inf:
        return f"{KILL}ed before the run began"
    return f"{KILL}ed while the {'teacher' if taught == math.inf else 'student'} was trained"


def _same_run(whole: Path, broken: Path) -> str:
    if not (broken / "record.json").is_file():
        return "did not end"
    ours, theirs = load_file(whole / "student.safetensors"), load_file(broken / "student.safetensors")
    same = ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    a, b = (read_record(path / "record.json") for path in (whole, broken))
    return "same" if same and a.student == b.student else "other numbers"


def damage(number: int, seed: int = 0) -> Counter[str]:
    """Truncated, bit-flipped and emptied files of a run, and what is then made of them."""
    chance, outcomes = random.Random(seed), Counter[str]()
    with folder() as root:
        run, cache = root / "run", root / "cache"
        layer = merge(
            BASE,
            {
                "method": {"preset": "outgrow"},
                "teacher": {"cache": str(cache), "correct": "always"},
                "out": str(run),
            },
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            whole = distill(build_config(layer))
        uses = _uses(run, cache, layer)
        expected = {name: use() for name, use in uses.items()}
        files = _files(run, cache)
        for turn in range(number):
            name, path = files[turn % len(files)]
            content = path.read_bytes()
            kind = chance.choice(["truncated", "flipped", "emptied"])
            path.write_bytes(_damaged(content, kind, chance))
            try:
                outcomes[_outcome(uses[name], expected[name])] += 1
            finally:
                path.write_bytes(content)
        assert whole["student"]
    return outcomes


def _files(run: Path, cache: Path) -> list[tuple[str, Path]]:
    found = [
        (path.name, path)
        for path in sorted(run.iterdir())
        if path.suffix in (".pt", ".json", ".yaml", ".safetensors")
    ]
    found = [
        (name, path) for name, path in found if name not in ("checkpoint.previous.pt", "teacher.previous.pt")
    ]
    for pattern, number in (("*.npy", 2), ("*.crc32", 1), ("facts.json", 1)):
        found += [("cache", path) for path in sorted(cache.rglob(pattern))[:number]]
    return found


def _uses(run: Path, cache: Path, layer: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """What reads each file, and a value that must not change without a word."""

    def weights(name: str) -> Any:
        network = create_model("cifar/resnet8", 10)
        load_weights(network, run / name, role="exact")
        return {key: value.clone() for key, value in network.state_dict().items()}

    def resumed() -> Any:
        with folder() as copy:
            shutil.copytree(run, copy / "run")
            (copy / "run" / "record.json").unlink()
            record = distill(build_config(merge(layer, {"out": str(copy / "run")})), resume=True)
            return record["student"], [epoch["loss"] for epoch in record["epochs"]]

    def from_cache() -> Any:
        record = distill(build_config(merge(layer, {"out": None})))
        return record["student"], [epoch["loss"] for epoch in record["epochs"]]

    def correction() -> Any:
        return {
            key: value.clone()
            for key, value in BiasCorrection.load(run / "correction.safetensors").state_dict().items()
        }

    return {
        "checkpoint.pt": resumed,
        "teacher.pt": resumed,
        "record.json": lambda: read_record(run / "record.json").as_dict(),
        "config.yaml": lambda: build_config(load_config(run / "config.yaml")),
        "student.safetensors": lambda: weights("student.safetensors"),
        "teacher.safetensors": lambda: weights("teacher.safetensors"),
        "correction.safetensors": correction,
        "cache": from_cache,
    }


def _damaged(content: bytes, kind: str, chance: random.Random) -> bytes:
    if kind == "emptied":
        return b""
    if kind == "truncated":
        return content[: chance.randrange(len(content))]
    flipped = bytearray(content)
    for _ in range(chance.choice([1, 8])):
        flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
    return bytes(flipped)


def _outcome(use: Callable[[], Any], expected: Any) -> str:
    """``same``, ``refused``, ``refused, vague``, ``other result`` or ``traceback``."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = use()
        except ValueError as error:
            return "refused" if three_parts(str(error)) else "refused, vague"
        except Exception:
            return "traceback"
    if _equal(result, expected):
        return "same"
    said = any("damaged" in str(w.message) or "changed" in str(w.message) for w in caught)
    return "rebuilt" if said else "other result"


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    return bool(a == b)


def configurations(number: int, seed: int = 0) -> Counter[str]:
    """Random configurations on digits: each runs, or is refused with three parts, or diverges and says so."""
    chance, outcomes = random.Random(seed), Counter[str]()
    teacher = create_model("cifar/resnet8", 10)
    for turn in range(number):
        layer = random_configuration(chance)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                record = distill(build_config(layer), teacher=teacher if turn % 2 else None)
                outcome = "ran" if all_finite(record) else "not finite in the record"
            except ValueError as error:
                outcome = "refused" if three_parts(str(error)) else "refused, vague"
                if outcome == "refused, vague":
                    print("vague:", error, file=sys.stderr)
            except NonFiniteLoss:
                outcome = "diverged, said"
            except Exception as error:
                outcome = "traceback"
                print("traceback:", type(error).__name__, error, layer, file=sys.stderr)
        outcomes[outcome] += 1
    return outcomes


def random_configuration(chance: random.Random) -> dict[str, Any]:
    """A few fields of a configuration, ordinary or extreme."""

    def some(**choices: list[Any]) -> dict[str, Any]:
        return {key: chance.choice(values) for key, values in choices.items() if chance.random() < 0.4}

    losses = [
        *LOSSES,
        "kd + 0.1*fitnet",
        "dkd(beta=0)",
        "kd(1e-3)",
        "standardize(base='dkd')",
        "kd + crd(dim=4, negatives=8)",
    ]
    rules = [*RULES, "lead(margin=1)", "boost(delta=1000)", "project(margin=5)"]
    return {
        "data": {
            "source": "digits",
            "workers": 0,
            **some(train_rows=[1, 2, 3, 17, 64, 100_000], val_fraction=[0.0, 0.3, 0.999], size=[1, 7, 8, 16]),
            "augment": some(
                crop_padding=[0, 1, 50],
                flip=[True, False],
                cutout=[0, 3, 99],
                randaugment=[0.0, 0.5, 1.0, 3.0],
                mixup=[0.0, 0.2, 50.0],
                cutmix=[0.0, 1.0],
                resized_crop=[None, (0.1, 1.0), (1.0, 0.1), (-1.0, 2.0)],
                padding=["zero", "reflect"],
            ),
        },
        "teacher": {
            "name": "cifar/resnet8",
            "train": True,
            **some(
                rows=["same", "disjoint"],
                correct=["auto", "always", "never"],
                fold=[True, False],
                correct_views=[1, 2],
            ),
        },
        "student": {"name": "cifar/resnet8", **some(input_size=[1, 8, 16])},
        "method": some(
            preset=list(PRESETS),
            loss=losses,
            rule=rules,
            schedule=[*SCHEDULES, "step(at=0.5)", "warmup(until=2)"],
            temperature=[1e-4, 0.5, 4.0, 1e4],
            weight=[0.0, -1.0, 1.0, 1e6],
            task_weight=[0.0, 1.0, 1e6],
            normalize=["rows", "subset"],
        ),
        "train": {
            "epochs": 1,
            "max_steps": 2,
            **some(
                batch_size=[1, 2, 5, 64, 1000],
                accumulate=[1, 2, 3],
                ema=[0.001, 0.9, 0.99999],
                label_smoothing=[0.0, 0.1, 0.999],
                class_weights=["balanced", {"0": 0.0}, {"3": 1e6}, {"cat": 1.0}],
                sampling=["uniform", "balanced"],
                head_lr=[1e-12, 0.5, 1e8],
                layer_decay=[1e-9, 0.7, 1.0],
                optimizer=["sgd", "adamw"],
                lr=[1e-12, 0.05, 1e8],
                momentum=[0.0, 0.999],
                weight_decay=[0.0, 10.0],
                lr_schedule=["step", "cosine", "one_cycle", "constant"],
                warmup=[0.0, 0.99],
                clip=[None, 1e-8],
                channels_last=[True, False],
                progress=["epoch", "step"],
                eval_every=[1, 100],
                checkpoint_steps=[1],
            ),
        },
        "teacher_train": {"epochs": 1, "max_steps": 1, **some(batch_size=[1, 64], lr=[0.05, 1e8])},
        "seed": chance.choice([0, 7, 2**31]),
    }


def all_finite(content: Any) -> bool:
    """Whether no number in ``content`` is infinite or NaN."""
    if isinstance(content, dict):
        return all(all_finite(value) for value in content.values())
    if isinstance(content, list | tuple):
        return all(all_finite(value) for value in content)
    return not isinstance(content, float) or math.isfinite(content)


def soak(steps: int) -> Counter[str]:
    """Many steps in one process, with a checkpoint and an evaluation now and then: memory and handles stay flat."""
    with folder() as root:
        per_epoch, start = 100, {}

        class Watch:
            def __init__(self) -> None:
                self.memory: list[int] = []
                self.handles: list[int] = []

        from outgrow.training.progress import Reporter

        watch = Watch()

        class Probe(Reporter):
            def event(self, kind: str, **values: Any) -> None:
                if kind == "epoch":
                    gc.collect()
                    watch.memory.append(_resident())
                    watch.handles.append(len(os.listdir("/proc/self/fd")))

        layer = merge(
            BASE,
            {
                "data": {"train_rows": per_epoch * 8},
                "train": {"epochs": max(4, steps // per_epoch), "batch_size": 8, "checkpoint_steps": 50},
                "method": {"preset": "paper"},
                "out": str(root / "run"),
            },
        )
        distill(build_config(layer), reporter=Probe())
        assert start == {}
    students = watch.memory[2:]  # the teacher's epoch and the student's first fill the pools
    grown = max(students[len(students) // 2 :]) - max(students[: len(students) // 2])
    handles = max(watch.handles[2:]) - watch.handles[1]
    flat = grown < 16 << 20 and handles <= 0
    return Counter({"flat" if flat else f"grew by {grown >> 20} MiB and {handles} handles": 1})


def _resident() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) << 10
    return 0


PARTS: dict[str, tuple[Callable[[int], Counter[str]], int]] = {
    "kills": (kills, 24),
    "damage": (damage, 210),
    "configurations": (configurations, 150),
    "soak": (soak, 2000),
}
"""Each part, and how much of it at scale 1."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    args = parser.parse_args()
    started, found = time.time(), {}
    for name in args.only:
        part, size = PARTS[name]
        counts = part(max(1, round(size * args.scale)))
        found[name] = dict(counts.most_common())
        bad = sum(number for outcome, number in counts.items() if is_bad(outcome))
        print(
            f"{name}: {', '.join(f'{number} {outcome}' for outcome, number in counts.most_common())}; {bad} bad",
            flush=True,
        )
        if args.out is not None:
            args.out.write_text(
                json.dumps({"result": found, **provenance(torch.device("cpu"), started)}, indent=1)
            )


if __name__ == "__main__":
    main()
