"""Create detectors by name, and save them.

A name is ``FAMILY:BACKBONE?KEY=VALUE&...``, for example ``fasterrcnn:torchvision/resnet50`` or
``fcos:timm/tf_efficientnet_lite0?size=320&levels=3-5``. Keys are fields of the family's shape; other keys are
arguments for timm. In place of a backbone there may be one of torchvision's own detectors:
``fasterrcnn:torchvision/fasterrcnn_resnet50_fpn_v2``. Names of detection transformers are in
:mod:`outgrow.detection.families.transformer_create`.
"""

import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from torch import Tensor, nn

from outgrow.data.classes import NAME_KEYS, match_classes, spelling, stated_names
from outgrow.detection.families import (
    detectron2,
    fasterrcnn,
    fcos,
    published,
    retinanet,
    ssdlite,
    transformer_create,
)
from outgrow.detection.families.detector import Detector
from outgrow.detection.families.family import Family
from outgrow.detection.families.fasterrcnn import Shape
from outgrow.detection.families.transformer import TransformerDetector
from outgrow.machine.files import parse_yaml
from outgrow.models.create import DETECTORS
from outgrow.models.network import InputSpec
from outgrow.models.weights import read_weights, stated_input, states_normalisation, write_weights

__all__ = [
    "FAMILIES",
    "Shape",
    "create_detector",
    "format_name",
    "is_detector",
    "load_detector",
    "parse_name",
]

FAMILIES: dict[str, Family] = {
    family.name: family for family in (fasterrcnn.FAMILY, retinanet.FAMILY, fcos.FAMILY, ssdlite.FAMILY)
}
assert tuple(FAMILIES) == DETECTORS
_WRAPPED = re.compile(r"(.+\.)backbone\.(body|features)\.")
RESNET50 = "torchvision/resnet50"
BACKGROUND = "background"
"""How the background is called where a file names it, too (``__background__``)."""
STYLES = ("torchvision", detectron2.STYLE)
T = TypeVar("T")


def is_detector(name: str) -> bool:
    """Whether ``name`` is the name of a detector."""
    return _has_family(name) or transformer_create.is_transformer(name)


def _has_family(name: str) -> bool:
    return name.partition(":")[0] in FAMILIES and ":" in name


def family_of(name: str) -> Family:
    """The family in a detector's name."""
    return FAMILIES[name.partition(":")[0]]


def least_images(name: str) -> int:
    """The smallest number of images that a detector takes in training mode; 1 for other names."""
    return family_of(name).least if _has_family(name) else 1


