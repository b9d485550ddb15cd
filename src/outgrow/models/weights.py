"""Load weights from files of any origin, and save a network for deployment.

load_weights   load a file into a network: unwrap state dicts, strip prefixes, translate parameter names
save_student   save a network's weights with its name, classes and input
LoadReport     what was loaded, renamed and missing, and the file's metadata
"""

import json
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from torch.nn.parameter import is_lazy

from outgrow.data.classes import NAME_KEYS, match_classes, renamed, stated_names
from outgrow.models.cifar import CIFAR_MODELS
from outgrow.models.network import InputSpec, Network
from outgrow.models.structure import bare_net, heads_of, place_heads, replace_heads, soften_heads
from outgrow.models.weight_file import (
    BOOKKEEPING,
    WeightFile,
    candidates,
    check_tensors,
    few,
    rank,
    read_file,
    read_weights,
    unnamed_averages,
    write_weights,
)

__all__ = ["LoadReport", "Role", "load_file", "load_weights", "read_weights", "save_student", "write_weights"]

Role = Literal["teacher", "student", "exact"]
Head = Literal["loaded", "rebuilt", "new", "reordered", "partial", "none"]

PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
SHORTCUTS = ("shortcut", "downsample", "convShortcut")
HEADS = ("fc", "linear", "classifier", "head", "last_linear")
FAMILIES = ("cifar/", "timm/", "torchvision/", "hf/", "py:")
UNUSED = ("mask_token",)
"""Parameters of self-supervised training that a backbone has no use for."""
POSITIONS = re.compile(r"pos_embed|position_embedding|pos_embedding|relative_position|rel_pos|attn_mask")


@dataclass(frozen=True)
class LoadReport:
    """The result of loading ``path``. Parameter names are the network's, except in ``renamed``."""

    path: Path
    source: str
    """The key of the state dict in the file: ``""`` at the top, else for example ``model`` or ``ema.shadow``."""
    loaded: tuple[str, ...]
    renamed: Mapping[str, str]
    """The file's names (without prefixes) to the network's, where they differ."""
    missing: tuple[str, ...]
    """Names that the network has and the file has not, or with another shape."""
    head: Head
    """``loaded``; ``rebuilt`` for the file's number of classes (teacher); or, for a student, ``new``, ``reordered``
    to the order of its classes, or ``partial`` (only the rows of shared classes are loaded); ``none`` for a network
    without one."""
    num_classes: int | None
    """The number of classes of the file's head; None if it has no head."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """The file's metadata: ``model``, ``classes``, ``input_spec`` and others, if present."""
    passed_over: tuple[str, ...] = ()
    """Moving averages in the file that were not used, with the reasons."""

    @property
    def head_replaced(self) -> bool:
        return self.head in ("rebuilt", "new")

    def __str__(self) -> str:
        where = f" ({self.source})" if self.source else ""
        lines = [f"{self.path.name}{where}: {len(self.loaded)} tensors loaded"]
        lines += [f"  {reason}" for reason in self.passed_over]
        if self.renamed:
            pairs = [f"{old} -> {new}" for old, new in self.renamed.items()]
            lines.append(f"  renamed {len(pairs)}: {few(pairs)}")
        if self.head != "loaded":
            head = "rebuilt for the file's classes" if self.head == "rebuilt" else self.head
            lines.append(f"  head {head}; the file has {self.num_classes or 'no'} classes")
        if self.missing:
            lines.append(f"  missing {len(self.missing)}: {few(self.missing)}")
        if keys := ", ".join(key for key in self.metadata if key != "format"):
            lines.append(f"  metadata: {keys}")
        return "\n".join(lines)


