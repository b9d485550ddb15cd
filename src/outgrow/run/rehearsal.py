"""Estimate the time, memory and disk space of a comparison, and check that the parts of each run fit together.

Every method is assembled once with its real networks and a few real images, so that errors appear now and not after
hours. A few steps are timed for each kind of run with its own cost. Kinds differ in the pair of networks, in whether
there is a teacher, in whether it is cached, and in the features that the loss reads.
"""

import contextlib
import itertools
import math
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from outgrow.machine.files import readable
from outgrow.models import num_parameters
from outgrow.report.table import NO_TEACHER
from outgrow.run.distillation import assemble, method_of, start
from outgrow.run.plan import (
    CACHE,
    Plan,
    Preparation,
    Shared,
    Training,
    disk_free,
    shared_caches,
    tries_correction,
)
from outgrow.run.tasks import task_of
from outgrow.training.config import (
    Config,
    DataConfig,
    MethodConfig,
    ModelConfig,
    TeacherConfig,
    TrainConfig,
)
from outgrow.training.guard import NonFiniteLoss
from outgrow.training.progress import Reporter
from outgrow.training.record import DataRecord
from outgrow.training.task import Task
from outgrow.training.trainer import Trainer, few_steps

STEPS = 4
"""Timed steps, after one for warm-up."""
ENOUGH = 5.0
"""Seconds after which two timed steps suffice."""
PAGE = 1.0
"""Seconds to write the page and the curves of a run."""
MOMENTS = {"sgd": 1, "adamw": 2}
"""Numbers that an optimiser stores per weight."""
SHARE = 0.5
"""The share of the free disk space that a cache may use, unless it is requested explicitly."""


@dataclass(frozen=True)
class Cost:
    """The cost of a kind of run. Times are in seconds; ``test_pass`` and ``teacher_pass`` are for all test images."""

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
    indices: int
    """Rows of a teacher cache in an epoch."""
    mapped: bool = False
    """Whether the teacher has other classes than the student."""

    @property
    def seconds(self) -> float:
        training = self.epochs * self.steps * self.step + self.tests * self.test_pass
        return training + self.set_up + self.teacher_pass + self.correction + PAGE


@dataclass(frozen=True)
class Estimate:
    """The cost of a comparison. ``memory``, ``disk``, ``free`` and ``cache_bytes`` are in bytes."""

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
    """Results of earlier trials: costs by kind of run, methods that were assembled, and open data."""

    kinds: dict[tuple[Any, ...], Cost] = field(default_factory=dict)
    fit: set[tuple[str, str]] = field(default_factory=set)
    opened: dict[str, tuple[Any, DataRecord]] = field(default_factory=dict)


class _Enough(Exception):
    pass


def estimate(plan: Plan, *, report: Reporter, trials: Trials | None = None) -> Estimate:
    """Assemble every method, time each kind of run, and sum up. ``ValueError`` for parts that do not fit together."""
    trials = trials or Trials()
    costs: dict[str, Cost] = {}
    caches = shared_caches(plan)
    fills = _fills(caches)
    for pair in plan.pairs:
        for method in plan.methods:
            training = plan.of(pair, method)[0]
            try:
                costs[_key(pair, method)] = _tried(training, plan, fills, trials, report)
            except (ValueError, NonFiniteLoss) as error:
                raise ValueError(f"method {method!r}: {error}") from None
    teachers = {}
    for one in plan.teachers:
        kind = ("teacher", one.config.teacher.name, str(one.config.teacher.weights))
        if kind not in trials.kinds:
            report.note(f"testing the training of {_short(one.config.teacher.name)} ...")
            trials.kinds[kind] = teacher_cost(one, trials)
        teachers[one.title] = trials.kinds[kind]
    record = next(iter(trials.opened.values()))[1]
    held = sum(
        group.kinds * 2 * cost.indices * len(record.classes) * cost.epochs
        for group, cost in ((one, costs[_key(one.runs[0].pair, one.runs[0].method)]) for one in caches)
    )
    return Estimate(
        data=record,
        costs=costs,
        teachers=teachers,
        memory=_memory(),
        disk=_disk(plan, costs, teachers) + held,
        free=disk_free(plan.out),
        cache_bytes=held,
        cache_runs=sum(len(group.runs) for group in caches),
        mapped=frozenset(
            pair for pair in plan.pairs for method in plan.methods if costs[_key(pair, method)].mapped
        ),
    )


def _key(pair: str, method: str) -> str:
    return f"{pair}/{method}"


def _fills(caches: Sequence[Shared]) -> frozenset[Path]:
    """The folders of the runs that compute the teacher for others."""
    return frozenset(one.folder for group in caches for one in group.fills)


def _reads(training: Training, plan: Plan) -> bool:
    """Whether a run has its logits from the shared cache, or fills it."""
    return plan.cached and training.config.teacher.cache == str(plan.out / CACHE)


