"""Experiment trackers, through Accelerate: TensorBoard, Weights & Biases, Trackio and MLflow.

A tracker gets what the reporter of a run gets: the numbers of each epoch and the result. ``track.json`` in the run
folder holds what each tracker has, so that a resumed run continues its curves.
"""

import contextlib
import json
import os
import re
import sys
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import tracking

from outgrow.machine.files import sealed, unsealed, write_atomically
from outgrow.training.config import Config, leaves
from outgrow.training.folder import TENSORBOARD, TRACKED
from outgrow.training.meter import EpochRecord
from outgrow.training.processes import on_main
from outgrow.training.progress import Reporter
from outgrow.training.task import RunContext

PROJECT = "outgrow"
"""The project of all runs in Weights & Biases and Trackio, and their experiment in MLflow."""
NETWORKS = ("teacher", "student")
RESULT = "result"


def check_trackers(names: Sequence[str]) -> None:
    """``ValueError`` for a tracker whose package is not installed."""
    for name in names:
        # a folder of that name in the working directory, such as wandb's own, is found as a package without an origin
        spec = find_spec(name)
        if spec is None or spec.origin is None:
            extra = "'outgrow[track]'" if name == "tensorboard" else name
            raise ValueError(
                f"--track {name}: needs the package {name}, got none installed; pip install {extra}, or leave --track "
                f"{name} out."
            )
    if names and not hasattr(tracking.GeneralTracker, "start"):
        raise ValueError(
            "--track: needs accelerate 1.10 or newer, got an older one; pip install -U accelerate, or leave --track out."
        )


@contextlib.contextmanager
def tracked(run: RunContext) -> Iterator[RunContext]:
    """``run`` with a reporter that also logs to the trackers of its configuration, which are closed at the end.

    ``ValueError`` for a tracker that cannot be started.
    """
    report = on_main(lambda: _open(run)) if run.config.track else None
    if report is None:  # no trackers, or another process than the main one
        yield run
        return
    try:
        yield replace(run, report=report)
    finally:
        report.finish()


def run_name(config: Config) -> str:
    """The name of a run: the end of its folder's path, or preset and seed.

    >>> run_name(Config(out="runs/study/kd/seed0")), run_name(Config(seed=3))
    ('study/kd/seed0', 'outgrow, seed 3')
    """
    if config.out is None:
        return f"{config.method.preset}, seed {config.seed}"
    return "/".join(Path(config.out).parts[-3:]) or Path.cwd().name


@dataclass
class _Tracker:
    """A started tracker. ``key`` is what it calls the run; ``logged`` holds the last step of each network and of the
    result."""

    name: str
    tracker: Any
    key: str | None = None
    logged: dict[str, int] = field(default_factory=dict)

    def log(self, what: str, values: Mapping[str, float], step: int) -> None:
        """Log ``values`` of ``what`` at ``step``, unless the tracker has that step."""
        if step <= self.logged.get(what, -1):
            return
        if self.name == "wandb":
            # its steps may only rise, over both networks; the axis of a curve is set in _start
            self.tracker.log({**values, f"{what}/epoch": step})
        else:
            self.tracker.log(dict(values), step=step)
        self.logged[what] = step

    def finish(self) -> None:
        if self.name == "trackio":  # by its own function, or it finishes again, and prints, when Python ends
            import trackio

            trackio.finish()
        else:
            self.tracker.finish()


class _TensorBoard(tracking.TensorBoardTracker):
    """Hyper-parameters in the folder of the curves; Accelerate writes them to two further folders."""

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        from torch.utils.tensorboard.summary import hparams

        results = {f"{RESULT}/{network}": 0.0 for network in NETWORKS}  # the names only
        for summary in hparams(values, results):
            self.writer.file_writer.add_summary(summary)
        self.writer.flush()


class _TrackedReporter(Reporter):
    """Passes everything on to ``inner``, and epochs and results to the trackers.

    A tracker that fails is closed with a warning: a run of hours does not end because a server is down.
    """

    def __init__(self, inner: Reporter, trackers: Sequence[_Tracker], state: Path | None) -> None:
        self.inner, self.trackers, self.state = inner, list(trackers), state
        self.failed: list[_Tracker] = []
        self.note, self.show, self.bar = inner.note, inner.show, inner.bar  # type: ignore[method-assign]

    def event(self, kind: str, **values: Any) -> None:
        self.inner.event(kind, **values)
        if kind == "epoch":
            self._log_epoch(values["network"], values, values["metric"])
        elif kind == "result":
            scores = {f"{RESULT}/{network}": values[network] for network in NETWORKS}
            known = {name: score for name, score in scores.items() if score is not None}
            for one in list(self.trackers):
                self._log(one, RESULT, known, one.logged.get("student", 0))

    def resumed(self, network: str, history: Sequence[EpochRecord], metric: str) -> None:
        self.inner.resumed(network, history, metric)
        for record in history:  # those that a tracker has are left out
            self._log_epoch(network, asdict(record), metric)

    def finish(self) -> None:
        for one in list(self.trackers):
            self._attempt(one, one.finish)

    def _log_epoch(self, network: str, values: Mapping[str, Any], metric: str) -> None:
        numbers = {
            "loss": values["loss"],
            "lr": values["lr"],
            "images_per_second": values["images_per_second"],
        }
        numbers |= {f"terms/{_plain(name)}": value for name, value in values["terms"].items()}
        if values["wrong_rate"] is not None:
            numbers["teacher_wrong_rate"] = values["wrong_rate"]
        if values["score"] is not None:
            numbers[f"test_{metric}"] = values["score"]
        points = {f"{network}/{name}": value for name, value in numbers.items()}
        for one in list(self.trackers):
            self._log(one, network, points, values["epoch"])

    def _log(self, one: _Tracker, what: str, values: Mapping[str, float], step: int) -> None:
        def log() -> None:
            one.log(what, values, step)
            self._save()

        self._attempt(one, log)

    def _save(self) -> None:
        if self.state is not None:
            content = {one.name: {"key": one.key, **one.logged} for one in (*self.trackers, *self.failed)}
            write_atomically(self.state, sealed(content))

    def _attempt(self, one: _Tracker, work: Callable[[], None]) -> None:
        try:
            with _own_output():
                work()
        except Exception as error:
            self.trackers.remove(one)
            self.failed.append(one)
            warnings.warn(
                f"--track {one.name}: needs a tracker that can be written, got {_reason(error)}; the run goes on without "
                "it, and a later --resume adds what is missing.",
                stacklevel=2,
            )
            with contextlib.suppress(Exception), _own_output():
                one.finish()


def _open(run: RunContext) -> _TrackedReporter:
    """Start all trackers. What they have of this run stands in ``track.json``."""
    config, state = run.config, None if run.out is None else run.out / TRACKED
    if run.out is None and "tensorboard" in config.track:
        raise ValueError(
            "--track tensorboard: needs the folder of a run for its files, got none; set --out FOLDER."
        )
    saved = _read(state)
    trackers: list[_Tracker] = []
    for name in dict.fromkeys(config.track):
        logged = dict(saved.get(name, {}))
        key = logged.pop("key", None)
        try:
            with _own_output():
                trackers.append(_start(name, config, run.out, key, logged))
        except Exception as error:
            for one in trackers:
                with contextlib.suppress(Exception), _own_output():
                    one.finish()
            raise ValueError(
                f"--track {name}: needs a tracker that starts, got {_reason(error)}; see the documentation of {name}, or "
                f"leave --track {name} out."
            ) from error
    return _TrackedReporter(run.report, trackers, state)


def _start(name: str, config: Config, out: Path | None, key: str | None, logged: dict[str, int]) -> _Tracker:
    title = run_name(config)
    match name:
        case "tensorboard":
            tracker = _TensorBoard(TENSORBOARD, out)
        case "wandb":
            again, key = key, key or uuid.uuid4().hex[:12]
            project = os.environ.get("WANDB_PROJECT", PROJECT)
            tracker = tracking.WandBTracker(project, name=title, id=key, resume="allow" if again else "never")
        case "trackio":
            resume = "allow" if logged else "never"
            tracker = tracking.TrackioTracker(PROJECT, name=title, resume=resume, embed=False)
        case _:
            tracker = tracking.MLflowTracker(PROJECT, run_name=title, run_id=key)
    tracker.start()
    if name == "mlflow":
        key = tracker.tracker.info.run_id
    if name == "wandb":
        for what in (*NETWORKS, RESULT):
            tracker.tracker.define_metric(f"{what}/*", step_metric=f"{what}/epoch")
    if not logged:
        tracker.store_init_configuration(_hyperparameters(config))
    return _Tracker(name, tracker, key, logged)


def _hyperparameters(config: Config) -> dict[str, Any]:
    """The fields of ``config`` as numbers and text, which all trackers take."""
    fields = leaves(config.model_dump(mode="json"))
    return {
        name: value if isinstance(value, int | float | str) else json.dumps(value) for name, value in fields
    }


def _read(state: Path | None) -> dict[str, Any]:
    if state is None or not state.is_file():
        return {}
    try:
        return unsealed(state.read_text(encoding="utf-8"), where=str(state))
    except (OSError, ValueError) as error:
        warnings.warn(f"--track: {error} The trackers begin new curves.", stacklevel=2)
        return {}


def _plain(name: str) -> str:
    """The name of a loss in letters that all trackers take.

    >>> _plain("dkd(beta=6)")
    'dkd_beta_6'
    """
    return re.sub(r"[^\w.-]+", "_", name).strip("_")


def _own_output() -> contextlib.AbstractContextManager[Any]:
    """Trackers print greetings; standard output is for the reporter."""
    return contextlib.redirect_stdout(sys.stderr)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:300]}"
