"""The files beside ``model.safetensors`` in the layout of a network's own library, and how to load them."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from outgrow.classification.view import EvalView
from outgrow.models import Network, create_model
from outgrow.models.timm_extra import TIMM_EXTRA
from outgrow.models.weights import network_state
from outgrow.training.deployment import public_name

AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")
"""Auxiliary heads of torchvision's Inception and GoogLeNet, which are used in training only."""


@dataclass(frozen=True)
class Layout:
    """``write`` writes the small files into a folder. ``load`` loads the network as ``loading`` (Markdown) describes; the
    result takes images in [0, 1]. ``state`` is the state dict of the weights file if it differs from that of the network.
    """

    library: str
    write: Callable[[Path], None]
    load: Callable[[Path], Callable[[Tensor], Tensor]]
    loading: str
    elsewhere: bool = True
    """Whether the files load without this library."""
    state: Mapping[str, Tensor] | None = None


def layout_of(network: Network, view: EvalView) -> Layout:
    """The layout for the family in the name of the network."""
    family, _, rest = network.name.partition("/")
    if family == "timm":
        return _timm(network, view, rest)
    if family == "hf":
        return _transformers(network, view)
    if family == "torchvision":
        return _torchvision(network, view, rest)
    return _own(network, view)


def _timm(network: Network, view: EvalView, rest: str) -> Layout:
    name, _, query = rest.partition("?")
    if name in TIMM_EXTRA and name != "mobilenetv2_100_tf2_224":
        return _timm_width(network, view, name)
    from outgrow.models.sources import _arguments

    known: dict[str, Any] = dict(getattr(network.net, "pretrained_cfg", None) or {})
    architecture = str(known.get("architecture") or name.partition(".")[0])
    arguments = _arguments(rest, query)
    if name in TIMM_EXTRA:
        arguments["pad_type"] = "same"
    if known.get("fixed_input_size"):
        arguments.setdefault("img_size", view.size)
    spec = network.input_spec
    kept = ("first_conv", "classifier", "pool_size", "fixed_input_size", "min_input_size")
    content = {
        "architecture": architecture,
        "num_classes": network.num_classes,
        "pretrained_cfg": {
            **{key: known[key] for key in kept if known.get(key) is not None},
            "input_size": [3, view.size, view.size],
            "interpolation": view.interpolation,
            "crop_pct": view.crop_pct,
            "crop_mode": "center",
            "mean": list(spec.mean),
            "std": list(spec.std),
            "num_classes": network.num_classes,
            "label_names": _names(network),
        },
    }
    if arguments:
        content["model_args"] = arguments

    def load(folder: Path) -> Callable[[Tensor], Tensor]:
        import timm

        return _normalising(timm.create_model(f"local-dir:{folder}", pretrained=True), network)

    return Layout(
        library="timm",
        write=partial(_write_json, "config.json", content),
        load=load,
        loading=f"""`model.safetensors` and `config.json` are in timm's layout (`local-dir:` needs timm 1.0.17 or newer):

```python
import timm

model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()  # on the hub: hf-hub:USER/NAME
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
logits = model(transform(picture)[None])  # {_of(network)}
```""",
    )


def _timm_width(network: Network, view: EvalView, name: str) -> Layout:
    """MobileNetV1 at a width that timm can build but has no name for."""
    build: Any = TIMM_EXTRA[name][0]
    spec = network.input_spec
    arguments = f'("mobilenetv1_100", {build.args[0]}, pad_type="same", num_classes={network.num_classes})'

    def load(folder: Path) -> Callable[[Tensor], Tensor]:
        from safetensors.torch import load_file
        from timm.models.efficientnet import _gen_mobilenet_v1

        net = _gen_mobilenet_v1(
            "mobilenetv1_100", build.args[0], pad_type="same", num_classes=network.num_classes
        )
        net.load_state_dict(load_file(folder / "model.safetensors"))
        return _normalising(net, network)

    return Layout(
        library="timm",
        write=partial(_write_json, "config.json", _own_config(network, view)),
        load=load,
        loading=f"""`model.safetensors` has the weights of a network that timm can build but has no name for:

```python
import torch
from safetensors.torch import load_file
from timm.models.efficientnet import _gen_mobilenet_v1

model = _gen_mobilenet_v1{arguments}
model.load_state_dict(load_file("model.safetensors"))
mean, std = (torch.tensor(v).view(3, 1, 1) for v in ({_triple(spec.mean)}, {_triple(spec.std)}))
logits = model.eval()((images - mean) / std)  # {_of(network)}
```""",
    )


