"""What a comparison will take, from a few steps of each distinct kind of run; and whether all of its parts fit.

Every method is put together once with real networks and real images, so that what would fail after hours fails
now. Only runs of distinct cost are timed: with another pair of networks, with and without a teacher, with a teacher
that is read from a cache, with a loss that reads features.
"""

import contextlib
import itertools
import math
import resource
import sys
import time
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from outgrow.models import num_parameters
from outgrow.report.table import NO_TEACHER
from outgrow.run.distillation import assemble, method_of, start
from outgrow.run.plan import CACHE, Plan, Preparation, Training, cache_groups, disk_free, wants_correction
from outgrow.run.tasks import task_of
from outgrow.teacher.cache import readable
from outgrow.training.config import (
    Config,
    MethodConfig,
    ModelConfig,
    TeacherConfig,
    TrainConfig,
)
from outgrow.training.progress import Reporter
from outgrow.training.record import DataRecord
from outgrow.training.trainer import Trainer

STEPS = 4
"""Steps that are timed, after one that is not."""
ENOUGH = 5.0
"""Seconds after which two timed steps are enough."""
PAGE = 1.0
"""Seconds for the page and the curves of a run."""
MOMENTS = {"sgd": 1, "adamw": 2}
"""Numbers that an optimiser keeps of each weight."""
SHARE = 0.5
"""Of the free disk, what a cache may take without being asked for."""


@dataclass(frozen=True)
class Cost:
    """What a kind of run takes. Seconds; ``teacher_pass`` is for all test images."""

    set_up: float
    step: float
    steps: int
    epochs: int
    test_pass: float
    tests: int
    teacher_pass: float
    correction: float
    student: int
    teacher: int
    views: str
    mapped: bool = False
    """The teacher has other classes."""

    @property
    def seconds(self) -> float:
        training = self.epochs * self.steps * self.step + self.tests * self.test_pass
        return training + self.set_up + self.teacher_pass + self.correction + PAGE


@dataclass(frozen=True)
class Estimate:
    """By training, with what the plan's lines say."""

    data: DataRecord
    costs: dict[str, Cost]
    """By pair and method."""
    teachers: dict[str, Cost]
    """By preparation."""
    memory: int
    disk: int
    free: int
    cache_bytes: int
    cache_runs: int
    mapped: frozenset[str]
    """Pairs whose teacher has other classes."""


@dataclass
class Trials:
    """What has been tried out: costs of kinds, methods that fit, and data that are open."""

    kinds: dict[tuple[Any, ...], Cost] = field(default_factory=dict)
    fit: set[tuple[str, str]] = field(default_factory=set)
    opened: dict[str, tuple[Any, DataRecord]] = field(default_factory=dict)


class _Enough(Exception):
    pass


def estimate(plan: Plan, *, report: Reporter, trials: Trials | None = None) -> Estimate:
    """Put every method together, time what is distinct, and add it up. ``ValueError`` for what does not fit."""
    trials = trials or Trials()
    costs: dict[str, Cost] = {}
    for pair in plan.pairs:
        for method in plan.methods:
            training = plan.of(pair, method)[0]
            try:
                costs[_key(pair, method)] = _tried(training, plan, trials, report)
            except ValueError as error:
                raise ValueError(f"method {method!r}: {error}") from None
    teachers = {}
    for one in plan.teachers:
        kind = ("teacher", one.config.teacher.name, str(one.config.teacher.weights))
        if kind not in trials.kinds:
            report.note(f"trying out the training of {_short(one.config.teacher.name)} ...")
            trials.kinds[kind] = _teacher_cost(one, trials)
        teachers[one.title] = trials.kinds[kind]
    record = next(iter(trials.opened.values()))[1]
    groups = cache_groups(plan)
    held = sum(2 * record.train * len(record.classes) * group[0].config.train.epochs for group in groups)
    return Estimate(
        data=record,
        costs=costs,
        teachers=teachers,
        memory=_memory(),
        disk=_disk(plan, costs, teachers) + held,
        free=disk_free(plan.out),
        cache_bytes=held,
        cache_runs=sum(len(group) for group in groups),
        mapped=frozenset(
            pair for pair in plan.pairs for method in plan.methods if costs[_key(pair, method)].mapped
        ),
    )


