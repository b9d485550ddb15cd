"""Recipes: which networks, how long, with which constants. They only choose; nothing here computes.

A recipe is a layer of configuration over the defaults, below what the command line says. ``losses``
are the constants that papers tune per pair: taken when that loss is asked for by its bare name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from outgrow.recipes.cifar import cifar_recipes
from outgrow.recipes.imagenet import imagenet_recipes
from outgrow.recipes.small import small_recipes


@dataclass(frozen=True)
class Recipe:
    """``about`` is one line for people; ``layer`` and ``losses`` see the module's text."""

    about: str
    layer: Mapping[str, Any]
    losses: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


RECIPES: dict[str, Recipe] = {
    name: Recipe(*parts) for name, parts in {**small_recipes(), **cifar_recipes(), **imagenet_recipes()}.items()
}
