"""Weights from files, whoever wrote them, and the file that is deployed.

load_weights   a file's weights into a network: unwrapped, prefixes stripped, other spellings translated
save_student   the file that is deployed: a net's weights with all that is needed to use them
LoadReport     what was loaded, renamed, missing, and what the file says of itself
"""

import json
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from outgrow.data.classes import match_classes, stated_names
from outgrow.models.cifar import CIFAR_MODELS
from outgrow.models.network import InputSpec, Network
from outgrow.models.structure import bare_net, heads_of, place_heads, replace_heads, soften_heads
from outgrow.models.weight_file import (
    BOOKKEEPING,
    WeightFile,
    candidates,
    check_tensors,
    rank,
    read_file,
    read_weights,
    unnamed_averages,
    write_weights,
)

__all__ = ["LoadReport", "Role", "load_file", "load_weights", "read_weights", "save_student", "write_weights"]

Role = Literal["teacher", "student", "exact"]
Head = Literal["loaded", "rebuilt", "new", "reordered", "partial"]

PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
SHORTCUTS = ("shortcut", "downsample", "convShortcut")
HEADS = ("fc", "linear", "classifier", "head", "last_linear")
FAMILIES = ("cifar/", "timm/", "torchvision/", "hf/", "py:")
POSITIONS = re.compile(r"pos_embed|position_embedding|pos_embedding|relative_position|rel_pos|attn_mask")


@dataclass(frozen=True)
class LoadReport:
    """What became of the weights in ``path``. Names are the network's unless said otherwise."""

    path: Path
    source: str
    """Where in the file the weights stood: ``""`` at the top, else such as ``model`` or ``ema.shadow``."""
    loaded: tuple[str, ...]
    renamed: Mapping[str, str]
    """The file's name, after prefixes, to the network's, where they differ."""
    missing: tuple[str, ...]
    """What the network has and the file has not, or not in this shape."""
    head: Head
    """``rebuilt`` to the file's number of classes (teacher); of a student left ``new``, ``reordered`` into the
    order of its classes, or ``partial``: the rows of the classes that both have."""
    num_classes: int | None
    """How many classes the file's head has; None where it has no head."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What the file says of itself: ``model``, ``classes``, ``input_spec``, whatever is there."""
    passed_over: tuple[str, ...] = ()
    """Moving averages in the file that were not taken, and why."""

    @property
    def head_replaced(self) -> bool:
        return self.head in ("rebuilt", "new")

    def __str__(self) -> str:
        where = f" ({self.source})" if self.source else ""
        lines = [f"{self.path.name}{where}: {len(self.loaded)} tensors loaded"]
        lines += [f"  {reason}" for reason in self.passed_over]
        if self.renamed:
            pairs = [f"{old} -> {new}" for old, new in self.renamed.items()]
            lines.append(f"  renamed {len(pairs)}: {_few(pairs)}")
        if self.head != "loaded":
            fate = "rebuilt for the file's classes" if self.head == "rebuilt" else self.head
            lines.append(f"  head {fate}; the file has {self.num_classes or 'no'} classes")
        if self.missing:
            lines.append(f"  missing {len(self.missing)}: {_few(self.missing)}")
        if facts := ", ".join(key for key in self.metadata if key != "format"):
            lines.append(f"  the file also says: {facts}")
        return "\n".join(lines)


def load_weights(
    network: Network, path: str | Path, *, role: Role, classes: Sequence[str] | None = None
) -> LoadReport:
    """Loads the weights in ``path`` into ``network``; what else to make of them depends on ``role``.

    ``path`` is a safetensors file or a file of ``torch.save``, which is read without running any code in
    it. Wrappers (``{"model": ...}``), prefixes (``module.``) and other spellings of shortcuts, stages and
    heads are understood where names and shapes then agree; of several state dicts that fit, a moving average
    goes first. A head of another size:

    - ``teacher``: the network's head is rebuilt for the file's classes, and ``network.num_classes`` with
      it; mapping the classes is the caller's business.
    - ``student``: all but the head is loaded, the head is drawn anew and small (so that training starts at
      the loss of a guess), with a warning; also where the file has no head.
    - ``exact``: an error.

    ``classes`` are those that a student is for. Where the file names its own, the head's rows are put into
    their order; with some names in common those rows are kept, with none the head is new, both with a warning.

    Where the file says what its net wants to see (``input_spec``, or ``mean`` and ``std``) and the names
    of its classes, the network takes them over, the names only with the head. Warns where the file is of a
    net with another name.

    Raises ``ValueError`` for anything else that does not match, for a damaged file, and for tensors that are
    not finite, and leaves the network as it was.
    """
    return load_file(network, read_file(path), role=role, classes=classes)


