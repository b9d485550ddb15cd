"""Nets by name: ``cifar/resnet32x4``, ``timm/...``, ``torchvision/...``, ``hf/...``, ``py:FILE:CALLABLE``."""

import difflib
from collections.abc import Callable
from pathlib import Path

from outgrow.models.cifar import CIFAR_MODELS
from outgrow.models.network import Network, resized
from outgrow.models.sources import build_cifar, build_file, build_hf, build_timm, build_torchvision
from outgrow.models.timm_extra import TIMM_EXTRA
from outgrow.models.weights import load_weights

FAMILIES: dict[str, Callable[[str, int | None, bool, int | None], Network]] = {
    "cifar": build_cifar,
    "timm": build_timm,
    "torchvision": build_torchvision,
    "hf": build_hf,
    "py": build_file,
}


def create_model(
    name: str,
    num_classes: int | None = None,
    *,
    pretrained: bool = False,
    weights: str | Path | None = None,
    input_size: int | None = None,
) -> Network:
    """A classifier by name, with the normalisation and the input size that it wants.

    - ``cifar/NAME``: the nets of the CRD protocol for 32x32 images (100 classes by default).
    - ``timm/NAME``, with keyword arguments where needed: ``timm/mobilenetv2_100?pad_type=same``.
    - ``torchvision/NAME``: its classifiers.
    - ``hf/NAME``: a local directory or an id on the Hugging Face hub. A directory that holds weights
      gives them, asked or not; one that holds only ``config.json`` gives random ones.
    - ``py:FILE:CALLABLE``: your own file, which is run; the callable takes the number of classes (nothing
      where ``num_classes`` is None) and returns a module that takes images in [0, 1], or a
      :class:`Network`.

    ``num_classes=None`` keeps the net's own number. ``pretrained=True`` fetches the published weights of
    the family; ``weights`` is a file of your own instead (:func:`load_weights`): with ``num_classes=None``
    the net takes over the file's classes, otherwise a head of another size stays new. ``input_size`` is
    the side in pixels to which images are resized, None for the net's own.

    Raises ``ValueError`` for a name that is not known, with the nearest ones that are.

    >>> create_model("cifar/resnet8", 10).num_classes
    10
    """
    if num_classes is not None and num_classes < 1:
        raise ValueError(
            f"create_model {name}: num_classes needs at least 1, got {num_classes}; "
            "leave it out for the net's own number."
        )
    if pretrained and weights is not None:
        raise ValueError(
            f"create_model {name}: needs one source of weights, got pretrained=True and weights={str(weights)!r}; "
            "leave one of them out."
        )
    family, rest = _split(name)
    network = FAMILIES[family](rest, num_classes, pretrained, input_size)
    if weights is not None:
        load_weights(network, weights, role="teacher" if num_classes is None else "student")
    if input_size is not None:
        resized(network, input_size)
    return network


def list_models() -> dict[str, list[str]]:
    """The names that :func:`create_model` knows, by family, as it takes them.

    ``hf`` and ``py`` are open-ended and not listed.
    """
    return {
        "cifar": [f"cifar/{name}" for name in CIFAR_MODELS],
        "timm": [f"timm/{name}" for name in sorted({*_timm_names(), *TIMM_EXTRA})],
        "torchvision": [f"torchvision/{name}" for name in _torchvision_names()],
    }


def _split(name: str) -> tuple[str, str]:
    """Family and rest of a name that is known, or an error that suggests one."""
    if name.startswith("fasterrcnn:"):
        raise ValueError(
            f"create_model: needs a classifier, got the detector {name!r}; detectors go with --data "
            "coco:IMAGES:ANNOTATIONS, and outgrow.detection.create.create_detector."
        )
    family, _, rest = name.partition(":" if name.startswith("py:") else "/")
    if family in ("hf", "py") and rest:
        return family, rest
    known = {"cifar": list(CIFAR_MODELS), "timm": [], "torchvision": []}
    if family == "timm":
        bare = rest.partition("?")[0]
        # timm itself resolves hf-hub:... and local-dir:..., and what follows a dot, a weights' tag.
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
