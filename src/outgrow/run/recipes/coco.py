"""Detection: pairs on MS-COCO 2017, and two small data sets for a laptop."""

from typing import Any

from outgrow.run.recipes.base import Recipe

# Constants of losses for detectors.
# kd, dkd: DKD's authors for Faster R-CNN (temperature 1, alpha 1, beta 0.25; https://arxiv.org/abs/2203.08679,
#     appendix).
# mgd: its authors for Faster R-CNN with FPN (weight 5e-7, ratio 0.45; both sum over elements).
# pkd: its authors, 6 per level.
# cwd: its authors for detection, 10 per level at temperature 1. This is large at the start of a student from scratch:
#     50 times the detector's own loss on bccd.
# fitnet, reviewkd: no weights were found for these pairs, so 1.
LOSSES: dict[str, dict[str, Any]] = {
    "kd": {"loss": "kd(temperature=1.0) + box"},
    "dkd": {"loss": "dkd(alpha=1.0, beta=0.25, temperature=1.0) + box"},
    "mgd": {"loss": "mgd(mask_ratio=0.45)", "weight": 5e-7},
    "pkd": {"loss": "pkd()", "weight": 6.0},
    "cwd": {"loss": "cwd(temperature=1.0)", "weight": 10.0},
    "fitnet": {"loss": "fitnet()"},
    "reviewkd": {"loss": "reviewkd(mid_channels=256)"},
}

# 180,000 steps of 8 images over the 117,266 images with boxes are 12.3 epochs; the learning rate drops at 2/3 and 8/9.
_PROTOCOL: dict[str, Any] = {
    "epochs": 12,
    "batch_size": 8,
    "optimizer": "sgd",
    "lr": 0.01,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "lr_schedule": "step",
    "milestones": (120 / 180, 160 / 180),
    "lr_decay": 0.1,
    "warmup": 1 / 180,
}
_FLIP = {"crop_padding": 0, "flip": True}

PAIRS = (("resnet101", "resnet18"), ("resnet101", "resnet50"), ("resnet50", "mobilenet_v2"))

SMALL_SHAPE = "size=192&levels=3-5&rois=48&proposals=300&anchors=2"
"""Anchors of 16, 32, 64 and 128 pixels. At this image size, platelets have 12, red cells 30, white cells 60 pixels."""

_SMALL_TRAIN: dict[str, Any] = {
    "epochs": 12,
    "batch_size": 8,
    "optimizer": "adamw",
    "lr": 2e-3,
    "weight_decay": 0.01,
    "lr_schedule": "one_cycle",
    "clip": 5.0,
    "channels_last": True,  # no bfloat16: not faster, as convolutions are depthwise and boxes float32
    "eval_every": 4,
}


def _small(teacher_epochs: int, student: dict[str, Any]) -> dict[str, Any]:
    return {
        "data": {"workers": 0, "augment": _FLIP},
        "teacher": {
            "name": f"fasterrcnn:timm/tf_efficientnet_lite0?{SMALL_SHAPE}&channels=64&head=256",
            "train": True,
        },
        "student": {
            "name": f"fasterrcnn:timm/mobilenetv1_025_128?{SMALL_SHAPE}&channels=32&head=128",
        },
        "train": {**_SMALL_TRAIN, **student},
        "teacher_train": {**_SMALL_TRAIN, "lr": 1e-3, "epochs": teacher_epochs},
    }


def coco_recipes() -> dict[str, Recipe]:
    recipes = {
        f"coco/{teacher}-{student}": Recipe(
            f"MS-COCO 2017, Faster R-CNN with FPN, {teacher} to {student}, 180,000 steps of 8"
            + ("" if teacher == "resnet50" else "; needs --teacher-weights or --train-teacher"),
            {
                "data": {"source": "coco:coco:coco/annotations", "workers": 8, "augment": _FLIP},
                "teacher": {"name": f"fasterrcnn:torchvision/{teacher}", "pretrained": True},
                "student": {"name": f"fasterrcnn:torchvision/{student}", "pretrained": True},
                "train": _PROTOCOL,
                "teacher_train": {**_PROTOCOL, "eval_every": 4},
            },
            LOSSES,
        )
        for teacher, student in PAIRS
    }
    return recipes | {
        "bccd": Recipe(
            "blood cells: 205 microscope images, a small Faster R-CNN in minutes on 2 CPU cores",
            _small(16, {}),
            LOSSES,
        ),
        "tiny-coco": Recipe(
            "50 COCO images with all 80 classes: a test of every step on COCO, too small to learn from",
            _small(4, {"epochs": 4}),
            LOSSES,
        ),
    }
