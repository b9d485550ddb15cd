"""What a run says while it works."""

import io
import json
import math
import sys

import pytest
from rich.console import Console

from outgrow.training import progress
from outgrow.training.meter import EpochRecord
from outgrow.training.progress import (
    INTERVAL,
    LONGEST,
    BarReporter,
    JsonReporter,
    NotebookReporter,
    Reporter,
    TextReporter,
    make_reporter,
)

EPOCH = {
    "network": "student",
    "epoch": 3,
    "epochs": 30,
    "loss": 1.5,
    "terms": {"task": 1.0, "kd": 0.5},
    "wrong_rate": 0.25,
}
BEFORE = [EpochRecord(number, 1.5, {}, 0.25, None, 0.1, 1.0, 100.0) for number in (1, 2)]
INTERVALS = {"student": {"low": 60.7, "high": 75.3}, "per_class": {"cat": {"low": 0.5, "high": 1.5}}}
LINE = "  epoch   3/30  loss 1.500  (task 1.000  kd 0.500)  teacher wrong 25.0 %"


def reporters():
    """The readable ones, each with the stream that it prints to."""
    text, bars = TextReporter(io.StringIO()), BarReporter()
    bars.console = Console(file=io.StringIO(), width=200, highlight=False)
    return [(text, text.stream), (bars, bars.console.file)]


@pytest.mark.parametrize("reporter, stream", reporters())
def test_an_epoch_is_a_line(reporter, stream):
    for score, metric in ((93.2, "top1"), (43.25, "ap"), (0.0, "ap"), (None, "ap")):
        reporter.event("epoch", **EPOCH, score=score, metric=metric)
    assert stream.getvalue().splitlines() == [
        f"{LINE}  test top-1 93.20 %",
        f"{LINE}  test box AP 43.25 %",
        f"{LINE}  test box AP 0.00 %",
        LINE,
    ]


def test_without_a_teacher_that_answers_none_is_wrong():
    reporter = TextReporter(io.StringIO())
    reporter.event("epoch", **{**EPOCH, "wrong_rate": None}, score=None, metric="top1")
    assert reporter.stream.getvalue() == "  epoch   3/30  loss 1.500  (task 1.000  kd 0.500)\n"


@pytest.mark.parametrize("reporter, stream", reporters())
def test_what_a_person_reads(reporter, stream):
    reporter.note("student made")
    reporter.resumed("student", BEFORE, "top1")
    reporter.event("run", method="kd", seed=1, score=71.234, metric="top1")
    reporter.show("student: 71.20 %")
    reporter.event(
        "result",
        teacher=90.0,
        student=71.2,
        metric="top1",
        out=None,
        per_class={"cat": 1.0},
        intervals=INTERVALS,
    )
    lines = stream.getvalue().splitlines()
    assert lines[:4] == [
        "student made",
        "student: continues after epoch 2",
        "kd, seed 1: top-1 71.23 %",
        "student: 71.20 %",
    ]
    if isinstance(reporter, TextReporter):  # one more line, for a script
        result = json.loads(lines.pop())
        assert result.pop("time") >= 0
        numbers = {"teacher": 90.0, "student": 71.2, "metric": "top1", "out": None}
        assert result == {
            "event": "result",
            **numbers,
            "intervals": {"student": INTERVALS["student"]},
        }
    assert len(lines) == 4


def test_json_is_one_object_per_line(capsys):
    reporter = JsonReporter()
    reporter.event("epoch", **EPOCH, score=43.25, metric="ap")
    reporter.note("text")
    reporter.show("what the events have")
    reporter.resumed("student", BEFORE, "top1")
    with reporter.bar("student", 10) as advance:
        advance(5)
    first, note, resumed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (first["event"], first["score"], first["metric"]) == ("epoch", 43.25, "ap")
    assert (note["event"], note["text"]) == ("note", "text")
    assert (resumed["event"], resumed["epochs"]) == ("resumed", 2)


