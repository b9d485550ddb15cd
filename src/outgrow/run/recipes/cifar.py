"""The CRD protocol on CIFAR-10 and CIFAR-100, with the constants that papers tune per pair."""

from typing import Any, NamedTuple

from outgrow.run.recipes.base import Recipe
from outgrow.run.recipes.cifar_losses import RESNET32X4_RESNET8X4, warmup


class Pair(NamedTuple):
    teacher: str
    student: str
    dkd_beta: float
    lr: float = 0.05


# DKD's beta is its authors', per pair. They have none for resnet50-vgg8, which has the default of 8.
PAIRS = (
    Pair("resnet32x4", "resnet8x4", 8.0),
    Pair("resnet56", "resnet20", 2.0),
    Pair("resnet110", "resnet32", 2.0),
    Pair("wrn_40_2", "wrn_16_2", 6.0),
    Pair("wrn_40_2", "wrn_40_1", 6.0),
    Pair("vgg13", "vgg8", 6.0),
    Pair("vgg13", "mobilenetv2", 6.0, 0.01),
    Pair("resnet50", "mobilenetv2", 8.0, 0.01),
    Pair("resnet50", "vgg8", 8.0),
    Pair("resnet32x4", "shufflenetv1", 8.0, 0.01),
    Pair("resnet32x4", "shufflenetv2", 8.0, 0.01),
    Pair("wrn_40_2", "shufflenetv1", 6.0, 0.01),
)

PROTOCOL: dict[str, Any] = {
    "epochs": 240,
    "batch_size": 64,
    "optimizer": "sgd",
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "lr_schedule": "step",
    "milestones": (150 / 240, 180 / 240, 210 / 240),
    "lr_decay": 0.1,
}


def cifar_recipes() -> dict[str, Recipe]:
    recipes = {}
    for data in ("cifar10", "cifar100"):
        for pair in PAIRS:
            layer = {
                "data": {"source": data},
                "teacher": {"name": f"cifar/{pair.teacher}"},
                "student": {"name": f"cifar/{pair.student}"},
                "train": {**PROTOCOL, "lr": pair.lr},
                "teacher_train": {**PROTOCOL, "eval_every": 10},
            }
            about = f"{data}, {pair.teacher} to {pair.student}, 240 epochs (CRD protocol)"
            losses: dict[str, dict[str, Any]] = {
                "kd": {"loss": "kd(temperature=4.0)", "task_weight": 0.1, "weight": 0.9},
                "dkd": {
                    "loss": f"dkd(alpha=1.0, beta={pair.dkd_beta}, temperature=4.0)",
                    "schedule": warmup(20),
                },
            }
            if (data, pair.teacher, pair.student) == ("cifar100", "resnet32x4", "resnet8x4"):
                losses |= RESNET32X4_RESNET8X4
            recipes[f"{data}/{pair.teacher}-{pair.student}"] = Recipe(about, layer, losses)
    return recipes
