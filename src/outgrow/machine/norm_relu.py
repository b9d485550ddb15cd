"""Batch norm, an optional shortcut sum, and ReLU: fused into one pass on a CPU, inside :func:`fused_norms`.

These operations are bound by memory, not by arithmetic. In a training step, norm and ReLU read and write the
maps thirteen times as separate operations and eight times fused. With the sum of a residual block it is
sixteen and eleven. The C code (``norm_relu.c``) takes float32 and bfloat16 maps in channels_last. It sums in
float32 and double. It rounds to bfloat16 once, the separate operations twice.
"""

import ctypes
import functools
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from outgrow.machine.native import build

SOURCE = Path(__file__).with_name("norm_relu.c")
TYPES = {torch.bfloat16: (), torch.float32: ("-DFLOAT32",)}
"""Dtypes of the maps, each with its compiler flags."""
FLAGS = ("-fopenmp", *(("-mprefer-vector-width=512",) if platform.machine() == "x86_64" else ()))
SHARE = 1 << 15
"""The fewest elements a thread gets: with less work another thread does not pay."""

_fused: ContextVar[bool] = ContextVar("outgrow_fused_norms", default=False)


@contextmanager
def fused_norms() -> Iterator[None]:
    """Inside, :func:`norm_relu` uses the C code where it can; outside nothing changes."""
    token = _fused.set(True)
    try:
        yield
    finally:
        _fused.reset(token)


def calls_it(net: nn.Module) -> bool:
    """Whether any module of ``net`` is defined in a file that imports :func:`norm_relu`."""
    files = (sys.modules.get(type(module).__module__) for module in net.modules())
    return any(getattr(file, "norm_relu", None) is norm_relu for file in files)


def norm_relu(
    norm: nn.Module, maps: Float[Tensor, "*maps"], shortcut: Float[Tensor, "*maps"] | None = None
) -> Float[Tensor, "*maps"]:
    """``relu(norm(maps))``, or ``relu(norm(maps) + shortcut)``; maps are batch x channels x height x width.

    Inside :func:`fused_norms` it is one pass for a plain batch norm in training mode, on a CPU, on float32 or
    bfloat16 maps in channels_last. A norm with hooks (a tap) is not fused.

    >>> norm_relu(nn.BatchNorm2d(1).eval(), torch.tensor([[[[-1.0, 2.0]]]])).detach().round(decimals=3)
    tensor([[[[0., 2.]]]])
    """
    if _fused.get() and _takes(norm, maps) and (shortcut is None or _alike(shortcut, maps)):
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        return _NormReLU.apply(maps, norm.weight, norm.bias, shortcut, norm)
    return F.relu(norm(maps) if shortcut is None else norm(maps) + shortcut)


def _alike(shortcut: Tensor, maps: Tensor) -> bool:
    return (
        shortcut.shape == maps.shape
        and shortcut.dtype == maps.dtype
        and shortcut.device == maps.device
        and shortcut.is_contiguous(memory_format=torch.channels_last)
    )


def _takes(norm: nn.Module, maps: Tensor) -> bool:
    return (
        type(norm) is nn.BatchNorm2d
        and norm.training
        and norm.affine
        and norm.track_running_stats
        and norm.momentum is not None
        and norm.weight.dtype == torch.float32
        and maps.device.type == "cpu"
        and maps.dtype in TYPES
        and maps.is_contiguous(memory_format=torch.channels_last)
        and maps.numel() > maps.shape[1]  # one value a channel has no variance: torch raises
        and not (
            norm._forward_hooks or norm._forward_pre_hooks or norm._backward_hooks or norm._backward_pre_hooks
        )
        and not torch.compiler.is_compiling()
        and library(maps.dtype) is not None
    )


class _NormReLU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, maps: Tensor, weight: Tensor, bias: Tensor, shortcut: Tensor | None, norm: nn.BatchNorm2d
    ) -> Tensor:
        lib, channels = library(maps.dtype), maps.shape[1]
        rows, threads = maps.numel() // channels, _threads(maps)
        saved, work = torch.empty(4, channels), torch.empty(threads, 2, channels, dtype=torch.float64)
        out = torch.empty_like(maps)
        assert lib is not None
        assert norm.running_mean is not None
        assert norm.running_var is not None
        lib.norm_relu_forward(
            maps.data_ptr(),
            rows,
            channels,
            weight.data_ptr(),
            bias.data_ptr(),
            norm.eps,
            norm.momentum,
            norm.running_mean.data_ptr(),
            norm.running_var.data_ptr(),
            saved.data_ptr(),
            work.data_ptr(),
            _pointer(shortcut),
            out.data_ptr(),
            threads,
        )
        # without a shortcut the mask comes from the maps
        ctx.save_for_backward(maps, saved, None if shortcut is None else out)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        maps, saved, out = ctx.saved_tensors
        lib, channels = library(maps.dtype), maps.shape[1]
        rows, threads = maps.numel() // channels, _threads(maps)
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        work, terms = torch.empty(threads, 2, channels, dtype=torch.float64), torch.empty(2, channels)
        of_maps, (of_weight, of_bias) = torch.empty_like(maps), torch.empty(2, channels).unbind(0)
        of_shortcut = None if out is None else torch.empty_like(maps)
        assert lib is not None
        assert gradient.dtype == maps.dtype
        lib.norm_relu_backward(
            maps.data_ptr(),
            gradient.data_ptr(),
            _pointer(out),
            rows,
            channels,
            saved.data_ptr(),
            work.data_ptr(),
            terms.data_ptr(),
            of_maps.data_ptr(),
            _pointer(of_shortcut),
            of_weight.data_ptr(),
            of_bias.data_ptr(),
            threads,
        )
        return of_maps, of_weight, of_bias, of_shortcut, None


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _threads(maps: Tensor) -> int:
    return max(1, min(torch.get_num_threads(), maps.numel() // SHARE))


@functools.cache
def library(dtype: torch.dtype) -> Any:
    """The C library for maps of ``dtype``, or None where it cannot be built or would load a second OpenMP.

    The threads of a second OpenMP runtime would spin on the cores of torch's. gcc's runtime has the name of
    the one that torch loads.
    """
    before = _openmps()
    try:
        lib = ctypes.CDLL(str(build(SOURCE, (*FLAGS, *TYPES[dtype]), compilers=("gcc",))))
    except (OSError, subprocess.SubprocessError):
        return None
    if not before or _openmps() - before:
        return None
    kinds: Any = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_double)
    pointer, number, real = kinds
    lib.norm_relu_forward.argtypes = (
        [pointer, number, number, pointer, pointer, real, real] + [pointer] * 6 + [ctypes.c_int32]
    )
    lib.norm_relu_backward.argtypes = [pointer] * 3 + [number, number] + [pointer] * 7 + [ctypes.c_int32]
    lib.norm_relu_forward.restype = lib.norm_relu_backward.restype = None
    return lib


def _openmps() -> set[str]:
    """The OpenMP runtimes in this process."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return set()
    return set(re.findall(r"\S*/lib(?:[gi]?omp5?)[-.]\S*", maps))