def _tried(training: Training, plan: Plan, fills: frozenset[Path], trials: Trials, report: Reporter) -> Cost:
    config = training.config
    objective = method_of(config)[1]
    alone = config.method.preset == NO_TEACHER
    cached = not alone and _reads(training, plan) and training.folder not in fills
    kind = (
        training.pair,
        "alone" if alone else "cached" if cached else "computed",
        config.method.loss if objective.reads_features else "logits",
        not alone and tries_correction(config),
    )
    known = trials.kinds.get(kind)
    if known is None or (training.pair, training.method) not in trials.fit:
        report.note(f"testing {training.title.rpartition(', seed')[0]} ...")
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
    task: Task | None = None,
) -> Cost:
    """Assemble a run on a few batches and time its steps, unless its cost is ``known``.

    ``trials`` keeps open data for other runs. ``expected`` is whether this comparison will train the teacher, so that
    its weights do not exist yet. ``task`` is that of the data by default.
    """
    # without torch.compile, whose first step takes minutes
    train = config.train.model_copy(update={"compile": False, "epochs": STEPS + 1, "max_steps": None})
    update: dict[str, Any] = {"out": None, "train": train}
    if config.teacher.weights is not None and config.method.preset != NO_TEACHER and expected:
        update["teacher"] = config.teacher.model_copy(update={"train": True, "weights": None, "rows": "same"})
    tried = config.model_copy(update=update)
    run, task = start(tried), task or task_of(config.data.source)
    key = data_key(config.data, config.seed)
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
    loader = task.train_loader(run, data, networks)
    steps = min(len(loader), config.train.max_steps or len(loader))
    evaluate = rehearsal.evaluator(run, parts)
    tested = min(record.test, rows)
    step = _step_seconds(parts, rehearsal, run)
    test_pass = _seconds(lambda: evaluate(parts.student)) * record.test / tested
    teacher_pass = correction = 0.0
    mapped = bool(getattr(rehearsal, "foreign", False))
    if parts.teacher is not None:
        taught = parts.taught.module
        teacher_pass = _seconds(lambda: evaluate(taught)) * record.test / tested
        if task.metric == "ap":  # it looks for objects in pictures without annotations, once
            correction += teacher_pass * (record.unlabelled or 0) / record.test
        if mapped or tries_correction(config):
            correction += teacher_pass * config.teacher.correct_views * record.train / record.test
        if config.teacher.views > 1:
            correction += teacher_pass * config.teacher.views * record.train / record.test
    training = config.train.for_steps(len(loader))
    return Cost(
        set_up=set_up,
        step=step,
        steps=steps,
        epochs=training.epochs,
        test_pass=test_pass,
        tests=math.ceil(training.epochs / training.eval_every),
        teacher_pass=teacher_pass,
        correction=correction,
        student=num_parameters(parts.student),
        teacher=0 if parts.teacher is None else num_parameters(parts.teacher),
        views=_views(parts.loader),
        indices=loader.num_indices,
        mapped=mapped,
    )


def data_key(data: DataConfig, seed: int) -> str:
    """The key of open data in :class:`Trials`."""
    return data.model_dump_json() + str(seed)


def _views(loader: Any) -> str:
    images = next(iter(loader.epoch(0))).images
    if isinstance(images, torch.Tensor):
        return f"{images.shape[-2]}x{images.shape[-1]} views"
    return f"images such as {images[0].shape[-2]}x{images[0].shape[-1]}"


def _step_seconds(parts: Any, task: Any, run: Any) -> float:
    """The median time of a few steps, without the first one."""
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


def teacher_cost(preparation: Preparation, trials: Trials) -> Cost:
    """The cost of training a teacher: that of a student without a teacher, on the teacher's rows."""
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
                "lower data.train_rows."
            )
        train = config.teacher_train
        steps = max(1, round(len(others) / train.batch_size))
        training = train.for_steps(steps)  # with more images fewer epochs have the least number of steps
        cost = replace(
            cost,
            steps=min(steps, train.max_steps or steps),
            epochs=training.epochs,
            tests=math.ceil(training.epochs / training.eval_every),
        )
    return cost


