"""Which precision is fast here: ``auto`` becomes bfloat16 where the machine computes in it, else float32.

A processor without it emulates it: a step of a ResNet-8x4 then takes 14 times as long as in float32 (AVX2),
where one with it (AMX) takes a third.
"""

import warnings

import torch

from outgrow.config import Config, TrainConfig
from outgrow.native import processor_flags

CPU_FLAGS = {"amx_bf16", "avx512_bf16"}
"""As Linux names them; of other processors nothing has been measured, and ``auto`` is float32 there."""


def computes_bfloat16(device: str) -> bool:
    """Whether a device of this type multiplies in bfloat16 by itself."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device == "cpu" and bool(CPU_FLAGS & processor_flags())


def settled(train: TrainConfig) -> TrainConfig:
    """``train`` with the precision that ``auto`` means here."""
    if train.precision != "auto":
        return train
    chosen = "bf16" if computes_bfloat16(_device_type(train)) else "fp32"
    return train.model_copy(update={"precision": chosen})


def settle(config: Config) -> Config:
    """``config`` for this machine: what a run does, and what its record and its ``config.yaml`` say."""
    update = {"train": settled(config.train), "teacher_train": settled(config.teacher_train)}
    return config.model_copy(update=update)


def say_if_emulated(train: TrainConfig) -> None:
    """A warning where the precision that was asked for is slower than none."""
    if train.precision == "bf16" and _device_type(train) == "cpu" and not computes_bfloat16("cpu"):
        warnings.warn(
            f"precision: bf16 needs a processor with {' or '.join(sorted(CPU_FLAGS))} to be fast, got one that "
            "emulates it, ten times slower than float32; use auto or fp32.",
            stacklevel=3,
        )


def _device_type(train: TrainConfig) -> str:
    """What ``train.device`` means here."""
    if train.device != "auto":
        return train.device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
