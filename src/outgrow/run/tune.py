"""`outgrow tune`: weight, temperature and learning rate of a method, chosen on held-out training images.

    price -> trials -> tune.json, best.yaml

A trial is a run of the configuration whose test images are replaced by held-out training images. No test image is
scored, by a student or by the teacher. All trials have the same teacher, teacher cache, held-out images, initial
weights and batches. Optuna proposes the values (tree-structured Parzen estimator) and ends the worse two thirds of the
trials early (successive halving). The first trial has the values of the configuration.

    Jamieson, Talwalkar 2016, "Non-stochastic best arm identification and hyperparameter optimization"
    Bergstra et al. 2011, "Algorithms for hyper-parameter optimization"
"""

import contextlib
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from outgrow.machine.files import check_writable, sealed, unsealed, write_atomically
from outgrow.objective import PRESETS
from outgrow.run.distillation import assemble, method_of, start, train
from outgrow.run.plan import Plan, Training, make_plan, read_options
from outgrow.run.rehearsal import Trials, duration, rehearse, teacher_cost
from outgrow.run.tasks import task_of
from outgrow.run.work import load_teacher, train_teacher
from outgrow.training.config import Config, build_config, merge, settle, with_checksum
from outgrow.training.folder import LEAST_ROOM, check_folder, occupied
from outgrow.training.guard import NonFiniteLoss, NonFiniteScores
from outgrow.training.processes import launched
from outgrow.training.progress import JsonReporter, Reporter
from outgrow.training.record import DataRecord, TrialRecord
from outgrow.training.task import Task

HELD_OUT = 0.2
"""Share of the training images that is held out if the configuration holds out none."""
FACTOR = 3
"""Of all trials that reach a rung, one in this number continues; rungs are this factor apart."""
TRIALS = 12
RANGES = {"weight": (0.25, 16.0), "temperature": (1.0, 8.0), "lr": (0.25, 4.0)}
"""Smallest and largest value, on a logarithmic scale; of ``lr`` as a factor of the configured one."""
FIELDS = {"weight": "method.weight", "temperature": "method.temperature", "lr": "train.lr"}
CALM = 1e-6
"""A learning rate for steps that are only timed."""
RESULT, BEST, JOURNAL, ASKED = "tune.json", "best.yaml", "trials.log", "asked.json"
DIVERGED = "diverged"

print_flushed = partial(print, flush=True)


@dataclass(frozen=True)
class Choice:
    """A value to choose: its field, its range, and the configured value."""

    name: str
    low: float
    high: float
    own: float


@dataclass(frozen=True)
class Tuned:
    """The result: all trials, the number of the best one, and the configuration with its values."""

    trials: tuple[TrialRecord, ...]
    best: int
    config: Config
    images: int
    """Held-out images."""

    @property
    def winner(self) -> TrialRecord:
        return self.trials[self.best]


def tune(
    config: Config,
    *,
    out: str | Path,
    trials: int = TRIALS,
    over: Sequence[str] = ("weight", "temperature"),
    overwrite: bool = False,
    dry_run: bool = False,
    reporter: Reporter | None = None,
    log: Callable[[str], None] | None = None,
) -> Tuned | None:
    """Choose the values ``over`` (``weight``, ``temperature``, ``lr``) of ``config`` with ``trials`` trainings.

    Writes ``tune.json`` (all trials) and ``best.yaml`` (``config`` with the best values) into ``out``. A call with the same
    arguments continues an interrupted one. ``dry_run`` prints the price and returns None. The chosen values suit the
    seed and the budget of ``config``. ``ValueError`` for a method without a teacher, and for values that it does not have.
    """
    _check_optuna()
    if launched() > 1:
        raise ValueError(
            f"tune: needs one process, got {launched()}; start it without torchrun, and the run with its best values with it."
        )
    report, out = reporter or Reporter(), Path(out)
    if log is None:  # a line of text would break what a program reads
        log = report.note if isinstance(report, JsonReporter) else print_flushed
    config = settle(config)
    choices = choices_of(config, over)
    plan = _plan(config, out)
    one = plan.trainings[0]
    task = task_of(config.data.source).held_out()
    check_writable(out, what="--out", room=LEAST_ROOM)
    asked = {
        "config": one.config.model_dump(mode="json", exclude={"out"}),
        "over": [asdict(choice) for choice in choices],
        "data": _held_out_data(config, out, task).fingerprint,
    }
    with occupied(out):
        study = _open(out, asked, one.config.train.epochs, overwrite=overwrite)
        left = max(trials - len(_finished(study)), 0)
        if left or dry_run:
            for line in _price(plan, one, task, trials, left):
                log(line)
        if dry_run:
            return None
        if left:
            for teacher in plan.teachers:
                train_teacher(teacher, reporter=_HeldOutScores(report), task=task)
            network = None if one.teacher_file is None else load_teacher(one.config, one.teacher_file)
            for _ in range(left):
                trial = _ask(study, choices, config.seed)
                found = _try(trial, one.config, task, network, choices, report)
                study.tell(trial, found.scores[-1] if found.finished else None, state=_state(found))
                log(f"trial {len(_finished(study))} of {trials}: {describe(found)}")
        return _conclude(study, config, choices, out, task, log)


