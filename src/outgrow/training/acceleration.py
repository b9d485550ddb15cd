"""What makes a step fast on this machine: device and precision, memory layout, fused norms, torch.compile."""

import inspect
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from outgrow.machine.host_memory import kept_pages
from outgrow.machine.norm_relu import calls_it, fused_norms, library
from outgrow.models.compiled import Compiled
from outgrow.models.taps import Taps
from outgrow.training.config import TrainConfig, settled
from outgrow.training.processes import TIMEOUT, launched, process_group


def make_accelerator(config: TrainConfig) -> Accelerator:
    """Accelerate on the device and in the precision of ``config``. ``ValueError`` if the device is not available."""
    if config.device in ("cuda", "mps"):
        available = (
            torch.cuda.is_available() if config.device == "cuda" else torch.backends.mps.is_available()
        )
        if not available:
            raise ValueError(
                f"train.device: needs a machine with {config.device}, got one without it; use auto or cpu."
            )
    precision = settled(config).precision.replace("fp32", "no")
    state = AcceleratorState._shared_state
    if state and state.get("_mixed_precision") != precision:
        # one process may train a teacher in one precision and a student in another, on the same device and in the
        # same process group
        AcceleratorState._reset_state()
    several = launched() > 1
    for name, variable in (("FSDP", "ACCELERATE_USE_FSDP"), ("DeepSpeed", "ACCELERATE_USE_DEEPSPEED")):
        if os.environ.get(variable, "false").lower() == "true":
            raise ValueError(
                f"accelerate launch: needs plain data parallelism, got {name}, which would shard the student and its "
                "losses over the processes; leave its options out, or start the run with torchrun."
            )
    if several and config.device == "mps":
        raise ValueError(
            "train.device: needs cuda or cpu for several processes, got mps; use cpu, or start a single process."
        )
    # without a GPU the processes train on the CPU: by default Accelerate would start a separate run in each
    on_cpu = config.device == "cpu" or (several and not torch.cuda.is_available())
    timeout = InitProcessGroupKwargs(timeout=TIMEOUT)
    accelerator = Accelerator(mixed_precision=precision, cpu=on_cpu, kwargs_handlers=[timeout])
    if several and process_group() is None:
        raise ValueError(
            f"train.device: needs a process group of {launched()} processes, got none on {accelerator.device}; start them "
            "with torchrun or accelerate launch, on devices of the same type."
        )
    return accelerator


@contextmanager
def fast_steps(config: TrainConfig, student: nn.Module, device: torch.device) -> Iterator[None]:
    """Context in which freed memory is kept and norms are fused, if ``config`` enables it and it is possible."""
    with ExitStack() as stack:
        if config.keep_memory and device.type == "cpu":
            stack.enter_context(kept_pages())
        if config.fused_norms and _can_fuse(config, student, device):
            stack.enter_context(fused_norms())
        yield


def memory_layout(config: TrainConfig) -> torch.memory_format:
    """The layout of the weights and images of a training."""
    return torch.channels_last if config.channels_last else torch.contiguous_format


def place(
    config: TrainConfig,
    accelerator: Accelerator,
    student: nn.Module,
    teacher: nn.Module,
    objective: nn.Module,
    *,
    compiles: bool,
) -> tuple[nn.Module, nn.Module]:
    """Move all three to the device; return the student and the objective that the training steps call.

    With ``compiles`` the student is wrapped in ``torch.compile``. With several processes both are wrapped in DDP.
    Evaluation and checkpoints use the unwrapped modules.
    """
    layout = memory_layout(config)
    student.to(accelerator.device, memory_format=layout)  # type: ignore[call-overload]
    teacher.to(accelerator.device, memory_format=layout)  # type: ignore[call-overload]
    objective.to(accelerator.device)
    trained = _compiled(config, student, accelerator.device) if compiles else student
    if accelerator.num_processes == 1:
        return trained, objective
    return accelerator.prepare_model(trained), _shared(objective, accelerator.device)


def _shared(objective: nn.Module, device: torch.device) -> nn.Module:
    """``objective`` in DDP if it has parameters. Its memories are equal on all processes and are not broadcast."""
    if not any(p.requires_grad for p in objective.parameters()):
        return objective
    options: dict[str, Any] = {} if device.type == "cpu" else {"device_ids": [device]}
    new = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters  # since torch 2.14
    options["forward_sync_buffers" if new else "broadcast_buffers"] = False
    return DistributedDataParallel(objective, **options)


def _compiled(config: TrainConfig, student: nn.Module, device: torch.device) -> nn.Module:
    graphs = config.compile == "graphs"
    if graphs and device.type != "cuda":
        raise ValueError(
            f"train.compile: needs a CUDA device for graphs, got {device.type}; use train.compile=true."
        )
    network = student if isinstance(student, Taps) else Taps(student)
    return Compiled(network, graphs=graphs, on_failure=_warn_not_compiled)


def _warn_not_compiled(reason: str) -> None:
    warnings.warn(
        f"train.compile: needs torch.compile to work here (a C++ compiler on a CPU, Triton on a GPU), got: {reason}; "
        "the training is not compiled.",
        stacklevel=4,
    )


def _can_fuse(config: TrainConfig, student: nn.Module, device: torch.device) -> bool:
    """Whether batch norm and ReLU can be fused here. If not, a warning gives the reason."""
    got = None
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}.get(config.precision)
    if device.type != "cpu" or dtype is None or not config.channels_last:
        layout = "channels_last" if config.channels_last else "contiguous maps"
        got = f"{device.type}, {config.precision}, {layout}"
    elif not calls_it(student):
        got = "a network that does not call norm_relu (those of cifar/ do)"
    elif library(dtype) is None:
        got = "a machine on which the C code cannot be compiled (no gcc) or links another OpenMP than torch"
    if got is not None:
        warnings.warn(
            f"train.fused_norms: needs a CPU, train.precision=bf16 or fp32, train.channels_last=true and gcc, got {got}; "
            "batch norm and ReLU run as separate operations.",
            stacklevel=5,
        )
    return got is None
