"""Build a network by name: one builder per family. Libraries are imported only when needed.

A builder takes the name without the family, the number of classes (None: the net's default), whether to
download published weights, and the input size in pixels (None: the net's default).
"""

import ast
import importlib.util
import inspect
import json
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, cast
from urllib.parse import urlsplit
from urllib.request import getproxies

from torch import Tensor, nn

from outgrow.machine.files import digest
from outgrow.models.cifar import CIFAR_MODELS
from outgrow.models.network import InputSpec, Network, check_channels
from outgrow.models.structure import heads_of, num_outputs, replace_heads, soften_heads
from outgrow.models.timm_extra import TIMM_EXTRA
from outgrow.models.weight_file import check_tensors, first_line

PATIENCE = 10.0
"""Seconds to wait for a server's response."""
CIFAR_SPEC = InputSpec(None, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
"""The statistics of CIFAR-100's training set, as in the CRD protocol."""
CIFAR_OWN = {
    # the normalisation of its published CIFAR-100 checkpoint
    "densenet_bc_100_12": InputSpec(
        None, (125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255)
    ),
}
IMAGENET_SPEC = InputSpec(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear", 0.875)
"""The default input of torchvision's nets."""
PLAIN_SPEC = InputSpec(None, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
"""Images in [0, 1] without normalisation."""


def build_cifar(rest: str, num_classes: int | None, pretrained: bool, input_size: int | None) -> Network:
    """A CIFAR net by its name in the registry; 100 classes by default."""
    if pretrained:
        raise ValueError(
            f"cifar/{rest}: pretrained=True needs a net with published weights, got one without; pass a file as weights=."
        )
    count = 100 if num_classes is None else num_classes
    net = CIFAR_MODELS[rest](count)
    spec = CIFAR_OWN.get(rest, CIFAR_SPEC)
    return Network(net, name=f"cifar/{rest}", num_classes=count, input_spec=spec, weights=None)


def build_timm(rest: str, num_classes: int | None, pretrained: bool, input_size: int | None) -> Network:
    """A timm net; keyword arguments of its constructor may follow a question mark."""
    import timm

    name, _, query = rest.partition("?")
    arguments = _arguments(rest, query)
    if name in TIMM_EXTRA:
        return _build_timm_extra(name, arguments, num_classes, pretrained)
    if arguments.get("in_chans", 3) != 3:
        raise ValueError(
            f"timm/{rest}: needs in_chans=3, as greyscale images are converted to RGB, got {arguments['in_chans']}; leave it out. "
            "The first convolution of such weights takes RGB if you repeat it for 3 channels and divide it by 3."
        )
    if num_classes is not None:
        arguments["num_classes"] = num_classes
    hub = pretrained or ":" in name  # hf-hub:...
    with fetching(f"timm/{rest}", pretrained, hub=hub):
        configuration = timm.get_pretrained_cfg(name, allow_unregistered=True)
    # transformers and mixers are built for one size; convolutional nets take any
    fixed = bool(getattr(configuration, "fixed_input_size", False))
    if input_size is not None and fixed:
        arguments.setdefault("img_size", input_size)
    with fetching(f"timm/{rest}", pretrained, hub=hub):
        try:
            net = timm.create_model(name, pretrained=pretrained, **arguments)
        except (TypeError, AssertionError) as error:
            raise ValueError(
                f"timm/{name}: needs keyword arguments that its constructor knows, got {arguments} ({error}); "
                "correct the arguments after the question mark."
            ) from error
    if not isinstance(getattr(net, "num_classes", None), int):  # features_only=True
        raise ValueError(
            f"timm/{rest}: needs a classifier, got {type(net).__name__}, which returns no logits; leave out the argument that makes "
            "it so, such as features_only."
        )
    heads_of(net)  # raises for a net whose classifier is not found
    fresh = pretrained and num_classes not in (None, getattr(configuration, "num_classes", None))
    if fresh:
        soften_heads(net)
    data = timm.data.resolve_model_data_config(net)
    # timm's configuration describes the published weights; a given size is the one the net was built for
    size = arguments.get("img_size", data["input_size"][-1])
    spec = InputSpec(
        int(size[-1] if isinstance(size, tuple | list) else size),
        _triple(data["mean"]),
        _triple(data["std"]),
        _interpolation(data["interpolation"]),
        min(1.0, float(data["crop_pct"])),
    )
    count = int(net.num_classes)
    labels = net.pretrained_cfg.get("label_names") or ()
    known = num_classes is None or pretrained
    classes = tuple(str(label) for label in labels) if known and 0 < len(labels) == count else None
    if classes is None and known and count == 1000 and net.default_cfg.get("num_classes") == 1000:
        classes = imagenet_classes()
    network = Network(
        net,
        name=f"timm/{rest}",
        num_classes=count,
        input_spec=spec,
        classes=classes,
        weights="published" if pretrained else None,
    )
    check_channels(network)
    network.fresh_head = fresh
    published = int(configuration.input_size[-1]) if fixed and pretrained else spec.size
    if published != spec.size:
        network.notes.append(
            f"timm/{rest}: timm resampled the position embeddings of the published weights from input size {published} to "
            f"{spec.size}"
        )
    return network


def _build_timm_extra(
    name: str, arguments: dict[str, Any], num_classes: int | None, pretrained: bool
) -> Network:
    if pretrained or arguments:
        got = "pretrained=True" if pretrained else f"the arguments {arguments}"
        raise ValueError(
            f"timm/{name}: needs neither pretrained nor arguments, because outgrow defines this net and timm does not, "
            f"got {got}; pass a file as weights=, or use a net of timm's list."
        )
    build, spec = TIMM_EXTRA[name]
    count = 1000 if num_classes is None else num_classes
    classes = imagenet_classes() if num_classes is None else None
    return Network(
        build(count), name=f"timm/{name}", num_classes=count, input_spec=spec, classes=classes, weights=None
    )


def build_torchvision(
    rest: str, num_classes: int | None, pretrained: bool, input_size: int | None
) -> Network:
    """A classifier of torchvision; its input specification is read from its default weights' transforms."""
    from torchvision import models

    weights = models.get_model_weights(rest).DEFAULT
    arguments: dict[str, Any] = {}
    if rest in ("googlenet", "inception_v3"):
        arguments["init_weights"] = True  # they warn without it
    if rest.startswith("vit_") and input_size is not None and not pretrained:
        arguments["image_size"] = input_size
    if rest == "maxvit_t" and input_size is not None and not pretrained:
        arguments["input_size"] = (input_size, input_size)
    with fetching(f"torchvision/{rest}", pretrained, hub=False):
        net = models.get_model(rest, weights=weights if pretrained else None, **arguments)
    count = 1000 if num_classes is None else num_classes
    if count != 1000:
        replace_heads(net, count)
        if pretrained:
            soften_heads(net)
    spec = IMAGENET_SPEC
    view = weights.transforms()
    if hasattr(view, "crop_size"):
        size, short_side = int(view.crop_size[0]), int(view.resize_size[0])
        spec = InputSpec(
            size,
            _triple(view.mean),
            _triple(view.std),
            _interpolation(view.interpolation.value),
            size / short_side,
        )
    classes = imagenet_classes() if num_classes is None or (pretrained and count == 1000) else None
    network = Network(
        net,
        name=f"torchvision/{rest}",
        num_classes=count,
        input_spec=spec,
        classes=classes,
        weights="published" if pretrained else None,
    )
    network.fresh_head = pretrained and count != 1000
    return network


def build_hf(rest: str, num_classes: int | None, pretrained: bool, input_size: int | None) -> Network:
    """An image classifier of Hugging Face, from a local directory or from the hub.

    If a local directory has weights, they are loaded, also without ``pretrained``. If it has only
    ``config.json``, the weights are random, which adds a note. No code from either source is run.

    Weights of a backbone without a classifier (a ``ViTModel`` or ``Dinov2Model``) give a network with 0 classes, which returns
    features, if no number of classes is asked for.
    """
    try:
        from transformers import AutoConfig, AutoModelForImageClassification
    except ImportError as error:
        raise ValueError(
            f"hf/{rest}: needs the package transformers, got none installed; pip install 'outgrow[hf]'."
        ) from error

    folder = Path(rest)
    stored = any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin"))
    if pretrained and folder.is_dir() and not stored:
        raise ValueError(
            f"hf/{rest}: pretrained=True needs weights in the directory (*.safetensors), got none; "
            "save them there, or use pretrained=False for random weights."
        )
    online = not folder.is_dir()
    with _reachable_hub(online):
        try:
            config = AutoConfig.from_pretrained(rest, trust_remote_code=False)
        except Exception as error:  # not found, offline, gated, custom code: see the library's message
            raise ValueError(
                f"hf/{rest}: needs a directory with config.json or the id of a model on the hub without custom code, got "
                f"neither ({first_line(error)}); check the path, or the network connection and the id."
            ) from error
        same_classes = num_classes is None or num_classes == config.num_labels
        if num_classes is not None and not same_classes:
            config.num_labels = num_classes
        fresh, headless = False, num_classes is None and _is_backbone(config)
        net: nn.Module
        if headless and (pretrained or stored):
            net = _Backbone(_hf_backbone(rest, config))
        elif pretrained or stored:
            net, fresh = _hf_weights(rest, config, same_classes, own_head=num_classes is None)
        else:
            if input_size is not None and hasattr(config, "image_size"):
                config.image_size = input_size
            net = AutoModelForImageClassification.from_config(config, trust_remote_code=False)
        spec, guessed = _hf_spec(rest, config)
    headless = isinstance(net, _Backbone)
    count = 0 if headless else int(config.num_labels)
    names = tuple(str(config.id2label[number]) for number in range(count)) if same_classes else ()
    placeholders = all(name == f"LABEL_{number}" for number, name in enumerate(names))
    network = Network(
        net.train(),  # like the new nets of the other families
        name=f"hf/{rest}",
        num_classes=count,
        input_spec=spec,
        classes=None if placeholders or fresh or headless else names,
        weights="published" if pretrained or stored else None,
    )
    check_channels(network)
    if fresh:
        soften_heads(network)
    network.fresh_head = fresh
    network.guessed = guessed
    if not (pretrained or stored):
        network.notes.append(f"hf/{rest}: random weights")
    return network


class _Backbone(nn.Module):
    """A model without a classifier: one vector of features an image.

    That is the model's own pooled vector, if its weights have one. Otherwise it is the first token, or the mean over places.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        found = self.net(pixel_values=images)
        pooled = getattr(found, "pooler_output", None)
        if pooled is not None:
            return cast(Tensor, pooled.flatten(1))
        last: Tensor = found.last_hidden_state
        return last[:, 0] if last.dim() == 3 else last.mean(dim=(2, 3))


def _is_backbone(config: Any) -> bool:
    """Whether a configuration names only models without a classifier."""
    named = config.architectures or []
    return bool(named) and not any("For" in name for name in named)


def _hf_backbone(rest: str, config: Any) -> nn.Module:
    from transformers import AutoModel

    with fetching(f"hf/{rest}", True, hub=False):
        net, facts = AutoModel.from_pretrained(
            rest, config=config, output_loading_info=True, trust_remote_code=False
        )
    if net.main_input_name != "pixel_values":
        raise ValueError(
            f"hf/{rest}: needs a model that takes images alone, got {type(net).__name__}, which takes {net.main_input_name}; save "
            "its part for images, or use a classifier."
        )
    lacking = sorted(map(str, facts["missing_keys"]))
    if lacking and all(key.startswith("pooler.") for key in lacking):
        net.pooler, lacking = None, []  # weights without it, as those of masked autoencoders
    if lacking:
        raise ValueError(
            f"hf/{rest}: needs weights for all of the backbone, got none for {', '.join(lacking[:5])}"
            f"{', ...' if len(lacking) > 5 else ''}; these are weights of another net: save the whole model again."
        )
    check_tensors(net.state_dict(), {}, Path(rest))
    return net


def _hf_weights(rest: str, config: Any, same_classes: bool, *, own_head: bool) -> tuple[nn.Module, bool]:
    """The net with its published or stored weights, and whether its head is new."""
    from transformers import AutoModelForImageClassification

    with fetching(f"hf/{rest}", True, hub=False):
        net, facts = AutoModelForImageClassification.from_pretrained(
            rest,
            config=config,
            ignore_mismatched_sizes=not same_classes,
            output_loading_info=True,
            trust_remote_code=False,
        )
    heads = [f"{path}." for path, _ in heads_of(net)]
    new = {str(key) for key in facts["missing_keys"]}
    new |= {str(entry[0] if isinstance(entry, tuple) else entry) for entry in facts["mismatched_keys"]}
    lacking = sorted(key for key in new if own_head or not key.startswith(tuple(heads)))
    if lacking:
        raise ValueError(
            f"hf/{rest}: needs weights for all of the classifier, got none for {', '.join(lacking[:5])}"
            f"{', ...' if len(lacking) > 5 else ''}; these are weights without a head or of another net: use a classifier's "
            "weights, or use the net as a student, which gets a new head."
        )
    check_tensors(net.state_dict(), {}, Path(rest))
    return net, bool(new)


def _hf_spec(rest: str, config: Any) -> tuple[InputSpec, bool]:
    """The input from the image processor's configuration, and whether mean and std are a guess.

    Without such a configuration they are 0.5.
    """
    size = getattr(config, "image_size", None)
    size = int(size[0] if isinstance(size, list | tuple) else size) if size else None
    fallback = InputSpec(size, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    folder = Path(rest)
    if folder.is_dir():
        file = folder / "preprocessor_config.json"
        if not file.is_file():
            return fallback, True
        try:
            processor = json.loads(file.read_text(encoding="utf-8"))
            return _spec_of(processor, fallback), False
        except (ValueError, TypeError, AttributeError, OSError) as error:
            raise ValueError(
                f"hf/{rest}: needs an image processor's configuration, got {file}, which cannot be read "
                f"({first_line(error)}); restore the file."
            ) from error
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(rest, trust_remote_code=False).to_dict()
    except (OSError, ValueError, ImportError):
        return fallback, True
    return _spec_of(processor, fallback), False


def _spec_of(processor: Any, fallback: InputSpec) -> InputSpec:
    cropped, whole = (_side(processor.get(key)) for key in ("crop_size", "size"))
    size = cropped if processor.get("do_center_crop") else whole
    mean, std = ((0.0,) * 3, (1.0,) * 3) if processor.get("do_normalize") is False else (None, None)
    return InputSpec(
        size or fallback.size,
        _triple(mean or processor.get("image_mean") or fallback.mean),
        _triple(std or processor.get("image_std") or fallback.std),
        "bilinear" if processor.get("resample") == 2 else "bicubic",  # 2 is PIL.Image.Resampling.BILINEAR
        min(1.0, _crop_of(processor, size, whole)),
    )


def _side(size: Any) -> int | None:
    """Pixels of the height or of the short side in an image processor's configuration."""
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    return int(size) if size else None


def _crop_of(processor: Any, size: int | None, whole: int | None) -> float:
    """The share of the short side that an image processor keeps."""
    stated = processor.get("crop_pct")
    if stated:
        # ConvNeXT's does not crop from 384 pixels on
        whole_image = "ConvNext" in str(processor.get("image_processor_type")) and (size or 0) >= 384
        return 1.0 if whole_image else float(stated)
    resizes = processor.get("do_center_crop") and processor.get("do_resize") is not False
    return size / whole if resizes and size and whole else 1.0


@contextmanager
def fetching(name: str, pretrained: bool, *, hub: bool) -> Iterator[None]:
    """Turn any error while downloading and reading published weights into a ``ValueError`` with advice."""
    before = socket.getdefaulttimeout()
    try:
        with _reachable_hub(hub):
            if pretrained and before is None:
                socket.setdefaulttimeout(PATIENCE)  # torchvision downloads without a timeout
            yield
    except ValueError:
        raise
    except Exception as error:
        needed = "published weights" if pretrained else "a model that can be built"
        raise ValueError(
            f"{name}: needs {needed}, got an error ({type(error).__name__}: {first_line(error)}); go online once, so that "
            "they are cached, or pass a file of weights (--teacher-weights, --student-weights, --weights, or weights= in "
            "Python)."
        ) from error
    finally:
        socket.setdefaulttimeout(before)


@contextmanager
def _reachable_hub(needed: bool) -> Iterator[None]:
    """Use only the hub's cache if the hub cannot be reached; the library would retry for half a minute first."""
    if not needed or getproxies().keys() & {"http", "https", "all"}:
        yield
        return
    from huggingface_hub import constants

    before, address = constants.HF_HUB_OFFLINE, urlsplit(constants.ENDPOINT)
    if not before and address.hostname is not None:
        try:
            port = address.port or (80 if address.scheme == "http" else 443)
            socket.create_connection((address.hostname, port), timeout=PATIENCE).close()
        except OSError:
            constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def build_file(rest: str, num_classes: int | None, pretrained: bool, input_size: int | None) -> Network:
    """A net from the user's ``FILE:CALLABLE``; this runs the file.

    The callable is called with the number of classes, or without arguments if that is None. The number goes to its argument
    ``num_classes``, or to the first one if none has that name. If it returns a module, the input is images in [0, 1] without normalisation. For another input it returns a
    :class:`Network`.
    """
    if pretrained:
        raise ValueError(
            f"py:{rest}: pretrained=True needs published weights, got a Python file; load the weights in it, or pass a "
            "file as weights=."
        )
    file, _, attribute = rest.rpartition(":")
    path = Path(file)
    if not file or not attribute or not path.is_file():
        raise ValueError(
            f"py:{rest}: needs py:FILE:CALLABLE with a file that exists, got file {file!r} and callable "
            f"{attribute!r}; use for example py:nets.py:small_net."
        )
    with _users_code(rest):
        build = getattr(_run(path), attribute, None)
    if not callable(build):
        raise ValueError(
            f"py:{rest}: needs a callable named {attribute!r} in {path}, got none; "
            "define it as a function from the number of classes to an nn.Module."
        )
    with _users_code(rest):
        net = _built(build, num_classes)
    if isinstance(net, Network):
        check_channels(net)
        return net
    if not isinstance(net, nn.Module):
        raise ValueError(
            f"py:{rest}: needs a callable that returns an nn.Module, got {type(net).__name__}; return the net."
        )
    count = num_outputs(heads_of(net)[0][1]) if num_classes is None else num_classes
    network = Network(net, name=f"py:{rest}", num_classes=count, input_spec=PLAIN_SPEC)
    check_channels(network)
    return network


def _built(build: Callable[..., Any], num_classes: int | None) -> Any:
    """What the user's callable returns. ``num_classes`` goes to the argument of this name, else to the first one."""
    if num_classes is None:
        return build()
    try:
        named = inspect.signature(build).parameters.get("num_classes")
    except (TypeError, ValueError):  # of what is written in C there may be none
        named = None
    if named is None or named.kind is inspect.Parameter.POSITIONAL_ONLY:
        return build(num_classes)
    return build(num_classes=num_classes)


@contextmanager
def _users_code(rest: str) -> Iterator[None]:
    """Turn an exception of the user's own file into a ``ValueError`` with its name and line."""
    try:
        yield
    except ValueError:
        raise
    except Exception as error:
        own = [
            step
            for step in traceback.extract_tb(error.__traceback__)
            if step.filename == rest.rpartition(":")[0]
        ]
        where = f" in line {own[-1].lineno}" if own else ""
        raise ValueError(
            f"py:{rest}: needs a file that runs, and a callable that takes the number of classes (no argument for the net's "
            f"own number), got {type(error).__name__}{where}: {error}; correct the file."
        ) from error


def net_identity(name: str) -> str:
    """``name``, with a hash of the file of a net of the user's: the same weights in another net give other outputs."""
    file = name.removeprefix("py:").rpartition(":")[0]
    if not name.startswith("py:") or not Path(file).is_file():
        return name
    return f"{name} {digest([Path(file).read_bytes()]).hex()[:16]}"


def imagenet_classes() -> tuple[str, ...]:
    """The 1,000 WordNet ids of ImageNet-1k in the order of the logits; these are the names of its folders."""
    from timm.data import ImageNetInfo

    return tuple(ImageNetInfo().label_names())


def _run(path: Path) -> ModuleType:
    name = f"outgrow_user_{path.stem}"
    specification = importlib.util.spec_from_file_location(name, path)
    if specification is None or specification.loader is None:
        raise ValueError(f"py:{path}: needs a Python file, got one that cannot be imported; name it *.py.")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # dataclasses and pickle find the module there
    specification.loader.exec_module(module)
    return module


def _arguments(rest: str, query: str) -> dict[str, Any]:
    """``a=1&b=same`` as keyword arguments; values are Python literals, else strings."""
    arguments: dict[str, Any] = {}
    for item in filter(None, query.split("&")):
        key, equals, value = item.partition("=")
        if not equals or not key.isidentifier():
            raise ValueError(
                f"timm/{rest}: needs key=value pairs joined by & after the question mark, got {item!r}; "
                "use for example timm/mobilenetv2_100?pad_type=same."
            )
        try:
            arguments[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            arguments[key] = value
    return arguments


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _interpolation(name: str) -> Literal["bilinear", "bicubic"]:
    return "bilinear" if name == "bilinear" else "bicubic"
