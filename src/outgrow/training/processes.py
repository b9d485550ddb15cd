"""The processes of a distributed run."""

import torch.distributed as dist


def process_group() -> dist.ProcessGroup | None:
    """All processes of a distributed run; None in a run of one process."""
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return dist.group.WORLD if several else None


def is_main() -> bool:
    """Whether this process writes files."""
    return process_group() is None or dist.get_rank() == 0


def rank_and_size(group: dist.ProcessGroup | None) -> tuple[int, int]:
    """This process's rank in ``group`` and the number of processes; 0 and 1 without a group."""
    return (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))
