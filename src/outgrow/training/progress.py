"""The output of a run in progress: bars on a terminal, lines of text in a pipe, JSON on request, nothing in a library."""

import html
import json
import math
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from outgrow.machine.files import finite
from outgrow.training.meter import EpochRecord

MEASURES = {"top1": "top-1", "ap": "box AP"}
"""The names of the metrics of runs; both are in percent."""
LogStyle = Literal["auto", "bars", "text", "json"]
"""How a command reports: bars for a terminal, text for a pipe or a log file, one JSON object per line for a program."""
INTERVAL = 30.0
"""Least seconds between two lines of text about work in progress."""
REFRESH = 0.5
"""Least seconds between two updates of a bar in a notebook."""
LONGEST = 500
"""Characters of a line of text; longer ones are wrapped."""


class Reporter:
    """Prints nothing. The classes below print the same facts as JSON, as lines of text and as bars."""

    def note(self, text: str) -> None:
        """Print a note for the user."""

    def show(self, text: str) -> None:
        """Print a result for a person. JSON has it as an event."""

    def event(self, kind: str, **values: Any) -> None:
        """Report an epoch or a result. A ``score`` comes with its ``metric``."""

    def resumed(self, network: str, history: Sequence[EpochRecord], metric: str) -> None:
        """Report that a training continues after the epochs of ``history``, whose scores are of ``metric``."""

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        """A progress bar over ``total`` images; the function takes the number of finished ones."""
        yield lambda done: None


def _line(content: Mapping[str, Any]) -> str:
    """JSON on one line. The ends of an interval may be infinite, which JSON cannot say: they are null."""
    return json.dumps(finite(content), allow_nan=False)


class JsonReporter(Reporter):
    """One JSON object per line, for programs. Numbers that are not finite are null."""

    def __init__(self, stream: Any = None) -> None:
        self.stream = stream or sys.stdout
        self.started = time.perf_counter()

    def note(self, text: str) -> None:
        self.event("note", text=text)

    def event(self, kind: str, **values: Any) -> None:
        seconds = round(time.perf_counter() - self.started, 1)
        print(_line({"event": kind, "time": seconds, **values}), file=self.stream, flush=True)

    def resumed(self, network: str, history: Sequence[EpochRecord], metric: str) -> None:
        self.event("resumed", network=network, epochs=len(history))


class _ReadableReporter(Reporter):
    """Notes and events as lines for people."""

    def show(self, text: str) -> None:
        self.note(text)

    def event(self, kind: str, **values: Any) -> None:
        if kind == "epoch":
            self.note(_epoch_line(values))
        elif kind == "run":
            measure = MEASURES[values["metric"]]
            self.note(f"{values['method']}, seed {values['seed']}: {measure} {values['score']:.2f} %")

    def resumed(self, network: str, history: Sequence[EpochRecord], metric: str) -> None:
        self.note(f"{network}: continues after epoch {len(history)}")


