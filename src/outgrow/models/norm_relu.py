"""ReLU after a batch norm: in one pass on a CPU where that was asked for, else the two modules one by one.

Both are bound by memory, not by arithmetic: one by one, a step of training reads and writes the maps thirteen
times, together eight. The pass in C (``norm_relu.c``) takes bfloat16 maps in channels_last; its sums are of
float32 and double, and it rounds to bfloat16 once where the two round twice.
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

from outgrow.native import build

SOURCE = Path(__file__).with_name("norm_relu.c")
FLAGS = ("-fopenmp", *(("-mprefer-vector-width=512",) if platform.machine() == "x86_64" else ()))
SHARE = 1 << 15
"""Elements below which a second thread is not worth waking."""

_fused: ContextVar[bool] = ContextVar("outgrow_fused_norms", default=False)


@contextmanager
def fused_norms() -> Iterator[None]:
    """Inside, :func:`norm_relu` takes the pass in C where it can; elsewhere nothing changes."""
    token = _fused.set(True)
    try:
        yield
    finally:
        _fused.reset(token)


def calls_it(net: nn.Module) -> bool:
    """Whether a module of ``net`` comes from a file that imports :func:`norm_relu`; others call norm and ReLU."""
    files = (sys.modules.get(type(module).__module__) for module in net.modules())
    return any(getattr(file, "norm_relu", None) is norm_relu for file in files)


def norm_relu(
    norm: nn.Module, maps: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, "batch channels height width"]:
    """``relu(norm(maps))``. Inside :func:`fused_norms` a plain batch norm in training, on a CPU, on bfloat16
    maps in channels_last, shares one pass with the ReLU; a norm with hooks (a tap) runs by itself.

    >>> norm_relu(nn.BatchNorm2d(1).eval(), torch.tensor([[[[-1.0, 2.0]]]])).detach().round(decimals=3)
    tensor([[[[0., 2.]]]])
    """
    if _fused.get() and _takes(norm, maps):
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        return _NormReLU.apply(maps, norm.weight, norm.bias, norm)
    return F.relu(norm(maps))


def _takes(norm: nn.Module, maps: Tensor) -> bool:
    return (
        type(norm) is nn.BatchNorm2d
        and norm.training
        and norm.affine
        and norm.track_running_stats
        and norm.momentum is not None
        and norm.weight.dtype == torch.float32
        and maps.device.type == "cpu"
        and maps.dtype == torch.bfloat16
        and maps.is_contiguous(memory_format=torch.channels_last)
        and maps.numel() > maps.shape[1]  # one value a channel has no variance: torch says so
        and not (
            norm._forward_hooks or norm._forward_pre_hooks or norm._backward_hooks or norm._backward_pre_hooks
        )
        and not torch.compiler.is_compiling()
        and library() is not None
    )


class _NormReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d) -> Tensor:
        lib, channels = library(), maps.shape[1]
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
            out.data_ptr(),
            threads,
        )
        ctx.save_for_backward(maps, saved)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        lib, (maps, saved) = library(), ctx.saved_tensors
        channels = maps.shape[1]
        rows, threads = maps.numel() // channels, _threads(maps)
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        work, terms = torch.empty(threads, 2, channels, dtype=torch.float64), torch.empty(2, channels)
        of_maps, (of_weight, of_bias) = torch.empty_like(maps), torch.empty(2, channels).unbind(0)
        assert lib is not None
        assert gradient.dtype == torch.bfloat16
        lib.norm_relu_backward(
            maps.data_ptr(),
            gradient.data_ptr(),
            rows,
            channels,
            saved.data_ptr(),
            work.data_ptr(),
            terms.data_ptr(),
            of_maps.data_ptr(),
            of_weight.data_ptr(),
            of_bias.data_ptr(),
            threads,
        )
        return of_maps, of_weight, of_bias, None


def _threads(maps: Tensor) -> int:
    return max(1, min(torch.get_num_threads(), maps.numel() // SHARE))


@functools.cache
def library() -> Any:
    """The pass in C, or None where it cannot be built, or where it would bring an OpenMP of its own: that
    one's threads would wait for work on the cores of torch's. gcc's is by its name the one torch brings."""
    before = _openmps()
    try:
        lib = ctypes.CDLL(str(build(SOURCE, FLAGS, compilers=("gcc",))))
    except (OSError, subprocess.SubprocessError):
        return None
    if not before or _openmps() - before:
        return None
    kinds: Any = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_double)
    pointer, number, real = kinds
    lib.norm_relu_forward.argtypes = (
        [pointer, number, number, pointer, pointer, real, real] + [pointer] * 5 + [ctypes.c_int32]
    )
    lib.norm_relu_backward.argtypes = [pointer, pointer, number, number] + [pointer] * 6 + [ctypes.c_int32]
    lib.norm_relu_forward.restype = lib.norm_relu_backward.restype = None
    return lib


def _openmps() -> set[str]:
    """The OpenMP runtimes in this process."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return set()
    return set(re.findall(r"\S*/lib(?:[gi]?omp5?)[-.]\S*", maps))
