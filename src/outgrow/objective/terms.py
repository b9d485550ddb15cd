"""The terms of an objective: losses with a weight, the rows they count on, and their names."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from outgrow import spec
from outgrow.losses import DETECTOR_LOSSES, LOSSES, make_loss

Rows = Literal["all", "right", "wrong"]


@dataclass(frozen=True)
class Term:
    """One loss of an objective.

    ``weight`` multiplies it. ``rows`` restricts it: ``"right"`` leaves wrong rows out, ``"wrong"`` is
    for a second, explicit term on them alone. It is off before progress ``start`` and grows to full
    weight over ``warmup`` (fractions of the training): the ramps that some methods bring along.
    """

    loss: nn.Module | str
    weight: float = 1.0
    rows: Rows = "all"
    start: float = 0.0
    warmup: float = 0.0

    def __post_init__(self) -> None:
        if self.rows not in ("all", "right", "wrong"):
            raise ValueError(f"Term: rows needs 'all', 'right' or 'wrong', got {self.rows!r}.")
        if not (self.weight >= 0 and math.isfinite(self.weight)):
            raise ValueError(
                f"Term: the weight of a loss needs a finite number of at least 0, got {self.weight}; 1 is the default. "
                "A loss is made as small as it can be: one to make large needs a module that returns its negative."
            )

    def scale(self, progress: float) -> float:
        if progress < self.start:
            return 0.0
        ramp = 1.0 if self.warmup <= 0 else min((progress - self.start) / self.warmup, 1.0)
        return self.weight * ramp


_NAMES: dict[object, str] = {kind: name for name, kind in {**LOSSES, **DETECTOR_LOSSES}.items()}


def named_terms(loss: object) -> dict[str, Term]:
    """The terms of ``loss`` (see :class:`outgrow.Objective`) by name: the loss's, with a number where it comes again."""
    if isinstance(loss, Mapping):
        return {name: _as_term(value) for name, value in loss.items()}
    if isinstance(loss, str):
        loss = [Term(make_loss(call._replace(weight=1.0)), call.weight) for call in spec.parse(loss)]
    items = loss if isinstance(loss, Sequence) else [loss]
    named: dict[str, Term] = {}
    count: Counter[str] = Counter()
    for item in items:
        for term in named_terms(item).values() if isinstance(item, str) else [_as_term(item)]:
            kind = type(term.loss)
            base = _NAMES.get(kind, kind.__name__.lower())
            name = ""
            while not name or name in named:  # a class may be called KD_2
                count[base] += 1
                name = base if count[base] == 1 else f"{base}_{count[base]}"
            named[name] = term
    return named


def _as_term(value: object) -> Term:
    term = value if isinstance(value, Term) else Term(value)  # type: ignore[arg-type]
    if isinstance(term.loss, str):
        term = replace(term, loss=make_loss(term.loss))
    if not isinstance(term.loss, nn.Module):
        raise ValueError(
            f"Objective: needs losses as names, modules or Terms, got {type(term.loss).__name__}; "
            "wrap a function in a torch.nn.Module with forward(student, teacher, target)."
        )
    return term
