"""What a recipe is."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """``about`` is one line for people; ``layer`` and ``losses`` see the module's text."""

    about: str
    layer: Mapping[str, Any]
    losses: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