def _key(pair: str, method: str) -> str:
    return f"{pair}/{method}"


def _tried(training: Training, plan: Plan, trials: Trials, report: Reporter) -> Cost:
    config = training.config
    objective = method_of(config)[1]
    alone = config.method.preset == NO_TEACHER
    cached = not alone and plan.cached and config.teacher.cache == str(plan.out / CACHE)
    kind = (
        training.pair,
        "alone" if alone else "cached" if cached else "asked",
        config.method.loss if objective.reads_features else "logits",
        not alone and wants_correction(config),
    )
    known = trials.kinds.get(kind)
    if known is None or (training.pair, training.method) not in trials.fit:
        report.note(f"trying out {training.title.rpartition(', seed')[0]} ...")
        expected = plan.options.same_teacher and bool(plan.teachers)
        trials.kinds[kind] = rehearse(config, trials, cached=cached, known=known, expected=expected)
        trials.fit.add((training.pair, training.method))
    return trials.kinds[kind]


def rehearse(
    config: Config,
    trials: Trials,
    *,
    cached: bool = False,
    known: Cost | None = None,
    expected: bool = False,
) -> Cost:
    """Put a run together on a few batches and time its steps, unless its cost is ``known``.

    ``trials`` keeps data for runs that share them; ``expected``: the teacher's weights are those that this comparison
    will have trained.
    """
    # a compiler's first step takes minutes
    train = config.train.model_copy(update={"compile": False, "epochs": STEPS + 1, "max_steps": None})
    update: dict[str, Any] = {"out": None, "train": train}
    if config.teacher.weights is not None and config.method.preset != NO_TEACHER and expected:
        # the weights of a teacher that this comparison will train
        update["teacher"] = config.teacher.model_copy(update={"train": True, "weights": None, "rows": "same"})
    tried = config.model_copy(update=update)
    run, task = start(tried), task_of(config.data.source)
    key = config.data.model_dump_json() + str(config.seed)
    if key not in trials.opened:
        whole = task.open_data(run)
        trials.opened[key] = (whole, task.data_record(run, whole, None))
    data, record = trials.opened[key]
    rows = (STEPS + 1) * train.batch_size
    rehearsal = task.rehearsal(data, rows, cached=cached)
    before = time.perf_counter()
    parts = assemble(run, rehearsal)
    set_up = time.perf_counter() - before
    if known is not None:
        return known
    networks = [parts.teacher, parts.student]
    steps = len(task.train_loader(run, data, networks))
    steps = min(steps, config.train.max_steps or steps)
    evaluate = rehearsal.evaluator(run, parts)
    tested = min(record.test, rows)
    step = _step_seconds(parts, rehearsal, run)
    test_pass = _seconds(lambda: evaluate(parts.student)) * record.test / tested
    teacher_pass = correction = 0.0
    mapped = bool(getattr(rehearsal, "foreign", False))
    if parts.teacher is not None:
        taught = parts.taught.module
        teacher_pass = _seconds(lambda: evaluate(taught)) * record.test / tested
        if mapped or wants_correction(config):
            correction = teacher_pass * config.teacher.correct_views * record.train / record.test
    epochs = config.train.epochs
    return Cost(
        set_up=set_up,
        step=step,
        steps=steps,
        epochs=epochs,
        test_pass=test_pass,
        tests=math.ceil(epochs / config.train.eval_every),
        teacher_pass=teacher_pass,
        correction=correction,
        student=num_parameters(parts.student),
        teacher=0 if parts.teacher is None else num_parameters(parts.teacher),
        views=_views(parts.loader),
        mapped=mapped,
    )


