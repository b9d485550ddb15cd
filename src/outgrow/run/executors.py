"""Where the runs of a comparison run: here, or on an engine that exists. None of them schedules anything of its own.

local       one after the other in this process; with more workers, in as many processes
ray         on a Ray cluster: ``ray(address='auto', num_gpus=1)``; options are those of ``ray.remote``
submitit    on Slurm: ``submitit(slurm_partition='gpu', timeout_min=600)``; options are submitit's parameters, and
            ``cluster`` chooses 'slurm', 'local' or 'debug'

Results lie in folders, which all machines must see under the same path.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from outgrow import spec

T = TypeVar("T")
Function = Callable[[Any], str | None]
NAMES = ("local", "ray", "submitit")
POLL = 0.5
"""Seconds between looks at jobs elsewhere."""


@runtime_checkable
class Executor(Protocol):
    """``threads`` is what each worker computes with; None leaves this process as it is. ``here``: work is done in
    this process, so that its progress can be seen."""

    threads: int | None
    here: bool

    def map(self, function: Function, jobs: Sequence[T]) -> Iterator[tuple[T, str | None]]:
        """Jobs and what came of them, in the order in which they end."""
        ...


def make_executor(text: str, *, workers: int, folder: Path) -> Executor:
    """An executor by name, with options: ``ray(num_gpus=1)``. ``folder`` is for its logs."""
    calls = spec.parse(text)
    call = calls[0]
    if len(calls) != 1 or call.name not in NAMES or call.positional:
        raise ValueError(
            f"--executor: needs one of {', '.join(NAMES)}, with options by name such as ray(num_gpus=1), got {text!r}."
        )
    if call.name == "local":
        if call.arguments:
            raise ValueError(
                f"--executor local: needs no options, got {', '.join(call.arguments)}; --workers says how many processes."
            )
        return Here() if workers == 1 else Processes(workers)
    if call.name == "ray":
        return OnRay(workers, dict(call.arguments))
    return OnSubmitit(workers, dict(call.arguments), folder)


class Here:
    """In this process, one after the other."""

    threads: int | None = None
    here = True

    def map(self, function: Function, jobs: Sequence[T]) -> Iterator[tuple[T, str | None]]:
        for job in jobs:
            yield job, function(job)


class Processes:
    """In processes of this machine, which share its cores."""

    here = False

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.threads: int | None = max(1, (os.cpu_count() or 1) // workers)

    def map(self, function: Function, jobs: Sequence[T]) -> Iterator[tuple[T, str | None]]:
        from concurrent.futures import ProcessPoolExecutor, as_completed
        from multiprocessing import get_context

        if not jobs:
            return
        # fresh processes: a fork would take over torch's threads, and a device
        pool = ProcessPoolExecutor(min(self.workers, len(jobs)), mp_context=get_context("spawn"))
        try:
            running = {pool.submit(function, job): job for job in jobs}
            for future in as_completed(running):
                yield running[future], _result(future.result)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class OnRay:
    """Tasks of a Ray cluster: a started one (``address='auto'``), or one on this machine."""

    here = False

    def __init__(self, workers: int, options: dict[str, Any]) -> None:
        _need("ray")
        self.workers = workers
        self.address = options.pop("address", None)
        self.options: dict[str, Any] = {"num_cpus": 1, **options}
        self.threads: int | None = max(1, int(self.options["num_cpus"]))

    def map(self, function: Function, jobs: Sequence[T]) -> Iterator[tuple[T, str | None]]:
        import ray

        own = not ray.is_initialized()
        if own:
            size = (
                {}
                if self.address
                else {"num_cpus": self.workers * self.options["num_cpus"], "include_dashboard": False}
            )
            ray.init(address=self.address, log_to_driver=False, logging_level="error", **size)
        try:
            remote = ray.remote(**self.options)(_called)
            running = {remote.remote(function, job): job for job in jobs}
            while running:
                done, _ = ray.wait(list(running), num_returns=1)
                job = running.pop(done[0])
                yield job, _result(partial(ray.get, done[0]))
        finally:
            if own:
                ray.shutdown()


class OnSubmitit:
    """Jobs of Slurm, one a run, as many at a time as there are workers."""

    here = False

    def __init__(self, workers: int, options: dict[str, Any], folder: Path) -> None:
        _need("submitit")
        self.workers, self.folder = workers, folder
        self.cluster = options.pop("cluster", None)
        self.options: dict[str, Any] = {"cpus_per_task": 1, "timeout_min": 24 * 60, **options}
        self.threads: int | None = max(1, int(self.options["cpus_per_task"]))

    def map(self, function: Function, jobs: Sequence[T]) -> Iterator[tuple[T, str | None]]:
        import submitit

        executor = submitit.AutoExecutor(folder=self.folder, cluster=self.cluster)
        slurm = executor.cluster == "slurm"
        if slurm:
            executor.update_parameters(slurm_array_parallelism=self.workers)
        executor.update_parameters(**self.options)
        waiting, running = list(jobs), []
        if slurm:  # its array holds the rest back
            running = list(zip(executor.map_array(function, waiting), waiting, strict=True))
            waiting = []
        while waiting or running:
            while waiting and len(running) < self.workers:
                job = waiting.pop(0)
                running.append((executor.submit(function, job), job))
            # a debug job runs when it is asked for its result
            done = [one for one in running if executor.cluster == "debug" or one[0].done()]
            if not done:
                time.sleep(POLL)
            for one in done:
                running.remove(one)
                yield one[1], _result(one[0].result)


def _called(function: Function, job: Any) -> str | None:
    return function(job)


def _result(get: Callable[[], str | None]) -> str | None:
    """What came of a job; a worker that died is a failure of this job alone."""
    try:
        return get()
    except Exception as error:
        first = (str(error).strip() or "no message").splitlines()[0]
        return f"its worker failed, {type(error).__name__}: {first}"


def _need(package: str) -> None:
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise ValueError(
            f"--executor {package}: needs the package {package}, got none installed; pip install 'outgrow[sweep]', or "
            "leave --executor out to run here."
        )
