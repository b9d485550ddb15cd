"""torchvision's published Faster R-CNNs, by the name of the function that builds them.

    fasterrcnn:torchvision/fasterrcnn_resnet50_fpn_v2

Their layers differ from those of a detector on any backbone: two maps of one stride, several anchors at a place,
heads of convolutions. So torchvision builds them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

FAMILY = "torchvision/"
SCORES = "roi_heads.box_predictor.cls_score.bias"
LONGEST = 1333 / 800
"""The most pixels of the long side, as a multiple of those of the short side, for images like COCO's."""


@dataclass(frozen=True)
class Published:
    """Pixels of the short side that a detector was trained with, and the most of the long side as a multiple."""

    size: int = 800
    longest: float = LONGEST


BUILDERS = {
    "fasterrcnn_resnet50_fpn": Published(),
    "fasterrcnn_resnet50_fpn_v2": Published(),
    "fasterrcnn_mobilenet_v3_large_fpn": Published(),
    "fasterrcnn_mobilenet_v3_large_320_fpn": Published(320, 2.0),
}
ON_BACKBONE = {
    "torchvision/resnet50": "fasterrcnn_resnet50_fpn",
    "torchvision/mobilenet_v3_large": "fasterrcnn_mobilenet_v3_large_fpn",
}
"""The published detector for the name of a backbone. The first has the layers that we build on it, too."""


def builder_of(backbone: str) -> str | None:
    """The function of torchvision for a name such as ``torchvision/fasterrcnn_resnet50_fpn``, else None."""
    rest = backbone.removeprefix(FAMILY)
    return rest if rest != backbone and rest in BUILDERS else None


def build(builder: str, outputs: int, *, size: int, longest: int) -> Any:
    """torchvision's detector with random weights."""
    from torchvision.models import detection

    return getattr(detection, builder)(
        weights=None, weights_backbone=None, num_classes=outputs, min_size=size, max_size=longest
    )


def download(builder: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The published weights, and what :func:`understood` says of them."""
    from torchvision.models import get_model_weights

    return understood(dict(get_model_weights(builder).DEFAULT.get_state_dict(progress=True, check_hash=True)))


def understood(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A state dict of torchvision's with its present names, and what is known of a published file.

    torchvision renames the layers of older files while it loads them; the published ones have the old names. A file
    with 91 outputs has a class for each of COCO's ids.
    """
    state = {_present_name(key): value for key, value in state.items()}
    if SCORES not in state or len(state[SCORES]) != 91:
        return state, {}
    facts: dict[str, Any] = {"classes": list(coco_names())}
    builder = _builder_for(state)
    if builder == "fasterrcnn_resnet50_fpn":
        # trained with batch norms whose epsilon is zero, as torchvision's own function sets it
        facts |= {"model": "fasterrcnn:torchvision/resnet50", "norm_eps": 0.0}
    elif builder is not None:
        facts["model"] = f"fasterrcnn:{FAMILY}{builder}"
    return state, facts


def names_for(state: Mapping[str, Tensor]) -> str | None:
    """The names of torchvision's detectors whose layers a file has, for a message."""
    if SCORES not in state:
        return None
    if _is_mobilenet(state):
        return " or ".join(f"fasterrcnn:{FAMILY}{name}" for name in BUILDERS if "mobilenet" in name)
    builder = _builder_for(state)
    return None if builder is None else f"fasterrcnn:{FAMILY}{builder}"


def coco_names() -> tuple[str, ...]:
    """A class for each of COCO's ids, as in torchvision. Its unused ids, all called N/A there, get unique names."""
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    categories: Sequence[str] = FasterRCNN_ResNet50_FPN_Weights.DEFAULT.meta["categories"]
    return tuple(c if c != "N/A" else f"(no category {i})" for i, c in enumerate(categories))[1:]


def _present_name(key: str) -> str:
    """The name of a layer in torchvision since 0.13.

    >>> _present_name("backbone.fpn.inner_blocks.0.weight"), _present_name("rpn.head.conv.bias")
    ('backbone.fpn.inner_blocks.0.0.weight', 'rpn.head.conv.0.0.bias')
    """
    *layer, kind = key.split(".")
    if layer == ["rpn", "head", "conv"]:
        return f"rpn.head.conv.0.0.{kind}"
    if layer[:2] == ["backbone", "fpn"] and len(layer) == 4 and layer[2] in ("inner_blocks", "layer_blocks"):
        return f"{'.'.join(layer)}.0.{kind}"
    return key


def _builder_for(state: Mapping[str, Tensor]) -> str | None:
    """None for MobileNets, too: the two have the same tensors and other sizes of images."""
    if "backbone.body.layer3.5.conv3.weight" not in state or "backbone.body.layer3.6.conv1.weight" in state:
        return None
    if "roi_heads.box_head.5.weight" in state:
        return "fasterrcnn_resnet50_fpn_v2"
    return "fasterrcnn_resnet50_fpn" if "roi_heads.box_head.fc6.weight" in state else None


def _is_mobilenet(state: Mapping[str, Tensor]) -> bool:
    anchors = state.get("rpn.head.cls_logits.bias")
    return anchors is not None and len(anchors) == 15 and "backbone.body.16.0.weight" in state
