"""The lines that ``outgrow list`` prints."""

import inspect
import re
from collections.abc import Iterator, Sequence

from outgrow.data.reading import OnFault


def listing(
    what: str, of: str | None = None, *, label: str | None = None, on_fault: OnFault = "refuse"
) -> Iterator[str]:
    """Lines with a name and a short description each.

    ``of`` is a model for ``features``, a source for ``data``, and a part of the names for all others. ``ValueError`` if no name
    has it. ``label`` and ``on_fault`` are as for a run, and only for ``data``.
    """
    if what == "features":
        yield from _features(of)
    elif what == "data":
        yield from _data(of, label, on_fault)
    else:
        entries = [entry for entry in _entries(what) if of is None or of.lower() in _name(what, entry[0])]
        if not entries:
            raise ValueError(
                f"list {what}: needs a part of a name, got {of!r}, which none has; run `outgrow list {what}`."
            )
        yield from _fields(entries) if what == "fields" else _columns(entries)


def _name(what: str, entry: str) -> str:
    """The name alone, without arguments, type and default.

    >>> _name("losses", "standardize(base='kd')"), _name("models", "rtdetr:?size=320")
    ('standardize', 'rtdetr:?size=320')
    """
    name = entry if what == "models" else re.split(r"[(:]", entry)[0]
    return name.lower()


def _columns(entries: Sequence[tuple[str, str]]) -> Iterator[str]:
    width = max((len(name) for name, about in entries if about), default=0) + 2
    for name, about in entries:
        yield f"{name:<{width}}{about}" if about else name


def _entries(what: str) -> Iterator[tuple[str, str]]:
    if what == "presets":
        from outgrow.objective.presets import PRESETS

        yield from ((name, preset.about) for name, preset in PRESETS.items())
    elif what == "recipes":
        from outgrow.run.recipes import RECIPES

        yield from ((name, recipe.about) for name, recipe in RECIPES.items())
    elif what == "losses":
        from outgrow.losses import DETECTOR_LOSSES, LOSSES

        for name, loss in {**LOSSES, **DETECTOR_LOSSES}.items():
            yield _signature(name, loss), _first_line(inspect.getmodule(loss))
    elif what == "rules":
        from outgrow.knowledge import RULES

        for name, rule in RULES.items():
            yield _signature(name, rule), _first_line(inspect.getmodule(rule))
    elif what == "trusts":
        from outgrow.knowledge import TRUSTS

        for name, trust in TRUSTS.items():
            yield _signature(name, trust), _first_line(trust)
    elif what == "schedules":
        from outgrow.objective import schedule

        for name, make in schedule.SCHEDULES.items():
            yield _signature(name, make), _first_line(getattr(schedule, name))
    elif what == "models":
        yield from _models()
    elif what == "fields":
        from outgrow.training.config import Config, describe_fields

        for name, kind, default, about in describe_fields(Config):
            yield f"{name}: {kind} = {default}", about


def _models() -> Iterator[tuple[str, str]]:
    from outgrow.models import list_models
    from outgrow.models.create import DETECTORS

    for names in list_models().values():
        yield from ((name, "") for name in names)
    yield "hf/NAME", "(an image classifier of the Hugging Face hub, or a local directory)"
    for family in DETECTORS:
        yield f"{family}:BACKBONE", "(a detector on torchvision/NAME or timm/NAME, for images with boxes)"
    yield (
        "rtdetr:?size=320",
        "(RT-DETR v2, or dfine: D-FINE, with random weights; hf/NAME has published ones)",
    )
    yield "py:FILE:CALLABLE", "(your own file; CALLABLE(num_classes) returns a module)"


def _signature(name: str, factory: object) -> str:
    assert callable(factory)
    parts = [f"{p.name}={p.default!r}" for p in inspect.signature(factory).parameters.values()]
    return f"{name}({', '.join(parts)})" if parts else name


def _first_line(thing: object) -> str:
    return re.sub(r":\w+:`([^`]*)`", r"\1", (inspect.getdoc(thing) or "").splitlines()[0])


def _features(model: str | None) -> Iterator[str]:
    """The default taps of a model, with the shape of each from one forward pass."""
    import torch

    from outgrow.models import create_model
    from outgrow.models.structure import feature_paths
    from outgrow.models.taps import PENULTIMATE, Taps

    if model is None:
        raise ValueError(
            "list features: needs a model, got none; run for example `outgrow list features cifar/resnet20`."
        )
    from outgrow.detection.families.create import is_detector

    if is_detector(model):
        yield from _levels(model)
        return
    network = create_model(model)
    size = network.input_spec.size or 32
    paths = (*feature_paths(network), PENULTIMATE)
    with torch.no_grad():
        outputs = Taps(network.eval(), paths)(torch.zeros(1, 3, size, size))
    yield f"{model} at {size}x{size}; default taps (any path of named_modules() can be tapped):"
    for name, value in outputs.features.items():
        yield f"  {name:<24}{' x '.join(str(n) for n in value.shape[1:])}"


def _levels(model: str) -> Iterator[str]:
    """The levels of a detector's pyramid."""
    import torch

    from outgrow.detection.families.create import create_detector
    from outgrow.detection.families.transformer import TransformerDetector

    detector = create_detector(model, ("object",)).eval()
    with torch.no_grad():
        if isinstance(detector, TransformerDetector):
            side, maps = detector.preparation.size[0], detector.levels_of([torch.zeros(3, 256, 256)])
        else:
            found = detector.net.backbone(torch.zeros(1, 3, 256, 256))
            side, maps = 256, {detector.levels[key]: value for key, value in found.items()}
    yield f"{detector.name}, for an image of {side}x{side} pixels:"
    for name, value in maps.items():
        yield f"  {name:<24}{' x '.join(str(n) for n in value.shape[1:])}"
    if detector.layout is None:
        yield "  penultimate, box        one of each per proposal"
    elif isinstance(detector, TransformerDetector):
        yield "  penultimate, box        one of each per row: a query and a class"
    else:
        yield "  box                     one per row: an anchor or a point"


def _fields(entries: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Every field of a configuration under its name for ``--set``: type, default and description."""
    for field, about in entries:
        yield field
        yield f"    {about}"


def _data(source: str | None, label: str | None, on_fault: OnFault) -> Iterator[str]:
    """A summary of a source, and the path of a sheet with example images."""
    from outgrow.data.describe import describe_data, write_contact_sheet
    from outgrow.run.tasks import task_name

    if source is None:
        raise ValueError(
            "list data: needs a source, got none; run for example `outgrow list data folder:photos`."
        )
    if task_name(source) == "detection":
        from outgrow.detection.describe import describe_boxes, write_scene_sheet

        if label is not None:
            raise ValueError("list data --label: needs images with one label each, got boxes; leave it out.")
        yield from describe_boxes(source, on_fault=on_fault)
        yield f"examples: {write_scene_sheet(source, 'outgrow-data.png', on_fault=on_fault)}"
        return
    yield from describe_data(source, label=label, on_fault=on_fault)
    yield f"examples: {write_contact_sheet(source, 'outgrow-data.png', label=label, on_fault=on_fault)}"
