"""Recipes for a laptop and for your own images."""

from typing import Any

from outgrow.run.recipes.base import Recipe


def small_recipes() -> dict[str, Recipe]:
    return {
        "default": Recipe(
            "SGD with a cosine schedule, 30 epochs and at least 1,000 steps; a tenth of the training set is for validation",
            DEFAULT,
        ),
        "digits": Recipe(
            "scikit-learn's 8x8 digits: ResNet-8 on 300 of them, a ResNet-20 teacher on the others", DIGITS
        ),
        "cifar100-small": Recipe(
            "CIFAR-100 on 2 CPU cores in ten minutes: ResNet-8 on 5,000 images, a ResNet-20 teacher on the others",
            CIFAR100_SMALL,
        ),
        "finetune": Recipe(
            "a pretrained student on your own images, ten epochs of AdamW; no least number of steps, as more steps made it worse",
            FINETUNE,
        ),
    }


_NO_FLIP = {"crop_padding": 1, "flip": False}  # a mirrored digit may be another one, or none

_LEAST = 1000
"""Steps of a training from scratch on few images. ResNet-8 alone on 150 digits: 92.3 % after 90 steps, 96.0 after 1,000 (3 seeds);
on 500 digits 98.0 and 98.3. ``finetune`` has no minimum: a pretrained MobileNet on 154 photographs lost by more steps (73.0 %
after 50, 69.1 after 200, 3 seeds; 65.1 after 1,000, one seed)."""

DEFAULT: dict[str, Any] = {
    "data": {"val_fraction": 0.1},
    "train": {"min_steps": _LEAST},
    "teacher_train": {"min_steps": _LEAST},
}

DIGITS: dict[str, Any] = {
    "data": {"source": "digits", "val_fraction": 0.1, "train_rows": 300, "augment": _NO_FLIP},
    "teacher": {"name": "cifar/resnet20", "train": True, "rows": "disjoint"},
    "student": {"name": "cifar/resnet8"},
    "train": {"epochs": 20, "min_steps": _LEAST, "batch_size": 32, "lr": 0.05},
    "teacher_train": {"epochs": 20, "min_steps": _LEAST, "batch_size": 32, "lr": 0.05, "eval_every": 20},
}

CIFAR100_SMALL: dict[str, Any] = {
    "data": {"val_fraction": 0.1, "train_rows": 5000},
    "teacher": {"name": "cifar/resnet20", "train": True, "rows": "disjoint"},
    "student": {"name": "cifar/resnet8"},
    "train": {
        "epochs": 24,
        "batch_size": 64,
        "lr": 0.2,
        "lr_schedule": "one_cycle",
        "precision": "auto",
        "channels_last": True,
        "eval_every": 6,
    },
    "teacher_train": {
        "epochs": 5,
        "batch_size": 128,
        "lr": 0.2,
        "lr_schedule": "one_cycle",
        "precision": "auto",
        "channels_last": True,
        "eval_every": 5,
    },
}

FINETUNE: dict[str, Any] = {
    "data": {"val_fraction": 0.1, "augment": {"crop_padding": 0, "resized_crop": (0.35, 1.0)}},
    "student": {"pretrained": True},
    "train": {
        "epochs": 10,
        "batch_size": 32,
        "optimizer": "adamw",
        "lr": 1e-3,
        "weight_decay": 0.02,
        "warmup": 0.1,
        "clip": 1.0,
        "channels_last": True,
    },
    "teacher_train": {
        "epochs": 10,
        "batch_size": 32,
        "optimizer": "adamw",
        "lr": 5e-4,
        "weight_decay": 0.02,
        "warmup": 0.1,
        "clip": 1.0,
        "channels_last": True,
        "eval_every": 10,
    },
}