def load_file(
    network: Network, file: WeightFile, *, role: Role, classes: Sequence[str] | None = None
) -> LoadReport:
    """:func:`load_weights` of a file that is read already."""
    own = network_state(network)
    head_paths = [head for head, _ in heads_of(network)]
    head_keys = {key for head in head_paths for key in (f"{head}.weight", f"{head}.bias") if key in own}
    fit, passed_over = _choose(file, own, head_keys, role, network)
    state = fit.state
    check_tensors(state, own, file.path)
    first = state.get(f"{head_paths[0]}.weight")
    file_classes = None if first is None else int(first.shape[0])
    input_spec = _stated_input(network.input_spec, file)
    names = _stated_classes(file, file_classes)

    assert fit.head is not None
    head: Head = fit.head
    places: tuple[int | None, ...] = ()
    if role == "student" and classes is not None and file_classes is not None:
        match = match_classes(names, file_classes, classes)
        places, in_order = match.places, match.columns == tuple(range(file_classes))
        shared = any(place is not None for place in places)
        head = "loaded" if in_order else "new" if not shared else "reordered" if match.columns else "partial"
        if match.how == "position" or (match.columns and not in_order):
            moved = "" if in_order else ", the head's rows put into the data's order"
            network.notes.append(f"{file.path.name}: its classes are taken {match.note}{moved}")
    if head == "rebuilt":
        assert file_classes is not None
        replace_heads(network, file_classes)
        network.classes = None
    left = set() if head in ("loaded", "rebuilt") else head_keys
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
        taken = f"{file.path.name}: the weights under {fit.source!r}" if fit.source else file.path.name
        network.notes.append("; ".join([taken, *passed_over]))
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


def order_heads(network: Network, classes: Sequence[str]) -> None:
    """Puts a trained head that knows its classes into the order of as many ``classes``, as :func:`load_weights` does."""
    match = match_classes(network.classes, network.num_classes, classes)
    if match.columns is None or match.columns != tuple(range(network.num_classes)):
        trained = {
            f"{path}.{name}": parameter.detach().clone()
            for path, head in heads_of(network)
            for name, parameter in head.named_parameters(recurse=False)
        }
        soften_heads(network)
        place_heads(network, trained, match.places)
    if match.how in ("partial", "none"):
        warnings.warn(
            f"create_model {network.name}: of its trained head {match.note}; the rows of missing classes are new.",
            stacklevel=3,
        )
    elif match.how != "names" or match.columns != tuple(range(network.num_classes)):
        network.notes.append(f"{network.name}: the rows of its head are taken {match.note}")
    network.classes = tuple(classes)


