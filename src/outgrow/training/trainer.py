"""The training loop. It does not depend on the method or the task.

Accelerate handles devices, mixed precision and processes. The loaders' views depend only on seed, epoch and
sample. The rectifier and the objective define what the student learns.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from outgrow.machine.files import counted
from outgrow.machine.precision import refuse_half_on_cpu, warn_if_emulated
from outgrow.models.network import ONE_IMAGE
from outgrow.objective import Objective
from outgrow.outputs import Knowledge, ObjectiveResult, Outputs, Target
from outgrow.teacher import BaseTeacher
from outgrow.training.acceleration import fast_steps, make_accelerator, place
from outgrow.training.average import WeightAverage
from outgrow.training.checkpoint import Checkpoint
from outgrow.training.config import TrainConfig, settled
from outgrow.training.guard import Guard
from outgrow.training.lesson import Batches, LessonMaker, Samples
from outgrow.training.meter import EpochRecord, Meter, share
from outgrow.training.optimizer import lr_factor, make_optimizer
from outgrow.training.processes import process_group, rank_and_size, seed_step

ENOUGH_STEPS = 1000
"""Below this number of steps a student is far from converged."""


@dataclass(frozen=True)
class _Progress:
    """The position of a training: finished epochs, and the steps, images and seconds of the current one."""

    history: list[EpochRecord] = field(default_factory=list)
    step: int = 0
    done: int = 0
    seconds: float = 0.0
    meter: dict[str, Any] = field(default_factory=dict)


@dataclass
class Trainer:
    """Trains ``student`` with ``objective`` on the outputs of ``teacher``, corrected by ``rectify``.

    ``make_lesson`` returns the outputs of both networks for a batch, such as ``outgrow.classification.Classify`` for images.
    ``evaluate(student)`` returns the metric of the run (top-1 or box AP, in percent) after an epoch.
    ``on_step(epoch, images done)`` and ``on_epoch(record)`` are called for progress, ``on_resume(history)`` before the
    first step of a training that continues. With ``checkpoint`` the state is saved after every epoch, and within an
    epoch every ``config.checkpoint_steps`` steps. With ``config.ema`` the student is evaluated with, and ends with, the
    average of its weights.
    """

    student: nn.Module
    teacher: BaseTeacher
    rectify: Callable[[Outputs, Target], Knowledge]
    objective: Objective
    loader: Batches
    config: TrainConfig
    make_lesson: LessonMaker
    evaluate: Callable[[nn.Module], float] | None = None
    on_step: Callable[[int, int], None] | None = None
    on_epoch: Callable[[EpochRecord], None] | None = None
    on_resume: Callable[[list[EpochRecord]], None] | None = None
    checkpoint: Checkpoint | None = None
    accelerator: Accelerator | None = None

    def __post_init__(self) -> None:
        self.config = self.config.for_steps(len(self.loader))

    def fit(self, *, resume: bool = False) -> list[EpochRecord]:
        """Train to the end and return the records of all epochs, including those before a resume."""
        self.config = settled(self.config)
        refuse_half_on_cpu(self.config.precision, self.config.device)
        warn_if_emulated(self.config.precision, self.config.device)
        accelerator = self.accelerator or make_accelerator(self.config)
        seed = torch.initial_seed()
        with fast_steps(self.config, self.student, accelerator.device):
            history = self._fit(accelerator, resume, seed)
        if process_group() is not None:
            torch.manual_seed(seed)  # from here on all processes draw the same numbers
        return history

    @property
    def compiles(self) -> bool:
        """Whether the training step is compiled: ``config.compile`` is set and all batches have one shape."""
        return bool(self.config.compile) and self.make_lesson.fixed_shape

    def _fit(self, accelerator: Accelerator, resume: bool, seed: int) -> list[EpochRecord]:
        config, group = self.config, process_group()
        if self.objective.process_group is None:
            self.objective.process_group = group
        _, processes = rank_and_size(group)
        most = config.batch_size // (processes * self.make_lesson.least)
        if config.accumulate > max(most, 1):
            raise ValueError(
                f"train.accumulate: needs at most {max(most, 1)} parts of a batch of {config.batch_size} images on {processes} "
                f"process{'' if processes == 1 else 'es'} ({self.make_lesson.least} or more images each), got {config.accumulate}; lower it."
            )
        student, objective = place(
            config, accelerator, self.student, self.teacher, self.objective, compiles=self.compiles
        )
        optimizer = make_optimizer(config, self.student, objective)
        guard = Guard(optimizer, accelerator.device, scaled=accelerator.scaler is not None, group=group)
        if accelerator.scaler is not None:  # float16: the optimiser must unscale, and skips what overflowed
            optimizer = accelerator.prepare_optimizer(optimizer)
        total_steps = config.epochs * self._steps()
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: lr_factor(config, step / total_steps)
        )
        stateful: dict[str, Any] = {
            "student": self.student,
            "objective": self.objective,
            "optimizer": optimizer,
            "scheduler": scheduler,
        }
        if accelerator.scaler is not None:
            stateful["scaler"] = accelerator.scaler
        average = None if config.ema is None else WeightAverage(self.student, config.ema)
        if average is not None:
            stateful["average"] = average
        state = self._restore(stateful) if resume else _Progress()
        history = state.history
        if len(history) > config.epochs:
            raise ValueError(
                f"--resume: needs at least the {len(history)} epochs that are trained, got {config.epochs}; raise --epochs, or "
                "leave it out."
            )
        if history and self.on_resume is not None:
            self.on_resume(history)
        for epoch in range(len(history), config.epochs):
            start = time.perf_counter() - state.seconds
            self.teacher.at(epoch)
            student.train()
            objective.train()
            meter, done, lr = Meter(state.meter, accelerator.device), state.done, 0.0
            for step, batch in enumerate(self._batches(epoch, state.step), start=state.step):
                progress = epoch / config.epochs
                if config.progress == "step":
                    progress = (epoch * self._steps() + step) / total_steps
                seed_step(seed, epoch * self._steps() + step, group)
                images, labelled = _totals(batch, accelerator.device, group)
                result = self._backward(accelerator, student, objective, batch, progress, images, labelled)
                guard.before_step(result, batch, epoch, step)
                if config.clip is not None:
                    accelerator.clip_grad_norm_(student.parameters(), config.clip)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                lr = float(scheduler.get_last_lr()[0])  # the rate of this step
                scheduler.step()
                if average is not None:
                    average.update(epoch * self._steps() + step + 1)
                meter.add(result, images)
                done += len(batch.images) * processes
                if self.on_step is not None:
                    self.on_step(epoch, done)
                if (step + 1) % config.checkpoint_steps == 0 and step + 1 < self._steps():
                    guard.read()
                    spent = time.perf_counter() - start
                    now = _Progress(history, step + 1, done, spent, meter.state(group))
                    self._save(accelerator, stateful, now)
            state = _Progress(history)
            guard.read()
            self.teacher.at(None)
            seconds = time.perf_counter() - start
            with nullcontext() if average is None else average.applied():
                history.append(self._record(epoch, meter, accelerator, done, seconds, lr))
            self._save(accelerator, stateful, state)
            if self.on_epoch is not None:
                self.on_epoch(history[-1])
        if average is not None:
            average.apply()
        return history

    def _backward(
        self,
        accelerator: Accelerator,
        student: nn.Module,
        objective: nn.Module,
        batch: Samples,
        progress: float,
        images: torch.Tensor | int,
        labelled: torch.Tensor | int,
    ) -> ObjectiveResult:
        """Compute the gradients of a step, one part of the batch after another, and return its loss.

        ``images`` is the number of images of the batch on all processes, ``labelled`` of those with a label. With n parts each loss is weighted by the
        share of images in its part, and the task by the share of labelled ones, so that for losses on rows the gradient is
        that of the whole batch.
        """
        parts = self._parts(batch, images)
        if len(parts) == 1:
            result = self._step(accelerator, student, objective, batch, progress, labelled)
            accelerator.backward(result.total)
            return result
        done: list[_Part] = []
        for number, part in enumerate(parts, start=1):
            held, known = _totals(part, accelerator.device, process_group())
            part_of, of_labelled = held / images, known / _at_least_one(labelled)
            with ExitStack() as stack:
                for module in (student, objective) if number < len(parts) else ():
                    if isinstance(module, DistributedDataParallel):  # exchange the gradients once, at the end
                        stack.enter_context(module.no_sync())
                result = self._step(
                    accelerator, student, objective, part, progress, known, task_factor=of_labelled / part_of
                )
                accelerator.backward(result.total * part_of)
            done.append(_Part(part_of, result))
        return _summed(done)

    def _parts(self, batch: Samples, images: torch.Tensor | int) -> Sequence[Samples]:
        """The parts of a batch; fewer for a small last batch. All processes have the same number of parts."""
        if self.config.accumulate == 1:
            return [batch]
        each = int(images) // rank_and_size(process_group())[1]  # no share has fewer, unless it is empty
        return batch.split(max(1, min(self.config.accumulate, each // self.make_lesson.least)))

    def _step(
        self,
        accelerator: Accelerator,
        student: nn.Module,
        objective: nn.Module,
        batch: Samples,
        progress: float,
        labelled: torch.Tensor | int,
        *,
        task_factor: torch.Tensor | float = 1.0,
    ) -> ObjectiveResult:
        """The loss of a batch, which has ``labelled`` images with a label on all processes."""
        try:
            with accelerator.autocast():
                lesson = self.make_lesson(student, self.teacher, batch)
        except ValueError as error:
            if ONE_IMAGE not in str(error):
                raise
            raise ValueError(
                f"train.batch_size: needs at least two images per step for a network with batch norms, got "
                f"{len(batch.images)}; raise it, or train on more images."
            ) from None
        if lesson.task is not None and isinstance(labelled, torch.Tensor):
            # a mean over the labelled images of this process; DDP averages the gradients over processes
            share = accelerator.num_processes * batch.num_labelled / _at_least_one(labelled)
            lesson = replace(lesson, task=lesson.task * share)
        knowledge = self.rectify(lesson.teacher, lesson.target)
        return objective(
            lesson.student, knowledge, lesson.target, progress, lesson.task, task_factor=task_factor
        )

    def _steps(self) -> int:
        return min(len(self.loader), self.config.max_steps or len(self.loader))

    def _batches(self, epoch: int, start: int) -> Iterator[Any]:
        """The batches of an epoch from step ``start`` on."""
        yield from islice(self.loader.epoch(epoch, start), self._steps() - start)

    def _restore(self, stateful: dict[str, Any]) -> _Progress:
        """Load the checkpoint into all parts with state. Without one, training starts from the beginning."""
        state = None if self.checkpoint is None else self.checkpoint.load()
        if state is None:
            return _Progress()
        for name, holder in stateful.items():
            holder.load_state_dict(state[name])
        progress = _Progress(**state["progress"])
        return replace(progress, history=[EpochRecord(**record) for record in state["history"]])

    def _save(self, accelerator: Accelerator, stateful: dict[str, Any], progress: _Progress) -> None:
        if self.checkpoint is None or not accelerator.is_main_process:
            return
        state = {name: holder.state_dict() for name, holder in stateful.items()}
        where = {**asdict(replace(progress, history=[])), "meter": progress.meter}
        self.checkpoint.save(
            {**state, "history": [asdict(record) for record in progress.history], "progress": where}
        )

    def _record(
        self,
        epoch: int,
        meter: Meter,
        accelerator: Accelerator,
        images: int,
        seconds: float,
        lr: float,
    ) -> EpochRecord:
        loss, terms, stats = meter.read(process_group())
        wrong_rate = stats.pop("wrong_rate", None)
        last = epoch + 1 == self.config.epochs
        due = self.evaluate is not None and ((epoch + 1) % self.config.eval_every == 0 or last)
        return EpochRecord(
            epoch=epoch + 1,
            loss=loss,
            terms=terms,
            wrong_rate=wrong_rate if self.teacher.gives_logits else None,
            score=self.evaluate(self.student) if due and self.evaluate is not None else None,
            lr=lr,
            seconds=seconds,
            images_per_second=images / seconds,
            stats=stats,
        )


def few_steps(config: TrainConfig, steps_per_epoch: int) -> str:
    """A warning if the training has fewer than :data:`ENOUGH_STEPS` steps, with the number of epochs that has them.

    >>> few_steps(TrainConfig(epochs=10), 4)
    'the training has 40 steps, too few to compare methods: --epochs 250 gives 1,000 (by which a pretrained student may lose)'
    """
    config = config.for_steps(steps_per_epoch)
    each = min(steps_per_epoch, config.max_steps or steps_per_epoch)
    if config.epochs * each >= ENOUGH_STEPS or not each:
        return ""
    steps = config.epochs * each
    return (
        f"the training has {counted(steps, 'step')}, too few to compare methods: --epochs {-(-ENOUGH_STEPS // each)} gives "
        f"{ENOUGH_STEPS:,} (by which a pretrained student may lose)"
    )


class _Part(NamedTuple):
    """The result of a part of a step, and its share of the images."""

    share: float | torch.Tensor
    result: ObjectiveResult


def _summed(parts: Sequence[_Part]) -> ObjectiveResult:
    """The result of a step from those of its parts."""
    results = [part.result for part in parts]

    def joined(values: Sequence[torch.Tensor], counts: Sequence[torch.Tensor | float]) -> torch.Tensor:
        return torch.stack(
            [count * value.detach() for count, value in zip(counts, values, strict=True)]
        ).sum()

    shares = [part.share for part in parts]
    stats, rows = {}, {}
    for name in results[0].stats:
        values = [result.stats[name] for result in results]
        if name in results[0].rows:
            counts = [result.rows[name] for result in results]
            rows[name] = sum(counts)
            stats[name] = share(joined(values, counts), rows[name])
        else:
            stats[name] = joined(values, shares)
    return ObjectiveResult(
        total=joined([result.total for result in results], shares),
        terms={name: joined([result.terms[name] for result in results], shares) for name in results[0].terms},
        stats=stats,
        rows=rows,
    )


def _at_least_one(count: torch.Tensor | int) -> torch.Tensor | int:
    return count.clamp_min(1) if isinstance(count, torch.Tensor) else max(count, 1)


def _totals(
    batch: Samples, device: torch.device, group: dist.ProcessGroup | None
) -> tuple[torch.Tensor | int, torch.Tensor | int]:
    """The numbers of images in a step, and of those with a label, over all processes, whose shares may differ."""
    counts = len(batch.images), batch.num_labelled
    if group is None:
        return counts
    totals = torch.tensor(counts, dtype=torch.float32, device=device)
    dist.all_reduce(totals, group=group)
    images, labelled = totals.unbind()
    return images, labelled
