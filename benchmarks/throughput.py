"""(b, d) A distillation step end to end: images per second and peak memory, each way in its own process.

    python -m benchmarks.throughput [--data parquet:PATH --label fine_label] [--device cpu|cuda] [--threads 2]

The ways are in :mod:`benchmarks.ways`. Rates are medians over interleaved rounds. Ratios are within one run.
"""

import argparse
import importlib.util
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from benchmarks.turns import Worker, ratio, rounds, summary
from benchmarks.ways import Task

PAIRS = (("cifar/resnet32x4", "cifar/resnet8x4"), ("cifar/wrn_40_2", "cifar/wrn_16_2"))
WAYS = ("plain", "torchdistill", "ours", "cached", "apart", "student")
BATCH = 64


def measure(
    device: str = "cpu",
    *,
    data: str = "random",
    label: str | None = None,
    pairs: Sequence[tuple[str, str]] = PAIRS,
    ways: Sequence[str] = WAYS,
    steps: int = 8,
    repeat: int = 5,
    batch: int = BATCH,
    num: int = 50_000,
    workers: int = 2,
    threads: int | None = None,
) -> list[dict[str, Any]]:
    """A row per pair: rates, peak memory and ratios. ``repeat`` rounds of ``steps`` steps after one to warm up."""
    needed = steps * (repeat + 1)
    if needed > num // batch:
        raise ValueError(
            f"throughput: needs one epoch of at least {needed} steps, got {num // batch}; raise num or lower steps."
        )
    if importlib.util.find_spec("torchdistill") is None and "torchdistill" in ways:
        print("torchdistill is not installed (the extra `peers`): left out")
        ways = [way for way in ways if way != "torchdistill"]
    rows = []
    for teacher, student in pairs:
        common: dict[str, Any] = {
            "teacher": teacher,
            "student": student,
            "data": data,
            "label": label,
            "num": num,
            "batch": batch,
            "device": device,
            "workers": workers,
        }
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            opened = {way: stack.enter_context(Worker(threads)) for way in ways}  # they start side by side
            if {"cached", "apart"} & set(ways):
                with started(Task("fill", **common, cache=folder, batches=needed), threads) as (filler, _):
                    filler.step(1)
            tasks = {
                way: Task(way, **common, cache=folder if way in ("cached", "apart") else None) for way in ways
            }
            start_bytes = {way: worker.start(tasks[way]) for way, worker in opened.items()}
            readings = rounds(opened, steps=steps, repeat=repeat)
        result = {
            way: {**summary(readings[way], steps * batch), "start_bytes": start_bytes[way]} for way in ways
        }
        ratios = {
            f"{way} / {other}": ratio(readings, way, other)
            for way in ("ours", "cached")
            for other in ("plain", "torchdistill", "apart", "student")
            if {way, other} <= set(ways) and (way, other) != ("ours", "apart")
        }
        row = {"teacher": teacher, "student": student, "batch": batch, "steps": steps}
        rows.append({**row, "ways": result, "ratios": ratios})
        print(f"{teacher} to {student}, batch {batch}, {repeat} rounds of {steps} steps")
        for way, value in result.items():
            print(
                f"  {way:<13}{value['rate']:8.1f} images/s ({value['low']:.1f} to {value['high']:.1f}), "
                f"{value['cpu_rate']:8.1f} a CPU second, peak {value['peak_bytes'] / 2**20:6.0f} MiB "
                f"({(value['peak_bytes'] - value['start_bytes']) / 2**20:.0f} over what was imported)"
            )
        for name, value in ratios.items():
            print(
                f"  {name:<22}{value['ratio']:6.2f}x ({value['low']:.2f} to {value['high']:.2f})", flush=True
            )
    return rows


@contextmanager
def started(task: Task, threads: int | None) -> Iterator[tuple[Worker, int]]:
    """A worker before the first step of ``task``, and what its process held before that, in bytes."""
    with Worker(threads) as worker:
        yield worker, worker.start(task)


def arguments(description: str | None) -> argparse.ArgumentParser:
    """What all measurements of training steps take."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="random", help="as `outgrow distill --data`; random images without")
    parser.add_argument("--label")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="of each process; torch's choice without")
    parser.add_argument("--repeat", type=int, default=5, help="rounds of training steps")
    return parser


if __name__ == "__main__":
    parsed = arguments(__doc__).parse_args()
    measure(parsed.device, data=parsed.data, label=parsed.label, threads=parsed.threads, repeat=parsed.repeat)
