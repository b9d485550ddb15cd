"""Recipes: named configurations with networks, training settings and constants of losses.

A recipe is a layer of configuration between the defaults and the command line. ``losses`` are constants that papers
tune per pair; they apply if the loss is given by its bare name, such as ``--loss dkd``.
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
