"""Build a configuration in layers: defaults, then the recipe, then the file, then flags and ``--set``."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from outgrow.training.config import Config


def flags_layer(
    *,
    data: str | None = None,
    label: str | None = None,
    unlabelled: str | None = None,
    teacher: str | None = None,
    teacher_weights: Path | None = None,
    train_teacher: bool = False,
    correct_teacher: str | None = None,
    student: str | None = None,
    student_weights: Path | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """The flags that `distill` and `compare` share, as a layer without the flags that were not given."""
    flags: dict[str, dict[str, Any]] = {
        "data": {"source": data, "label": label, "unlabelled": unlabelled},
        "teacher": {
            "name": teacher,
            "weights": None if teacher_weights is None else str(teacher_weights),
            "train": train_teacher or (False if teacher_weights else None),
            "correct": correct_teacher,
        },
        "student": {"name": student, "weights": None if student_weights is None else str(student_weights)},
        "train": {"epochs": epochs, "batch_size": batch_size, "lr": lr, "device": device},
        "teacher_train": {"device": device},
    }
    present = {key: without_none(value) for key, value in flags.items()}
    return {key: value for key, value in present.items() if value}


def without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    """The items whose value is not None."""
    return {key: value for key, value in values.items() if value is not None}


def base_layer(recipe: str | None, saved: Mapping[str, Any], loss: str | None = None) -> dict[str, Any]:
    """The file's layer over the recipe's. The recipe is that of the flag, or else of the file."""
    from outgrow.training.config import override

    name = recipe or saved.get("recipe") or "default"
    return override(recipe_layer(name, loss), {**saved, "recipe": name})


def as_config(config: "Config | Mapping[str, Any] | None") -> "Config":
    """A configuration as it is. A mapping is what a file is to ``--config``: its fields are over those of the recipe that it
    names, if it names one."""
    from outgrow.training.config import Config, build_config

    if isinstance(config, Config):
        return config
    given = config or {}
    return build_config(base_layer(None, given) if given.get("recipe") else given)


def resolve(recipe: str | None, config: Path | None, loss: str | None, flags: dict[str, Any]) -> "Config":
    """The configuration from recipe, file and flags; later layers override earlier ones."""
    from outgrow.training.config import build_config, load_config

    saved = load_config(config) if config else {}
    name = recipe or saved.get("recipe") or "default"
    constants, method = recipe_layer(name, loss).get("method", {}), flags.get("method", {})
    if loss is not None and "loss" in constants and method.get("loss") == loss:
        # the flag has the bare name of the loss: without this it would override the recipe's constants
        flags = {**flags, "method": {**constants, **method, "loss": constants["loss"]}}
    return build_config(base_layer(recipe, saved, loss), flags)


def recipe_layer(name: str, loss: str | None) -> dict[str, Any]:
    """The fields of a recipe, with its constants for ``loss`` if that is a bare name with constants."""
    from outgrow.run.recipes import RECIPES
    from outgrow.spec import lookup
    from outgrow.training.config import merge

    recipe = lookup(RECIPES, name, kind="recipe")
    constants = recipe.losses.get(loss or "", {})
    return merge(recipe.layer, {"method": constants} if constants else {})