def load_weights(
    network: Network, path: str | Path, *, role: Role, classes: Sequence[str] | None = None
) -> LoadReport:
    """Load the weights in ``path`` into ``network``.

    ``path`` is a safetensors file or a file of ``torch.save``, which is read without running any code in it.
    Wrappers (``{"model": ...}``), prefixes (``module.``) and other names of shortcuts, stages and heads are
    translated if names and shapes then agree. If several state dicts fit, a moving average has priority.

    ``role`` determines what happens if the head has another number of classes:

    - ``teacher``: the network's head and ``network.num_classes`` are changed to the file's classes. The caller
      must map the classes.
    - ``student``: all but the head is loaded. The head gets new small weights, so that the first loss is near
      that of uniform predictions. This warns. It also applies if the file has no head.
    - ``exact``: raises.

    ``classes`` are a student's classes. If the file has class names, the head's rows are reordered to match. If
    only some names match, only those rows are loaded; if none match, the head is new. Both warn.

    If the file's metadata has the input (``input_spec``, or ``mean`` and ``std``), the network takes it over. It
    takes over class names too, unless the head is new. Warns if the metadata has the name of another net.

    Raises ``ValueError`` for any other mismatch, for a damaged file and for tensors that are not finite. The
    network is then unchanged.
    """
    return load_file(network, read_file(path), role=role, classes=classes)


def load_file(
    network: Network,
    file: WeightFile,
    *,
    role: Role,
    classes: Sequence[str] | None = None,
    aliases: Mapping[str, str] | None = None,
) -> LoadReport:
    """:func:`load_weights` for a file that was read already. ``aliases`` are other names of ``classes`` in it."""
    own = network_state(network)
    if lazy := [key for key, value in own.items() if is_lazy(value)]:
        raise ValueError(
            f"load_weights: needs a net whose parameters have shapes, got {network.name} with lazy modules ({few(lazy)}); pass an "
            "image through it where it is built."
        )
    head_paths = [head for head, _ in heads_of(network)]
    head_keys = {key for head in head_paths for key in (f"{head}.weight", f"{head}.bias") if key in own}
    fit, passed_over = _choose(file, own, head_keys, role, network)
    state = fit.state
    check_tensors(state, own, file.path)
    first = state.get(f"{head_paths[0]}.weight") if head_paths else None
    file_classes = None if first is None else int(first.shape[0])
    if any(f"{path}.weight" not in own for path in head_paths):
        file_classes = network.num_classes  # computed from other tensors, which agree in shape
    input_spec = stated_input(network.input_spec, file.metadata, file.path)
    names = _stated_classes(file, file_classes) if head_paths else None

    assert fit.head is not None
    head: Head = fit.head
    places: tuple[int | None, ...] = ()
    if role == "student" and classes is not None and file_classes is not None:
        match = match_classes(renamed(names, aliases), file_classes, classes)
        places, in_order = match.places, match.columns == tuple(range(file_classes))
        shared = any(place is not None for place in places)
        head = "loaded" if in_order else "new" if not shared else "reordered" if match.columns else "partial"
        if match.how == "position" or (match.columns and not in_order):
            moved = "" if in_order else "; the head's rows are reordered to the data's classes"
            network.notes.append(f"{file.path.name}: classes matched {match.note}{moved}")
    if head != fit.head:
        _check_rows(network)
    if head == "rebuilt":
        assert file_classes is not None
        replace_heads(network, file_classes)
        network.classes = None
    left = set() if head in ("loaded", "rebuilt", "none") else head_keys
    if head == "none" and fit.unexpected:
        network.notes.append(
            f"{file.path.name}: not used, as the network has no classifier: {few(sorted(fit.unexpected))}"
        )
    loaded = {key: value for key, value in state.items() if key in own and key not in left}
    bare_net(network).load_state_dict(loaded, strict=False)
    if left:
        soften_heads(network)
    if head in ("reordered", "partial"):
        place_heads(network, state, places)
        loaded |= {key: state[key] for key in head_keys}
        left = set()
    _warn_of_head(network, file, head, file_classes, names, places, classes)
    _warn_of_name(network, file)
    network.set_input_spec(input_spec)
    network.weights = str(file.path)
    if classes is not None and role == "student":
        network.classes = tuple(classes)
    elif head != "new" and names is not None:
        network.classes = names
    if fit.source or passed_over:
        used = f"{file.path.name}: uses the weights under {fit.source!r}" if fit.source else file.path.name
        network.notes.append("; ".join([used, *passed_over]))
    return LoadReport(
        path=file.path,
        source=fit.source,
        loaded=tuple(loaded),
        renamed={old: new for old, new in fit.renamed.items() if new in loaded},
        missing=tuple(sorted(left)),
        head=head,
        num_classes=file_classes,
        metadata=file.metadata,
        passed_over=passed_over,
    )