def _views(loader: Any) -> str:
    images = next(iter(loader.epoch(0))).images
    if isinstance(images, torch.Tensor):
        return f"{images.shape[-2]}x{images.shape[-1]} views"
    return f"pictures such as {images[0].shape[-2]}x{images[0].shape[-1]}"


def _step_seconds(parts: Any, task: Any, run: Any) -> float:
    """The median of a few steps; the first one does not count."""
    ticks: list[float] = []

    def tick(epoch: int, done: int) -> None:
        ticks.append(time.perf_counter())
        if len(ticks) > STEPS or (len(ticks) > 2 and ticks[-1] - ticks[0] > ENOUGH):
            raise _Enough

    trainer = Trainer(
        student=parts.student,
        teacher=parts.taught.module,
        rectify=task.rectifier(parts.rectify),
        objective=parts.objective,
        loader=parts.loader,
        config=run.config.train,
        make_lesson=task.lesson_maker(run.config),
        on_step=tick,
    )
    with contextlib.suppress(_Enough):
        trainer.fit()
    gaps = sorted(b - a for a, b in itertools.pairwise(ticks))
    return gaps[len(gaps) // 2]


def _seconds(work: Any) -> float:
    before = time.perf_counter()
    work()
    return time.perf_counter() - before


def _teacher_cost(preparation: Preparation, trials: Trials) -> Cost:
    """The training of a teacher is that of a student alone, on the teacher's rows."""
    config = preparation.config
    options = config.teacher
    alone = config.model_copy(
        update={
            "student": ModelConfig(
                name=options.name,
                weights=options.weights,
                pretrained=options.pretrained,
                input_size=options.input_size,
            ),
            "teacher": TeacherConfig(),
            "method": MethodConfig(preset=NO_TEACHER),
            "train": config.teacher_train,
        }
    )
    cost = rehearse(alone, trials)
    if options.rows == "disjoint":
        data = next(iter(trials.opened.values()))[0]
        others = getattr(data, "others", None)
        if others is None:
            raise ValueError(
                "teacher.rows=disjoint: needs rows that the student does not train on, got none; "
                "set data.train_rows to fewer than there are."
            )
        batch = config.teacher_train.batch_size
        cost = replace(cost, steps=max(1, round(len(others) / batch)))
    return cost


def _memory() -> int:
    """Bytes at most, of this process and of its device, while the runs were tried out."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _disk(plan: Plan, costs: dict[str, Cost], teachers: dict[str, Cost]) -> int:
    """Bytes of weights and of two checkpoints, for every run and every teacher."""

    def folder(parameters: int, train: TrainConfig) -> int:
        return 4 * parameters * (1 + 2 * (1 + MOMENTS[train.optimizer])) + (1 << 20)

    runs = sum(folder(costs[_key(one.pair, one.method)].student, one.config.train) for one in plan.trainings)
    return runs + sum(folder(teachers[one.title].student, one.config.teacher_train) for one in plan.teachers)


def plan_lines(plan: Plan, found: Estimate, *, workers: int) -> list[str]:
    """The plan as people read it."""
    runs, seeds = len(plan.trainings), plan.options.seeds
    head = f"{len(plan.methods)} methods x {len(seeds)} seeds"
    if len(plan.pairs) > 1:
        head = f"{len(plan.pairs)} pairs x {head}"
    teachers = f", and {len(plan.teachers)} of teachers" if plan.teachers else ""
    data = found.data
    val = f"{data.val:,} to check teachers, " if data.val else ""
    unlabelled = f"{data.unlabelled:,} without labels, " if data.unlabelled else ""
    lines = [
        f"{head}: {runs} trainings{teachers}",
        f"data      {data.source}: {data.train:,} to learn from, {unlabelled}{val}{data.test:,} for testing, "
        f"{len(data.classes)} classes",
    ]
    for pair in plan.pairs:
        config = plan.of(pair, plan.methods[0])[0].config
        costs = [found.costs[_key(pair, method)] for method in plan.methods]
        most = max(costs, key=lambda cost: cost.teacher)
        if pair:
            lines.append(pair)
        if most.teacher:
            lines.append(
                f"teacher   {_short(config.teacher.name)}: {most.teacher:,} parameters, {_origin(plan, pair)}"
            )
        lines.append(f"student   {_short(config.student.name)}: {most.student:,} parameters, {most.views}")
        width = max(len(method) for method in plan.methods)
        for method, cost in zip(plan.methods, costs, strict=True):
            trained = plan.of(pair, method)[0]
            note = ", logits from the shared cache" if plan.cached and trained.config.teacher.cache else ""
            lines.append(
                f"  {method:<{width}}  {1000 * cost.step:,.0f} ms a step, {cost.steps} steps, {cost.epochs} epochs: "
                f"{duration(cost.seconds)} a run{note}"
            )
    for title in dict.fromkeys(one.config.teacher.name for one in plan.teachers):
        cost = next(found.teachers[one.title] for one in plan.teachers if one.config.teacher.name == title)
        lines.append(f"  training {_short(title)}: {duration(cost.seconds)}, {_count(plan, title)}")
    total = sum(found.costs[_key(one.pair, one.method)].seconds for one in plan.trainings)
    total += sum(found.teachers[one.title].seconds for one in plan.teachers)
    beside = f", {workers} at a time" if workers > 1 else ""
    lines.append(f"time      about {duration(total / workers)}{beside}")
    lines.append(f"memory    about {readable(found.memory)} for each training at a time")
    cache = (
        f", {readable(found.cache_bytes)} of it the teacher cache of {found.cache_runs} runs"
        if found.cache_runs
        else ""
    )
    lines.append(
        f"disk      at most {readable(found.disk)}{cache}; {readable(found.free)} free in {plan.out}"
    )
    return lines


def _short(name: str) -> str:
    """A network's name without its arguments."""
    return name.partition("?")[0]


def _count(plan: Plan, name: str) -> str:
    number = sum(one.config.teacher.name == name for one in plan.teachers)
    return "once for all seeds" if plan.options.same_teacher else f"{number} times" if number > 1 else "once"


def _origin(plan: Plan, pair: str) -> str:
    for one in plan.trainings:
        options = one.config.teacher
        if one.pair == pair and one.config.method.preset != NO_TEACHER:
            if one.teacher_file is not None:
                return "trained here, once for each seed"
            if plan.options.same_teacher and plan.teachers:
                return "trained here, once for all seeds"
            return (
                f"weights: {options.weights}"
                if options.weights
                else "published weights"
                if options.pretrained
                else "its own weights"
            )
    return ""


def check_disk(plan: Plan, found: Estimate) -> bool:
    """Whether the disk allows the plan's cache. ``ValueError`` where it is too small for the runs themselves."""
    runs = found.disk - found.cache_bytes
    if runs > found.free:
        raise ValueError(
            f"--out: needs about {readable(runs)} for {len(plan.trainings)} runs, got {readable(found.free)} free at "
            f"{plan.out}; free some room or name a folder on another disk."
        )
    if plan.options.cache:  # asked for
        if found.disk > found.free:
            raise ValueError(
                f"compare.cache: needs {readable(found.cache_bytes)} beside the runs, got {readable(found.free)} free at "
                f"{plan.out}; free some room or give --no-cache."
            )
        return True
    return found.cache_bytes <= SHARE * found.free


def duration(seconds: float) -> str:
    """
    >>> duration(0.4), duration(75.0), duration(5400.0)
    ('1 second', '75 seconds', '90 minutes')
    """
    if seconds < 120:
        number = max(1, round(seconds))
        return f"{number} second{'' if number == 1 else 's'}"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
