"""Time of a training step by kind of operation, as shares of the self time of the CPU (or the GPU).

    python -m benchmarks.step_profile [--data parquet:PATH --label fine_label] [--threads 2]

It runs the trainer, with the teacher's logits from a cache (filled during warm-up) or computed in each step.
"""

import dataclasses
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.throughput import PAIRS, arguments
from benchmarks.turns import synchronize
from benchmarks.ways import Task, trainer_of
from outgrow.teacher import BaseTeacher

SCOPES = ("loader", "teacher", "rectifier", "objective", "optimizer")
KINDS = {
    "convolution, backward": ("convolution_backward",),
    "convolution, forward": ("convolution", "mkldnn_reorder"),
    "batch norm, backward": ("batch_norm_backward",),
    "batch norm, forward": ("batch_norm",),
    "relu, backward": ("threshold_backward",),
    "relu, forward": ("relu", "clamp_min"),
    "linear": ("addmm", "aten::mm"),
    "casts and copies": ("copy_", "_to_copy", "contiguous", "clone", "aten::to"),
    "sums of gradients": ("aten::add",),
    "optimizer": ("sgd",),
    "objective": ("_Rectified", "RectifiedKD", "softmax", "nll_loss", "kl_div"),
}
"""A kind and what the names of its operations contain; the first that fits."""


class _Named(BaseTeacher):
    """``inner``, whose calls a profiler sees under ``name``."""

    def __init__(self, inner: nn.Module, name: str) -> None:
        super().__init__()
        self.inner, self.name = inner, name

    def at(self, epoch: int | None) -> None:
        self.inner.at(epoch)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with record_function(self.name):
            return self.inner(*args, **kwargs)


class _NamedLoader:
    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __len__(self) -> int:
        return len(self.inner)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]:
        batches = self.inner.epoch(epoch, start)
        while True:
            with record_function("loader"):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch


def measure(
    device: str = "cpu",
    *,
    data: str = "random",
    label: str | None = None,
    pair: tuple[str, str] = PAIRS[1],
    cached: bool = True,
    steps: int = 24,
    batch: int = 64,
) -> dict[str, Any]:
    """Shares by kind, milliseconds a step, and the operations that no kind names."""
    with tempfile.TemporaryDirectory() as folder:
        task = Task(
            "cached",
            *pair,
            data,
            label,
            num=steps * batch,
            batch=batch,
            device=device,
            cache=folder,
            epochs=1,
        )
        if not cached:
            task = dataclasses.replace(task, cache=None)
        trainer_of(task).fit()  # fills the cache
        trainer = trainer_of(task)
        found = _profile(trainer, device, steps)
    found |= {"teacher": pair[0], "student": pair[1], "cached": cached, "batch": batch}
    print(f"{pair[0]} to {pair[1]}, {'cached' if cached else 'online'}, {found['ms']:.1f} ms a step:")
    for kind, share in found["shares"].items():
        print(f"  {kind:<24}{100 * share:5.1f} %")
    print(
        "  among the rest: " + ", ".join(f"{n} {100 * s:.1f} %" for n, s in found["rest"].items()), flush=True
    )
    return found


def _profile(trainer: Any, device: str, steps: int) -> dict[str, Any]:
    trainer.loader = _NamedLoader(trainer.loader)
    rectify: Callable[..., Any] = trainer.rectify

    def named(*args: Any) -> Any:
        with record_function("rectifier"):
            return rectify(*args)

    trainer.rectify = named
    inner = trainer._step
    teacher, objective = _Named(trainer.teacher, "teacher"), _Named(trainer.objective, "objective")

    trainer.teacher = teacher

    def step(accelerator: Any, student: Any, _: Any, *rest: Any) -> Any:
        return inner(accelerator, student, objective, *rest)

    trainer._step = step
    gpu = device.startswith("cuda")
    profiler = profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])])
    warm = steps // 3

    def on_step(_: int, done: int) -> None:
        number = done // trainer.config.batch_size
        if number == warm:
            synchronize(device)
            profiler.start()
        elif number == steps:
            synchronize(device)
            profiler.stop()

    trainer.on_step = on_step
    trainer.fit()
    spent: dict[str, float] = defaultdict(float)
    rest: dict[str, float] = defaultdict(float)
    for event in profiler.events():
        own = event.self_device_time_total if gpu else event.self_cpu_time_total
        kind = _kind(event)
        spent[kind] += own
        if kind == "the rest":
            rest[event.name] += own
    total = sum(spent.values())
    share = lambda values: dict(  # noqa: E731
        sorted(((k, v / total) for k, v in values.items()), key=lambda item: -item[1])
    )
    return {
        "ms": total / 1000 / (steps - warm),
        "shares": share(spent),
        "rest": dict(list(share(rest).items())[:8]),
    }


def _kind(event: Any) -> str:
    """The kind of an operation: from the scope around it, else from its name, else that of its parent."""
    parents = [event]
    while parents[-1].cpu_parent is not None:
        parents.append(parents[-1].cpu_parent)
    for parent in reversed(parents):
        if parent.name in SCOPES:
            return parent.name
    for parent in parents:
        for kind, parts in KINDS.items():
            if any(part in parent.name for part in parts):
                return kind
    return "the rest"


if __name__ == "__main__":
    parsed = arguments(__doc__).parse_args()
    if parsed.threads:
        torch.set_num_threads(parsed.threads)
    for cached in (True, False):
        measure(parsed.device, data=parsed.data, label=parsed.label, cached=cached)