def order_heads(network: Network, classes: Sequence[str], aliases: Mapping[str, str] | None = None) -> None:
    """Reorder a trained head's rows to ``classes`` by name, like :func:`load_weights`; the numbers must agree."""
    match = match_classes(renamed(network.classes, aliases), network.num_classes, classes)
    if match.columns is None or match.columns != tuple(range(network.num_classes)):
        _check_rows(network)
        trained = {
            f"{path}.{name}": parameter.detach().clone()
            for path, head in heads_of(network)
            for name, parameter in head.named_parameters(recurse=False)
        }
        soften_heads(network)
        place_heads(network, trained, match.places)
    if match.how in ("partial", "none"):
        warnings.warn(
            f"create_model {network.name}: classes of the trained head: {match.note}; the rows of missing classes are new.",
            stacklevel=3,
        )
    elif match.how != "names" or match.columns != tuple(range(network.num_classes)):
        network.notes.append(f"{network.name}: the head's rows are matched {match.note}")
    network.classes = tuple(classes)


def _check_rows(network: Network) -> None:
    """``ValueError`` if a head's weight is no parameter, so that its rows cannot be moved."""
    for path, head in heads_of(network):
        if "weight" not in dict(head.named_parameters(recurse=False)):
            raise ValueError(
                f"{network.name}: needs a head whose weight is a parameter, as its classes have another order than the data's and "
                f"its rows must be moved, got {path!r}, whose weight is computed (weight_norm, spectral_norm); call "
                "remove_parametrizations (remove_weight_norm) on it before the weights are saved."
            )


def save_student(network: Network, path: str | Path) -> None:
    """Save the weights of ``network.net`` as safetensors, with the network's name, classes and input.

    The student of a run is saved with the preprocessing of its pictures too, for ``outgrow predict``. The file is meant for
    deployment: it has no code, no optimiser state and nothing of the teacher. :func:`load_weights` reads it. ``path`` must
    end in ``.safetensors``. Its folder is created if necessary, and an existing file is replaced atomically.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(
            f"save_student: needs a path that ends in .safetensors, got {str(path)!r}; name it "
            f"{path.with_suffix('.safetensors').name}."
        )
    metadata = {
        "format": "pt",
        "model": network.name,
        "num_classes": str(network.num_classes),
        "input_spec": json.dumps(asdict(network.input_spec)),
    }
    if network.classes is not None:
        metadata["classes"] = json.dumps(network.classes)
    if network.view is not None:
        metadata["view"] = json.dumps(network.view)
    write_weights(network_state(network), path, metadata)


def network_state(network: Network) -> dict[str, Tensor]:
    """The state dict of the net inside all wrappers, without their prefixes."""
    return dict(bare_net(network).state_dict())


def stated_size(file: WeightFile) -> int | None:
    """The input size in a file's metadata, None if it has none."""
    spec = file.metadata.get("input_spec")
    size = spec.get("size") if isinstance(spec, Mapping) else None
    return size if isinstance(size, int) and size > 0 else None


def stated_count(file: WeightFile) -> int | None:
    """The number of classes in a file's metadata, None if it has none."""
    count = file.metadata.get("num_classes")
    return count if isinstance(count, int) and count > 0 else None


@dataclass(frozen=True)
class _Fit:
    """One state dict of a file with a net's parameter names, and the differences between the two."""

    source: str
    state: dict[str, Tensor]
    renamed: dict[str, str]
    differing: set[str]
    missing: set[str]
    unexpected: set[str]
    head: Literal["loaded", "rebuilt", "new", "none"] | None
    """What happens to the head in the given role; None if the state dict does not fit."""

    @property
    def common(self) -> int:
        return len(self.state) - len(self.unexpected) - len(self.differing)


