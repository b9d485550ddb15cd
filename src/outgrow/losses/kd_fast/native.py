"""The pass in C (``kd_rows.c``), built by :mod:`outgrow.machine.native`; float32 alone."""

import ctypes
import functools
import os
import subprocess
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from outgrow.knowledge.boost import Boost
from outgrow.knowledge.drop import Drop
from outgrow.knowledge.identity import Identity
from outgrow.knowledge.lead import Lead
from outgrow.knowledge.pair import Pair
from outgrow.knowledge.swap import Swap
from outgrow.losses.kd_fast.batch import Batch, Sums
from outgrow.machine.native import build
from outgrow.outputs import Rule

SOURCE = Path(__file__).with_name("kd_rows.c")
FLAGS = ("-fopenmp-simd",)
RULES: dict[type, int] = {Identity: 0, Drop: 0, Pair: 1, Swap: 2, Lead: 3, Boost: 4}
"""The rules by their numbers in the file."""
SHARE = 1 << 18
"""Elements below which a second thread is not worth waking."""


def parameters(rule: Rule, temperature: float) -> tuple[int, float]:
    """The rule's number in ``kd_rows.c`` and what it depends on."""
    if isinstance(rule, Lead):
        return RULES[Lead], rule.margin
    if isinstance(rule, Boost):
        return RULES[Boost], rule.delta / temperature
    return RULES[type(rule)], 0.0


def takes(batch: Batch) -> bool:
    """Whether it suits: computed in float32, and a rule that changes two classes at most."""
    return batch.weight.dtype == torch.float32 and type(batch.rule) in RULES and library() is not None


def reads(batch: Batch) -> bool:
    """Whether the matrices can be read where they lie."""
    return all(x.dtype == torch.float32 and x.is_contiguous() for x in batch[:2])


def rows(batch: Batch, out: Tensor | None) -> Sums:
    """The pass, row by row; the gradient goes to ``out`` (contiguous) where that is given."""
    call, (num_rows, classes) = library(), batch.student.shape
    assert call is not None
    number, parameter = parameters(batch.rule, batch.temperature)
    student, teacher = batch.student.contiguous(), batch.teacher.contiguous()
    label, wrong = batch.label.long().contiguous(), batch.wrong.contiguous()
    weight = batch.weight if batch.weight.stride(0) == 0 else batch.weight.contiguous()
    scales = (ctypes.c_double * 3)(*map(float, batch.scales))
    threads = max(1, min(torch.get_num_threads(), num_rows, student.numel() // SHARE))
    buffer = torch.empty(threads, 3 * classes)
    sums = (ctypes.c_double * (3 * threads))()
    each, stride = -(-num_rows // threads), weight.stride(0)

    def part(thread: int) -> None:
        at = thread * each
        last = min(num_rows - at, each)
        if last <= 0:
            return
        matrix = at * classes * 4
        call(
            teacher.data_ptr() + matrix,
            student.data_ptr() + matrix,
            label.data_ptr() + 8 * at,
            wrong.data_ptr() + at,
            weight.data_ptr() + 4 * at * stride,
            stride,
            scales,
            last,
            classes,
            number,
            parameter,
            batch.temperature,
            buffer.data_ptr() + thread * 12 * classes,
            ctypes.byref(sums, 24 * thread),
            None if out is None else out.data_ptr() + matrix,
        )

    if threads == 1:
        part(0)
    else:  # a call into C lets go of the interpreter, so plain threads run side by side
        list(_pool(threads).map(part, range(threads)))
    task, easy, hard = (sum(sums[i::3]) for i in range(3))
    return Sums(task, easy, hard, out)


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
    kinds: list[Any] = [pointer] * 5
    kinds += [number, pointer, number, number, ctypes.c_int32, ctypes.c_double, ctypes.c_double]
    kinds += [pointer] * 3
    call.argtypes, call.restype = tuple(kinds), None
    return call, ""