def _memory() -> int:
    """Peak bytes of the GPU during the trials, or of this process without a GPU."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _disk(plan: Plan, costs: dict[str, Cost], teachers: dict[str, Cost]) -> int:
    """Bytes of the weights and of two checkpoints of every run and every teacher."""

    def folder(parameters: int, train: TrainConfig) -> int:
        return 4 * parameters * (1 + 2 * (1 + MOMENTS[train.optimizer])) + (1 << 20)

    runs = sum(folder(costs[_key(one.pair, one.method)].student, one.config.train) for one in plan.trainings)
    return runs + sum(folder(teachers[one.title].student, one.config.teacher_train) for one in plan.teachers)


def plan_lines(plan: Plan, found: Estimate, *, workers: int) -> list[str]:
    """The plan as lines of text."""
    runs, seeds = len(plan.trainings), plan.options.seeds
    head = f"{_many(len(plan.methods), 'method')} x {_many(len(seeds), 'seed')}"
    if len(plan.pairs) > 1:
        head = f"{len(plan.pairs)} pairs x {head}"
    teachers = f", and {len(plan.teachers)} of teachers" if plan.teachers else ""
    data = found.data
    val = f"{data.val:,} validation images, " if data.val else ""
    unlabelled = f"{data.unlabelled:,} without labels, " if data.unlabelled else ""
    lines = [
        f"{head}: {_many(runs, 'training')}{teachers}",
        f"data      {data.source}: {data.train:,} training images, {unlabelled}{val}{data.test:,} test images, "
        f"{_many(len(data.classes), 'class', 'es')}",
    ]
    fills = _fills(shared_caches(plan))
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
            note = ""
            if _reads(trained, plan):
                note = (
                    ", fills the shared cache"
                    if trained.folder in fills
                    else ", logits from the shared cache"
                )
            lines.append(
                f"  {method:<{width}}  {1000 * cost.step:,.0f} ms per step, {_many(cost.steps, 'step')}, "
                f"{_many(cost.epochs, 'epoch')}: "
                f"{duration(cost.seconds)} per run{note}"
            )
        if few := few_steps(config.train, most.steps):
            lines.append(f"warning   {few}")
    for title in dict.fromkeys(one.config.teacher.name for one in plan.teachers):
        cost = next(found.teachers[one.title] for one in plan.teachers if one.config.teacher.name == title)
        lines.append(f"  training {_short(title)}: {duration(cost.seconds)}, {_count(plan, title)}")
    total = sum(found.costs[_key(one.pair, one.method)].seconds for one in plan.trainings)
    total += sum(found.teachers[one.title].seconds for one in plan.teachers)
    beside = f", {workers} at a time" if workers > 1 else ""
    lines.append(f"time      about {duration(total / workers)}{beside}")
    lines.append(f"memory    about {readable(found.memory)} per worker")
    cache = (
        f", of which {readable(found.cache_bytes)} for the teacher cache of {found.cache_runs} runs"
        if found.cache_runs
        else ""
    )
    lines.append(
        f"disk      at most {readable(found.disk)}{cache}; {readable(found.free)} free in {plan.out}"
    )
    return lines


def _short(name: str) -> str:
    """A model's name without its arguments."""
    return name.partition("?")[0]


def _count(plan: Plan, name: str) -> str:
    number = sum(one.config.teacher.name == name for one in plan.teachers)
    return "once for all seeds" if plan.options.same_teacher else f"{number} times" if number > 1 else "once"


def _origin(plan: Plan, pair: str) -> str:
    for one in plan.trainings:
        options = one.config.teacher
        if one.pair == pair and one.config.method.preset != NO_TEACHER:
            if one.teacher_file is not None:
                return "trained here, once per seed"
            if plan.options.same_teacher and plan.teachers:
                return "trained here, once for all seeds"
            return (
                f"weights: {options.weights}"
                if options.weights
                else "published weights"
                if options.pretrained
                else "the model's own weights"
            )
    return ""


def check_disk(plan: Plan, found: Estimate) -> bool:
    """Whether the disk has room for the plan's cache. ``ValueError`` if it has none for the runs."""
    runs = found.disk - found.cache_bytes
    if runs > found.free:
        raise ValueError(
            f"--out: needs about {readable(runs)} for {len(plan.trainings)} runs, got {readable(found.free)} free at "
            f"{plan.out}; free some room, or choose a folder on another disk."
        )
    # files of the cache that are there have taken their room already
    written = sum(file.stat().st_size for file in (plan.out / CACHE).glob("*/*.npy"))
    if plan.options.cache:  # requested explicitly
        if found.disk > found.free + written:
            raise ValueError(
                f"compare.cache: needs {readable(found.disk)} for runs and cache, got {readable(found.free)} free at "
                f"{plan.out}; free some room or set --no-cache."
            )
        return True
    return found.cache_bytes <= SHARE * (found.free + written)


def _many(number: int, name: str, ending: str = "s") -> str:
    """
    >>> _many(1, "class", "es"), _many(3, "class", "es")
    ('1 class', '3 classes')
    """
    return f"{number} {name}{'' if number == 1 else ending}"


def duration(seconds: float) -> str:
    """
    >>> duration(0.4), duration(75.0), duration(5400.0)
    ('1 second', '75 seconds', '90 minutes')
    """
    if seconds < 120:
        return _many(max(1, round(seconds)), "second")
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