def _choose(
    file: WeightFile, own: Mapping[str, Tensor], head_keys: set[str], role: Role, network: Network
) -> tuple[_Fit, tuple[str, ...]]:
    """The first state dict in the file that fits, and the reasons why moving averages are not used."""
    passed_over = [
        f"the moving average under {place!r} is a list without names and is not used"
        for place in unnamed_averages(file)
    ]
    closest: _Fit | None = None
    others: list[_Fit] = []
    for source, state in candidates(file):
        fits: list[_Fit] = []
        for place, part in _parts(source, state):
            if any(place.startswith(f"{found.source}.") for found in fits):
                continue  # a part of one that fits: its prefix was stripped there
            fit = _fit(place, part, own, head_keys, role)
            if fit.head is None:
                closest = fit if closest is None or fit.common > closest.common else closest
                continue
            if rank(_split(place)) < 2:
                return fit, tuple(passed_over)
            fits.append(fit)
        others += fits
        if not fits and rank(_split(source)) == 0:
            passed_over.append(f"the moving average under {source!r} does not fit and is not used")
    if len(others) == 1:
        return others[0], tuple(passed_over)
    if others:
        raise ValueError(
            f"load_weights: needs one state dict that fits {network.name}, got {len(others)} in {file.path} (under "
            f"{few([fit.source for fit in others])}); save the right one to a separate file."
        )
    assert closest is not None
    raise ValueError(_mismatch(network, file.path, role, own, closest))


def _split(source: str) -> tuple[str, ...]:
    return tuple(filter(None, source.split(".")))


