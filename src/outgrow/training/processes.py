"""The processes of a distributed run: ranks, groups, and collective helpers."""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from outgrow.data.randomness import bits_at

TIMEOUT = timedelta(minutes=10)
"""Timeout of collectives. The first step of a compiled network takes minutes."""

T = TypeVar("T")


def process_group() -> dist.ProcessGroup | None:
    """The group of all processes of a distributed run; None in a run of one process."""
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return dist.group.WORLD if several else None


def launched() -> int:
    """The number of processes that a launcher (torchrun, accelerate launch) has set; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def rank() -> int:
    """This process's rank among all."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank()
    return int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Whether this process writes files and prints."""
    return rank() == 0


def rank_and_size(group: dist.ProcessGroup | None) -> tuple[int, int]:
    """This process's rank in ``group`` and the number of processes; 0 and 1 without a group."""
    return (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))


def on_main(work: Callable[[], T]) -> T | None:
    """Call ``work`` on the main process only; its exception is raised on all. Returns None on the others."""
    if process_group() is None:
        return work()
    result, error = None, None
    if is_main():
        try:
            result = work()
        except Exception as raised:
            error = raised
    errors = [error]
    dist.broadcast_object_list(errors, src=0)
    if errors[0] is not None:
        raise errors[0]
    return result


def mean(value: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The mean over the processes; ``value`` itself without a group."""
    if group is None:
        return value
    value = value.clone()
    dist.all_reduce(value, group=group)
    return value / dist.get_world_size(group)


def seed_step(seed: int, step: int, group: dist.ProcessGroup | None) -> None:
    """Seed the generators from the seed, the step and the rank, so that their state need not be saved. Processes
    draw different numbers, and a resumed run draws the same ones. With one process nothing is done."""
    if group is not None:
        torch.manual_seed(bits_at(seed, step, dist.get_rank(group), 0) >> 1)


def leave() -> None:
    """Leave the process group at the end of a run, after the main process has written its files."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
