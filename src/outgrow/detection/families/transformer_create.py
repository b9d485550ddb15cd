"""Create detection transformers by name, and save them.

    hf/PATH_OR_ID                 a checkpoint in the layout of the Hugging Face hub: a local folder, or an id of the hub
    rtdetr:?size=320&d_model=64   RT-DETR v2 with random weights; keys are fields of :class:`Shape`
    dfine:?size=320&d_model=64    D-FINE with random weights

``rtdetr:`` and ``dfine:`` alone, with a file of weights, are the detector in the file.
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from outgrow.data.classes import match_classes
from outgrow.detection.families.transformer import Preparation, TransformerDetector, Triple
from outgrow.models.sources import fetching
from outgrow.models.weight_file import check_tensors, first_line
from outgrow.models.weights import states_normalisation, write_weights

HUB = "hf/"
SIZE = (640, 640)
"""Pixels of the input without an image processor's configuration: RT-DETR's and D-FINE's."""
STRIDE = 32
HEADS = 8
"""Attention heads, as in the published detectors."""


@dataclass(frozen=True)
class Architecture:
    """A detection transformer of the library: ``config`` and ``model`` are classes of transformers."""

    prefix: str
    model_type: str
    config: str
    model: str
    since: str
    """The first version of transformers that has it."""


ARCHITECTURES = (
    Architecture("rtdetr:", "rt_detr_v2", "RTDetrV2Config", "RTDetrV2ForObjectDetection", "4.49"),
    Architecture("dfine:", "d_fine", "DFineConfig", "DFineForObjectDetection", "4.53"),
)
IN_FILE = ARCHITECTURES[0].prefix
"""The name that means the detector in a file, of either architecture."""
PREFIXES = (HUB, *(one.prefix for one in ARCHITECTURES))
DEPTHS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
"""Blocks in each stage of the backbone by its number of layers; from 50 on they are bottlenecks."""


@dataclass(frozen=True)
class Shape:
    """The size of a detector with random weights. The defaults are RT-DETR v2-S's."""

    size: int = 640
    """Pixels of a side of the input, a multiple of 32."""
    d_model: int = 256
    """Width of encoder and decoder, a multiple of 8. Their feed-forward layers are four times as wide."""
    queries: int = 300
    layers: int = 3
    """Layers of the decoder."""
    backbone: int = 18
    """Layers of the ResNet: 10, 18, 34, 50 or 101."""
    width: int = 64
    """Channels of the ResNet's first stage; each following one has twice as many."""
    denoising: int = 100
    """Denoising queries in a training step; 0 for none."""


def is_transformer(name: str) -> bool:
    """Whether a detector is one of these, by its name."""
    return name.startswith(PREFIXES)


def create(
    name: str,
    classes: Sequence[str] | None,
    *,
    state: dict[str, Tensor],
    metadata: Mapping[str, Any],
    origin: str | None,
    pretrained: bool,
    input_size: int | None,
    mean: Triple | None,
    std: Triple | None,
) -> TransformerDetector:
    """As :func:`outgrow.detection.create_detector`, with the weights ``state`` of the file ``origin`` and its metadata."""
    alone = name.endswith(":")
    config = metadata.get("config")
    preparation = _stated_preparation(metadata)
    own: tuple[str, ...] | None = None
    if origin is not None and isinstance(config, Mapping) and (alone or name.startswith(HUB)):
        net = _build(name, _config_of(name, config))
        name = str(metadata.get("model", name)) if alone else name
    elif name.startswith(HUB):
        net, found, own = _from_hub(name, load=origin is None, pretrained=pretrained)
        preparation = preparation or found
    else:
        if origin is None and (pretrained or classes is None):
            raise ValueError(
                f"{name}: needs a file of weights, got {'pretrained=true' if classes else 'none'}, and layers of your own choice "
                "have no published ones; pass a file (--weights, --teacher-weights), name a checkpoint hf/ID, or train it first "
                "(--train-teacher)."
            )
        architecture, shape = parse_shape(name)
        shape = shape if input_size is None else replace(shape, size=input_size)
        name = format_shape(architecture, shape)
        outputs = len(classes or ()) if origin is None else len(_stated_classes(metadata, origin, name))
        net = _build(name, _shaped(architecture, shape, outputs))
        preparation = preparation or Preparation((shape.size, shape.size))
    if origin is not None:
        own = _load(net, state, metadata, origin, name)
    if classes is not None and own is not None and tuple(classes) != own:
        net = _with_classes(net, own, tuple(classes), name)
    elif classes is not None and net.config.num_labels != len(classes):
        net = _with_classes(net, (), tuple(classes), name)
    names = tuple(classes) if classes is not None else own
    assert names is not None
    _name_classes(net.config, names)
    return TransformerDetector(
        net.train(),
        name=name,
        classes=names,
        preparation=_given(preparation or Preparation(SIZE), input_size, mean, std, metadata, name),
    )