def save_student(network: Network, path: str | Path) -> None:
    """Writes ``network.net``'s weights as safetensors, with the name, the classes and the input.

    This is the file that is deployed: it holds no code, no optimiser and nothing of a teacher, and
    :func:`load_weights` reads it back. ``path`` must end in ``.safetensors``; its folder is made where
    it is lacking, and a file that is there already is replaced in one step.
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
    write_weights(network_state(network), path, metadata)


def network_state(network: Network) -> dict[str, Tensor]:
    """The state of the bare net, without the prefixes of what is wrapped around it."""
    return dict(bare_net(network).state_dict())


def stated_size(file: WeightFile) -> int | None:
    """The side of the input that a file states; None where it states none."""
    spec = file.metadata.get("input_spec")
    size = spec.get("size") if isinstance(spec, Mapping) else None
    return size if isinstance(size, int) and size > 0 else None


def stated_count(file: WeightFile) -> int | None:
    """The number of classes that a file states; None where it states none."""
    count = file.metadata.get("num_classes")
    return count if isinstance(count, int) and count > 0 else None


@dataclass(frozen=True)
class _Fit:
    """One state dict of a file in the names of a net, and where the two differ."""

    source: str
    state: dict[str, Tensor]
    renamed: dict[str, str]
    differing: set[str]
    missing: set[str]
    unexpected: set[str]
    head: Literal["loaded", "rebuilt", "new"] | None
    """What becomes of the head in the role asked for; None where the two do not fit."""

    @property
    def common(self) -> int:
        return len(self.state) - len(self.unexpected) - len(self.differing)


def _choose(
    file: WeightFile, own: Mapping[str, Tensor], head_keys: set[str], role: Role, network: Network
) -> tuple[_Fit, tuple[str, ...]]:
    """The first state dict in the file that fits, and which moving averages before it do not."""
    passed_over = [
        f"the moving average under {place!r} is a list without names, and not taken"
        for place in unnamed_averages(file)
    ]
    closest: _Fit | None = None
    others: list[_Fit] = []
    for source, state in candidates(file):
        fits = []
        for place, part in _parts(source, state):
            fit = _fit(place, part, own, head_keys, role)
            if fit.head is None:
                closest = fit if closest is None or fit.common > closest.common else closest
                continue
            if rank(_split(place)) < 2:
                return fit, tuple(passed_over)
            fits.append(fit)
        others += fits
        if not fits and rank(_split(source)) == 0:
            passed_over.append(f"the moving average under {source!r} does not fit, and is not taken")
    if len(others) == 1:
        return others[0], tuple(passed_over)
    if others:
        raise ValueError(
            f"load_weights: needs one state dict that fits {network.name}, got {len(others)} in {file.path} (under "
            f"{_few([fit.source for fit in others])}); save the one that is meant to a file of its own."
        )
    assert closest is not None
    raise ValueError(_mismatch(network, file.path, role, own, closest))


def _split(source: str) -> tuple[str, ...]:
    return tuple(filter(None, source.split(".")))


def _parts(source: str, state: dict[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """A state dict as it is, and the parts of it below a common prefix, moving averages first."""
    yield source, state
    counts: Counter[str] = Counter()
    for key in state:
        pieces = key.split(".")
        counts.update(".".join(pieces[:depth]) + "." for depth in range(1, min(len(pieces), 4)))
    inner = [prefix for prefix, count in counts.items() if 1 < count < len(state)]
    for prefix in sorted(inner, key=lambda prefix: rank(_split(prefix))):
        below = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        yield f"{source}.{prefix}".strip("."), below


def _fit(
    source: str, state: dict[str, Tensor], own: Mapping[str, Tensor], head_keys: set[str], role: Role
) -> _Fit:
    # what averages and counters keep beside the weights: n_averaged, decay, num_updates
    state = {key: value for key, value in state.items() if key in own or "." in key or value.numel() > 1}
    state, renamed = _match(state, own)
    differing = {key for key in own.keys() & state.keys() if own[key].shape != state[key].shape}
    missing = {key for key in own.keys() - state.keys() if not key.endswith(BOOKKEEPING)}
    unexpected = {key for key in state.keys() - own.keys() if not key.endswith(BOOKKEEPING)}
    resized = bool(differing) and differing <= head_keys and not missing
    resized = resized and all(own[key].shape[1:] == state[key].shape[1:] for key in differing)
    headless = bool(missing) and missing == head_keys and not differing
    head: Literal["loaded", "rebuilt", "new"] | None = None
    if not (differing or missing or unexpected):
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
            theirs += f" others ({_few(names)})"
        warnings.warn(
            f"load_weights: the head of {network.name} has {network.num_classes} classes, that of {file.path.name} "
            f"{theirs}; the head stays new, everything else is loaded.",
            stacklevel=4,
        )
    elif head == "partial" and classes is not None:
        lacking = [name for name, place in zip(classes, places, strict=True) if place is None]
        warnings.warn(
            f"load_weights: {file.path.name} has {len(places) - len(lacking)} of {len(places)} classes of {network.name}; "
            f"those rows of the head are loaded, those of {_few(lacking)} are new.",
            stacklevel=4,
        )


def _warn_of_name(network: Network, file: WeightFile) -> None:
    """The tensors fit, but a net of another name may compute something else with them."""
    stated = file.metadata.get("model")
    if not isinstance(stated, str):
        stated = next(
            (file.metadata[key] for key in ("arch", "architecture", "model_name") if key in file.metadata),
            None,
        )
    if not isinstance(stated, str) or same_net(stated, network.name):
        return
    warnings.warn(
        f"load_weights: {file.path.name} is of {stated}, and is read as {network.name}: its tensors fit, but the two may "
        "compute different things (padding, activation, epsilon); give the model's own name.",
        stacklevel=4,
    )


def same_net(stated: str, name: str) -> bool:
    """Whether a file that says ``stated`` may be of the net ``name``.

    Without its family a name counts where it is one of the same family: others may be anybody's own.

    >>> same_net("timm/resnet50.a1_in1k", "timm/resnet50"), same_net("tf_efficientnet_b0", "timm/efficientnet_b0")
    (True, False)
    """
    if not name.startswith(FAMILIES):
        return True  # a module of the caller's own
    if stated.startswith(FAMILIES):
        return _plain_name(stated) == _plain_name(name)
    family, _, rest = name.partition("/")
    base = stated.partition(".")[0] if family == "timm" else stated
    return base == rest.partition("?")[0].partition(".")[0] or not _is_name(family, base)


def _plain_name(name: str) -> tuple[str, ...]:
    """A net's name without what does not change it: the tag of published weights, the place of a file, the size."""
    if name.startswith("py:"):
        return ("py", Path(name[3:]).name)
    family, _, rest = name.partition("/")
    if family == "hf":
        return (family, Path(rest).name)
    base, _, query = rest.partition("?")
    base = base.partition(".")[0] if family == "timm" else base
    return (family, base, *sorted(i for i in query.split("&") if i and not i.startswith("img_size=")))