def load_detector(path: str | Path, classes: Sequence[str] | None = None) -> Detector:
    """The detector in a file of ours, under the name in its metadata."""
    metadata = read_weights(path)[1]
    name = str(metadata.get("model"))
    if not is_detector(name):
        raise ValueError(
            f"{path}: needs the file of a detector with its name in the metadata, got {name!r}; pass a file that Outgrow "
            "wrote, or use create_detector with a name."
        )
    if transformer_create.is_transformer(name):
        name = transformer_create.IN_FILE
    return create_detector(name, classes, weights=path)


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
    normalisation. By default it is that of the file's metadata, or else of the backbone's library. A
    family's name alone, such as ``fasterrcnn:``, means the name in the file's metadata.

    ``ValueError`` for names, shapes or files that do not fit.
    """
    state, metadata = ({}, {}) if weights is None else _read(weights)
    if transformer_create.is_transformer(name):
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
    if name.endswith(":") and str(metadata.get("model")).startswith(name):
        name = metadata["model"]
    backbone, shape, arguments = parse_name(name, input_size)
    family = family_of(name)
    origin = None if weights is None else str(weights)
    builder = published.builder_of(family.name, backbone)
    if weights is None and pretrained and (classes is None or builder is not None):
        builder = builder or _published_on(name, family, backbone)
        if backbone != RESNET50:  # whose published layers are those that we build on it
            backbone = f"{published.FAMILY}{builder}"
        state, metadata = _downloaded(name, lambda: published.download(builder))
        origin = builder
    if metadata.get("style") == detectron2.STYLE:
        shape = replace(shape, style=detectron2.STYLE)
    _check_shape(name, shape, metadata)
    name = format_name(backbone, shape, arguments)
    if origin is None and pretrained and classes is not None:
        net = _downloaded(
            name, lambda: _build(family, backbone, shape, arguments, len(classes) + 1, pretrained=True)
        )
        _freeze_norms(net, family)
        return _normalised(family.wrap(net, shape, name, tuple(classes)), {}, mean, std)
    whole = any(key.startswith(family.heads) for key in state)
    own_classes = tuple(classes) if classes is not None else _classes_of(name, family, state, metadata)
    net = _build(family, backbone, shape, arguments, len(own_classes) + 1, pretrained=False)
    if whole:
        ordered = state if classes is None else _in_order(name, family, state, metadata, own_classes)
        _load_whole(net, family, ordered, origin, name, starts=classes is not None)
    elif origin is not None:
        _load_backbone(net.backbone, state, Path(origin), name)
    if origin is not None:
        own = is_detector(str(metadata.get("model")))  # one without a statement has the usual epsilon
        _freeze_norms(net, family, eps=published.epsilon(state, metadata, origin, own=own))
    return _normalised(family.wrap(net, shape, name, own_classes), metadata, mean, std)


def _read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights of a file and its metadata; those of other programs in our names."""
    state, metadata = read_weights(path)
    state = _without_prefix(state)
    if detectron2.is_detectron2(state):
        return detectron2.from_detectron2(state)
    state, facts = published.understood(state)
    stated = {"norm_eps": metadata["norm_eps"]} if "norm_eps" in metadata else {}
    return state, metadata if _names_in(metadata) else {**metadata, **facts, **stated}


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """``state`` without what a wrapper puts before all names (model.backbone.body...), and without its counters."""
    named = {key: value for key, value in state.items() if "." in key or value.ndim}
    prefix = next((found[1] for key in named if (found := _WRAPPED.match(key))), None)
    if prefix is None or not all(key.startswith(prefix) for key in named):
        return state
    return {key.removeprefix(prefix): value for key, value in named.items()}


def _downloaded(name: str, get: Callable[[], T]) -> T:
    try:
        return get()
    except OSError as error:  # no network connection, or a full disk
        raise ValueError(
            f"{name}: needs published weights, which could not be downloaded ({error}); pass a file of weights "
            "instead."
        ) from error


