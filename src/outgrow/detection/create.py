"""Create detectors by name, and save them.

A name is ``fasterrcnn:BACKBONE?KEY=VALUE&...``, for example ``fasterrcnn:torchvision/resnet50`` or
``fasterrcnn:timm/tf_efficientnet_lite0?size=320&levels=3-5``. Keys are fields of :class:`Shape`; other keys are
arguments for timm. In place of a backbone there may be one of torchvision's own detectors:
``fasterrcnn:torchvision/fasterrcnn_resnet50_fpn_v2``. Names of detection transformers are in
:mod:`outgrow.detection.transformer_create`.
"""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from torch import Tensor, nn

from outgrow.data.classes import match_classes, stated_names
from outgrow.detection import detectron2, published, transformer_create
from outgrow.detection.detector import Detector, FasterRCNNDetector
from outgrow.detection.pyramid import build_pyramid
from outgrow.detection.transformer import TransformerDetector
from outgrow.models.network import InputSpec
from outgrow.models.weights import read_weights, stated_input, states_normalisation, write_weights

PREFIX = "fasterrcnn:"
RESNET50 = "torchvision/resnet50"
STYLES = ("torchvision", detectron2.STYLE)
LAST_LAYER = "roi_heads.box_predictor."
T = TypeVar("T")
STRIDE_TO_ANCHOR = 8.0
"""Side of a level's anchors divided by its stride, in the paper and in torchvision."""


@dataclass(frozen=True)
class Shape:
    """The size of a detector. The defaults are the paper's and torchvision's, for images like COCO's."""

    size: int = 800
    """Pixels of the short side after resizing."""
    max_size: int | None = None
    """The most pixels of the long side; None is ``size`` * 1333 / 800, or as the published detector has it."""
    levels: tuple[int, int] = (2, 5)
    """The finest and the coarsest map taken from the backbone, as log2 of the stride. One more level is pooled."""
    channels: int = 256
    """Channels of each level of the pyramid."""
    head: int = 1024
    """Width of the two layers that classify a proposal."""
    rois: int = 512
    """Proposals sampled per image in a training step."""
    proposals: int = 2000
    """Proposals kept per image in training, from which ``rois`` are sampled; half as many in evaluation."""
    anchors: float = STRIDE_TO_ANCHOR
    """Side of a level's anchors divided by its stride; smaller for smaller objects."""
    style: str = "torchvision"
    """Whose details of anchors, pooling and strides: torchvision's, or those of :mod:`outgrow.detection.detectron2`."""


def is_detector(name: str) -> bool:
    """Whether ``name`` is the name of a detector."""
    return name.startswith((PREFIX, *transformer_create.PREFIXES))


def load_detector(path: str | Path, classes: Sequence[str] | None = None) -> Detector:
    """The detector in a file, by the name in its metadata."""
    return create_detector(PREFIX, classes, weights=path)


