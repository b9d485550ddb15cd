"""Create networks by name: ``cifar/resnet32x4``, ``timm/...``, ``torchvision/...``, ``hf/...``, ``py:FILE:CALLABLE``."""

import difflib
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from outgrow.models.cifar import CIFAR_MODELS
from outgrow.models.network import Network, describe_input, normalised, resized
from outgrow.models.sources import build_cifar, build_file, build_hf, build_timm, build_torchvision
from outgrow.models.timm_extra import TIMM_EXTRA
from outgrow.models.weight_file import read_file
from outgrow.models.weights import load_file, order_heads, stated_count, stated_size, states_normalisation

FAMILIES: dict[str, Callable[[str, int | None, bool, int | None], Network]] = {
    "cifar": build_cifar,
    "timm": build_timm,
    "torchvision": build_torchvision,
    "hf": build_hf,
    "py": build_file,
}
DETECTORS = ("fasterrcnn", "retinanet", "fcos", "ssdlite")
DETECTION_TRANSFORMERS = ("rtdetr", "dfine")
"""The families of detectors, whose names are ``FAMILY:BACKBONE``. They are not created here."""


def create_model(
    name: str,
    num_classes: int | None = None,
    *,
    pretrained: bool = False,
    weights: str | Path | None = None,
    input_size: int | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    classes: Sequence[str] | None = None,
    aliases: Mapping[str, str] | None = None,
) -> Network:
    """A classifier by name, with its normalisation and input size.

    - ``cifar/NAME``: the nets of the CRD protocol for 32x32 images (100 classes by default).
    - ``timm/NAME``, optionally with keyword arguments: ``timm/mobilenetv2_100?pad_type=same``. With ``num_classes=0``
      among them, and for backbones that are published without a classifier, ``network.num_classes`` is 0.
    - ``torchvision/NAME``: its classifiers.
    - ``hf/NAME``: an id on the Hugging Face hub, with its published weights; or a local directory, with its
      weights, or with random ones if it has only ``config.json``. ``pretrained`` is not needed. A model that was saved
      without a classifier has ``network.num_classes`` 0.
    - ``py:FILE:CALLABLE``: your own file, which is run. The callable takes the number of classes (no argument
      if ``num_classes`` is None) and returns a module that takes images in [0, 1], or a :class:`Network`.

    ``num_classes=None`` keeps the net's default. ``pretrained=True`` downloads the published weights of the
    family. ``weights`` is a file to load instead (:func:`load_weights`). With ``num_classes=None`` the net takes
    over the file's classes; otherwise a head of another size is replaced by a new one. ``classes`` are the
    class names for the net: the rows of a trained head with class names are reordered to match. ``aliases`` are other
    names that the trained head may have for them: ``{"golden retriever": "dog"}``.

    ``input_size`` is the side in pixels to which images are resized. The default is the size in the file's
    metadata, else the net's default. ``mean`` and ``std`` (for RGB in [0, 1]) are for weights whose
    normalisation is stored nowhere. ``network.notes`` list which input is used, and its source.

    Raises ``ValueError`` for an unknown name, with similar names.

    >>> create_model("cifar/resnet8", 10).num_classes
    10
    """
    if num_classes is None and classes is not None:
        num_classes = len(classes)
    if num_classes is not None and num_classes < 1:
        raise ValueError(
            f"create_model {name}: num_classes needs at least 1, got {num_classes}; "
            "leave it out for the net's default."
        )
    if classes is not None and len(classes) != num_classes:
        raise ValueError(
            f"create_model {name}: needs one name for each of {num_classes} classes, got {len(classes)}; leave one of the "
            "two out."
        )
    if pretrained and weights is not None:
        raise ValueError(
            f"create_model {name}: needs one source of weights, got pretrained=True and weights={str(weights)!r}; "
            "leave one of them out."
        )
    family, rest = _split(name)
    file = None if weights is None else read_file(weights)
    # a directory may be without weights; an id on the hub always means its published weights
    published = pretrained or (family == "hf" and file is None and not Path(rest).is_dir())
    stated = None if file is None else stated_size(file)
    count = num_classes
    own_count = "num_classes=" in rest.partition("?")[2]
    if (
        file is not None
        and count is None
        and family == "timm"
        and not own_count
        and stated_count(file) != 1000
    ):
        count = stated_count(file)  # some of timm's nets have no head without num_classes
    network = FAMILIES[family](rest, count, published, input_size or stated)
    source = "published with the weights" if network.weights == "published" else f"the default of {family}"
    if family == "py":
        source = "from its file"
    if file is not None:
        load_file(
            network,
            file,
            role="teacher" if num_classes is None else "student",
            classes=classes,
            aliases=aliases,
        )
        source = (
            "from the file's metadata"
            if states_normalisation(file.metadata)
            else f"{source}; the file has none"
        )
    elif classes is not None and network.weights is not None and not network.fresh_head:
        order_heads(network, classes, aliases)
    if input_size is not None:
        if stated not in (None, input_size):
            _overridden(network, f"an input size of {stated}", str(input_size))
        resized(network, input_size)
    if mean is not None or std is not None:
        if file is not None and states_normalisation(file.metadata):
            spec = network.input_spec
            _overridden(
                network, f"mean {spec.mean} and std {spec.std}", f"{mean or spec.mean} and {std or spec.std}"
            )
        normalised(network, mean, std)
        source = "given by the caller"
    stated_by_file = file is not None and states_normalisation(file.metadata)
    if network.guessed and network.weights is not None and not stated_by_file and None in (mean, std):
        warnings.warn(
            f"create_model {name}: needs a preprocessor_config.json, got none; mean 0.5 and std 0.5 are a guess: pass "
            "mean and std if they differ.",
            stacklevel=2,
        )
    if classes is not None:
        network.classes = tuple(classes)
    network.notes.append(f"{name}: {describe_input(network.input_spec)} ({source})")
    return network