def save(detector: TransformerDetector, path: str | Path) -> None:
    """Write the weights as safetensors; :func:`metadata_of` has all that rebuilds the detector."""
    write_weights(state_of(detector), Path(path), metadata_of(detector))


def state_of(detector: TransformerDetector) -> dict[str, Tensor]:
    """The state dict, with tensors that have several names under the first of them, as transformers saves them."""
    further = _further_names(detector.net)
    return {key: value for key, value in detector.net.state_dict().items() if key not in further}


def metadata_of(detector: TransformerDetector, name: str | None = None) -> dict[str, str]:
    """Name, classes, input and transformers' configuration, as a safetensors file holds them."""
    return {
        "format": "pt",
        "task": "detection",
        "model": name or detector.name,
        "classes": json.dumps(detector.classes),
        "size": json.dumps(list(detector.preparation.size)),
        "mean": json.dumps(list(detector.preparation.mean)),
        "std": json.dumps(list(detector.preparation.std)),
        "config": json.dumps(_without_paths(detector.net.config.to_dict())),
    }


def _without_paths(config: Mapping[Any, Any]) -> dict[Any, Any]:
    """transformers' configuration, and those in it, without the folder that it came from."""
    return {
        key: _without_paths(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key != "_name_or_path"
    }


def parse_shape(name: str) -> tuple[Architecture, Shape]:
    """The architecture and the shape in a name.

    >>> architecture, shape = parse_shape("dfine:?size=320&d_model=64")
    >>> architecture.model_type, shape.size, shape.d_model, shape.queries
    ('d_fine', 320, 64, 300)
    """
    architecture = next(one for one in ARCHITECTURES if name.startswith(one.prefix))
    rest, _, query = name.removeprefix(architecture.prefix).partition("?")
    known = {field.name for field in fields(Shape)}
    given: dict[str, int] = {}
    for item in filter(None, [rest, *query.split("&")]):
        key, _, text = item.partition("=")
        if key not in known or not text.isdecimal():
            raise ValueError(
                f"{name}: needs {architecture.prefix}? and key=number pairs joined by &, with the keys {', '.join(sorted(known))}, "
                f"got {item!r}; correct it, or name a checkpoint hf/PATH."
            )
        given[key] = int(text)
    shape = Shape(**given)
    needed = {
        "size": (shape.size % STRIDE == 0 and shape.size >= 2 * STRIDE, "a multiple of 32, from 64 on"),
        "d_model": (shape.d_model % HEADS == 0 and shape.d_model > 0, "a multiple of 8"),
        "backbone": (shape.backbone in DEPTHS, f"one of {', '.join(map(str, DEPTHS))}"),
        "width": (shape.width >= 2 and shape.width % 2 == 0, "an even number"),
        "layers": (shape.layers > 1, "two or more"),  # transformers cannot tie the heads of one
        "queries": (shape.queries > 0, "one or more"),
    }
    for key, (fine, text) in needed.items():
        if not fine:
            raise ValueError(f"{name}: needs {text} for {key}, got {getattr(shape, key)}; correct it.")
    return architecture, shape


def format_shape(architecture: Architecture, shape: Shape) -> str:
    """The inverse of :func:`parse_shape`, without defaults."""
    default = Shape()
    parts = [
        f"{field.name}={getattr(shape, field.name)}"
        for field in fields(Shape)
        if getattr(shape, field.name) != getattr(default, field.name)
    ]
    return architecture.prefix + (f"?{'&'.join(parts)}" if parts else "")


def _shaped(architecture: Architecture, shape: Shape, num_classes: int) -> Any:
    """transformers' configuration of a shape."""
    config = _class_of(architecture.prefix, architecture, "config")
    import transformers

    bottleneck = shape.backbone >= 50
    widths = [shape.width * 2**stage * (4 if bottleneck else 1) for stage in range(4)]
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=shape.width,
        hidden_sizes=widths,
        depths=list(DEPTHS[shape.backbone]),
        layer_type="bottleneck" if bottleneck else "basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    return config(
        backbone_config=backbone,
        encoder_in_channels=widths[1:],
        encoder_hidden_dim=shape.d_model,
        encoder_ffn_dim=4 * shape.d_model,
        encoder_attention_heads=HEADS,
        d_model=shape.d_model,
        decoder_in_channels=[shape.d_model] * 3,
        decoder_ffn_dim=4 * shape.d_model,
        decoder_attention_heads=HEADS,
        decoder_layers=shape.layers,
        num_queries=shape.queries,
        num_denoising=shape.denoising,
        hidden_expansion=1.0 if bottleneck else 0.5,  # as in the published detectors
        # frozen batch norms of random weights would normalise nothing
        freeze_backbone_batch_norms=False,
        num_labels=num_classes,
    )