def create_detector(
    name: str,
    classes: Sequence[str] | None = None,
    *,
    weights: str | Path | None = None,
    pretrained: bool = False,
    input_size: int | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
) -> Detector:
    """A detector by name, for ``classes`` (without the background).

    ``weights`` is a file of a whole detector (ours, torchvision's or Detectron2's), or of a classifier, which is
    loaded into the backbone. If a detector's file has the same classes in another order, or among others, its last
    layer is reordered. If it lacks one, its last layer is not loaded, with a warning.

    ``pretrained`` downloads published weights: of the backbone if its name and ``classes`` are given, else of the
    whole detector, with COCO's classes. Without ``weights`` and ``pretrained``, all weights are random.

    Batch norms of a backbone with weights are frozen, as a training step of detection has few images.
    Detection transformers (``hf/...``, ``rtdetr:``, ``dfine:``) take files of whole detectors only, or their checkpoint.
    ``input_size`` replaces ``?size=``. ``mean`` and ``std`` (of RGB in [0, 1]) are for weights without a stored
    normalisation. By default it is that of the file's metadata, or else of the backbone's library. The name
    ``fasterrcnn:`` alone means the name in the file's metadata.

    ``ValueError`` for names, shapes or files that do not fit.
    """
    state, metadata = ({}, {}) if weights is None else _read(weights)
    if transformer_create.is_transformer(name, metadata):
        return transformer_create.create(
            name,
            classes,
            state=state,
            metadata=metadata,
            origin=None if weights is None else str(weights),
            pretrained=pretrained,
            input_size=input_size,
            mean=mean,
            std=std,
        )
    if name == PREFIX and is_detector(str(metadata.get("model"))):
        name = metadata["model"]
    backbone, shape, arguments = parse_name(name, input_size)
    origin = None if weights is None else str(weights)
    builder = published.builder_of(backbone)
    if weights is None and pretrained and (classes is None or builder is not None):
        builder = builder or _published_on(name, backbone)
        if backbone != RESNET50:  # whose published layers are those that we build on it
            backbone = f"{published.FAMILY}{builder}"
        state, metadata = _downloaded(name, lambda: published.download(builder))
        origin = builder
    if metadata.get("style") == detectron2.STYLE:
        shape = replace(shape, style=detectron2.STYLE)
    _check_anchors(name, shape, metadata)
    name = format_name(backbone, shape, arguments)
    if origin is None and pretrained and classes is not None:
        net = _downloaded(name, lambda: _build(backbone, shape, arguments, len(classes) + 1, pretrained=True))
        _freeze_norms(net)
        return _normalised(FasterRCNNDetector(net, name=name, classes=tuple(classes)), {}, mean, std)
    whole = any(key.startswith("roi_heads.") for key in state)
    own_classes = tuple(classes) if classes is not None else _classes_of(name, state, metadata)
    net = _build(backbone, shape, arguments, len(own_classes) + 1, pretrained=False)
    if whole:
        _load_whole(
            net, state if classes is None else _in_order(name, state, metadata, own_classes), origin, name
        )
    elif origin is not None:
        _load_backbone(net.backbone.body, state, Path(origin), name)
    if origin is not None:
        _freeze_norms(net, eps=metadata.get("norm_eps"))
    return _normalised(FasterRCNNDetector(net, name=name, classes=own_classes), metadata, mean, std)


