"""One run, from a configuration to a record.

    data -> student -> teacher -> frozen teacher -> losses -> trainer -> record

:func:`assemble` creates all parts, :func:`train` trains, :func:`distill` does both and writes the run folder. Each
step calls the task (:mod:`outgrow.training.task`), which implements it.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from outgrow.data.folder import check_outside
from outgrow.knowledge import Rectifier
from outgrow.machine.files import counted, sealed, write_atomically
from outgrow.machine.precision import refuse_half_on_cpu
from outgrow.models.sources import net_identity
from outgrow.objective import Objective, preset
from outgrow.run.layers import as_config
from outgrow.run.recipes import RECIPES
from outgrow.run.tasks import task_of
from outgrow.teacher.cache import CachedTeacher, check_cache_folder, digest
from outgrow.training.acceleration import fast_steps, make_accelerator, memory_layout
from outgrow.training.config import Config, TrainConfig, settle, without_effect
from outgrow.training.fitting import fit, machine_facts, student_checkpoint
from outgrow.training.folder import drop_aside, open_folder, release, vacate, write_config
from outgrow.training.meter import EpochRecord
from outgrow.training.noise import wanted_noise, with_noise
from outgrow.training.processes import is_main, on_main, process_group
from outgrow.training.progress import Reporter, make_reporter
from outgrow.training.provenance import files_of, provenance
from outgrow.training.record import VERSION, RunRecord, TrialRecord
from outgrow.training.task import Parts, RunContext, Task
from outgrow.training.tracking import check_trackers, tracked
from outgrow.training.trainer import Trainer, few_steps


def distill(
    config: Config | Mapping[str, Any] | None = None,
    *,
    teacher: nn.Module | None = None,
    student: nn.Module | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = False,
    reporter: Reporter | None = None,
    tuning: Sequence[TrialRecord] = (),
) -> dict[str, Any]:
    """Distil a teacher into a student and return the record of the run.

    ``config`` is a :class:`outgrow.training.config.Config`, or a mapping of the fields that differ from the
    defaults, or from the recipe that it names. ``teacher`` and ``student`` may be your own modules (RGB images in [0, 1] to logits), which replace the
    names in ``config``. Both are moved to the device; the student is trained in place.

    With ``config.out``, the run folder gets ``config.yaml``, ``record.json``, ``student.safetensors``,
    ``index.html``, ``curves.png``, and a checkpoint from which ``resume`` continues. A folder with a run is refused
    without ``resume`` or ``overwrite``.

    ``progress`` shows a bar in a terminal or a notebook, and lines of text elsewhere; ``reporter`` is one of your own.

    ``tuning`` are the trials that chose values of ``config``, for the record.

    ``ValueError`` for parts that do not fit together; :class:`outgrow.training.guard.NonFiniteLoss` if training
    diverges.
    """
    started = time.time()
    if reporter is None and progress:
        reporter = make_reporter()
    with begun(config, resume=resume, overwrite=overwrite, reporter=reporter) as run:
        record = _distill(run, teacher, student, started, tuple(tuning))
    return record.as_dict()


def _distill(
    run: RunContext,
    teacher: nn.Module | None,
    student: nn.Module | None,
    started: float,
    tuning: tuple[TrialRecord, ...],
) -> RunRecord:
    task = task_of(run.config.data.source)
    try:
        parts = assemble(run, task, teacher, student)
    except (ValueError, OSError, KeyboardInterrupt):
        if run.out is not None and not run.resume and is_main():
            release(run.out)
        raise
    if run.out is not None and is_main():
        drop_aside(run.out)
    files = files_of(run.config)
    before = task.before_training(run, parts)
    history, scores = train(run, task, parts)
    record = RunRecord(
        version=VERSION,
        metric=task.metric,
        teacher=parts.taught.record,
        correction=parts.taught.correction,
        **_found(parts),
        student=task.student_record(parts.student, scores, history),
        epochs=tuple(history),
        **task.results(run, parts, scores, before),
        data=task.data_record(run, parts.data, parts.student),
        config=run.config,
        files=files,
        tuning=tuning,
        **provenance(run.device, started),
    )
    if run.out is not None and is_main():
        write_folder(run.out, task, record, parts)
    for line in summary(record):
        run.report.show(line)
    run.report.event(
        "result",
        teacher=record.teacher_score,
        student=record.student_score,
        metric=record.metric,
        out=run.config.out,
    )
    return record


def _found(parts: Parts) -> dict[str, Any]:
    """What only some runs find out about teacher and labels."""
    found = {"mixture": parts.taught.mixture, "noise": parts.taught.noise_record}
    return {name: value for name, value in found.items() if value is not None}


def summary(record: RunRecord) -> Iterator[str]:
    """The result of a run in at most three lines."""
    teacher, student, teacher_score = record.teacher, record.student, record.teacher_score
    if teacher is not None and teacher_score is not None:
        yield f"teacher {teacher.name}: {record.measure.value(teacher_score)} ({teacher.parameters:,} parameters)"
    yield (
        f"student {student.name}: {record.measure.value(record.student_score)} after the last epoch "
        f"(best {record.best_score:.2f} %, epoch {student.epoch_best}; {student.parameters:,} parameters)"
    )
    if record.config.out:
        yield f"{record.config.out}: student.safetensors, index.html, record.json, config.yaml, curves.png"


@contextmanager
def begun(
    config: Config | Mapping[str, Any] | None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> Iterator[RunContext]:
    """A run that :func:`start` opened, with its trackers. At its end the folder is free for other processes."""
    run = start(config, resume=resume, overwrite=overwrite, reporter=reporter)
    try:
        with tracked(run) as watched:
            yield watched
    finally:
        if run.out is not None and is_main():
            vacate(run.out)


def start(
    config: Config | Mapping[str, Any] | None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> RunContext:
    """Resolve the configuration, choose the device and open the run folder."""
    config = settle(as_config(config))
    check_trackers(config.track)
    refuse_half_on_cpu(config.train.precision, config.train.device)
    device = make_accelerator(config.train).device
    report = (reporter if is_main() else None) or Reporter()
    out = Path(config.out) if config.out else None
    if config.out == "" or (resume and out is None):
        raise ValueError(f"--out: needs the folder of a run, got {config.out!r}; set it.")
    if config.teacher.cache is not None:
        cache = Path(config.teacher.cache)
        on_main(lambda: check_cache_folder(cache))
    if out is not None:
        for source in filter(None, (config.data.source, config.data.unlabelled)):
            check_outside(out, source)
        on_main(lambda: open_folder(out, config, resume=resume, overwrite=overwrite))
    recipe = RECIPES.get(config.recipe)
    return RunContext(config, device, report, out, resume, {} if recipe is None else recipe.layer)


def assemble(
    run: RunContext,
    task: Task,
    teacher: nn.Module | None = None,
    student: nn.Module | None = None,
    *,
    whole: bool = False,
    epochs: int | None = None,
) -> Parts:
    """All parts of a run before its first step.

    The student is created before the teacher, whose training may take hours, so that errors in the student are
    raised first. With ``whole``, every process loads all views. ``epochs`` is the number of epochs in a teacher
    cache; the default is that of the run.
    """
    config = run.config
    data = task.open_data(run)
    rectify, objective = method_of(config)
    objective.process_group = process_group()
    _check_task(config, task)
    task.check(run, objective)
    unread = dict(without_effect(config))
    for name in run.chosen(unread):
        run.report.note(f"warning: {name} has no effect: {unread[name]}")
    for name, reason in objective.inert_under(rectify.rule).items():
        run.report.note(
            f"warning: the rule {rectify.rule.name!r} has no effect on the loss {name!r}: {reason}"
        )
    torch.manual_seed(config.seed)
    student_net = task.make_student(run, data, objective, student)
    random_state = torch.get_rng_state()
    torch.manual_seed(config.seed)
    network = task.make_teacher(run, data, teacher)
    taught = task.freeze(run, data, network, student_net, objective)
    rectify = with_noise(config.method.effective, rectify, objective, taught.noise)
    loader = task.train_loader(run, data, [network, student_net], taught, whole=whole)
    parts = Parts(data, student_net, network, taught, rectify, objective, loader)
    # so that the connectors' initial weights do not depend on the teacher
    torch.set_rng_state(random_state)
    task.set_up(run, parts)
    taught.module = task.cache(run, parts, epochs=epochs or config.train.for_steps(len(loader)).epochs)
    torch.manual_seed(config.seed)
    return parts


def _check_task(config: Config, task: Task) -> None:
    """``ValueError`` for options that only teachers of images with one label have."""
    options = {
        "teacher.others": bool(config.teacher.others),
        "teacher.views": config.teacher.views > 1,
        "posterior": wanted_noise(config.method) != "none",
    }
    for name, given in options.items():
        if given and task.metric != "top1":
            raise ValueError(
                f"{name}: needs images with one label each, got --data {config.data.source}, which has boxes; leave it out."
            )


def method_of(config: Config) -> tuple[Rectifier, Objective]:
    """The rectifier and the objective of a run: its preset, with the parts that its configuration changes."""
    method = config.method.effective
    return preset(
        method.preset,
        temperature=method.temperature,
        loss=method.loss,
        rule=method.rule,
        schedule=method.schedule,
        weight=method.weight,
        task_weight=method.task_weight,
        normalize=method.normalize,
        trust=method.trust,
    )


def train(run: RunContext, task: Task, parts: Parts) -> tuple[list[EpochRecord], Any]:
    """Train the student; returns its epochs, and the task's scores after the last one."""
    evaluate = task.evaluator(run, parts)
    last: list[Any] = []

    def score(model: nn.Module) -> float:
        last[:] = [evaluate(model)]
        return float(last[0].score)

    torch.manual_seed(run.config.seed)
    trainer = Trainer(
        student=parts.student,
        teacher=parts.taught.module,
        rectify=task.rectifier(parts.rectify),
        objective=parts.objective,
        loader=parts.loader,
        config=run.config.train,
        make_lesson=task.lesson_maker(run.config),
        evaluate=score,
        checkpoint=None
        if run.out is None
        else student_checkpoint(run.out, run.config, _facts(task, run, parts), run.report),
    )
    run.report.note(f"student {task.describe(parts)}, {_epochs(run.config.train, trainer.config)}")
    if note := few_steps(run.config.train, len(parts.loader)):
        run.report.note(f"warning: {note}")
    history = fit(trainer, run.report, "student", metric=task.metric, resume=run.resume)
    if not last:  # resumed after the last epoch
        score(parts.student)
    return history, last[0]