def _parts(source: str, state: dict[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """A state dict itself, then its parts below each prefix that several or all keys share, moving averages first."""
    yield source, state
    counts: Counter[str] = Counter()
    for key in state:
        pieces = key.split(".")
        counts.update(".".join(pieces[:depth]) + "." for depth in range(1, min(len(pieces), 4)))
    inner = [prefix for prefix, count in counts.items() if count > 1]
    for prefix in sorted(inner, key=lambda prefix: rank(_split(prefix))):
        below = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        yield f"{source}.{prefix}".strip("."), below


def _fit(
    source: str, state: dict[str, Tensor], own: Mapping[str, Tensor], head_keys: set[str], role: Role
) -> _Fit:
    # drop counters and options of averages (n_averaged, decay, num_updates): scalars at the top level
    state = {key: value for key, value in state.items() if key in own or "." in key or value.numel() > 1}
    state, renamed = _match(state, own)
    differing = {key for key in own.keys() & state.keys() if own[key].shape != state[key].shape}
    missing = {key for key in own.keys() - state.keys() if not key.endswith(BOOKKEEPING)}
    unexpected = {key for key in state.keys() - own.keys() if not key.endswith(BOOKKEEPING)}
    resized = bool(differing) and differing <= head_keys and not missing
    resized = resized and all(own[key].shape[1:] == state[key].shape[1:] for key in differing)
    headless = bool(missing) and missing == head_keys and not differing
    unused = {key for key in unexpected if _canonical(key).startswith("head.") or key in UNUSED}
    head: Literal["loaded", "rebuilt", "new", "none"] | None = None
    if not head_keys and not (differing or missing) and unexpected == unused:
        head = "none"
    elif not (differing or missing or unexpected):
        head = "loaded"
    elif resized and not unexpected and role != "exact":
        head = "rebuilt" if role == "teacher" else "new"
    elif headless and not unexpected and role == "student":
        head = "new"
    return _Fit(source, state, renamed, differing, missing, unexpected, head)


def _warn_of_head(
    network: Network,
    file: WeightFile,
    head: Head,
    file_classes: int | None,
    names: tuple[str, ...] | None,
    places: Sequence[int | None],
    classes: Sequence[str] | None,
) -> None:
    if head == "new":
        theirs = str(file_classes or "none")
        if names is not None and classes is not None:
            theirs += f" others ({few(names)})"
        warnings.warn(
            f"load_weights: the head of {network.name} has {network.num_classes} classes, that of {file.path.name} "
            f"{theirs}; the head is new, everything else is loaded.",
            stacklevel=4,
        )
    elif head == "partial" and classes is not None:
        lacking = [name for name, place in zip(classes, places, strict=True) if place is None]
        warnings.warn(
            f"load_weights: {file.path.name} has {len(places) - len(lacking)} of {len(places)} classes of {network.name}; "
            f"those rows of the head are loaded, those of {few(lacking)} are new.",
            stacklevel=4,
        )


def _warn_of_name(network: Network, file: WeightFile) -> None:
    """Warn if the metadata has another net's name: the tensors fit, but the nets may compute different things."""
    stated = file.metadata.get("model")
    if not isinstance(stated, str):
        stated = next(
            (file.metadata[key] for key in ("arch", "architecture", "model_name") if key in file.metadata),
            None,
        )
    if not isinstance(stated, str) or same_net(stated, network.name):
        return
    warnings.warn(
        f"load_weights: {file.path.name} is of {stated} and is loaded as {network.name}: its tensors fit, but the two may "
        "compute different things (padding, activation, epsilon); use the name of the file's net.",
        stacklevel=4,
    )


def same_net(stated: str, name: str) -> bool:
    """Whether a file with the model name ``stated`` may be of the net ``name``.

    A name without a family is compared if it is a model of the same family. Other names are unknown, so they
    may be the same net.

    >>> same_net("timm/resnet50.a1_in1k", "timm/resnet50"), same_net("tf_efficientnet_b0", "timm/efficientnet_b0")
    (True, False)
    """
    if not name.startswith(FAMILIES):
        return True  # the caller's own module
    if stated.startswith(FAMILIES):
        return _plain_name(stated) == _plain_name(name)
    family, _, rest = name.partition("/")
    base = stated.partition(".")[0] if family == "timm" else stated
    return base == rest.partition("?")[0].partition(".")[0] or not _is_name(family, base)


def _plain_name(name: str) -> tuple[str, ...]:
    """A net's name without parts that do not change the net: the weights' tag, a file's folder, input size, classes."""
    if name.startswith("py:"):
        return ("py", Path(name[3:]).name)
    family, _, rest = name.partition("/")
    if family == "hf":
        return (family, Path(rest).name)
    base, _, query = rest.partition("?")
    base = base.partition(".")[0] if family == "timm" else base
    return (
        family,
        base,
        *sorted(i for i in query.split("&") if i and not i.startswith(("img_size=", "num_classes="))),
    )


def _is_name(family: str, rest: str) -> bool:
    if family == "timm":
        import timm

        return bool(timm.is_model(rest))
    if family == "torchvision":
        from torchvision import models

        return rest in models.list_models(module=models)
    return family == "cifar" and rest in CIFAR_MODELS


def _match(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """``state`` with the names of ``own``, and what was renamed.

    Prefixes are stripped as long as all keys share one. Of all intermediate state dicts the one that fits best is
    used, because a net may have a submodule named ``model``.
    """
    state = {key.replace("._orig_mod.", "."): value for key, value in state.items()}
    stripped = [state]
    while prefix := next((p for p in PREFIXES if state and all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
        stripped.append(state)
    translated = [(candidate, _translation(candidate, own)) for candidate in stripped]
    best, names = max(translated, key=lambda pair: len(own.keys() & (pair[0].keys() | set(pair[1].values()))))
    return {names.get(key, key): value for key, value in best.items()}, names


def _translation(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, str]:
    """A mapping from the file's names to the network's, where only the naming convention differs.

    A name is translated if exactly one key on each side has the same canonical name, and their shapes agree. For
    a head only the input width must agree, because the number of classes may differ.
    """
    theirs, ours = state.keys() - own.keys(), own.keys() - state.keys()
    counts = Counter(map(_canonical, theirs)), Counter(map(_canonical, ours))
    by_spelling = {_canonical(key): key for key in ours}
    names = {}
    for key in state:
        spelling = _canonical(key)
        if key not in theirs or counts[0][spelling] != 1 or counts[1][spelling] != 1:
            continue
        there, here = state[key].shape, own[by_spelling[spelling]].shape
        if there == here or (spelling.startswith("head.") and there[1:] == here[1:]):
            names[key] = by_spelling[spelling]
    return names


def _canonical(key: str) -> str:
    """A parameter name with common names of shortcuts, stages and heads unified.

    >>> _canonical("block1.layer.0.convShortcut.weight"), _canonical("layer1.0.shortcut.0.weight")
    ('stage1.0.shortcut.weight', 'stage1.0.shortcut.weight')
    >>> _canonical("classifier.0.bias"), _canonical("fc.bias")
    ('head.bias', 'head.bias')
    """
    parts: list[str] = []
    for number, part in enumerate(key.split(".")):
        before = parts[-1] if parts else ""
        if number == 0 and part in HEADS:
            parts.append("head")
        elif parts == ["head"] and (part.isdigit() or part in HEADS):
            continue  # classifier.0, head.fc
        elif stage := re.fullmatch(r"(?:block|layer|stage)_?(\d+)", part):
            parts.append(f"stage{stage[1]}")
        elif part == "layer" and before.startswith("stage"):
            continue  # block1.layer.0
        elif part in SHORTCUTS:
            parts.append("shortcut")
        elif part == "0" and before == "shortcut":
            continue  # the convolution; a batch norm may follow as number 1
        else:
            parts.append(part)
    return ".".join(parts)


def stated_input(default: InputSpec, metadata: Mapping[str, Any], where: str | Path) -> InputSpec:
    """``default`` updated by a file's metadata: ``input_spec``, or ``mean`` and ``std``. ``where`` is for messages."""
    spec = metadata.get("input_spec")
    if not isinstance(spec, Mapping):
        spec = {key: metadata.get(key) for key in ("mean", "std")}
    changes: dict[str, Any] = {
        key: spec[key]
        for key in ("size", "interpolation", "crop_pct")
        if key in spec  # a size of None means any size
    }
    try:
        for key in ("mean", "std"):
            if isinstance(spec.get(key), list | tuple):
                changes[key] = tuple(float(number) for number in spec[key])
        return replace(default, **changes)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"load_weights: needs a valid input specification, got {dict(spec)} in {where} "
            f"({str(error).splitlines()[0]}); correct the file's metadata."
        ) from error


def states_normalisation(metadata: Mapping[str, Any]) -> bool:
    """Whether a file's metadata has the mean and standard deviation of the normalisation."""
    spec = metadata.get("input_spec")
    spec = spec if isinstance(spec, Mapping) else metadata
    return isinstance(spec.get("mean"), list | tuple) and isinstance(spec.get("std"), list | tuple)


def _stated_classes(file: WeightFile, file_classes: int | None) -> tuple[str, ...] | None:
    names = stated_names(file.metadata)
    unread = [key for key in NAME_KEYS if isinstance(file.metadata.get(key), str | list | tuple | Mapping)]
    if names is None and unread:
        warnings.warn(
            f"load_weights: {file.path.name} has class names under {few(unread)} that are not a list of names or numbers from "
            "0, and are ignored: the order of its classes is unknown.",
            stacklevel=4,
        )
    if names is not None and file_classes is not None and len(names) != file_classes:
        warnings.warn(
            f"load_weights: {file.path.name} has {len(names)} class names for a head of {file_classes} classes; the names "
            "are ignored.",
            stacklevel=4,
        )
        return None
    return names


def _mismatch(network: Network, path: Path, role: str, own: Mapping[str, Tensor], fit: _Fit) -> str:
    state = fit.state
    shapes = [f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}" for key in sorted(fit.differing)]
    wrong = [
        f"{len(keys)} {kind} ({few(keys)})"
        for kind, keys in (
            ("missing in the file", sorted(fit.missing)),
            ("unexpected in the file", sorted(fit.unexpected)),
            ("of another shape", shapes),
        )
        if keys
    ]
    advice = "check that the file belongs to this architecture, its width and its number of classes."
    if any(POSITIONS.search(key) for key in fit.differing) and not (fit.missing or fit.unexpected):
        advice = (
            "its position embeddings are for another input size and are not interpolated: build the net for that size "
            "(input_size, such as --set student.input_size=64; files of save_student include it)."
        )
    return f"load_weights: needs the weights of {network.name} (role {role}), got {path} with {', '.join(wrong)}; {advice}"