def _is_name(family: str, rest: str) -> bool:
    if family == "timm":
        import timm

        return bool(timm.is_model(rest))
    if family == "torchvision":
        from torchvision import models

        return rest in models.list_models(module=models)
    return family == "cifar" and rest in CIFAR_MODELS


def _match(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """``state`` in the names of ``own``, and what was renamed.

    Prefixes are taken off as long as all keys have one; of the states on the way, the one that fits best
    is kept, as a net of the user's may well have a part that is called ``model``.
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
    """The file's names to the network's, where only the spelling differs, without any doubt.

    A name is translated where one key of either side, and only one, has the same canonical spelling and
    the same shape; of a head only the width need agree, as its classes may differ.
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
    """One spelling for all the usual ones of shortcuts, stages and heads.

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
            continue  # the convolution, with a batch norm as number 1 or without
        else:
            parts.append(part)
    return ".".join(parts)


def _stated_input(stated: InputSpec, file: WeightFile) -> InputSpec:
    """``stated`` with what the file says of its input, under ``input_spec`` or as ``mean`` and ``std``."""
    spec = file.metadata.get("input_spec")
    if not isinstance(spec, Mapping):
        spec = {key: file.metadata.get(key) for key in ("mean", "std")}
    changes: dict[str, Any] = {
        key: spec[key]
        for key in ("size", "interpolation", "crop_pct")
        if key in spec  # a size of None is an answer: any size
    }
    try:
        for key in ("mean", "std"):
            if isinstance(spec.get(key), list | tuple):
                changes[key] = tuple(float(number) for number in spec[key])
        return replace(stated, **changes)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"load_weights: needs an input that a net can have, got {dict(spec)} in {file.path} "
            f"({str(error).splitlines()[0]}); correct what the file says of itself."
        ) from error


def states_normalisation(file: WeightFile) -> bool:
    """Whether the file says with which mean and deviation its net was trained."""
    spec = file.metadata.get("input_spec")
    spec = spec if isinstance(spec, Mapping) else file.metadata
    return isinstance(spec.get("mean"), list | tuple) and isinstance(spec.get("std"), list | tuple)


def _stated_classes(file: WeightFile, file_classes: int | None) -> tuple[str, ...] | None:
    names = stated_names(file.metadata)
    if names is not None and file_classes is not None and len(names) != file_classes:
        warnings.warn(
            f"load_weights: {file.path.name} names {len(names)} classes for a head of {file_classes}; the names are ignored.",
            stacklevel=4,
        )
        return None
    return names


def _mismatch(network: Network, path: Path, role: str, own: Mapping[str, Tensor], fit: _Fit) -> str:
    state = fit.state
    shapes = [f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}" for key in sorted(fit.differing)]
    wrong = [
        f"{len(keys)} {kind} ({_few(keys)})"
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
            "its positions are those of another input size: build the net for that size (input_size, such as --set "
            "student.input_size=64; a file that save_student wrote states its own). They are not interpolated."
        )
    return f"load_weights: needs the weights of {network.name} (role {role}), got {path} with {', '.join(wrong)}; {advice}"


def _few(items: Iterable[str], most: int = 5) -> str:
    listed = list(items)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")