def _read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights of a file and its metadata; those of other programs in our names."""
    state, metadata = read_weights(path)
    if detectron2.is_detectron2(state):
        return detectron2.from_detectron2(state)
    state, facts = published.understood(state)
    return state, metadata if "classes" in metadata else {**metadata, **facts}


def _downloaded(name: str, get: Callable[[], T]) -> T:
    try:
        return get()
    except OSError as error:  # no network connection, or a full disk
        raise ValueError(
            f"{name}: needs published weights, which could not be downloaded ({error}); pass a file of weights "
            "instead."
        ) from error


def _published_on(name: str, backbone: str) -> str:
    builder = published.ON_BACKBONE.get(backbone)
    if builder is None:
        raise ValueError(
            f"{name}: needs weights of the whole detector, got pretrained=true, for which torchvision has only "
            f"{', '.join((*published.ON_BACKBONE, *(published.FAMILY + name for name in published.BUILDERS)))}; pass a file, "
            "or train the teacher first (--train-teacher)."
        )
    return builder


def save_detector(detector: Detector, path: str | Path) -> None:
    """Write the weights as safetensors, with :func:`metadata_of` the detector, from which it is rebuilt."""
    if isinstance(detector, TransformerDetector):
        transformer_create.save(detector, path)
    else:
        write_weights(detector.net.state_dict(), Path(path), metadata_of(detector))


def metadata_of(detector: Detector) -> dict[str, str]:
    """Name, classes and normalisation, as a safetensors file holds them."""
    from torchvision.ops import FrozenBatchNorm2d

    transform = detector.net.transform
    metadata = {
        "format": "pt",
        "model": detector.name,
        "classes": json.dumps(detector.classes),
        "mean": json.dumps(list(transform.image_mean)),
        "std": json.dumps(list(transform.image_std)),
    }
    norms = [m for m in detector.net.backbone.modules() if isinstance(m, FrozenBatchNorm2d)]
    if norms and all(norm.eps == 0 for norm in norms):
        metadata["norm_eps"] = "0.0"
    return metadata


def _normalised(
    detector: Detector,
    metadata: Mapping[str, Any],
    mean: tuple[float, float, float] | None,
    std: tuple[float, float, float] | None,
) -> Detector:
    """``detector`` with the normalisation that is given, else with the one in the metadata of its file."""
    transform = detector.net.transform
    usual = InputSpec(None, tuple(transform.image_mean), tuple(transform.image_std))
    found = stated_input(usual, metadata, detector.name)
    stated = replace(usual, mean=found.mean, std=found.std)  # a classifier's size is none of a detector's
    spec = replace(stated, mean=mean or stated.mean, std=std or stated.std)
    if states_normalisation(metadata) and spec != stated:
        warnings.warn(
            f"create_detector {detector.name}: its file states mean {stated.mean} and std {stated.std}, and you gave "
            f"{spec.mean} and {spec.std}, which is used.",
            stacklevel=3,
        )
    transform.image_mean, transform.image_std = list(spec.mean), list(spec.std)
    return detector


def parse_name(name: str, input_size: int | None = None) -> tuple[str, Shape, dict[str, Any]]:
    """The backbone, the shape, and the arguments for timm in a name.

    >>> backbone, shape, more = parse_name("fasterrcnn:timm/mobilenetv2_100?size=320&levels=3-5&pad_type=same")
    >>> backbone, shape.size, shape.levels, more
    ('timm/mobilenetv2_100', 320, (3, 5), {'pad_type': 'same'})
    """
    if not name.startswith(PREFIX):
        raise ValueError(
            f"detector: needs a name such as fasterrcnn:torchvision/resnet18 or fasterrcnn:timm/mobilenetv2_100, got "
            f"{name!r}; put fasterrcnn: before a backbone."
        )
    backbone, _, query = name.removeprefix(PREFIX).partition("?")
    given: dict[str, Any] = {}
    known = {field.name for field in fields(Shape)}
    for item in filter(None, query.split("&")):
        key, equals, text = item.partition("=")
        if not equals:
            raise ValueError(
                f"{name}: needs key=value pairs joined by & after the question mark, got {item!r}; correct it."
            )
        given[key] = _value(name, key, text) if key in known else yaml.safe_load(text)
    shape = {key: value for key, value in given.items() if key in known}
    if input_size is not None:
        shape["size"] = input_size
    arguments = {key: value for key, value in given.items() if key not in known}
    return backbone, replace(_usual(backbone), **shape), arguments


def _usual(backbone: str) -> Shape:
    """The defaults of a backbone: a published detector has its own size."""
    builder = published.builder_of(backbone)
    return Shape() if builder is None else Shape(size=published.BUILDERS[builder].size)


def format_name(backbone: str, shape: Shape, arguments: dict[str, Any]) -> str:
    """The inverse of :func:`parse_name`, without defaults."""
    default = _usual(backbone)
    parts = [
        f"{field.name}={_format(getattr(shape, field.name))}"
        for field in fields(Shape)
        if getattr(shape, field.name) != getattr(default, field.name)
    ]
    parts += [f"{key}={value}" for key, value in arguments.items()]
    return f"{PREFIX}{backbone}" + (f"?{'&'.join(parts)}" if parts else "")


def _value(name: str, key: str, text: str) -> Any:
    try:
        if key == "levels":
            first, _, last = text.partition("-")
            return int(first), int(last)
        if key == "style" and text in STYLES:
            return text
        value = float(text) if key == "anchors" else int(text)
    except ValueError:
        value = 0
    if value <= 0:
        like = {"levels": "3-5", "anchors": "4", "style": detectron2.STYLE}.get(key, "320")
        raise ValueError(f"{name}: needs a value such as {like} for {key}, got {text!r}; correct it.")
    return value


def _format(value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{value[0]}-{value[1]}" if isinstance(value, tuple) else f"{value:g}"


def _build(backbone: str, shape: Shape, arguments: dict[str, Any], outputs: int, *, pretrained: bool) -> Any:
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.ops import MultiScaleRoIAlign

    builder = published.builder_of(backbone)
    if builder is not None:
        return _build_published(builder, shape, arguments, outputs)
    if shape.style == detectron2.STYLE and (backbone not in detectron2.BACKBONES or shape.levels != (2, 5)):
        raise ValueError(
            f"{PREFIX}{backbone}: needs {', '.join(detectron2.BACKBONES)} and levels 2-5 for style={detectron2.STYLE}, got "
            f"{backbone} and {_format(shape.levels)}; use one of them, or leave the style out."
        )
    pyramid, spec = build_pyramid(
        backbone, levels=shape.levels, channels=shape.channels, pretrained=pretrained, arguments=arguments
    )
    sizes = tuple((round(stride * shape.anchors),) for stride in pyramid.strides)
    resolution = 7
    net = FasterRCNN(
        pyramid,
        rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes)),
        # the pooled level is only for large anchors: features are not taken from it
        box_roi_pool=MultiScaleRoIAlign(list(pyramid.levels[:-1]), resolution, sampling_ratio=2),
        box_head=TwoMLPHead(shape.channels * resolution**2, shape.head),
        box_predictor=FastRCNNPredictor(shape.head, outputs),
        min_size=shape.size,
        max_size=shape.max_size or round(shape.size * published.LONGEST),
        image_mean=list(spec.mean),
        image_std=list(spec.std),
        rpn_pre_nms_top_n_train=shape.proposals,
        rpn_post_nms_top_n_train=shape.proposals,
        rpn_pre_nms_top_n_test=max(shape.proposals // 2, 1),
        rpn_post_nms_top_n_test=max(shape.proposals // 2, 1),
        box_batch_size_per_image=shape.rois,
    )
    if shape.style == detectron2.STYLE:
        detectron2.set_style(net, pyramid.strides, pyramid.levels[:-1])
    return net


def _build_published(builder: str, shape: Shape, arguments: dict[str, Any], outputs: int) -> Any:
    """torchvision's own detector; its layers are as they are."""
    usual = published.BUILDERS[builder]
    if arguments or shape != Shape(size=shape.size, max_size=shape.max_size):
        raise ValueError(
            f"{PREFIX}{published.FAMILY}{builder}: needs the layers of the published detector, got other levels, widths or "
            "arguments; set only size and max_size."
        )
    longest = shape.max_size or round(shape.size * usual.longest)
    return published.build(builder, outputs, size=shape.size, longest=longest)


