"""One loop that knows no method.

Devices, mixed precision and processes are Accelerate's; batches come from loaders whose views depend
on seed, epoch and sample alone; what the student learns is the rectifier's and the objective's.
"""

import math
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from jaxtyping import Float
from torch import Tensor, nn

from outgrow.checkpoint import load_checkpoint, save_checkpoint
from outgrow.compiled import Compiled
from outgrow.config import TrainConfig
from outgrow.features import Taps
from outgrow.host_memory import kept_pages
from outgrow.lesson import Ask, Batches, Classify, Samples
from outgrow.models.norm_relu import calls_it, fused_norms, library
from outgrow.objective import Objective
from outgrow.outputs import Knowledge, ObjectiveResult, Outputs, Target
from outgrow.precision import say_if_emulated, settled
from outgrow.teacher_cache import CachedTeacher

READ_EVERY = 10
"""Steps between looks at the device's flag for losses that are not finite."""


@dataclass
class EpochRecord:
    """One epoch: means over its rows. ``score`` is what the run is judged by (top-1 or box AP, in percent);
    None where it was not evaluated."""

    epoch: int
    loss: float
    terms: dict[str, float]
    wrong_rate: float
    score: float | None
    lr: float
    seconds: float
    images_per_second: float
    stats: dict[str, float] = field(default_factory=dict)


class NonFiniteLoss(ArithmeticError):
    """The loss of a step was infinite or NaN; the step was not taken."""


