"""The two usual ImageNet-1k pairs: 100 epochs, batch size 512."""

from typing import Any

from outgrow.run.recipes.base import Recipe

PROTOCOL: dict[str, Any] = {
    "epochs": 100,
    "batch_size": 512,
    "optimizer": "sgd",
    "lr": 0.2,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "lr_schedule": "step",
    "milestones": (0.3, 0.6, 0.9),
    "lr_decay": 0.1,
    "channels_last": True,
}

PAIRS = {
    "imagenet/resnet34-resnet18": ("torchvision/resnet34", "torchvision/resnet18"),
    "imagenet/resnet50-mobilenetv1": ("torchvision/resnet50", "timm/mobilenetv1_100"),
}


def imagenet_recipes() -> dict[str, Recipe]:
    return {
        name: Recipe(
            f"ImageNet-1k, {teacher} to {student}, 100 epochs, KD at temperature 1, weights 0.5",
            {
                "data": {
                    "source": "imagenet",
                    "size": 224,
                    "workers": 16,
                    "augment": {"crop_padding": 0, "resized_crop": (0.08, 1.0)},
                },
                "teacher": {"name": teacher, "pretrained": True, "correct": "never"},
                "student": {"name": student},
                "method": {"temperature": 1.0, "task_weight": 0.5, "weight": 0.5},
                "train": PROTOCOL,
            },
        )
        for name, (teacher, student) in PAIRS.items()
    }