def _class_of(name: str, architecture: Architecture, which: str) -> Any:
    try:
        import transformers

        return getattr(transformers, getattr(architecture, which))
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{name}: needs the package transformers from version {architecture.since} on, got none or an older one; "
            "pip install -U 'outgrow[hf]'."
        ) from error


def _architecture_of(name: str, model_type: object) -> Architecture:
    for one in ARCHITECTURES:
        if one.model_type == model_type:
            return one
    raise ValueError(
        f"{name}: needs a checkpoint of {' or '.join(one.model_type for one in ARCHITECTURES)}, got one of {model_type}; "
        "choose another detector."
    )


def _config_of(name: str, config: Mapping[str, Any]) -> Any:
    architecture = _architecture_of(name, config.get("model_type"))
    return _class_of(name, architecture, "config").from_dict(dict(config))


def _build(name: str, config: Any) -> Any:
    return _class_of(name, _architecture_of(name, config.model_type), "model")(config)


def _from_hub(name: str, *, load: bool, pretrained: bool) -> tuple[Any, Preparation | None, tuple[str, ...]]:
    """The net of a folder or of the hub with its weights, its preparation and classes. No code of either is run."""
    try:
        from transformers import AutoConfig
    except ImportError as error:
        raise ValueError(
            f"{name}: needs the package transformers, got none installed; pip install 'outgrow[hf]'."
        ) from error
    where = name.removeprefix(HUB)
    folder = Path(where)
    try:
        with fetching(name, pretrained, hub=not folder.is_dir()):
            config = AutoConfig.from_pretrained(where, trust_remote_code=False)
    except ValueError as error:
        raise ValueError(
            f"{name}: needs a folder with config.json or the id of a detector on the hub, got neither "
            f"({first_line(error)}); check the path, or the network connection and the id."
        ) from error
    architecture = _architecture_of(name, config.model_type)
    stored = any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin"))
    if load and (pretrained or stored):
        with fetching(name, True, hub=not folder.is_dir()):
            net, facts = _class_of(name, architecture, "model").from_pretrained(
                where, config=config, output_loading_info=True, trust_remote_code=False
            )
        lacking = sorted(map(str, facts["missing_keys"]))
        if lacking:
            raise ValueError(
                f"{name}: needs weights for all of the detector, got none for {', '.join(lacking[:3])}"
                f"{', ...' if len(lacking) > 3 else ''}; choose a checkpoint for object detection."
            )
        check_tensors(net.state_dict(), {}, folder)
    else:
        net = _build(name, config)
        if load:
            warnings.warn(f"{name}: random weights, as there are only settings.", stacklevel=4)
    names = tuple(str(config.id2label[number]) for number in range(config.num_labels))
    return net, _hub_preparation(name), names


def _hub_preparation(name: str) -> Preparation | None:
    """What the image processor's configuration states; None, with a warning, if there is none."""
    where = name.removeprefix(HUB)
    stated: dict[str, Any] | None = None
    if Path(where).is_dir():
        file = Path(where) / "preprocessor_config.json"
        try:
            stated = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
        except (ValueError, OSError) as error:
            raise ValueError(
                f"{name}: needs an image processor's configuration, got {file}, which cannot be read ({first_line(error)}); "
                "restore the file."
            ) from error
    else:
        from transformers import AutoImageProcessor

        try:
            stated = AutoImageProcessor.from_pretrained(where, trust_remote_code=False).to_dict()
        except (OSError, ValueError, ImportError):
            stated = None
    if stated is None:
        warnings.warn(
            f"{name}: has no image processor's configuration, so images are resized to {SIZE[0]} x {SIZE[1]} pixels in [0, 1], "
            "not normalised, as RT-DETR's are; --set teacher.mean, std and input_size change it.",
            stacklevel=5,
        )
        return None
    size = stated.get("size")
    if not isinstance(size, Mapping) or not {"height", "width"} <= size.keys():
        raise ValueError(
            f"{name}: needs a height and a width to resize images to, got size {size!r}; correct size in "
            "preprocessor_config.json."
        )
    height, width = int(size["height"]), int(size["width"])
    if not stated.get("do_normalize", False):
        return Preparation((height, width))
    mean, std = (tuple(float(number) for number in stated[key]) for key in ("image_mean", "image_std"))
    return Preparation((height, width), mean, std)  # type: ignore[arg-type]


