"""(a) Rectified KD against plain KD: one thread, interleaved, medians and ratios from one run.

``ours`` is ``rectify`` plus ``objective`` plus ``backward`` of the ``paper`` preset. ``plain`` is the
usual code: ``T^2 F.kl_div`` on two softmaxes plus ``F.cross_entropy``, uncorrected. ``reference`` is ours
without the fast path. ``eager`` is the fast path without a C compiler. Each is measured with float32 and with
bfloat16 logits, as in mixed precision.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

import outgrow
from benchmarks.memory import peak_extra_bytes

SHAPES = ((512, 100, 200), (4096, 1000, 25), (8192, 32000, 3))
"""Rows, classes, repetitions."""
DTYPES = (torch.float32, torch.bfloat16)
WAYS = ("plain", "ours", "eager", "reference")
TEMPERATURE = 4.0


def plain(student: Tensor, teacher: Tensor, label: Tensor) -> None:
    kd = F.kl_div(
        F.log_softmax(student / TEMPERATURE, 1), F.softmax(teacher / TEMPERATURE, 1), reduction="batchmean"
    )
    (F.cross_entropy(student, label) + TEMPERATURE**2 * kd).backward()


def ours(fast: bool | Literal["eager", "compiled"]) -> Callable[[Tensor, Tensor, Tensor], None]:
    rectify, objective = outgrow.preset("paper")
    objective.fast = fast

    def run(student: Tensor, teacher: Tensor, label: Tensor) -> None:
        objective(student, rectify(teacher, label), label, 0.3).total.backward()

    return run


def measure(
    device: str = "cpu",
    shapes: Any = SHAPES,
    *,
    ways: Sequence[str] = WAYS,
    dtypes: Sequence[torch.dtype] = DTYPES,
) -> list[dict[str, Any]]:
    """A row per shape and type of the logits; ratios are of medians."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = []
    for (num_rows, classes, repeat), dtype in itertools.product(shapes, dtypes):
        generator = torch.Generator().manual_seed(0)
        student = torch.randn(num_rows, classes, generator=generator).to(device, dtype).requires_grad_()
        teacher = (3 * torch.randn(num_rows, classes, generator=generator)).to(device, dtype)
        label = torch.randint(classes, (num_rows,), generator=generator).to(device)
        right = torch.rand(num_rows, generator=generator).to(device) < 0.7
        label = torch.where(right, teacher.argmax(1), label)
        made = {
            "plain": plain,
            "ours": ours(True),
            "eager": ours("eager"),
            "reference": ours(False),
        }
        made = {name: made[name] for name in ways}
        times: dict[str, list[float]] = {name: [] for name in made}
        for round_ in range(repeat + 1):
            for name, way in made.items():
                if device != "cpu":
                    torch.cuda.synchronize()
                start = time.perf_counter()
                way(student, teacher, label)
                if device != "cpu":
                    torch.cuda.synchronize()
                if round_:  # the first warms up
                    times[name].append(time.perf_counter() - start)
                student.grad = None
        median = {name: statistics.median(values) for name, values in times.items()}
        memory = {
            name: peak_extra_bytes(way, student, teacher, label) / student.nbytes
            for name, way in made.items()
        }
        ratio = {name: value / median["plain"] for name, value in median.items() if name != "plain"}
        rows.append(
            {
                "rows": num_rows,
                "classes": classes,
                "dtype": str(dtype).removeprefix("torch."),
                "n": repeat,
                **{f"{name}_ms": 1000 * value for name, value in median.items()},
                "low_ms": {name: 1000 * min(values) for name, values in times.items()},
                "high_ms": {name: 1000 * max(values) for name, values in times.items()},
                "ratio": ratio,
                "memory_in_gradients": memory,
            }
        )
        print(
            f"{num_rows:>5} x {classes:<6} {rows[-1]['dtype']:<9}"
            + ", ".join(f"{name} {1000 * value:.2f} ms" for name, value in median.items())
            + "; over plain: "
            + ", ".join(f"{name} {value:.2f}" for name, value in ratio.items())
            + "; peak memory in gradients: "
            + ", ".join(f"{name} {value:.2f}" for name, value in memory.items()),
            flush=True,
        )
    torch.set_num_threads(threads)
    return rows


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    measure()


if __name__ == "__main__":
    main()
