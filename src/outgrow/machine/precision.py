"""The fast precision of this machine: ``auto`` is bfloat16 where the hardware supports it, else float32.

A processor without bfloat16 emulates it: a step of a ResNet-8x4 then takes 14 times as long as in float32
(AVX2). On a processor with bfloat16 (AMX) it takes a third of the float32 time.
"""

import warnings

import torch

from outgrow.machine.native import processor_flags

CPU_FLAGS = {"amx_bf16", "avx512_bf16"}
"""Names as in /proc/cpuinfo. Other processors have not been measured; ``auto`` is float32 there."""


def device_type(device: str) -> str:
    """The device type of ``device``: ``auto`` is CUDA, else MPS, else the CPU."""
    if device != "auto":
        return device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def computes_bfloat16(device: str) -> bool:
    """Whether a device of this type multiplies in bfloat16 without emulation."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device == "cpu" and bool(CPU_FLAGS & processor_flags())


def resolve_precision(precision: str, device: str) -> str:
    """``precision``, with ``auto`` replaced by the fast one of ``device`` (a device type, or ``auto``)."""
    if precision != "auto":
        return precision
    return "bf16" if computes_bfloat16(device_type(device)) else "fp32"


def refuse_half_on_cpu(precision: str, device: str) -> None:
    """``ValueError`` for float16 on a CPU, where autocast would compute in float32 without a word."""
    if precision == "fp16" and device_type(device) == "cpu":
        raise ValueError("train.precision: fp16 needs a GPU, got a CPU; use auto, bf16 or fp32.")


def warn_if_emulated(precision: str, device: str) -> None:
    """Warn where ``precision`` is slower than float32 because the processor emulates it."""
    if precision == "bf16" and device_type(device) == "cpu" and not computes_bfloat16("cpu"):
        warnings.warn(
            f"precision: bf16 needs a processor with {' or '.join(sorted(CPU_FLAGS))} to be fast, got one that "
            "emulates it, ten times slower than float32; use auto or fp32.",
            stacklevel=3,
        )
