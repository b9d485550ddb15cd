"""Ways of training that take turns: each has its own long-lived process, and only one runs at a time.

    with Worker(threads=2) as one, Worker(threads=2) as other:
        one.start(task)                     # builds, and stops before its first step
        other.start(another)
        readings = rounds({"one": one, "other": other}, steps=8, repeat=5)

Separate processes are needed as a trainer may set the allocator of its process. They are long-lived as starting
takes longer than the measurement. A way calls its :class:`Turn` after every step, and waits in that call while
the others are measured. So each measurement is of a running training with warm caches.
"""

import multiprocessing
import resource
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch


class Over(Exception):
    """The parent has seen enough of this task."""


@dataclass(frozen=True)
class Reading:
    """One turn. ``cpu`` is of all threads of the process, without a DataLoader's workers; ``peak`` is the most
    memory so far, in bytes: the process's own, or on a GPU what was allocated there."""

    seconds: float
    cpu: float
    peak: int


class Turn:
    """The way's side: ``ready()`` once before the first step, then a call after each."""

    def __init__(self, pipe: Connection, device: str) -> None:
        self.pipe, self.device, self.left = pipe, device, 0
        self.clock = self.cpu = 0.0
        self.before = memory(device)[0]

    def ready(self) -> None:
        self.pipe.send(self.before)
        self._wait()

    def __call__(self) -> None:
        self.left -= 1
        if self.left:
            return
        synchronize(self.device)
        seconds, cpu = time.perf_counter() - self.clock, time.process_time() - self.cpu
        self.pipe.send(Reading(seconds, cpu, memory(self.device)[1]))
        self._wait()

    def _wait(self) -> None:
        steps = self.pipe.recv()
        if steps is None:
            raise Over
        self.left = steps
        synchronize(self.device)
        self.clock, self.cpu = time.perf_counter(), time.process_time()


class Worker:
    """The parent's side: a process that runs one task after another."""

    def __init__(self, threads: int | None = None) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, threads))
        self.process.start()
        other.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, task: Any) -> int:
        """Build ``task``, a callable with a ``device`` that takes a Turn, up to its first step; what the
        process held before that, in bytes."""
        self.pipe.send(task)
        return self._answer()

    def step(self, steps: int) -> Reading:
        self.pipe.send(steps)
        return self._answer()

    def stop(self) -> None:
        """End the task; another can be started."""
        self.pipe.send(None)
        self._answer()

    def close(self) -> None:
        self.pipe.close()  # its next use of the pipe fails, which ends it
        self.process.join(20)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()

    def _answer(self) -> Any:
        try:
            answer = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            raise RuntimeError("a benchmark's process died") from None
        if isinstance(answer, str):
            raise RuntimeError(f"in a benchmark's process:\n{answer}")
        return answer


def _serve(pipe: Connection, threads: int | None) -> None:
    # a DataLoader here starts its workers as in any program, not as this process was started
    multiprocessing.set_start_method(None, force=True)  # type: ignore[arg-type]
    if threads is not None:
        torch.set_num_threads(threads)
    with suppress(EOFError, BrokenPipeError):  # the parent has gone
        while True:
            task: Callable[[Turn], None] = pipe.recv()
            try:
                task(Turn(pipe, task.device))  # type: ignore[attr-defined]
                raise RuntimeError("the task ended before its last turn")
            except Over:
                pipe.send(0)
            except (EOFError, BrokenPipeError):
                raise
            except Exception:
                pipe.send(traceback.format_exc())


def rounds(workers: Mapping[str, Worker], *, steps: int, repeat: int) -> dict[str, list[Reading]]:
    """``repeat`` turns of ``steps`` steps for each worker, interleaved; round 0 warms up."""
    readings: dict[str, list[Reading]] = {name: [] for name in workers}
    for number in range(repeat + 1):
        for name, worker in workers.items():
            reading = worker.step(steps)
            if number:
                readings[name].append(reading)
        print(f"  round {number} of {repeat}", file=sys.stderr, flush=True)
    return readings


def summary(readings: list[Reading], amount: float) -> dict[str, Any]:
    """Rates of ``amount`` a turn: the median, its range, how many turns, CPU seconds and peak memory."""
    rates = [amount / reading.seconds for reading in readings]
    return {
        "rate": statistics.median(rates),
        "low": min(rates),
        "high": max(rates),
        "n": len(rates),
        "cpu_rate": statistics.median(amount / reading.cpu for reading in readings),
        "peak_bytes": readings[-1].peak,
    }


def ratio(readings: Mapping[str, list[Reading]], name: str, other: str) -> dict[str, float]:
    """How much faster ``name`` is than ``other``: of medians, and the range over rounds."""
    pairs = [b.seconds / a.seconds for a, b in zip(readings[name], readings[other], strict=True)]
    medians = [statistics.median(r.seconds for r in readings[key]) for key in (other, name)]
    return {"ratio": medians[0] / medians[1], "low": min(pairs), "high": max(pairs)}


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def memory(device: str) -> tuple[int, int]:
    """Bytes held now and at most so far."""
    if device.startswith("cuda"):
        return torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.is_file():  # ru_maxrss would count the parent's pages at the time of the start
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return tuple(1024 * int(fields[key].split()[0]) for key in ("VmRSS", "VmHWM"))  # type: ignore[return-value]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak, peak
