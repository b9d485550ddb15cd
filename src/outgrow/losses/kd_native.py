"""The pass of :mod:`outgrow.losses.kd_fast` in C (``kd_native.c``).

Built by :mod:`outgrow.native`; without a compiler the pass is :mod:`outgrow.losses.kd_walk`'s.
"""

import ctypes
import functools
import math
import os
import subprocess
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from outgrow.knowledge.boost import Boost
from outgrow.knowledge.lead import Lead
from outgrow.knowledge.pair import Pair
from outgrow.knowledge.swap import Swap
from outgrow.native import build
from outgrow.outputs import Rule

SOURCE = Path(__file__).with_name("kd_native.c")
FLAGS = ("-fopenmp-simd",)
SHARE = 1 << 18
"""Elements below which a second thread is not worth waking."""


def parameters(rule: Rule, temperature: float) -> tuple[int, float]:
    """The rule's number in ``kd_native.c`` and what it depends on."""
    if isinstance(rule, Pair):
        return 1, 0.0
    if isinstance(rule, Swap):
        return 2, 0.0
    if isinstance(rule, Lead):
        return 3, rule.margin
    if isinstance(rule, Boost):
        return 4, math.exp(rule.delta / temperature)
    return 0, 0.0


def takes(student: Tensor, teacher: Tensor, weight: Tensor) -> bool:
    """Whether these suit it: float32, the matrices each in one piece."""
    return (
        student.dtype == teacher.dtype == weight.dtype == torch.float32
        and student.is_contiguous()
        and teacher.is_contiguous()
        and library() is not None
    )


def rows(
    student: Float[Tensor, "rows classes"],
    teacher: Float[Tensor, "rows classes"],
    label: Int[Tensor, " rows"],
    wrong: Bool[Tensor, " rows"],
    task_weight: Float[Tensor, " rows"],
    kd_weight: Float[Tensor, " rows"],
    rule: Rule,
    temperature: float,
    gradient: Float[Tensor, "rows classes"] | None,
) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"]]:
    """Cross-entropy and ``KL`` row by row; fills ``gradient`` where there is one."""
    call, (num_rows, classes) = library(), student.shape
    assert call is not None
    number, parameter = parameters(rule, temperature)
    label, wrong = label.long().contiguous(), wrong.contiguous()
    threads = max(1, min(torch.get_num_threads(), num_rows, student.numel() // SHARE))
    buffer = torch.empty(threads, 3 * classes)
    task, kl = torch.empty(2, num_rows).unbind(0)
    each = -(-num_rows // threads)

    def part(thread: int) -> None:
        at = thread * each
        last = min(num_rows - at, each)
        if last <= 0:
            return
        matrix, row = at * classes * 4, at * 4
        call(
            teacher.data_ptr() + matrix,
            student.data_ptr() + matrix,
            label.data_ptr() + 8 * at,
            wrong.data_ptr() + at,
            task_weight.data_ptr() + row,
            kd_weight.data_ptr() + row,
            last,
            classes,
            number,
            parameter,
            temperature,
            buffer.data_ptr() + thread * 12 * classes,
            task.data_ptr() + row,
            kl.data_ptr() + row,
            None if gradient is None else gradient.data_ptr() + matrix,
        )

    if threads == 1:
        part(0)
    else:  # a call into C lets go of the interpreter, so plain threads run side by side
        list(_pool(threads).map(part, range(threads)))
    return task, kl


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="outgrow-kd")


if hasattr(os, "register_at_fork"):  # a forked child has none of its parent's threads
    os.register_at_fork(after_in_child=_pool.cache_clear)


def library() -> Callable[..., Any] | None:
    """The C function, built where it is not kept yet; None where it cannot be built."""
    return _library()[0]


@functools.cache
def say_if_missing() -> None:
    """For whoever asked for it by name: a warning, once, where there is no compiler."""
    call, reason = _library()
    if call is None:
        warnings.warn(
            f"kd: fast='compiled' needs a C compiler (gcc, clang or $CC), got {reason[:300]}; "
            "goes on with the eager pass.",
            stacklevel=2,
        )


@functools.cache
def _library() -> tuple[Callable[..., Any] | None, str]:
    """The C function, or None and why there is none."""
    try:
        call = ctypes.CDLL(str(build(SOURCE, FLAGS))).kd_rows
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        return None, str(getattr(error, "stderr", None) or error)
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    kinds = [pointer] * 6 + [number] * 2 + [ctypes.c_int32] + [ctypes.c_double] * 2 + [pointer] * 4
    call.argtypes, call.restype = kinds, None
    return call, ""