@dataclass
class Trainer:
    """Trains ``student`` with ``objective`` on what ``rectify`` makes of ``teacher``.

    ``ask`` gets from a batch what both networks say; without it ``student`` and ``teacher`` map images
    in [0, 1] to Outputs. ``evaluate(student)`` returns what the run is judged by (top-1, or box AP, in
    percent) after an epoch. ``on_step(epoch, images done)`` and ``on_epoch(record)`` report. With
    ``checkpoint`` the state is saved after every epoch under the identity ``run``.
    """

    student: nn.Module
    teacher: nn.Module
    rectify: Callable[[Outputs, Target], Knowledge]
    objective: Objective
    loader: Batches
    config: TrainConfig
    ask: Ask | None = None
    evaluate: Callable[[nn.Module], float] | None = None
    on_step: Callable[[int, int], None] | None = None
    on_epoch: Callable[[EpochRecord], None] | None = None
    checkpoint: Path | None = None
    run: str = ""
    accelerator: Accelerator | None = None

    def fit(self, *, resume: bool = False) -> list[EpochRecord]:
        """Train to the end and return the records of all epochs, those before a resumption too."""
        self.config = settled(self.config)
        say_if_emulated(self.config)
        accelerator = self.accelerator or make_accelerator(self.config)
        on_cpu = accelerator.device.type == "cpu"
        with (
            kept_pages() if self.config.keep_memory and on_cpu else nullcontext(),
            fused_norms() if self._fuses(accelerator.device) else nullcontext(),
        ):
            return self._fit(accelerator, resume)

    def _fit(self, accelerator: Accelerator, resume: bool) -> list[EpochRecord]:
        config = self.config
        student, teacher, objective = self._placed(accelerator)
        optimizer = make_optimizer(config, student, objective)
        guard = _Guard(optimizer, accelerator.device, scaled=accelerator.scaler is not None)
        if accelerator.scaler is not None:  # float16: the optimiser must unscale, and skips what overflowed
            optimizer = accelerator.prepare_optimizer(optimizer)
        total_steps = config.epochs * self._steps()
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: lr_factor(config, step / total_steps)
        )
        history: list[EpochRecord] = []
        stateful: dict[str, Any] = {
            "student": self.student,
            "objective": self.objective,
            "optimizer": optimizer,
            "scheduler": scheduler,
        }
        if resume and self.checkpoint is not None:
            state = load_checkpoint(self.checkpoint, run=self.run)
            for name, holder in stateful.items():
                holder.load_state_dict(state[name])
            history = [EpochRecord(**record) for record in state["history"]]
        for epoch in range(len(history), config.epochs):
            start = time.perf_counter()
            _tell_epoch(teacher, epoch)
            student.train()
            objective.train()
            meter, done, lr = _Meter(), 0, 0.0
            for step, batch in enumerate(self._batches(epoch)):
                progress = epoch / config.epochs
                if config.progress == "step":
                    progress = (epoch * self._steps() + step) / total_steps
                result = self._step(accelerator, student, teacher, objective, batch, progress)
                guard.before_step(result, batch, epoch, step)
                accelerator.backward(result.total)
                if config.clip is not None:
                    accelerator.clip_grad_norm_(student.parameters(), config.clip)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                lr = float(scheduler.get_last_lr()[0])  # of this step
                scheduler.step()
                meter.add(result, len(batch.images))
                done += len(batch.images)
                if self.on_step is not None:
                    self.on_step(epoch, done)
            guard.read()
            _tell_epoch(teacher, None)
            seconds = time.perf_counter() - start
            record = self._record(epoch, meter, accelerator, done, seconds, lr)
            history.append(record)
            if self.checkpoint is not None and accelerator.is_main_process:
                state = {name: holder.state_dict() for name, holder in stateful.items()}
                save_checkpoint(
                    self.checkpoint, {**state, "history": [asdict(r) for r in history], "run": self.run}
                )
            if self.on_epoch is not None:
                self.on_epoch(record)
        return history

    def _placed(self, accelerator: Accelerator) -> tuple[nn.Module, nn.Module, nn.Module]:
        """Student, teacher and objective on the device, wrapped for it where they learn."""
        layout = torch.channels_last if self.config.channels_last else torch.contiguous_format
        self.student.to(accelerator.device, memory_format=layout)  # type: ignore[call-overload]
        self.teacher.to(accelerator.device, memory_format=layout)  # type: ignore[call-overload]
        self.objective.to(accelerator.device)
        student: nn.Module = self.student
        objective: nn.Module = self.objective
        if self.compiles:
            student = self._compiled(accelerator.device)
        if accelerator.num_processes > 1:
            student = accelerator.prepare_model(student)
            if any(p.requires_grad for p in self.objective.parameters()):
                objective = accelerator.prepare_model(self.objective)
        return student, self.teacher, objective

    def _fuses(self, device: torch.device) -> bool:
        """Whether batch norm and ReLU may share a pass; a warning where that was asked for in vain."""
        config, got = self.config, None
        if not config.fused_norms:
            return False
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}.get(config.precision)
        if device.type != "cpu" or dtype is None or not config.channels_last:
            layout = "channels_last" if config.channels_last else "contiguous maps"
            got = f"{device.type}, {config.precision}, {layout}"
        elif not calls_it(self.student):
            got = "a net that calls modules of its own (our cifar/ nets are made for it)"
        elif library(dtype) is None:
            got = "a machine on which it cannot be built (no gcc, or with an OpenMP that is not torch's)"
        if got is not None:
            warnings.warn(
                f"train.fused_norms: needs a CPU, train.precision=bf16 or fp32, train.channels_last=true and gcc, got {got}; "
                "trains with batch norm and ReLU one by one.",
                stacklevel=3,
            )
        return got is None

    @property
    def compiles(self) -> bool:
        """Whether the student's steps go through torch.compile: it was asked for, and batches are of one shape."""
        return bool(self.config.compile) and (self.ask is None or isinstance(self.ask, Classify))

    def _compiled(self, device: torch.device) -> nn.Module:
        """The student for the steps alone: evaluation and checkpoints keep to the one it wraps."""
        graphs = self.config.compile == "graphs"
        if graphs and device.type != "cuda":
            raise ValueError(
                f"train.compile: needs a CUDA device for graphs, got {device.type}; use train.compile=true."
            )
        network = self.student if isinstance(self.student, Taps) else Taps(self.student)
        return Compiled(network, graphs=graphs, on_failure=_say_not_compiled)

    def _steps(self) -> int:
        return min(len(self.loader), self.config.max_steps or len(self.loader))

    def _batches(self, epoch: int) -> Any:
        batches = self.loader.epoch(epoch)
        for _ in range(self._steps()):
            yield next(batches)

    def _step(
        self,
        accelerator: Accelerator,
        student: nn.Module,
        teacher: nn.Module,
        objective: nn.Module,
        batch: Samples,
        progress: float,
    ) -> ObjectiveResult:
        ask: Ask = self.ask or Classify(self.config.channels_last)
        with accelerator.autocast():
            lesson = ask(student, teacher, batch)
        knowledge = self.rectify(lesson.teacher, lesson.target)
        return objective(lesson.student, knowledge, lesson.target, progress, lesson.task)

    def _record(
        self,
        epoch: int,
        meter: "_Meter",
        accelerator: Accelerator,
        images: int,
        seconds: float,
        lr: float,
    ) -> EpochRecord:
        loss, terms, stats = meter.read(accelerator)
        last = epoch + 1 == self.config.epochs
        due = self.evaluate is not None and ((epoch + 1) % self.config.eval_every == 0 or last)
        return EpochRecord(
            epoch=epoch + 1,
            loss=loss,
            terms=terms,
            wrong_rate=stats.pop("wrong_rate", 0.0),
            score=self.evaluate(self.student) if due and self.evaluate is not None else None,
            lr=lr,
            seconds=seconds,
            images_per_second=images * accelerator.num_processes / seconds,
            stats=stats,
        )


def _say_not_compiled(reason: str) -> None:
    warnings.warn(
        f"train.compile: needs torch.compile to work here (a C++ compiler on a CPU, Triton on a GPU), got: {reason}; "
        "trains without.",
        stacklevel=4,
    )


def _tell_epoch(teacher: nn.Module, epoch: int | None) -> None:
    """A cache needs to know which views it is asked about."""
    if isinstance(teacher, CachedTeacher):
        teacher.at(epoch)


