"""The progress of a comparison: a live table on a terminal, lines elsewhere. Both go to standard error, so that
standard output has only the plan and the final table."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from outgrow.run.plan import Plan, Preparation, Training
from outgrow.training.progress import Reporter
from outgrow.training.record import read_record


class Board:
    """Progress as lines."""

    def __init__(self, plan: Plan, stream: Any = None) -> None:
        self.plan, self.stream = plan, stream or sys.stderr
        self.started = time.perf_counter()
        self.done = 0
        self.total = len(plan.trainings) + len(plan.teachers)

    def log(self, text: str) -> None:
        print(text, file=self.stream, flush=True)

    def reporter(self, one: Training | Preparation) -> Reporter:
        """The reporter of a training in this process."""
        self.log(f"{one.title} ...")
        return Reporter()

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
        left = spent / self.done * (self.total - self.done) if self.done else 0
        about = (
            f", about {left / 60:.0f} minutes left"
            if left >= 90
            else f", about {left:.0f} s left"
            if left
            else ""
        )
        trained = [one for one in self.plan.teachers if one.title in self.cells]
        teachers = f"{len(trained)} of {len(self.plan.teachers)} teachers, " if self.plan.teachers else ""
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


def make_board(plan: Plan) -> Board:
    """A live table if standard error is a terminal, else lines."""
    return LiveBoard(plan) if sys.stderr.isatty() else Board(plan)
