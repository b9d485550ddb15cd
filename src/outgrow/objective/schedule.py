"""Schedules, from easy to hard: pure functions of progress.

A schedule maps ``progress`` in [0, 1] (completed epochs or steps, divided by their total) to three weights:
of the task, of the rows that the teacher gets right (easy) and of those that it gets wrong (hard).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from outgrow import spec


class Weights(NamedTuple):
    task: float
    easy: float
    hard: float


Schedule = Callable[[float], Weights]


def constant(progress: float) -> Weights:
    """All weights are 1 throughout: plain distillation."""
    return Weights(1.0, 1.0, 1.0)


def linear(progress: float) -> Weights:
    """The paper's schedule: from task and easy rows to hard rows. At the end only hard rows count.

    >>> linear(0.25)
    Weights(task=0.75, easy=0.75, hard=0.25)
    """
    return Weights(1.0 - progress, 1.0 - progress, progress)


def linear_keep(progress: float) -> Weights:
    """:func:`linear`, but the task keeps weight 1."""
    return Weights(1.0, 1.0 - progress, progress)


def cosine(progress: float) -> Weights:
    """The schedule of the authors' first released code: a smooth change from easy to hard rows."""
    hard = math.sin(0.5 * math.pi * progress) ** 2
    return Weights(1.0, 1.0 - hard, hard)


def grow(progress: float) -> Weights:
    """The weight of hard rows grows from 0 to 1; the others stay at 1."""
    return Weights(1.0, 1.0, progress)


def step(at: float = 0.5) -> Schedule:
    """The weight of hard rows changes from 0 to 1 at progress ``at``; the others stay at 1."""
    _fraction(at, "step: at")
    return partial(_step, at)


def warmup(until: float = 0.1) -> Schedule:
    """The weights of easy and hard rows grow from 0 to 1 until progress ``until``; the task stays at 1."""
    _fraction(until, "warmup: until")
    return partial(_warmup, until)


# functions of the module, since one within a function cannot be pickled
def _step(at: float, progress: float) -> Weights:
    return Weights(1.0, 1.0, 1.0 if progress >= at else 0.0)


def _warmup(until: float, progress: float) -> Weights:
    share = 1.0 if progress >= until else progress / until
    return Weights(1.0, share, share)


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
            f"schedule: needs one schedule without a weight, got {text!r}; only losses have weights."
        )
    return spec.build(SCHEDULES, calls[0], kind="schedule")


def _fraction(value: float, what: str) -> None:
    if not 0 <= value <= 1:
        raise ValueError(
            f"{what} needs a progress in [0, 1], got {value}; divide the epoch by the number of epochs."
        )
