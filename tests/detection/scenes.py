"""Small scenes and detectors for tests."""

import torch

from outgrow.detection.boxes import Scenes, Truth
from outgrow.detection.families.create import create_detector

CLASSES = ("cat", "dog", "owl")
TINY = (
    "fasterrcnn:timm/mobilenetv1_025_128?size=64&levels=3-5&channels=8&head=16&rois=32&proposals=80&anchors=4"
)


def truth(boxes, label, crowd=(), index=0):
    return Truth(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(label, dtype=torch.long),
        torch.tensor(crowd, dtype=torch.float32).reshape(-1, 4),
        index,
    )


def scenes(seed=0):
    """Three pictures of different sizes: objects, none, and objects beside a crowd."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(96, 128), (80, 80), (128, 96)]
    images = [torch.rand(3, *size, generator=generator) for size in sizes]
    return Scenes(
        images,
        [
            truth([[10, 10, 60, 60], [50, 40, 120, 90]], [1, 3], index=4),
            truth([], [], index=2),
            truth([[10, 50, 80, 120]], [2], crowd=[[0, 0, 96, 48]], index=7),
        ],
    )


def detector(seed=0, name=TINY, classes=CLASSES):
    torch.manual_seed(seed)
    made = create_detector(name, classes)
    # scores of a new head are all alike: spread them, so that something is right and something wrong
    with torch.no_grad():
        made.net.roi_heads.box_predictor.cls_score.weight.mul_(60)
        made.net.roi_heads.box_predictor.bbox_pred.weight.mul_(20)
    return made