def tuned(
    config: Config,
    *,
    trials: int = TRIALS,
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> tuple[Config, tuple[TrialRecord, ...]]:
    """``config`` with its best weight and temperature, and the trials, which are kept in the folder ``tune`` of the run."""
    if not config.out:
        raise ValueError("--weight auto: needs --out FOLDER for its trials, got none; set it.")
    check_folder(Path(config.out), resume=resume, overwrite=overwrite)
    objective = method_of(config)[1]
    one = objective.takes_temperature and len(objective.temperatures) == 1
    over = ["weight", "temperature"] if one else ["weight"]
    folder = Path(config.out) / "tune"
    found = tune(config, out=folder, trials=trials, over=over, overwrite=overwrite, reporter=reporter)
    assert found is not None
    return found.config, found.trials


def choices_of(config: Config, over: Sequence[str]) -> list[Choice]:
    """The values to choose. ``ValueError`` for unknown names, and for values that the method does not have."""
    if config.method.preset == "none" or config.teacher.name in ("", "none"):
        raise ValueError(
            "tune: needs a method with a teacher, got none; set --teacher MODEL, and a preset other than none."
        )
    objective = method_of(config)[1]
    if not over:
        raise ValueError(
            f"--over: needs one or more of {', '.join(RANGES)}, got none; leave it out for the default."
        )
    found = []
    for name in dict.fromkeys(over):
        if name not in RANGES:
            raise ValueError(f"--over: needs {', '.join(RANGES)}, got {name!r}; correct it.")
        low, high = RANGES[name]
        if name == "weight":
            given = config.method.weight
            own = PRESETS[config.method.preset].weight if given is None else given
            if own <= 0:
                raise ValueError(
                    f"--over weight: needs a configured weight above zero, got {own}; leave method.weight out."
                )
        elif name == "temperature":
            temperatures = objective.temperatures if objective.takes_temperature else set()
            if not temperatures:
                raise ValueError(
                    f"--over temperature: needs a loss with a temperature, got {config.method.loss}; leave temperature out."
                )
            if len(temperatures) > 1:
                raise ValueError(
                    f"--over temperature: needs losses of one temperature, got {' and '.join(map(str, sorted(temperatures)))}; "
                    "give all the same one, or leave temperature out."
                )
            (own,) = temperatures
        else:
            own, low, high = config.train.lr, low * config.train.lr, high * config.train.lr
        found.append(Choice(name, min(low, own), max(high, own), float(own)))
    return found


def _check_optuna() -> None:
    if find_spec("optuna") is None:
        raise ValueError(
            "tune: needs the package optuna, got none installed; pip install 'outgrow[tune]', or set method.weight yourself."
        )


def _plan(config: Config, out: Path) -> Plan:
    """One training of ``config`` with held-out images, a teacher of its own if it trains one, and a teacher cache."""
    held = {"data": {"val_fraction": config.data.val_fraction or HELD_OUT}, "train": {"eval_every": 1}}
    base = merge(config.model_dump(), held, {"out": None})
    if config.teacher.cache is None and not method_of(config)[1].reads_features:
        base = merge(base, {"teacher": {"cache": str(out / "cache")}})
    method = config.method.model_dump(exclude_unset=True)
    options = {"methods": {"trial": method}, "seeds": [config.seed], "cache": False}
    return make_plan(base, read_options(options), out)


def _held_out_data(config: Config, out: Path, task: Task) -> DataRecord:
    """The data of the trials, whose test images are the held-out ones."""
    run = start(_plan(config, out).trainings[0].config.model_copy(update={"out": None}))
    return task.data_record(run, task.open_data(run), None)


def _open(out: Path, asked: dict[str, Any], epochs: int, *, overwrite: bool) -> Any:
    """The search in ``out``, new or continued. ``ValueError`` if it is another one, or damaged."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    stated = out / ASKED
    if overwrite:
        for name in (JOURNAL, RESULT, BEST, ASKED):
            (out / name).unlink(missing_ok=True)
    if stated.is_file() and unsealed(stated.read_text(encoding="utf-8"), where=str(stated)) != asked:
        raise ValueError(
            f"--out {out}: needs a folder without another search, got one with other options; set another --out, or add "
            "--overwrite."
        )
    write_atomically(stated, sealed(asked))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal = out / JOURNAL
    if journal.is_file():  # a kill may have cut its last line
        whole, _, rest = journal.read_bytes().rpartition(b"\n")
        if rest:
            write_atomically(journal, whole + b"\n" if whole else b"")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study = optuna.create_study(
                study_name="tune",
                storage=JournalStorage(JournalFileBackend(str(journal))),
                load_if_exists=True,
                direction="maximize",
                pruner=optuna.pruners.SuccessiveHalvingPruner(
                    min_resource=max(1, round(epochs / FACTOR**2)), reduction_factor=FACTOR
                ),
            )
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError) as error:
        raise ValueError(
            f"--out {out}: needs the trials as they were written, got a damaged {journal} ({error}); restore it, or add "
            "--overwrite to start again."
        ) from None
    for trial in study.trials:  # that an interruption has left behind
        if not trial.state.is_finished():
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    return study


def _finished(study: Any) -> list[Any]:
    return [trial for trial in study.trials if trial.state.name in ("COMPLETE", "PRUNED")]


def _ask(study: Any, choices: Sequence[Choice], seed: int) -> Any:
    """The next trial; the first one has the configured values."""
    import optuna

    number = len(_finished(study))
    # of the number alone, so that an interrupted search proposes the same values
    study.sampler = optuna.samplers.TPESampler(seed=seed * 1000 + number, n_startup_trials=5)
    if not number:
        study.enqueue_trial({choice.name: choice.own for choice in choices})
    trial = study.ask()
    for choice in choices:
        trial.suggest_float(choice.name, choice.low, choice.high, log=True)
    return trial


def _try(
    trial: Any,
    config: Config,
    task: Task,
    teacher: nn.Module | None,
    choices: Sequence[Choice],
    report: Reporter,
) -> TrialRecord:
    """Train with the values of ``trial`` until the end, or until it is one of the worse."""
    started = time.perf_counter()
    watch = _Watch(trial, report)
    run = start(with_values(config, trial.params).model_copy(update={"out": None}), reporter=watch)
    try:
        train(run, task, assemble(run, task, teacher))
    except _Ended:
        pass
    except (NonFiniteLoss, NonFiniteScores):  # a large rate or weight; other trials may do better
        trial.set_user_attr(DIVERGED, True)
    return TrialRecord(
        values={choice.name: trial.params[choice.name] for choice in choices},
        scores=tuple(watch.scores),
        finished=watch.finished,
        diverged=trial.user_attrs.get(DIVERGED, False),
        seconds=time.perf_counter() - started,
    )


class _Ended(Exception):
    """The trial is one of the worse."""


class _HeldOutScores(Reporter):
    """Passes all on, and says of scores that they are not those of test images."""

    def __init__(self, report: Reporter) -> None:
        self.note, self.show, self.resumed, self.bar = report.note, report.show, report.resumed, report.bar  # type: ignore[method-assign]
        self.report = report

    def event(self, kind: str, **values: Any) -> None:
        self.report.event(kind, **values, **({"tested": "held-out"} if kind == "epoch" else {}))


class _Watch(Reporter):
    """Passes the scores of the student to a trial, and ends it if it is one of the worse."""

    def __init__(self, trial: Any, report: Reporter) -> None:
        self.trial, self.report = trial, report
        self.scores: list[float] = []
        self.finished = False

    def event(self, kind: str, **values: Any) -> None:
        if kind != "epoch" or values["network"] != "student" or values["score"] is None:
            return
        self.scores.append(values["score"])
        self.trial.report(values["score"], len(self.scores))
        self.finished = values["epoch"] == values["epochs"]
        if not self.finished and self.trial.should_prune():
            raise _Ended

    @contextlib.contextmanager
    def bar(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        with self.report.bar(f"trial {self.trial.number + 1}, {label}", total) as advance:
            yield advance


def _state(trial: TrialRecord) -> Any:
    import optuna

    states = optuna.trial.TrialState
    return states.COMPLETE if trial.finished else states.PRUNED


def with_values(config: Config, values: dict[str, float]) -> Config:
    """``config`` with the values of a trial."""
    layer: dict[str, Any] = {}
    for name, value in values.items():
        section, _, field = FIELDS[name].partition(".")
        layer = merge(layer, {section: {field: value}})
    return build_config(config.model_dump(), layer)


def describe(trial: TrialRecord) -> str:
    """
    >>> describe(TrialRecord(values={"weight": 2.0}, scores=(50.0, 61.5), finished=True, seconds=3.0))
    'weight 2: 61.50 %'
    """
    values = ", ".join(f"{name} {value:.3g}" for name, value in trial.values.items())
    if trial.diverged:
        return f"{values}: diverged"
    last = f"{trial.scores[-1]:.2f} %"
    return (
        f"{values}: {last}"
        if trial.finished
        else f"{values}: {last}, ended after evaluation {len(trial.scores)}"
    )


def _price(plan: Plan, one: Training, task: Task, trials: int, left: int) -> list[str]:
    """What the search will cost, from a few timed steps."""
    known = Trials()
    # steps take as long at a rate at which none diverges: that one does is for a trial to say
    calm = one.config.train.model_copy(update={"lr": min(one.config.train.lr, CALM)})
    config = one.config.model_copy(update={"train": calm})
    cached = config.teacher.cache is not None
    cost = rehearse(config, known, task=task, cached=cached)
    record = next(iter(known.opened.values()))[1]
    teachers = sum(teacher_cost(teacher, known).seconds for teacher in plan.teachers)
    least = cost.seconds * (1 + (left - 1) / FACTOR**2) if left else 0.0
    lines = [
        f"{trials} trials, {trials - left} of them done: {record.train:,} training images, {record.test:,} held-out ones",
        f"one training to the end: {duration(cost.seconds)}; worse trials end after 1/{FACTOR**2} or 1/{FACTOR} of it",
    ]
    if teachers:
        lines.append(f"teacher, trained once: {duration(teachers)}")
    lines.append(f"time      {duration(least + teachers)} to {duration(left * cost.seconds + teachers)}")
    return lines


def within_chance(score: float, images: int) -> float:
    """Two standard errors of a difference between scores such as ``score``, in points. With two right and two wrong images
    more (Agresti and Coull), as otherwise nothing would be by chance where all of a few images are right.

    >>> round(within_chance(75.0, 1000), 1), round(within_chance(100.0, 3), 1)
    (3.9, 48.3)
    """
    right = (score / 100 * images + 2) / (images + 4)
    return 100 * 2 * math.sqrt(2 * right * (1 - right) / (images + 4))


def _conclude(
    study: Any, config: Config, choices: Sequence[Choice], out: Path, task: Task, log: Callable[[str], None]
) -> Tuned:
    """Write the result, and print it with what chance can do."""
    records = tuple(
        TrialRecord(
            values={choice.name: trial.params[choice.name] for choice in choices},
            scores=tuple(trial.intermediate_values[epoch] for epoch in sorted(trial.intermediate_values)),
            finished=trial.state.name == "COMPLETE",
            diverged=trial.user_attrs.get(DIVERGED, False),
            seconds=trial.duration.total_seconds(),
        )
        for trial in _finished(study)
    )
    ended = [number for number, one in enumerate(records) if one.finished]
    if not ended:
        raise ValueError(
            f"tune: needs a trial that ends, got {len(records)} that diverged; lower train.lr, or set train.clip=1.0, and add "
            "--overwrite."
        )
    best = max(ended, key=lambda number: records[number].scores[-1])
    images = _held_out_data(config, out, task).test
    chosen = with_values(config, records[best].values)
    found = Tuned(records, best, chosen, images)
    content = {
        "trials": [one.model_dump(mode="json") for one in records],
        "best": best,
        "held_out_images": images,
        "config": chosen.model_dump(mode="json"),
    }
    write_atomically(out / RESULT, sealed(content))
    write_atomically(out / BEST, with_checksum(chosen.model_copy(update={"out": None}).to_yaml()))
    first, won = records[0], found.winner
    chance = within_chance(won.scores[-1], images)
    log(f"best      {describe(won)}")
    log(f"before    {describe(first)}, as configured")
    log(
        f"          of {images:,} held-out images; differences below {chance:.1f} points are within chance (two standard "
        "errors)"
    )
    log(f"{out / BEST}: outgrow distill --config {out / BEST} --out RUN")
    return found
