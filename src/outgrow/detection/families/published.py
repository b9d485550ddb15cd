"""torchvision's published detectors, by the name of the function that builds them.

    fasterrcnn:torchvision/fasterrcnn_resnet50_fpn_v2
    ssdlite:torchvision/ssdlite320_mobilenet_v3_large

Their layers differ from those of a detector on any backbone: two maps of one stride, several anchors at a place,
heads of other layers. So torchvision builds them.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

FAMILY = "torchvision/"
SCORES = "roi_heads.box_predictor.cls_score.bias"
DENSE_SCORES = "head.classification_head.cls_logits.bias"
POINTS = "head.regression_head.bbox_ctrness.bias"
"""Layers that only FCOS has."""
SSDLITE_SCORES = "head.classification_head.module_list.0.1.bias"
LONGEST = 1333 / 800
"""The most pixels of the long side, as a multiple of those of the short side, for images like COCO's."""
COCO = 91
"""Outputs of a published file: one for each of COCO's ids, and the background."""


@dataclass(frozen=True)
class Published:
    """The family of a detector, the pixels of the short side that it was trained with, and the most of the long side
    as a multiple."""

    family: str = "fasterrcnn"
    size: int = 800
    longest: float = LONGEST


BUILDERS = {
    "fasterrcnn_resnet50_fpn": Published(),
    "fasterrcnn_resnet50_fpn_v2": Published(),
    "fasterrcnn_mobilenet_v3_large_fpn": Published(),
    "fasterrcnn_mobilenet_v3_large_320_fpn": Published(size=320, longest=2.0),
    "retinanet_resnet50_fpn": Published("retinanet"),
    "retinanet_resnet50_fpn_v2": Published("retinanet"),
    "fcos_resnet50_fpn": Published("fcos"),
    "ssdlite320_mobilenet_v3_large": Published("ssdlite", size=320, longest=1.0),
}
ON_BACKBONE = {
    ("fasterrcnn", "torchvision/resnet50"): "fasterrcnn_resnet50_fpn",
    ("fasterrcnn", "torchvision/mobilenet_v3_large"): "fasterrcnn_mobilenet_v3_large_fpn",
    ("retinanet", "torchvision/resnet50"): "retinanet_resnet50_fpn",
    ("fcos", "torchvision/resnet50"): "fcos_resnet50_fpn",
    ("ssdlite", "torchvision/mobilenet_v3_large"): "ssdlite320_mobilenet_v3_large",
}
"""The published detector for a family and the name of a backbone. On ResNet-50 it has the layers that we build, too."""
WITHOUT_EPSILON = ("fasterrcnn_resnet50_fpn", "retinanet_resnet50_fpn")
"""Trained with batch norms whose epsilon is zero, as torchvision's own function sets it."""
EPSILONS = (0.0, 1e-5)
"""Those of torchvision's frozen norms."""


def builder_of(family: str, backbone: str) -> str | None:
    """The function of torchvision for a name such as ``torchvision/fasterrcnn_resnet50_fpn``, else None."""
    rest = backbone.removeprefix(FAMILY)
    return rest if rest != backbone and rest in BUILDERS and BUILDERS[rest].family == family else None


def build(builder: str, outputs: int, *, size: int, longest: int) -> Any:
    """torchvision's detector with random weights."""
    from torchvision.models import detection

    sizes = {} if BUILDERS[builder].family == "ssdlite" else {"min_size": size, "max_size": longest}
    return getattr(detection, builder)(weights=None, weights_backbone=None, num_classes=outputs, **sizes)