class TextReporter(_ReadableReporter):
    """Lines of text, for pipes and log files. Work in progress is reported after ``INTERVAL`` seconds without a line.

    The last line is the result as JSON, so that a script needs no other option to read it.
    """

    def __init__(self, stream: Any = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.stream = stream or sys.stdout
        self.clock = clock
        self.started = self.printed = clock()

    def event(self, kind: str, **values: Any) -> None:
        super().event(kind, **values)
        short = _short(values)
        if kind == "result" and any(isinstance(value, int | float) for value in short.values()):
            seconds = round(self.clock() - self.started, 1)
            # whole: a program reads it
            print(_line({"event": kind, "time": seconds, **short}), file=self.stream, flush=True)

    def note(self, text: str) -> None:
        for line in text.split("\n"):
            for part in _wrapped(line):
                print(part, file=self.stream, flush=True)
        self.printed = self.clock()

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        rate = _Rate(total, self.clock)

        def advance(done: int) -> None:
            rate.at(done)
            if self.clock() - self.printed >= INTERVAL:
                self.note(f"  {label} {rate}")

        yield advance


class BarReporter(_ReadableReporter):
    """Bars with rate and remaining time, and one line per epoch, through rich."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(highlight=False)

    def note(self, text: str) -> None:
        self.console.print(text, markup=False)

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


class NotebookReporter(TextReporter):
    """A bar in the output of a notebook cell, and lines of text. It needs no widgets, so saved notebooks show it too."""

    def event(self, kind: str, **values: Any) -> None:
        _ReadableReporter.event(self, kind, **values)

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        from IPython.display import display

        rate = _Rate(total, self.clock)

        def shown() -> dict[str, str]:
            bar = f'<progress value="{rate.done}" max="{total}"></progress>'
            return {"text/html": f"{html.escape(label)} {bar} {rate}", "text/plain": f"{label} {rate}"}

        output = display(shown(), raw=True, display_id=True)
        updated = self.clock()

        def advance(done: int) -> None:
            nonlocal updated
            rate.at(done)
            if self.clock() - updated >= REFRESH:
                updated = self.clock()
                output.update(shown(), raw=True)

        try:
            yield advance
        finally:
            output.update(shown(), raw=True)


class _Rate:
    """The share that is done, as text, with the rate and the time left."""

    def __init__(self, total: int, clock: Callable[[], float]) -> None:
        self.total, self.clock = total, clock
        self.started, self.before, self.done = clock(), 0, 0
        self.begun = False

    def at(self, done: int) -> None:
        if not self.begun:  # a training that continues begins in the middle
            self.started, self.before, self.begun = self.clock(), done, True
        self.done = done

    def __str__(self) -> str:
        share = f"{100 * self.done / max(self.total, 1):.0f} %"
        spent, images = self.clock() - self.started, self.done - self.before
        if spent <= 0 or images <= 0:
            return share
        speed = images / spent
        shown = f"{share}  {speed:,.{0 if speed >= 10 else 1}f} images/s"
        left = (self.total - self.done) / speed
        return f"{shown}  {_time_left(left)} left" if left > 0 else shown


def _time_left(seconds: float) -> str:
    """
    >>> _time_left(8.2), _time_left(75.0), _time_left(5400.0)
    ('9 s', '2 min', '1 h 30 min')
    """
    if seconds < 60:
        return f"{math.ceil(seconds)} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _short(values: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a result and their intervals, without its tables."""
    short: dict[str, Any] = {
        key: value for key, value in values.items() if isinstance(value, int | float | str | None)
    }
    if "intervals" in values:
        short["intervals"] = {key: one for key, one in values["intervals"].items() if key in short}
    return short


def _wrapped(line: str) -> list[str]:
    if len(line) <= LONGEST:
        return [line]
    return textwrap.wrap(
        line, LONGEST, subsequent_indent="    ", break_on_hyphens=False, replace_whitespace=False
    )


def _epoch_line(values: Mapping[str, Any]) -> str:
    terms = "  ".join(f"{name} {value:.3f}" for name, value in values["terms"].items())
    score = values["score"]
    images = values.get("tested", "test")
    tested = "" if score is None else f"  {images} {MEASURES[values['metric']]} {score:.2f} %"
    rate = values["wrong_rate"]
    wrong = "" if rate is None else f"  teacher wrong {100 * rate:.1f} %"
    return f"  epoch {values['epoch']:>3}/{values['epochs']}  loss {values['loss']:.3f}  ({terms}){wrong}{tested}"


def make_reporter(style: LogStyle = "auto") -> Reporter:
    """The reporter for standard output. ``auto`` is bars on a terminal or in a notebook, and lines of text elsewhere."""
    if style == "json":
        return JsonReporter()
    if style == "auto":
        if _in_notebook():
            return NotebookReporter()
        style = "bars" if sys.stdout.isatty() else "text"
    return BarReporter() if style == "bars" else TextReporter()


def _in_notebook() -> bool:
    if "IPython" not in sys.modules:
        return False
    from rich.console import Console

    return Console().is_jupyter