def _published_on(name: str, family: Family, backbone: str) -> str:
    builder = published.ON_BACKBONE.get((family.name, backbone))
    if builder is None:
        known = [place for own, place in published.ON_BACKBONE if own == family.name]
        known += [
            f"{published.FAMILY}{key}" for key, one in published.BUILDERS.items() if one.family == family.name
        ]
        raise ValueError(
            f"{name}: needs weights of the whole detector, got pretrained=true, for which torchvision has only "
            f"{', '.join(known)}; pass a file, or train the teacher first (--train-teacher)."
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


def parse_name(name: str, input_size: int | None = None) -> tuple[str, Any, dict[str, Any]]:
    """The backbone, the shape, and the arguments for timm in a name.

    >>> backbone, shape, more = parse_name("fasterrcnn:timm/mobilenetv2_100?size=320&levels=3-5&pad_type=same")
    >>> backbone, shape.size, shape.levels, more
    ('timm/mobilenetv2_100', 320, (3, 5), {'pad_type': 'same'})
    """
    if not _has_family(name):
        raise ValueError(
            f"detector: needs a name such as fasterrcnn:torchvision/resnet18 or fcos:timm/mobilenetv2_100, got "
            f"{name!r}; put fasterrcnn: before a backbone (or {', '.join(f'{other}:' for other in DETECTORS[1:])})."
        )
    family = family_of(name)
    backbone, _, query = name.removeprefix(family.prefix).partition("?")
    given: dict[str, Any] = {}
    known = {field.name for field in fields(family.shape)}
    for item in filter(None, query.split("&")):
        key, equals, text = item.partition("=")
        if not equals:
            raise ValueError(
                f"{name}: needs key=value pairs joined by & after the question mark, got {item!r}; correct it."
            )
        try:
            given[key] = _value(name, key, text) if key in known else parse_yaml(text)
        except yaml.YAMLError as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ValueError(
                f"{name}: needs a YAML value for {key}, got {text!r} ({reason}); correct it."
            ) from None
    shape = {key: value for key, value in given.items() if key in known}
    if input_size is not None:
        shape["size"] = input_size
    arguments = {key: value for key, value in given.items() if key not in known}
    return backbone, replace(_usual(family, backbone), **shape), arguments


def _usual(family: Family, backbone: str) -> Any:
    """The defaults of a backbone: a published detector has its own size."""
    builder = published.builder_of(family.name, backbone)
    return family.shape() if builder is None else family.shape(size=published.BUILDERS[builder].size)


def format_name(backbone: str, shape: Any, arguments: dict[str, Any]) -> str:
    """The inverse of :func:`parse_name`, without defaults."""
    family = FAMILIES[shape.family]
    default = _usual(family, backbone)
    parts = [
        f"{field.name}={_format(getattr(shape, field.name))}"
        for field in fields(shape)
        if getattr(shape, field.name) != getattr(default, field.name)
    ]
    parts += [f"{key}={value}" for key, value in arguments.items()]
    return f"{family.prefix}{backbone}" + (f"?{'&'.join(parts)}" if parts else "")


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


def _build(
    family: Family, backbone: str, shape: Any, arguments: dict[str, Any], outputs: int, *, pretrained: bool
) -> Any:
    builder = published.builder_of(family.name, backbone)
    if builder is None:
        return family.build(backbone, shape, arguments, outputs, pretrained)
    layers = {field.name for field in fields(shape)} - {"size", "max_size", "negatives"}
    default = _usual(family, backbone)
    if arguments or any(getattr(shape, key) != getattr(default, key) for key in layers):
        raise ValueError(
            f"{family.prefix}{backbone}: needs the layers of the published detector, got other levels, widths or arguments; "
            "set only size, max_size and negatives."
        )
    longest = getattr(shape, "max_size", None) or round(shape.size * published.BUILDERS[builder].longest)
    return published.build(builder, outputs, size=shape.size, longest=longest)


def _check_shape(name: str, shape: Any, metadata: dict[str, Any]) -> None:
    """Compare what the weights' shapes do not show: ``ValueError`` for other anchors, a warning for another size."""
    stated = str(metadata.get("model"))
    if not is_detector(stated):
        return
    family = family_of(name)
    if not stated.startswith(family.prefix):
        own = transformer_create.IN_FILE if not _has_family(stated) else family_of(stated).prefix
        raise ValueError(
            f"{name}: needs the file of a detector of the family {family.name}, got one of {stated}; use the name in the "
            f"file, or {own} alone."
        )
    theirs = parse_name(stated)[1]
    for key in family.unseen:
        own, other = _format(getattr(shape, key)), _format(getattr(theirs, key))
        if own != other:
            raise ValueError(
                f"{name}: needs the {key} that the file was trained with ({key}={other}), got {key}={own}; use the name in "
                f"the file, {stated}, or {family.prefix} alone."
            )
    if theirs.size != shape.size:
        warnings.warn(
            f"{name}: resizes images to {shape.size}, the file was trained at {theirs.size}.",
            stacklevel=3,
        )


def _in_order(
    name: str, family: Family, state: dict[str, Tensor], metadata: dict[str, Any], classes: tuple[str, ...]
) -> dict[str, Tensor]:
    """``state`` with the last layer in the order of ``classes``; without that layer if the file has others."""
    last = [key for key in state if re.match(family.class_layers, key)]
    found = family.outputs(state)
    outputs = found or 1
    match = match_classes(_own_names(name, found, metadata) if found else None, outputs - 1, classes)
    if match.columns is None:
        return {key: value for key, value in state.items() if key not in last}
    if match.how == "position":
        warnings.warn(f"{name}: the classes of its file are taken {match.note}.", stacklevel=3)
    rows = torch.tensor([0, *(1 + place for place in match.columns)])  # class 0 is the background
    return {**state, **{key: family.in_order(state[key], outputs, rows) for key in last}}


def _classes_of(
    name: str, family: Family, state: dict[str, Tensor], metadata: dict[str, Any]
) -> tuple[str, ...]:
    outputs = family.outputs(state)
    stated = _own_names(name, outputs, metadata) if outputs else _names_in(metadata)
    if stated:
        return stated
    if not outputs:
        raise ValueError(
            f"{name}: needs a file of a whole detector, got {'a backbone' if state else 'no weights'}; pass the file of a "
            "detector, or train it first (--train-teacher)."
        )
    raise ValueError(
        f"{name}: needs the names of the {outputs - 1} classes in the file, got none; save it with "
        "outgrow.detection.save_detector, or add classes (a JSON list) to its safetensors metadata."
    )


def _own_names(name: str, outputs: int, metadata: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The classes that a file states, in the order of its outputs after the background; None if it states none.

    ``ValueError`` if they are not as many.
    """
    names = _names_in(metadata)
    if names and len(names) == outputs and spelling(names[0]) == BACKGROUND:
        names = names[1:]
    if names and len(names) != outputs - 1:
        raise ValueError(
            f"{name}: needs a name for each of the {outputs - 1} classes of its file, and at most one for the background "
            f"before them, got {len(names)} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''}); correct the list of "
            "classes in the file."
        )
    return names


def _names_in(metadata: Mapping[str, Any]) -> tuple[str, ...] | None:
    """:func:`stated_names`, and those that are numbered from 1, as the background is 0."""
    named = [metadata]
    for key in NAME_KEYS:
        value = metadata.get(key)
        if isinstance(value, Mapping):
            named += [{key: {BACKGROUND: 0, **value}}, {key: {"0": BACKGROUND, **value}}]
    return next(filter(None, map(stated_names, named)), None)


def _load_whole(
    net: nn.Module, family: Family, state: dict[str, Tensor], path: str | None, name: str, *, starts: bool
) -> None:
    """``starts``: a training starts from the weights, so that a last layer of other classes can be left out."""
    own = net.state_dict()
    last = {key for key in own if re.match(family.class_layers, key)}
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
    if differing and not starts:
        outputs = family.outputs(state)
        raise ValueError(
            f"{name}: needs a last layer for the classes that the file states, got {path} with "
            f"{f'one for {outputs - 1} classes' if outputs else 'none'}; pass the whole file that the training wrote."
        )
    if differing:
        warnings.warn(f"{name}: the last layer is not loaded, as {path} has other classes.", stacklevel=4)
    net.load_state_dict({k: v for k, v in state.items() if k in own and k not in differing}, strict=False)


def _load_backbone(backbone: nn.Module, state: dict[str, Tensor], path: Path, name: str) -> None:
    """Load the weights of a classifier into its layers that form the backbone."""
    body = backbone.get_submodule("body")
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


def _freeze_norms(net: nn.Module, family: Family, *, eps: float | None = None) -> None:
    from timm.layers import freeze_batch_norm_2d
    from torchvision.ops import FrozenBatchNorm2d

    present = dict(net.named_modules())
    for path in family.frozen:
        if path not in present:
            continue
        part = freeze_batch_norm_2d(present[path])
        net.set_submodule(path, part)
        if eps is not None:
            for module in part.modules():
                if isinstance(module, FrozenBatchNorm2d):
                    module.eps = eps