def _check_anchors(name: str, shape: Shape, metadata: dict[str, Any]) -> None:
    """Compare what the weights' shapes do not show: ``ValueError`` for other anchors, a warning for another size."""
    stated = str(metadata.get("model"))
    if not is_detector(stated):
        return
    theirs = parse_name(stated)[1]
    if theirs.anchors != shape.anchors:
        raise ValueError(
            f"{name}: needs the anchors that the file was trained with (anchors={theirs.anchors:g}), got "
            f"anchors={shape.anchors:g}; use the name in the file, {stated}, or fasterrcnn: alone."
        )
    if theirs.style != shape.style:
        raise ValueError(
            f"{name}: needs the style that the file was trained with (style={theirs.style}), got style={shape.style}; use the "
            f"name in the file, {stated}, or fasterrcnn: alone."
        )
    if theirs.size != shape.size:
        warnings.warn(
            f"{name}: resizes images to {shape.size}, the file was trained at {theirs.size}.",
            stacklevel=3,
        )


def _in_order(
    name: str, state: dict[str, Tensor], metadata: dict[str, Any], classes: tuple[str, ...]
) -> dict[str, Tensor]:
    """``state`` with the last layer in the order of ``classes``; without that layer if the file has others."""
    last = [key for key in state if key.startswith(LAST_LAYER)]
    outputs = len(state[f"{LAST_LAYER}cls_score.bias"]) if f"{LAST_LAYER}cls_score.bias" in state else 1
    names = stated_names(metadata)
    match = match_classes(names if names and len(names) == outputs - 1 else None, outputs - 1, classes)
    if match.columns is None:
        return {key: value for key, value in state.items() if key not in last}
    if match.how == "position":
        warnings.warn(f"{name}: the classes of its file are taken {match.note}.", stacklevel=3)
    rows = torch.tensor([0, *(1 + place for place in match.columns)])  # class 0 is the background
    moved = {key: state[key].unflatten(0, (outputs, -1))[rows].flatten(0, 1) for key in last}
    return {**state, **moved}


