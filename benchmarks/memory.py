"""Peak memory of a step, from the profiler's record of allocations, not from the size of the process."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


def peak_extra_bytes(
    way: Callable[[Tensor, Tensor, Tensor], None], student: Tensor, teacher: Tensor, label: Tensor
) -> int:
    """The most that is allocated at once during a step, beyond what was there before, the gradient included."""
    if student.device.type != "cpu":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        way(student, teacher, label)
        torch.cuda.synchronize()
        student.grad = None
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, record_shapes=False) as profiler:
        way(student, teacher, label)
    student.grad = None
    results = profiler.profiler.kineto_results if profiler.profiler is not None else None
    assert results is not None
    now = peak = 0
    for event in results.events():  # in the order of time; each allocation and release with its bytes
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak
