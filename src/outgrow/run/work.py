"""One training of a comparison, for any process on any machine. Results are written to folders.

train_teacher    train a teacher for several runs
fill             fill a teacher cache for several runs
train_student    run a training in its own folder

Each skips what is finished and continues what was interrupted. :class:`Work` calls one of them and returns None, or
the error as text.
"""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from outgrow.machine.files import NotWritten, write_atomically
from outgrow.run.distillation import begun, distill, fill_cache
from outgrow.run.plan import Preparation, Training
from outgrow.run.tasks import task_of
from outgrow.training.checkpoint import differing_fields
from outgrow.training.config import Config, build_config, known_fields, load_config
from outgrow.training.guard import NonFiniteLoss
from outgrow.training.progress import Reporter
from outgrow.training.provenance import files_of
from outgrow.training.record import RunRecord, read_record
from outgrow.training.task import RunContext, Task

State = Literal["new", "begun", "finished", "other"]
SECTIONS = ("data", "teacher", "student", "method", "train", "teacher_train", "seed")


def state_of(folder: Path | None, config: Config) -> State:
    """The state of ``folder`` for a run of ``config``; ``other`` is a run of another configuration.

    Fields that do not change results are ignored.
    """
    if folder is None:
        return "new"
    if (folder / "record.json").is_file():
        return "other" if differences(folder, config) else "finished"
    if (folder / "config.yaml").is_file():
        return "other" if differences(folder, config) else "begun"
    return "new"


def differences(folder: Path, config: Config) -> list[str]:
    """The fields in which the run in ``folder`` differs: ``train.lr (was 0.1, is 0.05)``."""
    files: dict[str, str] = {}
    if (folder / "record.json").is_file():
        record = read_record(folder / "record.json")
        saved, files = record.config, record.files
    else:
        saved = build_config(known_fields(load_config(folder / "config.yaml")))
    found = differing_fields(saved, config, SECTIONS)
    now = files_of(config) if files else {}
    found += [
        f"{name} (its file has changed)" for name, hashed in files.items() if now.get(name, hashed) != hashed
    ]
    for name in ("epochs", "min_steps"):  # a run may be continued with others, but is then another one
        was, wanted = getattr(saved.train, name), getattr(config.train, name)
        if was != wanted:
            found.append(f"train.{name} (was {was}, is {wanted})")
    return found


def finished(folder: Path | None, config: Config) -> RunRecord | None:
    """The record in ``folder``; None unless it is a finished run of ``config``."""
    if folder is None or state_of(folder, config) != "finished":
        return None
    return read_record(folder / "record.json")


def train_student(one: Training, *, overwrite: bool = False, reporter: Reporter | None = None) -> None:
    """Start or continue a training, unless it is finished."""
    state = state_of(one.folder, one.config)
    if state == "finished":
        return
    teacher = None if one.teacher_file is None else load_teacher(one.config, one.teacher_file)
    distill(
        one.config,
        teacher=teacher,
        resume=state == "begun",
        overwrite=overwrite and state == "other",
        reporter=reporter,
    )


def train_teacher(
    one: Preparation,
    *,
    overwrite: bool = False,
    reporter: Reporter | None = None,
    task: Task | None = None,
) -> None:
    """Train a teacher into its folder, unless it is trained. ``task`` is that of the data by default."""
    if (one.folder / "teacher.safetensors").is_file() and not overwrite:
        return
    resume = (one.folder / "config.yaml").is_file() and not overwrite
    task = task or task_of(one.config.data.source)
    with begun(one.config, resume=resume, overwrite=overwrite, reporter=reporter) as run:
        torch.manual_seed(one.config.seed)
        task.make_teacher(run, task.open_data(run), None)


def fill(one: Training, *, overwrite: bool = False, reporter: Reporter | None = None) -> None:
    """Fill the cache that a run reads, for all runs that read it. Cached epochs are not computed again."""
    teacher = None if one.teacher_file is None else load_teacher(one.config, one.teacher_file)
    fill_cache(one.config, teacher=teacher, reporter=reporter)


def load_teacher(config: Config, file: Path) -> nn.Module | None:
    """Load a teacher that was trained for several runs."""
    update: dict[str, Any] = {"train": False, "weights": str(file), "pretrained": False}
    loaded = config.model_copy(update={"teacher": config.teacher.model_copy(update=update), "out": None})
    task = task_of(config.data.source)
    run = RunContext(loaded, torch.device("cpu"), Reporter())
    return task.make_teacher(run, task.open_data(run), None)


Step = tuple[Callable[..., None], Training | Preparation]
"""One of these functions, and what it is called with."""


@dataclass(frozen=True)
class Work:
    """A call of a step that can be sent to another process. Errors are returned as text."""

    threads: int | None = None
    overwrite: bool = False

    def __call__(self, step: Step, reporter: Reporter | None = None) -> str | None:
        function, one = step
        try:
            with threads(self.threads):
                function(one, overwrite=self.overwrite, reporter=reporter)
        except (ValueError, NonFiniteLoss) as error:
            return str(error)
        except NotWritten as error:
            return str(error.strerror)
        except Exception as error:
            where = _log(one, error)
            first = (str(error).strip() or "no message").splitlines()[0]
            return f"an unexpected error, {type(error).__name__}: {first}{where}"
        return None


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """Compute with ``number`` threads inside; None leaves the number unchanged."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _log(one: Training | Preparation, error: Exception) -> str:
    """Write the traceback to the run's folder; returns the end of the message, with the path."""
    try:
        write_atomically(one.folder / "error.log", "".join(traceback.format_exception(error)))
    except NotWritten:
        return ""
    return f"; see the traceback in {one.folder / 'error.log'}"