def _overridden(network: Network, stated: str, given: str) -> None:
    warnings.warn(
        f"create_model {network.name}: its file has {stated}, but the argument {given} is used.",
        stacklevel=3,
    )


def list_models() -> dict[str, list[str]]:
    """The model names for :func:`create_model`, by family. ``hf`` and ``py`` are open-ended and not listed."""
    return {
        "cifar": [f"cifar/{name}" for name in CIFAR_MODELS],
        "timm": [f"timm/{name}" for name in sorted({*_timm_names(), *TIMM_EXTRA})],
        "torchvision": [f"torchvision/{name}" for name in _torchvision_names()],
    }


def _split(name: str) -> tuple[str, str]:
    """Split a known name into family and rest; ``ValueError`` with suggestions for an unknown one."""
    if name.partition(":")[0] in (*DETECTORS, *DETECTION_TRANSFORMERS) and ":" in name:
        raise ValueError(
            f"create_model: needs a classifier, got the detector {name!r}; use detectors with --data "
            "coco:IMAGES:ANNOTATIONS, or outgrow.detection.families.create.create_detector in Python."
        )
    family, _, rest = name.partition(":" if name.startswith("py:") else "/")
    if family in ("hf", "py") and rest:
        return family, rest
    known = {"cifar": list(CIFAR_MODELS), "timm": [], "torchvision": []}
    if family == "timm":
        bare = rest.partition("?")[0]
        # timm itself resolves hf-hub:... and local-dir:..., and the tag of the weights after a dot
        known["timm"] = [bare] if ":" in bare else [*_timm_names(), *TIMM_EXTRA]
        if bare.partition(".")[0] in known["timm"] or ":" in bare:
            return family, rest
    elif family == "torchvision":
        known["torchvision"] = _torchvision_names()
    if rest in known.get(family, ()):
        return family, rest
    raise ValueError(
        f"create_model: needs a known model (cifar/..., timm/..., torchvision/..., hf/..., py:FILE:CALLABLE), got "
        f"{name!r}; {_suggestion(name)}run `outgrow list models` for all names."
    )


def _suggestion(name: str) -> str:
    names = [full for family in list_models().values() for full in family]
    bare = name.rpartition("/")[2].partition("?")[0].lower()
    same = [full for full in names if full.rpartition("/")[2] == bare]
    near = difflib.get_close_matches(name, names, n=3)
    found = [*same, *(full for full in near if full not in same)][:4]
    return f"did you mean {' or '.join(found)}? If not, " if found else ""


def _timm_names() -> list[str]:
    import timm

    return timm.list_models()


def _torchvision_names() -> list[str]:
    from torchvision import models

    return models.list_models(module=models)
