"""From easy to hard: pure functions of progress.

A schedule maps ``progress`` in [0, 1] (completed epochs over all, or steps) to three weights: of the
task, of the rows that the teacher gets right (easy) and of those that it gets wrong (hard).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from outgrow import spec


class Weights(NamedTuple):
    task: float
    easy: float
    hard: float


Schedule = Callable[[float], Weights]


def constant(progress: float) -> Weights:
    """Everything counts from the start: plain distillation."""
    return Weights(1.0, 1.0, 1.0)


def linear(progress: float) -> Weights:
    """The paper's: from task and easy rows to hard rows. At the end only hard rows count.

    >>> linear(0.25)
    Weights(task=0.75, easy=0.75, hard=0.25)
    """
    return Weights(1.0 - progress, 1.0 - progress, progress)


def linear_keep(progress: float) -> Weights:
    """:func:`linear` with the task kept."""
    return Weights(1.0, 1.0 - progress, progress)


def cosine(progress: float) -> Weights:
    """The authors' first released code: a smooth exchange of easy for hard."""
    hard = math.sin(0.5 * math.pi * progress) ** 2
    return Weights(1.0, 1.0 - hard, hard)


def grow(progress: float) -> Weights:
    """Hard rows are added; nothing is taken away."""
    return Weights(1.0, 1.0, progress)


def step(at: float = 0.5) -> Schedule:
    """Hard rows enter at once, at progress ``at``: :func:`grow` without a ramp."""
    _fraction(at, "step: at")
    return lambda progress: Weights(1.0, 1.0, 1.0 if progress >= at else 0.0)


def warmup(until: float = 0.1) -> Schedule:
    """Task alone at first; easy and hard rows together grow to full weight at progress ``until``."""
    _fraction(until, "warmup: until")

    def schedule(progress: float) -> Weights:
        share = 1.0 if progress >= until else progress / until
        return Weights(1.0, share, share)

    return schedule


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": lambda: constant,
    "linear": lambda: linear,
    "linear_keep": lambda: linear_keep,
    "cosine": lambda: cosine,
    "grow": lambda: grow,
    "step": step,
    "warmup": warmup,
}


def make_schedule(text: str) -> Schedule:
    """The schedule that ``text`` names, such as ``"linear"`` or ``"step(at=0.5)"``.

    >>> make_schedule("step(at=0.5)")(0.7)
    Weights(task=1.0, easy=1.0, hard=1.0)
    """
    calls = spec.parse(text)
    if len(calls) != 1 or calls[0].weight != 1:
        raise ValueError(
            f"schedule: needs one schedule without a weight, got {text!r}; weights belong to losses."
        )
    return spec.build(SCHEDULES, calls[0], kind="schedule")


def _fraction(value: float, what: str) -> None:
    if not 0 <= value <= 1:
        raise ValueError(
            f"{what} needs a progress in [0, 1], got {value}; divide epochs by the number of all."
        )