def _epochs(asked: TrainConfig, trained: TrainConfig) -> str:
    """
    >>> _epochs(TrainConfig(epochs=1), TrainConfig(epochs=1))
    '1 epoch'
    >>> _epochs(TrainConfig(epochs=10, min_steps=1000), TrainConfig(epochs=250))
    '250 epochs, since 10 have fewer than the 1,000 steps of train.min_steps (set --epochs to change that)'
    """
    if asked.epochs == trained.epochs:
        return counted(asked.epochs, "epoch")
    return (
        f"{trained.epochs} epochs, since {asked.epochs} have fewer than the {asked.min_steps:,} steps of "
        "train.min_steps (set --epochs to change that)"
    )


def _facts(task: Task, run: RunContext, parts: Parts) -> dict[str, str]:
    """What the student's training depends on, besides its configuration."""
    data = task.data_record(run, parts.data, parts.student)
    taught = parts.taught.module
    teacher = "none" if parts.teacher is None else digest(getattr(taught, "uncached", taught))
    facts = {**machine_facts(data.fingerprint), "classes": ", ".join(data.classes), "teacher": teacher}
    more: dict[str, str | None] = {
        f"{whose}.name": net_identity(name)
        for whose, name in (("student", run.config.student.name), ("teacher", run.config.teacher.name))
        if name is not None and name.startswith("py:")
    }
    more |= {"unlabelled": data.unlabelled_fingerprint, "data.class_map": data.class_map}
    return facts | {name: value for name, value in more.items() if value}


