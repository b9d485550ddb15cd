"""The progress of a comparison: a live table on a terminal, lines elsewhere, or JSON.

Table and lines go to standard error, so that standard output has only the plan and the final table. JSON goes to
standard output, like all events.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from outgrow.run.plan import Plan, Preparation, Training
from outgrow.run.work import finished
from outgrow.training.meter import EpochRecord
from outgrow.training.progress import LogStyle, Reporter, TextReporter
from outgrow.training.record import read_record


class Board:
    """Progress as lines."""

    def __init__(self, plan: Plan, stream: Any = None) -> None:
        self.plan, self.stream = plan, stream or sys.stderr
        self.lines = TextReporter(self.stream)
        self.started = time.perf_counter()
        self.done = self.kept = 0
        self.total = len(plan.trainings) + len(plan.teachers)

    def begin(self, kept: int) -> None:
        """``kept`` trainings were finished before."""
        self.done = self.kept = kept

    def log(self, text: str) -> None:
        self.lines.note(text)

    def reporter(self, one: Training | Preparation) -> Reporter:
        """The reporter of a training in this process."""
        self.log(f"{one.title} ...")
        return _Progress(self.lines, one.title)

    def ended(self, one: Training | Preparation, failure: str | None) -> None:
        self.done += 1
        self.log(
            f"{one.title}: {failure or self.outcome(one)} ({self.done} of {self.total}, {self.seconds()})"
        )

    def outcome(self, one: Training | Preparation) -> str:
        if isinstance(one, Preparation):
            return "trained"
        record = read_record(one.folder / "record.json")
        return record.measure.value(record.student_score)

    def seconds(self) -> str:
        return f"{time.perf_counter() - self.started:.0f} s"

    @contextmanager
    def shown(self) -> Iterator[None]:
        yield


class _Progress(Reporter):
    """Shows how far a run is, and nothing else of it."""

    def __init__(self, lines: Reporter, title: str) -> None:
        self.lines, self.title = lines, title

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        with self.lines.bar(f"{self.title}: {label}", total) as advance:
            yield advance


class JsonBoard(Board):
    """Progress as events: those of each run with its title, and one for the end of each run."""

    def __init__(self, plan: Plan, report: Reporter) -> None:
        super().__init__(plan)
        self.report = report

    def log(self, text: str) -> None:
        self.report.note(text)

    def reporter(self, one: Training | Preparation) -> Reporter:
        return _Events(self.report, one.title)

    def ended(self, one: Training | Preparation, failure: str | None) -> None:
        self.done += 1
        values: dict[str, Any] = {"run": one.title, "done": self.done, "total": self.total}
        if failure is not None:
            values["failure"] = failure
        elif isinstance(one, Training):
            record = read_record(one.folder / "record.json")
            values |= {"score": record.student_score, "metric": record.metric}
        self.report.event("ended", **values)


class _Events(Reporter):
    """The events of a run, with its title."""

    def __init__(self, report: Reporter, title: str) -> None:
        self.report, self.title = report, title

    def note(self, text: str) -> None:
        self.event("note", text=text)

    def event(self, kind: str, **values: Any) -> None:
        self.report.event(kind, run=self.title, **values)

    def resumed(self, network: str, history: Sequence[EpochRecord], metric: str) -> None:
        self.event("resumed", network=network, epochs=len(history))


class LiveBoard(Board):
    """Progress as a table of methods and seeds, updated every half second."""

    def __init__(self, plan: Plan, stream: Any = None) -> None:
        super().__init__(plan, stream)
        from rich.console import Console

        self.console = Console(file=self.stream, highlight=False)
        self.cells: dict[str, str] = {}
        self.now = ""
        self.teachers = 0

    def log(self, text: str) -> None:
        self.console.print(text, markup=False)

    def reporter(self, one: Training | Preparation) -> Reporter:
        self.now = one.title
        return _Cell(self, one.title)

    def ended(self, one: Training | Preparation, failure: str | None) -> None:
        self.done += 1
        self.cells[one.title] = "failed" if failure else self.outcome(one)
        if failure:
            self.log(f"{one.title}: {failure}")

    @contextmanager
    def shown(self) -> Iterator[None]:
        from rich.live import Live

        for one in self.plan.trainings:
            if finished(one.folder, one.config) is not None:  # kept from before
                self.cells[one.title] = self.outcome(one)
        with Live(get_renderable=self.table, console=self.console, refresh_per_second=2):
            yield

    def table(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        table.add_column("method")
        for seed in self.plan.options.seeds:
            table.add_column(f"seed {seed}", justify="right")
        for pair in self.plan.pairs:
            if pair:
                table.add_row(pair)
            for method in self.plan.methods:
                runs = self.plan.of(pair, method)
                table.add_row(method, *(self.cell(one) for one in runs))
        spent = time.perf_counter() - self.started
        trained = self.done - self.kept
        left = spent / trained * (self.total - self.done) if trained else 0
        about = (
            f", about {left / 60:.0f} minutes left"
            if left >= 90
            else f", about {left:.0f} s left"
            if left
            else ""
        )
        taught = [one for one in self.plan.teachers if one.title in self.cells]
        teachers = f"{len(taught)} of {len(self.plan.teachers)} teachers, " if self.plan.teachers else ""
        line = f"{teachers}{self.done} of {self.total} done in {self.seconds()}{about}  {self.now}"
        return Group(table, Text(line, style="dim"))

    def cell(self, one: Training) -> str:
        text = self.cells.get(one.title)
        if text is not None:
            return text
        return "running" if (one.folder / "config.yaml").is_file() else "."


class _Cell(Reporter):
    """Shows the progress of a run in this process in its cell of the table."""

    def __init__(self, board: LiveBoard, title: str) -> None:
        self.board, self.title = board, title

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        def advance(done: int) -> None:
            part = f"{100 * done / max(total, 1):.0f} %"
            self.board.now = f"{self.title}: {label} {part}"
            if label == "student":
                self.board.cells[self.title] = part

        yield advance


def make_board(plan: Plan, style: LogStyle, report: Reporter) -> Board:
    """The board for ``style``; ``report`` gets the events of JSON."""
    if style == "json":
        return JsonBoard(plan, report)
    live = sys.stderr.isatty() if style == "auto" else style == "bars"
    return LiveBoard(plan) if live else Board(plan)