def _torchvision(network: Network, view: EvalView, rest: str) -> Layout:
    state = {key: value for key, value in network_state(network).items() if not key.startswith(AUXILIARY)}
    arguments: dict[str, Any] = {"num_classes": network.num_classes}
    if rest in ("googlenet", "inception_v3"):
        arguments |= {"aux_logits": False, "init_weights": False, "transform_input": False}
    if rest.startswith("vit_"):
        arguments["image_size"] = view.size
    spec = network.input_spec

    def load(folder: Path) -> Callable[[Tensor], Tensor]:
        from safetensors.torch import load_file
        from torchvision.models import get_model

        net = get_model(rest, **arguments)
        net.load_state_dict(load_file(folder / "model.safetensors"))
        return _normalising(net, network)

    words = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    return Layout(
        library="torchvision",
        write=partial(_write_json, "config.json", _own_config(network, view)),
        load=load,
        state=state,
        loading=f"""`model.safetensors` has the state dict of torchvision's network:

```python
import torch, torchvision
from safetensors.torch import load_file

model = torchvision.models.get_model("{rest}", {words})
model.load_state_dict(load_file("model.safetensors"))
mean, std = (torch.tensor(v).view(3, 1, 1) for v in ({_triple(spec.mean)}, {_triple(spec.std)}))
logits = model.eval()((images - mean) / std)  # {_of(network)}
```""",
    )


def _transformers(network: Network, view: EvalView) -> Layout:
    names = _names(network)

    def write(folder: Path) -> None:
        config: Any = network.net.config
        config.id2label = dict(enumerate(names))
        config.label2id = {name: number for number, name in enumerate(names)}
        config.architectures = [type(network.net).__name__]
        config.name_or_path = ""  # a folder of this machine
        if hasattr(config, "image_size"):
            config.image_size = view.size
        config.save_pretrained(folder)
        _write_json("preprocessor_config.json", _processor(network, view), folder)

    def load(folder: Path) -> Callable[[Tensor], Tensor]:
        from transformers import AutoModelForImageClassification

        return _normalising(AutoModelForImageClassification.from_pretrained(folder), network)

    return Layout(
        library="transformers",
        write=write,
        load=load,
        loading=f"""`model.safetensors`, `config.json` and `preprocessor_config.json` are in the layout of transformers:

```python
from transformers import AutoImageProcessor, AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained("FOLDER").eval()
processor = AutoImageProcessor.from_pretrained("FOLDER")
logits = model(**processor(picture, return_tensors="pt")).logits  # {_of(network)}
```""",
    )


def _processor(network: Network, view: EvalView) -> dict[str, Any]:
    """The configuration of CLIP's processor, which resizes the short side and crops the centre as outgrow does."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": math.floor(view.size / view.crop_pct)},
        "resample": 2 if view.interpolation == "bilinear" else 3,
        "do_center_crop": True,
        "crop_size": {"height": view.size, "width": view.size},
        "crop_pct": view.crop_pct,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(network.input_spec.mean),
        "image_std": list(network.input_spec.std),
    }


def _own(network: Network, view: EvalView) -> Layout:
    def load(folder: Path) -> Callable[[Tensor], Tensor]:
        read = create_model(
            network.name,
            network.num_classes,
            weights=folder / "model.safetensors",
            input_size=network.input_spec.size,
        ).eval()
        return lambda images: read(images)

    name = public_name(network.name)
    return Layout(
        library="pytorch",
        write=partial(_write_json, "config.json", _own_config(network, view)),
        load=load,
        elsewhere=False,
        loading=f"""`model.safetensors` loads with outgrow:

```python
import outgrow

model = outgrow.create_model("{name}", {network.num_classes}, weights="model.safetensors").eval()
logits = model(images)  # RGB in [0, 1]; {_of(network)}
```""",
    )


def _own_config(network: Network, view: EvalView) -> dict[str, Any]:
    """The layout of outgrow, for networks whose library has no layout."""
    spec = network.input_spec
    return {
        "model": public_name(network.name),
        "num_classes": network.num_classes,
        "classes": _names(network),
        "input": {
            "size": view.size,
            "mean": list(spec.mean),
            "std": list(spec.std),
            "interpolation": view.interpolation,
            "crop_pct": view.crop_pct,
        },
    }


def _normalising(net: nn.Module, network: Network) -> Callable[[Tensor], Tensor]:
    net = net.eval()

    @torch.no_grad()
    def call(images: Tensor) -> Tensor:
        output = net((images - network.mean) / network.std)
        return getattr(output, "logits", output)

    return call


def _write_json(name: str, content: Mapping[str, Any], folder: Path) -> None:
    (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _names(network: Network) -> list[str]:
    return list(network.classes or map(str, range(network.num_classes)))


def _of(network: Network) -> str:
    return f"batch x {network.num_classes}, in the order of the classes above"


def _triple(values: tuple[float, float, float]) -> str:
    return f"({', '.join(repr(value) for value in values)})"
