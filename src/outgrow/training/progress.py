"""The output of a run in progress: bars on a terminal, JSON lines in a pipe, nothing in a library."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any

MEASURES = {"top1": "top-1", "ap": "box AP"}
"""The names of the metrics of runs; both are in percent."""


class Reporter:
    """Prints nothing. The two classes below print the same facts as JSON and as bars."""

    def note(self, text: str) -> None:
        """Print a note for the user."""

    def event(self, kind: str, **values: Any) -> None:
        """Report an epoch or a result. A ``score`` comes with its ``metric``."""

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        """A progress bar over ``total`` images; the function takes the number of finished ones."""
        yield lambda done: None


class LineReporter(Reporter):
    """One JSON object per line, for pipes and logs."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        self.stream = stream or sys.stdout
        self.started = time.perf_counter()

    def note(self, text: str) -> None:
        self.event("note", text=text)

    def event(self, kind: str, **values: Any) -> None:
        seconds = round(time.perf_counter() - self.started, 1)
        print(json.dumps({"event": kind, "time": seconds, **values}), file=self.stream, flush=True)


class TerminalReporter(Reporter):
    """Bars with rate and remaining time, and one line per epoch, through rich."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(highlight=False)

    def note(self, text: str) -> None:
        self.console.print(text, markup=False)

    def event(self, kind: str, **values: Any) -> None:
        if kind == "epoch":
            terms = "  ".join(f"{name} {value:.3f}" for name, value in values["terms"].items())
            self.console.print(
                f"  epoch {values['epoch']:>3}  loss {values['loss']:.3f}  ({terms})  "
                f"teacher wrong {100 * values['wrong_rate']:.1f} %" + _tested(values),
                markup=False,
            )

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
        from rich.text import Text

        class Rate(ProgressColumn):
            def render(self, task: Any) -> Text:
                return Text(f"{task.speed:,.0f} images/s" if task.speed else "")

        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
        with Progress(
            *columns, Rate(), TimeRemainingColumn(), console=self.console, transient=True
        ) as progress:
            task = progress.add_task(label, total=total)
            yield lambda done: progress.update(task, completed=done)


def _tested(epoch: Mapping[str, Any]) -> str:
    score = epoch["score"]
    return "" if score is None else f"  test {MEASURES[epoch['metric']]} {score:.2f} %"


def make_reporter() -> Reporter:
    """The reporter for standard output: bars on a terminal, JSON lines otherwise."""
    return TerminalReporter() if sys.stdout.isatty() else LineReporter()