def download(builder: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The published weights, and what :func:`understood` says of them."""
    from torchvision.models import get_model_weights

    return understood(dict(get_model_weights(builder).DEFAULT.get_state_dict(progress=True, check_hash=True)))


def understood(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A state dict of torchvision's with its present names, and what is known of a published file.

    torchvision renames the layers of older files while it loads them; the published ones have the old names. A file
    with 91 outputs has a class for each of COCO's ids.
    """
    points = POINTS in state
    state = {_present_name(key, points=points): value for key, value in state.items()}
    if _outputs(state) != COCO:
        return state, {}
    facts: dict[str, Any] = {"classes": list(coco_names())}
    builder = _builder_for(state)
    if builder is not None:
        facts["model"] = _name_of(builder)
    if builder in WITHOUT_EPSILON:
        facts["norm_eps"] = 0.0
    return state, facts


def epsilon(
    state: Mapping[str, Tensor], metadata: Mapping[str, Any], path: str, *, own: bool
) -> float | None:
    """The epsilon of the frozen norms that the metadata of the file ``path`` state; None for the usual one.

    A warning for a file that is not our ``own`` if it may be fine-tuned from a detector of :data:`WITHOUT_EPSILON` and states
    none: its tensors are those of one that was trained from its backbone. ``ValueError`` for any other value.
    """
    stated = metadata.get("norm_eps")
    if stated is not None and stated not in EPSILONS:
        raise ValueError(
            f"create_detector: needs {EPSILONS[0]:g} or {EPSILONS[1]:g} as norm_eps in the metadata of {path}, got {stated!r}; "
            "correct it."
        )
    trained = any(key.endswith("num_batches_tracked") for key in state)  # frozen norms have no such counter
    if stated is None and not own and not trained and _builder_for(state) in WITHOUT_EPSILON:
        warnings.warn(
            f"create_detector: {path} does not state the epsilon of its frozen batch norms: 1e-5 is taken. If it was trained "
            "from torchvision's published detector, it is 0: write norm_eps: 0.0 into the metadata of the file, beside its classes.",
            stacklevel=3,
        )
    return None if stated is None else float(stated)


def names_for(state: Mapping[str, Tensor]) -> str | None:
    """The names of torchvision's detectors whose layers a file has, for a message."""
    if SCORES in state and _is_mobilenet(state):
        return " or ".join(
            f"fasterrcnn:{FAMILY}{name}" for name in BUILDERS if name.startswith("fasterrcnn_mobilenet")
        )
    builder = _builder_for(state)
    return None if builder is None else f"{BUILDERS[builder].family}:{FAMILY}{builder}"


def _name_of(builder: str) -> str:
    """The name of a published detector: by its backbone, where ours has the same layers."""
    family = BUILDERS[builder].family
    backbone = "torchvision/resnet50"
    if ON_BACKBONE.get((family, backbone)) != builder:
        backbone = f"{FAMILY}{builder}"
    return f"{family}:{backbone}"


def _outputs(state: Mapping[str, Tensor]) -> int | None:
    """The number of classes with the background, for the anchors of the published detectors."""
    if DENSE_SCORES in state:
        return len(state[DENSE_SCORES]) // (1 if POINTS in state else 9)
    if SSDLITE_SCORES in state:
        return len(state[SSDLITE_SCORES]) // 6
    return len(state[SCORES]) if SCORES in state else None


def coco_names() -> tuple[str, ...]:
    """A class for each of COCO's ids, as in torchvision. Its unused ids, all called N/A there, get unique names."""
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    categories: Sequence[str] = FasterRCNN_ResNet50_FPN_Weights.DEFAULT.meta["categories"]
    return tuple(c if c != "N/A" else f"(no category {i})" for i, c in enumerate(categories))[1:]


def _present_name(key: str, *, points: bool = False) -> str:
    """The name of a layer in torchvision since 0.13. ``points``: of FCOS, which was not renamed.

    >>> _present_name("backbone.fpn.inner_blocks.0.weight"), _present_name("rpn.head.conv.bias")
    ('backbone.fpn.inner_blocks.0.0.weight', 'rpn.head.conv.0.0.bias')
    """
    *layer, kind = key.split(".")
    if layer == ["rpn", "head", "conv"]:
        return f"rpn.head.conv.0.0.{kind}"
    if layer[:2] == ["backbone", "fpn"] and len(layer) == 4 and layer[2] in ("inner_blocks", "layer_blocks"):
        return f"{'.'.join(layer)}.0.{kind}"
    if (
        not points and layer[:1] == ["head"] and layer[2:3] == ["conv"] and len(layer) == 4
    ):  # RetinaNet's convolutions and ReLUs
        return f"{'.'.join(layer[:3])}.{int(layer[3]) // 2}.0.{kind}"
    return key


def _builder_for(state: Mapping[str, Tensor]) -> str | None:
    """None for Faster R-CNN on a MobileNet, too: two have the same tensors and other sizes of images."""
    if SSDLITE_SCORES in state:
        known = "backbone.features.0.0.0.weight" in state and "backbone.extra.3.2.0.weight" in state
        return "ssdlite320_mobilenet_v3_large" if known else None
    if "backbone.body.layer3.5.conv3.weight" not in state or "backbone.body.layer3.6.conv1.weight" in state:
        return None
    if DENSE_SCORES in state:
        if POINTS in state:
            return "fcos_resnet50_fpn"
        second = "head.classification_head.conv.0.1.weight" in state
        return "retinanet_resnet50_fpn_v2" if second else "retinanet_resnet50_fpn"
    if "roi_heads.box_head.5.weight" in state:
        return "fasterrcnn_resnet50_fpn_v2"
    return "fasterrcnn_resnet50_fpn" if "roi_heads.box_head.fc6.weight" in state else None


def _is_mobilenet(state: Mapping[str, Tensor]) -> bool:
    anchors = state.get("rpn.head.cls_logits.bias")
    return anchors is not None and len(anchors) == 15 and "backbone.body.16.0.weight" in state
