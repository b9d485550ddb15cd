"""(e) Scaling: time of the objective by classes and rows, and of a training step by batch and image size.

    python -m benchmarks.growth [--device cpu|cuda] [--threads 2]

Random images, small networks.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch

from benchmarks import objective
from benchmarks.throughput import arguments
from benchmarks.turns import Worker, ratio, rounds, summary
from benchmarks.ways import Task

ELEMENTS = 2**22
CLASSES = (100, 1_000, 10_000, 32_000)
ROWS = (64, 512, 4096)
PAIR = ("cifar/resnet20", "cifar/resnet8")
SETTINGS = tuple((batch, size) for size in (32, 64) for batch in (32, 64, 128, 256))
"""Batch, side."""


def of_objective(device: str = "cpu", *, repeat: int = 12) -> list[dict[str, Any]]:
    """The objective alone: classes at a fixed number of elements, then rows at 100 classes."""
    shapes = [(ELEMENTS // classes, classes, repeat) for classes in CLASSES]
    shapes += [(rows, 100, 10 * repeat) for rows in ROWS]
    return objective.measure(device, shapes, ways=("plain", "ours"), dtypes=(torch.float32,))


def of_step(
    device: str = "cpu",
    *,
    settings: Sequence[tuple[int, int]] = SETTINGS,
    pair: tuple[str, str] = PAIR,
    images: int = 512,
    repeat: int = 3,
    threads: int | None = None,
) -> list[dict[str, Any]]:
    """Milliseconds a step; ``images`` of them make a turn."""
    rows = []
    with ExitStack() as stack:
        workers = {way: stack.enter_context(Worker(threads)) for way in ("plain", "ours")}
        for batch, size in settings:
            steps = max(1, images // batch)
            num = max(images, batch) * (repeat + 1)
            for way, worker in workers.items():
                worker.start(Task(way, *pair, num=num, size=size, batch=batch, device=device))
            readings = rounds(workers, steps=steps, repeat=repeat)
            for worker in workers.values():
                worker.stop()
            result = {way: summary(values, steps) for way, values in readings.items()}
            faster = ratio(readings, "ours", "plain")
            rows.append({"batch": batch, "size": size, "ways": result, "ratio": faster})
            print(
                f"batch {batch:>4}, {size} x {size}: "
                + ", ".join(f"{way} {1000 / value['rate']:8.1f} ms" for way, value in result.items())
                + f", {faster['ratio']:.2f}x ({faster['low']:.2f} to {faster['high']:.2f})",
                flush=True,
            )
    return rows


if __name__ == "__main__":
    parsed = arguments(__doc__).parse_args()
    of_objective(parsed.device)
    of_step(parsed.device, threads=parsed.threads)