def _stated_preparation(metadata: Mapping[str, Any]) -> Preparation | None:
    if not states_normalisation(metadata) or not isinstance(metadata.get("size"), list):
        return None
    size, mean, std = (tuple(metadata[key]) for key in ("size", "mean", "std"))
    return Preparation(size, mean, std)


def _given(
    stated: Preparation,
    input_size: int | None,
    mean: Triple | None,
    std: Triple | None,
    metadata: Mapping[str, Any],
    name: str,
) -> Preparation:
    """``stated`` with what the caller gives; with a warning where a file states something else."""
    size = stated.size if input_size is None else (input_size, input_size)
    if any(side % STRIDE or side < 2 * STRIDE for side in size):
        raise ValueError(
            f"{name}: needs an input whose sides are multiples of {STRIDE}, from {2 * STRIDE} on, got {size[0]} x {size[1]}; "
            "set input_size."
        )
    used = Preparation(size, mean or stated.mean, std or stated.std)
    if "config" in metadata and used != stated:
        warnings.warn(
            f"create_detector {name}: its file states {_described(stated)}, and you gave {_described(used)}, which is used.",
            stacklevel=4,
        )
    return used


def _described(preparation: Preparation) -> str:
    height, width = preparation.size
    return f"{height} x {width} pixels, mean {preparation.mean} and std {preparation.std}"


def _name_classes(config: Any, classes: tuple[str, ...]) -> None:
    config.id2label = dict(enumerate(classes))
    config.label2id = {name: number for number, name in enumerate(classes)}


def _load(
    net: Any, state: Mapping[str, Tensor], metadata: Mapping[str, Any], origin: str, name: str
) -> tuple[str, ...]:
    """Load a file of a whole detector, and return its classes."""
    stated = _stated_classes(metadata, origin, name)
    own = net.state_dict()
    extra = sorted(set(state) - set(own))
    differing = sorted(key for key in set(state) & set(own) if state[key].shape != own[key].shape)
    lacking = sorted(set(own) - set(state) - _further_names(net))
    wrong = [*extra, *differing, *lacking]
    if wrong:
        raise ValueError(
            f"{name}: needs the weights of this detector, got {origin} with {len(wrong)} tensors that do not fit "
            f"({', '.join(wrong[:3])}{', ...' if len(wrong) > 3 else ''}); use the name in the file's metadata "
            f"({metadata.get('model')})."
        )
    net.load_state_dict(dict(state), strict=False)
    return stated


def _stated_classes(metadata: Mapping[str, Any], origin: str, name: str) -> tuple[str, ...]:
    stated = metadata.get("classes")
    if not isinstance(stated, list) or not stated:
        raise ValueError(
            f"{name}: needs a file of a whole detector with its class names, got {origin} without; pass a file that outgrow "
            "wrote, or the folder of the checkpoint as hf/PATH."
        )
    return tuple(map(str, stated))


def _further_names(net: Any) -> set[str]:
    """The names of tensors that come earlier in the state dict under another name."""
    first: dict[int, str] = {}
    state = net.state_dict(keep_vars=True)
    return {key for key, value in state.items() if first.setdefault(id(value), key) != key}


def _with_classes(net: Any, own: tuple[str, ...], classes: tuple[str, ...], name: str) -> Any:
    """The net for other classes: its outputs in their order, or new ones, with a warning, if it lacks one of them."""
    match = match_classes(own or None, net.config.num_labels, classes)
    config = type(net.config).from_dict(net.config.to_dict())
    _name_classes(config, classes)
    made = _build(name, config)
    state, fresh = net.state_dict(), made.state_dict()
    if match.columns is None:
        warnings.warn(
            f"{name}: its outputs for classes are new, as it was trained for others ({match.note}).",
            stacklevel=4,
        )
        kept = {key: value for key, value in state.items() if not _per_class(key)}
        made.load_state_dict({**fresh, **kept})
        return made
    if match.how == "position":
        warnings.warn(f"{name}: its classes are taken {match.note}.", stacklevel=4)
    rows = torch.tensor(match.columns)
    for key in filter(_per_class, list(state)):
        # the embedding of denoising queries has one row more, for no class
        last = torch.tensor([net.config.num_labels] if "denoising" in key else [], dtype=torch.long)
        state[key] = state[key][torch.cat([rows, last])]
    made.load_state_dict(state)
    return made


def _per_class(key: str) -> bool:
    """Whether a tensor has a row per class."""
    return any(part in key for part in ("class_embed.", "enc_score_head."))
