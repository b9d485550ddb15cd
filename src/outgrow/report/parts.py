"""What the pages of a study and of a run share: the template engine, and the parts made from records."""

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from outgrow.data import Split
from outgrow.report.pictures import Picture, picture
from outgrow.training.record import Run, corrected_score, teacher_score

MINUS = "\u2212"


def write_template(path: str | Path, template: str, context: Mapping[str, Any]) -> None:
    """Render a template of this package to a file."""
    page = _environment().get_template(template).render(context)
    Path(path).write_text(page, encoding="utf-8")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("outgrow.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "signed": signed,
        "count": count,
        "tone": tone,
        "prose": prose,
        "finite": math.isfinite,
    }
    return environment


def signed(value: float) -> str:
    """Two decimals with a sign, and a true minus.

    >>> signed(1.741)
    '+1.74'
    """
    text = f"{abs(value):.2f}"
    return ("+" if value >= 0 or float(text) == 0 else MINUS) + text


def count(value: int | float) -> str:
    """A number of things; a mean of them keeps one decimal.

    >>> count(12345), count(2 / 3)
    ('12,345', '0.7')
    """
    return f"{value:,.0f}" if value == round(value) else f"{value:,.1f}"


def tone(difference: Any) -> str:
    """A CSS class for a difference: whether its interval lies above zero, below it, or around it."""
    if difference.low > 0:
        return "better"
    return "worse" if difference.high < 0 else "unclear"


def prose(text: str) -> Markup:
    """Text as it stands in a docstring: escaped, then its ``*emphasis*`` and double backticks marked up.

    >>> prose("a *b* <c>")
    Markup('a <em>b</em> &lt;c&gt;')
    """
    safe = str(escape(text))
    safe = re.sub(r"``([^`]+)``", r"<code>\1</code>", safe)
    return Markup(re.sub(r"(?<![\w*])\*(\S(?:[^*]*\S)?)\*(?![\w*])", r"<em>\1</em>", safe))


@dataclass(frozen=True)
class Example:
    """An image, and the names of what it is, what the teacher saw, and what the student saw."""

    picture: Picture
    position: int
    label: str
    teacher: str
    student: str


def examples(run: Run, test: Split | None) -> tuple[Example, ...]:
    """The images of a run's comparison."""
    classes, shown = run["data"]["classes"], (run["compared"] or {}).get("examples", ())
    if not shown:
        return ()
    if test is None:
        raise ValueError(
            "page: needs the test images that its record points into, got none; give test=data.test."
        )
    return tuple(
        Example(
            picture(test.image(e["position"])),
            e["position"],
            str(classes[e["label"]]),
            str(classes[e["teacher"]]),
            str(classes[e["student"]]),
        )
        for e in shown
    )


def is_mapped(run: Run) -> bool:
    """Whether the teacher has other classes, so that it is scored only after its map to the student's."""
    return run["correction"] is not None and run["correction"]["raw"] is None


@dataclass(frozen=True)
class Cell:
    number: float
    share: float
    """Of all test images, in percent."""


def who_is_right(runs: Sequence[Run]) -> dict[str, Cell] | None:
    """The two by two of teacher and student: means over the runs; None where a run has no teacher."""
    compared = [run["compared"] for run in runs]
    if not compared or not all(compared):
        return None
    keys = ("both_right", "only_teacher", "only_student", "neither")
    means = {key: statistics.fmean(c[key] for c in compared) for key in keys}
    total = sum(means.values()) or 1.0
    return {key: Cell(mean, 100 * mean / total) for key, mean in means.items()}


@dataclass(frozen=True)
class CorrectionPart:
    """What a correction tried, chose and why. ``mark`` is the number of the chosen candidate."""

    report: Mapping[str, Any]
    mark: int | None
    raw: float | None
    corrected: float | None
    seed: int


def correction(run: Run) -> CorrectionPart | None:
    """None where nothing was looked for."""
    report = run["correction"]
    if report is None:
        return None
    candidates = list(report["candidates"])
    mark = candidates.index(report["chosen"]) if report["chosen"] in candidates else None
    raw = None if report["raw"] is None else teacher_score(run)
    return CorrectionPart(report, mark, raw, corrected_score(run), run["config"]["seed"])


Condition = tuple[str, tuple[str, ...]]


def conditions(runs: Sequence[Run]) -> list[Condition]:
    """How the numbers came to be: name and values, more than one where the runs differ."""
    found: list[Condition] = []

    def add(name: str, values: Iterable[Any]) -> None:
        texts = tuple(dict.fromkeys(str(v) for v in values if v not in (None, "")))
        if texts:
            found.append((name, texts))

    configs = [run["config"] for run in runs]
    seeds = sorted({c["seed"] for c in configs})
    add("seeds" if len(seeds) > 1 else "seed", [", ".join(map(str, seeds))])
    add("data", (run["data"]["source"] for run in runs))
    add("rows", (_rows(run["data"]) for run in runs))
    add("epochs", (c["train"]["epochs"] for c in configs))
    add("optimiser", (_optimiser(c["train"]) for c in configs))
    add("augmentation", (_augmentation(c["data"]["augment"]) for c in configs))
    add("precision", (c["train"]["precision"] for c in configs))
    add("student", (run["student"]["name"] for run in runs))
    add("teacher", (_teacher(run["teacher"]) for run in runs))
    add("hardware", (run["hardware"] for run in runs))
    add("versions", (", ".join(f"{k} {v}" for k, v in run["versions"].items()) for run in runs))
    add("commit", (_commit(run["commit"]) for run in runs))
    add("command", (run["command"] for run in runs))
    started = sorted(run["started"] for run in runs)
    add("started", [started[0] if started[0] == started[-1] else f"{started[0]} to {started[-1]}"])
    add("time", [_duration(sum(run["seconds"] for run in runs), len(runs))])
    add("data fingerprint", (run["data"]["fingerprint"] for run in runs))
    return found


def _rows(data: Mapping[str, Any]) -> str:
    val = f"{data['val']:,} for validation, " if data["val"] else ""
    return f"{data['train']:,} for training, {val}{data['test']:,} for testing"


def _optimiser(train: Mapping[str, Any]) -> str:
    return (
        f"{train['optimizer']}, learning rate {train['lr']:g} ({train['lr_schedule']}), "
        f"weight decay {train['weight_decay']:g}, batch {train['batch_size']}"
    )


def _augmentation(augment: Mapping[str, Any]) -> str:
    used = [
        name.replace("_", " ") if value is True else f"{name.replace('_', ' ')} {value}"
        for name, value in augment.items()
        if value and name != "padding"
    ]
    return ", ".join(used) or "none"


def _teacher(teacher: Mapping[str, Any]) -> str | None:
    return f"{teacher['name']}, weights: {teacher['weights']}" if teacher else None


def _commit(commit: str | None) -> str | None:
    if commit is None or not commit.endswith("+"):
        return commit
    return f"{commit} (the plus: with changes that were not committed)"


def _duration(seconds: float, num_runs: int) -> str:
    runs = f" in {num_runs} runs" if num_runs > 1 else ""
    if seconds < 120:
        return f"{seconds:.1f} seconds{runs}"
    return f"{seconds / 60:.0f} minutes{runs}" if seconds < 7200 else f"{seconds / 3600:.1f} hours{runs}"


def config_text(run: Run) -> str:
    """The resolved configuration of a run, as in its ``config.yaml``."""
    import yaml

    return str(yaml.safe_dump(dict(run["config"]), sort_keys=False))
