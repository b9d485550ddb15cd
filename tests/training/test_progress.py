"""What a run says while it works."""

import io
import json

from rich.console import Console

from outgrow.training.progress import LineReporter, TerminalReporter

EPOCH = {"epoch": 3, "loss": 1.5, "terms": {"task": 1.0, "kd": 0.5}, "wrong_rate": 0.25}


def test_an_epoch_in_a_terminal():
    reporter = TerminalReporter()
    stream = io.StringIO()
    reporter.console = Console(file=stream, width=200, highlight=False)
    for score, metric in ((93.2, "top1"), (43.25, "ap"), (0.0, "ap"), (None, "ap")):
        reporter.event("epoch", network="student", **EPOCH, score=score, metric=metric)
    start = "  epoch   3  loss 1.500  (task 1.000  kd 0.500)  teacher wrong 25.0 %"
    assert stream.getvalue().splitlines() == [
        f"{start}  test top-1 93.20 %",
        f"{start}  test box AP 43.25 %",
        f"{start}  test box AP 0.00 %",
        start,
    ]


def test_an_epoch_in_a_pipe(capsys):
    LineReporter().event("epoch", **EPOCH, score=43.25, metric="ap")
    event = json.loads(capsys.readouterr().out)
    assert (event["event"], event["score"], event["metric"]) == ("epoch", 43.25, "ap")
