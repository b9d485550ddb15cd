"""The type of a recipe."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """``about`` is a one-line description; for ``layer`` and ``losses`` see :mod:`outgrow.run.recipes`."""

    about: str
    layer: Mapping[str, Any]
    losses: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