@pytest.mark.parametrize("make", [JsonReporter, TextReporter])
def test_numbers_that_json_has_not_are_null(make):
    """The interval of one seed has no ends."""

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    stream = io.StringIO()
    make(stream).event(
        "result", student=71.2, teacher=math.nan, metric="top1", intervals={"teacher": [-math.inf]}
    )
    found = json.loads(stream.getvalue().splitlines()[-1], parse_constant=refuse)
    assert (found["student"], found["teacher"], found["intervals"]) == (71.2, None, {"teacher": [None]})


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_text_reports_work_in_progress_at_a_bounded_rate():
    clock = Clock()
    reporter = TextReporter(io.StringIO(), clock=clock)
    with reporter.bar("student", 100_000) as advance:
        for second in range(1, 1001):
            clock.now = float(second)
            advance(100 * second)
    lines = reporter.stream.getvalue().splitlines()
    assert len(lines) == 1000 // INTERVAL
    assert lines[0] == "  student 3 %  100 images/s  17 min left"
    assert lines[-1] == "  student 99 %  100 images/s  10 s left"


def test_short_epochs_have_no_other_lines():
    clock = Clock()
    reporter = TextReporter(io.StringIO(), clock=clock)
    with reporter.bar("student", 100) as advance:
        for epoch in range(10):
            for step in range(10):
                clock.now += 2
                advance(10 * epoch + step)
            reporter.event("epoch", **EPOCH, score=None, metric="top1")
    assert reporter.stream.getvalue().splitlines() == 10 * [LINE]


def test_a_training_that_continues_has_the_rate_of_its_own_images():
    clock = Clock()
    reporter = TextReporter(io.StringIO(), clock=clock)
    with reporter.bar("student", 1000) as advance:
        advance(500)
        clock.now = 40.0
        advance(700)
    assert reporter.stream.getvalue() == "  student 70 %  5.0 images/s  1 min left\n"


def test_no_line_of_text_is_endless():
    reporter = TextReporter(io.StringIO())
    reporter.note("classes: " + ", ".join(f"class {number}" for number in range(1000)))
    reporter.note("x" * 3000)
    lines = reporter.stream.getvalue().splitlines()
    assert len(lines) > 20
    assert max(map(len, lines)) <= LONGEST
    short = "a line\n\n  of a table   with  spaces"
    reporter = TextReporter(io.StringIO())
    reporter.note(short)
    assert reporter.stream.getvalue() == f"{short}\n"


def test_a_command_chooses_by_its_output(monkeypatch):
    assert type(make_reporter("json")) is JsonReporter
    assert type(make_reporter("text")) is TextReporter
    assert type(make_reporter("bars")) is BarReporter
    for terminal, notebook, kind in (
        (False, False, TextReporter),
        (True, False, BarReporter),
        (False, True, NotebookReporter),
    ):
        monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal, raising=False)
        monkeypatch.setattr(progress, "_in_notebook", lambda notebook=notebook: notebook)
        assert type(make_reporter()) is kind


def test_a_notebook_has_one_bar_that_moves(monkeypatch):
    pytest.importorskip("IPython")
    shown = []

    class Output:
        def update(self, content, raw):
            shown.append(content)

    monkeypatch.setattr(
        "IPython.display.display", lambda content, raw, display_id: shown.append(content) or Output()
    )
    clock = Clock()
    with NotebookReporter(io.StringIO(), clock=clock).bar("<student>", 100) as advance:
        for done in range(1, 101):
            clock.now += 0.1
            advance(done)
    assert 15 < len(shown) < 25
    assert shown[0]["text/html"].startswith('&lt;student&gt; <progress value="0" max="100">')
    assert shown[-1] == {
        "text/html": '&lt;student&gt; <progress value="100" max="100"></progress> 100 %  10 images/s',
        "text/plain": "<student> 100 %  10 images/s",
    }


def test_a_reporter_of_the_library_is_quiet(capsys):
    reporter = Reporter()
    reporter.note("text")
    reporter.show("text")
    reporter.event("epoch", **EPOCH, score=None, metric="ap")
    reporter.resumed("student", [], "ap")
    with reporter.bar("student", 10) as advance:
        advance(5)
    assert capsys.readouterr().out == ""