def make_accelerator(config: TrainConfig) -> Accelerator:
    """Accelerate on the device and in the precision that ``config`` asks for."""
    if config.device in ("cuda", "mps"):
        available = (
            torch.cuda.is_available() if config.device == "cuda" else torch.backends.mps.is_available()
        )
        if not available:
            raise ValueError(
                f"train.device: needs {config.device}, got a machine without it; use auto or cpu."
            )
    precision = settled(config).precision.replace("fp32", "no")
    state = AcceleratorState._shared_state
    if state and state.get("_mixed_precision") != precision:
        # one process may train a teacher in one precision and a student in another; what is kept of the
        # machine and of the process group stays
        AcceleratorState._reset_state()
    return Accelerator(mixed_precision=precision, cpu=config.device == "cpu")


def make_optimizer(config: TrainConfig, student: nn.Module, objective: nn.Module) -> torch.optim.Optimizer:
    """SGD or AdamW over student and objective, fused; no decay on the objective's memories, which do
    not learn."""
    parameters = [p for module in (student, objective) for p in module.parameters() if p.requires_grad]
    # the fused form can skip a step by a flag on the device, without asking the host
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
            fused=True,
        )
    return torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True)


def lr_factor(config: TrainConfig, progress: float) -> float:
    """What multiplies the learning rate at ``progress`` in [0, 1]: a pure function.

    >>> [round(lr_factor(TrainConfig(lr_schedule="step"), p), 4) for p in (0.0, 0.63, 0.8, 0.9)]
    [1.0, 0.1, 0.01, 0.001]
    """
    if config.warmup and progress < config.warmup:
        return max(progress / config.warmup, 1e-3)  # a first step of exactly zero would be wasted
    if config.lr_schedule == "step":
        return config.lr_decay ** sum(progress >= at for at in config.milestones)
    rest = (progress - config.warmup) / (1 - config.warmup)
    if config.lr_schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(rest, 1.0)))
    if config.lr_schedule == "one_cycle":
        # up over the first 30 %, down to a thousandth: torch's OneCycleLR in shape
        up = 0.3
        if rest < up:
            return 0.04 + 0.96 * 0.5 * (1 - math.cos(math.pi * rest / up))
        return 1e-3 + (1 - 1e-3) * 0.5 * (1 + math.cos(math.pi * min((rest - up) / (1 - up), 1.0)))
    return 1.0


class _Meter:
    """Sums on the device; the host reads them once an epoch."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, str], Tensor] = {}
        self.rows = 0

    def add(self, result: ObjectiveResult, rows: int) -> None:
        self.rows += rows
        self._sum("loss", "", result.total.detach(), rows)
        for kind, values in (("terms", result.terms), ("stats", result.stats)):
            for name, value in values.items():
                self._sum(kind, name, value, rows)

    def _sum(self, kind: str, name: str, value: Float[Tensor, ""], rows: int) -> None:
        key = (kind, name)
        value = value.float() * rows
        self.sums[key] = self.sums[key] + value if key in self.sums else value

    def read(self, accelerator: Accelerator) -> tuple[float, dict[str, float], dict[str, float]]:
        """Means over the epoch's rows, of all processes."""
        sums = torch.stack(list(self.sums.values())) / self.rows
        if accelerator.num_processes > 1:
            sums = accelerator.reduce(sums, reduction="mean")  # each process has the same number of rows
        mean = dict(zip(self.sums, sums.tolist(), strict=True))
        terms = {name: value for (kind, name), value in mean.items() if kind == "terms"}
        stats = {name: value for (kind, name), value in mean.items() if kind == "stats"}
        return mean[("loss", "")], terms, stats


class _Guard:
    """Stops at a loss that is not finite, before it moves the student.

    On the CPU at once. Elsewhere the flag stays on the device: the fused optimiser skips the step by
    it, and the host reads it every few steps.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device, *, scaled: bool) -> None:
        self.optimizer, self.scaled = optimizer, scaled
        self.at_once = device.type == "cpu"
        self.waiting: list[tuple[Tensor, ObjectiveResult, Samples, int, int]] = []

    def before_step(self, result: ObjectiveResult, batch: Samples, epoch: int, step: int) -> None:
        bad = ~result.total.detach().isfinite()
        self.waiting.append((bad, result, batch, epoch, step))
        if self.at_once:
            self.read()
            return
        if not self.scaled:  # a GradScaler sets this name of torch's by itself
            self.optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
        if len(self.waiting) >= READ_EVERY:
            self.read()

    def read(self) -> None:
        waiting, self.waiting = self.waiting, []
        if not waiting:
            return
        flags = torch.stack([bad for bad, *_ in waiting]).tolist()
        if any(flags):
            _, result, batch, epoch, step = waiting[flags.index(True)]
            terms = ", ".join(f"{name} {value.item():g}" for name, value in result.terms.items())
            index = batch.index
            rows = (
                ""
                if index is None
                else f" Its samples: {index.tolist()[:16]}{' ...' if len(index) > 16 else ''}."
            )
            raise NonFiniteLoss(
                f"training: needs a finite loss, got {result.total.item()} in epoch {epoch + 1}, step {step + 1} "
                f"({terms}).{rows} The step was not taken. Lower train.lr, set train.clip=1.0, or use "
                "train.precision=fp32; `--resume` goes on from the last whole epoch."
            )
