"""Recipes: named configurations with networks, training settings and constants of losses.

base.py                      the type of a recipe
small.py                     for a laptop, and for your own images
cifar.py  cifar_losses.py    CIFAR-10 and CIFAR-100; the constants of losses there
imagenet.py                  ImageNet-1k
coco.py                      detection

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