def write_folder(out: Path, task: Task, record: RunRecord, parts: Parts) -> None:
    """Write the files of a finished run. The record is last, so that a folder with a record is a finished run."""
    from outgrow.report.curves import draw_curves

    task.save_student(parts.student, out / "student.safetensors")
    draw_curves(record, out / "curves.png")
    task.write_page(out / "index.html", record, parts)
    write_config(out, record.config)
    write_atomically(out / "record.json", sealed(record.as_dict()))


def fill_cache(
    config: Config,
    *,
    epochs: int | None = None,
    teacher: nn.Module | None = None,
    student: nn.Module | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Cache the teacher's outputs on the views of the first ``epochs`` epochs, by default those of the training.

    Runs with the same teacher, data, views and seed then read them. Features are cached with
    ``config.teacher.cache_features`` if the losses read some. Cached epochs are skipped, so the call can be repeated
    after an interruption. ``student`` is as in :func:`distill`; the teacher's taps depend on it. Returns ``folder``,
    ``epochs`` and ``bytes``.
    """
    if config.teacher.cache is None:
        raise ValueError("cache: needs a folder, got none; set --out DIR, or --set teacher.cache=DIR.")
    run = start(config.model_copy(update={"out": None}), reporter=reporter)
    parts = assemble(run, task_of(config.data.source), teacher, student, whole=True, epochs=epochs)
    epochs = epochs or config.train.for_steps(len(parts.loader)).epochs
    cached = parts.taught.module
    if not isinstance(cached, CachedTeacher):
        raise ValueError("cache: needs a teacher, got none; set --teacher MODEL.")
    # device, precision, layout and norms are those of a training, so that the logits have the same bits
    train, accelerator = run.config.train, make_accelerator(run.config.train)
    layout = memory_layout(train)
    cached.to(accelerator.device, memory_format=layout)  # type: ignore[call-overload]
    missing = [e for e in range(epochs) if cached.cache.bytes_missing(e + 1) > cached.cache.bytes_missing(e)]
    with (
        fast_steps(train, parts.student, accelerator.device),
        run.report.bar("teacher", len(missing) * parts.loader.num_samples) as advance,
    ):
        done = 0
        for epoch in missing:
            cached.at(epoch)
            for batch in parts.loader.epoch(epoch):
                with accelerator.autocast():
                    cached(batch.images.contiguous(memory_format=layout), index=batch.target.index)
                done += len(batch.images)
                advance(done)
        cached.at(None)
    size = cached.cache.bytes_per_epoch()
    return {"folder": str(cached.cache.folder), "epochs": epochs, "bytes": epochs * size}
