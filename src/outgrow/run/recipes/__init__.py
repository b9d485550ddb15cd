"""Recipes: which networks, how long, with which constants. They only choose; nothing here computes.

A recipe is a layer of configuration over the defaults, below what the command line says. ``losses``
are the constants that papers tune per pair: taken when that loss is asked for by its bare name.
"""

from outgrow.run.recipes.base import Recipe
from outgrow.run.recipes.cifar import cifar_recipes
from outgrow.run.recipes.coco import coco_recipes
from outgrow.run.recipes.imagenet import imagenet_recipes
from outgrow.run.recipes.small import small_recipes

RECIPES: dict[str, Recipe] = {
    **small_recipes(),
    **cifar_recipes(),
    **imagenet_recipes(),
    **coco_recipes(),
}