def _classes_of(name: str, state: dict[str, Tensor], metadata: dict[str, Any]) -> tuple[str, ...]:
    stated = metadata.get("classes")
    if isinstance(stated, list):
        return tuple(map(str, stated))
    bias = state.get("roi_heads.box_predictor.cls_score.bias")
    if bias is None:
        raise ValueError(
            f"{name}: needs a file of a whole detector, got {'a backbone' if state else 'no weights'}; pass the file of a "
            "detector, or train it first (--train-teacher)."
        )
    raise ValueError(
        f"{name}: needs the names of the {len(bias) - 1} classes in the file, got none; save it with "
        "outgrow.detection.save_detector, or add classes (a JSON list) to its safetensors metadata."
    )


def _load_whole(net: nn.Module, state: dict[str, Tensor], path: str | None, name: str) -> None:
    own = net.state_dict()
    last = {key for key in own if key.startswith(LAST_LAYER)}
    differing = {key for key in own.keys() & state.keys() if own[key].shape != state[key].shape}
    differing |= last - state.keys()
    missing = {key for key in own.keys() - state.keys() - last if not key.endswith("num_batches_tracked")}
    unexpected = {key for key in state.keys() - own.keys() if not key.endswith("num_batches_tracked")}
    if missing or unexpected or differing - last:
        wrong = sorted(missing | unexpected | (differing - last))
        like = published.names_for(state)
        raise ValueError(
            f"{name}: needs the weights of this detector, got {path} with {len(wrong)} tensors that do not fit "
            f"({', '.join(wrong[:3])}{', ...' if len(wrong) > 3 else ''}); use "
            + ("the name in the file's metadata." if like is None else f"{like}, whose layers the file has.")
        )
    if differing:
        warnings.warn(f"{name}: the last layer is not loaded, as {path} has other classes.", stacklevel=4)
    net.load_state_dict({k: v for k, v in state.items() if k in own and k not in differing}, strict=False)


def _load_backbone(body: nn.Module, state: dict[str, Tensor], path: Path, name: str) -> None:
    """Load the weights of a classifier into its layers that form the backbone."""
    found, missing = {}, []
    for key, value in body.state_dict().items():
        candidates = (key, key.replace("_", ".", 1), f"features.{key}")
        source = next((c for c in candidates if c in state and state[c].shape == value.shape), None)
        if source is not None:
            found[key] = state[source]
        elif not key.endswith("num_batches_tracked"):
            missing.append(key)
    if missing:
        raise ValueError(
            f"{name}: needs the weights of its backbone, got {path} without {', '.join(missing[:3])}"
            f"{', ...' if len(missing) > 3 else ''} ({len(missing)} in all); pass a file of the same model."
        )
    body.load_state_dict(found, strict=False)


def _freeze_norms(net: Any, *, eps: float | None = None) -> None:
    from timm.layers import freeze_batch_norm_2d
    from torchvision.ops import FrozenBatchNorm2d

    net.backbone = freeze_batch_norm_2d(net.backbone)
    if eps is not None:
        for module in net.backbone.modules():
            if isinstance(module, FrozenBatchNorm2d):
                module.eps = eps
