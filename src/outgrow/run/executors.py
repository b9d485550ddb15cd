"""Executors for the trainings of a comparison. Scheduling is left to Ray and Slurm.

local       one after the other in this process; with several workers, in as many processes
ray         on a Ray cluster: ``ray(address='auto', num_gpus=1)``; options are those of ``ray.remote``
submitit    on Slurm: ``submitit(slurm_partition='gpu', timeout_min=600)``; options are submitit's parameters, and
            ``cluster`` chooses 'slurm', 'local' or 'debug'

Results are written to folders, which all machines must have under the same path.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from outgrow import spec

T = TypeVar("T")
Function = Callable[[Any], str | None]
NAMES = ("local", "ray", "submitit")
POLL = 0.5
"""Seconds between checks of submitted jobs."""


@runtime_checkable
class Executor(Protocol):
    """``threads`` is the number of threads of each worker; None leaves it unchanged. ``in_process`` executors run jobs
    in this process, so that their progress can be shown."""

    threads: int | None
    in_process: bool

    def map(self, function: Function, jobs: Sequence[T]) -> Iterator[tuple[T, str | None]]:
        """Run ``function`` on each job; yield each job and the result, in the order in which they end."""
        ...


def make_executor(text: str, *, workers: int, folder: Path) -> Executor:
    """An executor by name, with options: ``ray(num_gpus=1)``. ``folder`` is for its logs."""
    calls = spec.parse(text)
    call = calls[0]
    if len(calls) != 1 or call.name not in NAMES or call.positional:
        raise ValueError(
            f"--executor: needs one of {', '.join(NAMES)}, with options by name such as ray(num_gpus=1), got {text!r}; choose one."
        )
    if call.name == "local":
        if call.arguments:
            raise ValueError(
                f"--executor local: needs no options, got {', '.join(call.arguments)}; set the number of processes with --workers."
            )
        return InProcess() if workers == 1 else Processes(workers)
    if call.name == "ray":
        return OnRay(workers, dict(call.arguments))
    return OnSubmitit(workers, dict(call.arguments), folder)


class InProcess:
    """Runs jobs in this process, one after the other."""

    threads: int | None = None
    in_process = True

    def map(self, function: Function, jobs: Sequence[T]) -> Iterator[tuple[T, str | None]]:
        for job in jobs:
            yield job, function(job)


class Processes:
    """Runs jobs in processes on this machine, which share its cores."""

    in_process = False

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.threads: int | None = max(1, (os.cpu_count() or 1) // workers)

    def map(self, function: Function, jobs: Sequence[T]) -> Iterator[tuple[T, str | None]]:
        from concurrent.futures import ProcessPoolExecutor, as_completed
        from multiprocessing import get_context

        if not jobs:
            return
        # spawn: torch's threads and CUDA do not survive a fork
        pool = ProcessPoolExecutor(min(self.workers, len(jobs)), mp_context=get_context("spawn"))
        try:
            running = {pool.submit(function, job): job for job in jobs}
            for future in as_completed(running):
                yield running[future], _result(future.result)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class OnRay:
    """Runs jobs as tasks of a Ray cluster, at most ``workers`` at a time: of a running one (``address='auto'``), or of a new
    one on this machine."""

    in_process = False

    def __init__(self, workers: int, options: dict[str, Any]) -> None:
        _require("ray")
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
            remote = ray.remote(**self.options)(_call)
            waiting = iter(jobs)
            running: dict[Any, T] = {}
            while True:
                # a cluster may have room for more than was asked for
                for job in islice(waiting, self.workers - len(running)):
                    running[remote.remote(function, job)] = job
                if not running:
                    return
                done, _ = ray.wait(list(running), num_returns=1)
                job = running.pop(done[0])
                yield job, _result(partial(ray.get, done[0]))
        finally:
            if own:
                ray.shutdown()


class OnSubmitit:
    """Runs each job as a Slurm job, at most ``workers`` at a time."""

    in_process = False

    def __init__(self, workers: int, options: dict[str, Any], folder: Path) -> None:
        _require("submitit")
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
        if slurm:  # the job array limits the number of running jobs
            running = list(zip(executor.map_array(function, waiting), waiting, strict=True))
            waiting = []
        while waiting or running:
            while waiting and len(running) < self.workers:
                job = waiting.pop(0)
                running.append((executor.submit(function, job), job))
            # a debug job runs when its result is read
            done = [one for one in running if executor.cluster == "debug" or one[0].done()]
            if not done:
                time.sleep(POLL)
            for one in done:
                running.remove(one)
                yield one[1], _result(one[0].result)


def _call(function: Function, job: Any) -> str | None:
    return function(job)


def _result(get: Callable[[], str | None]) -> str | None:
    """The result of a job. If its worker died, only this job has failed."""
    try:
        return get()
    except Exception as error:
        first = (str(error).strip() or "no message").splitlines()[0]
        return f"its worker failed, {type(error).__name__}: {first}"


def _require(package: str) -> None:
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise ValueError(
            f"--executor {package}: needs the package {package}, got none installed; pip install 'outgrow[sweep]', "
            "or leave --executor out to run in this process."
        )
