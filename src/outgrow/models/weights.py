"""Weights from files, whoever wrote them, and the file that is deployed.

load_weights   a file's weights into a network: unwrapped, prefixes stripped, other spellings translated
save_student   the file that is deployed: a net's weights with all that is needed to use them
LoadReport     what was loaded, renamed, missing, and what the file says of itself
"""

import json
import os
import pickle
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from outgrow.models.network import InputSpec, Network
from outgrow.models.structure import bare_net, heads_of, replace_heads, soften_heads

Role = Literal["teacher", "student", "exact"]

# Moving averages first: where a checkpoint has one, it is what its author evaluated.
WRAPPERS = ("model_ema", "state_dict_ema", "ema", "state_dict", "model_state_dict", "model", "net", "student")
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
SHORTCUTS = ("shortcut", "downsample", "convShortcut")
HEADS = ("fc", "linear", "classifier", "head", "last_linear")
BOOKKEEPING = ("num_batches_tracked", "total_ops", "total_params")
"""Ends of keys that do not matter: counters of batch norms, and what a FLOP counter leaves behind."""


@dataclass(frozen=True)
class LoadReport:
    """What became of the weights in ``path``. Names are the network's unless said otherwise."""

    path: Path
    source: str
    """Where in the file the weights stood: ``""`` at the top, else such as ``model`` or ``state_dict``."""
    loaded: tuple[str, ...]
    renamed: Mapping[str, str]
    """The file's name, after prefixes, to the network's, where they differ."""
    missing: tuple[str, ...]
    """What the network has and the file has not, or not in this shape."""
    head: Literal["loaded", "rebuilt", "new"]
    """``rebuilt`` to the file's number of classes (teacher), or left ``new`` (student)."""
    num_classes: int | None
    """How many classes the file's head has; None where it has no head."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What a safetensors file says of itself: ``model``, ``classes``, ``input_spec``, whatever is there."""

    @property
    def head_replaced(self) -> bool:
        return self.head != "loaded"

    def __str__(self) -> str:
        where = f" ({self.source})" if self.source else ""
        lines = [f"{self.path.name}{where}: {len(self.loaded)} tensors loaded"]
        if self.renamed:
            pairs = [f"{old} -> {new}" for old, new in self.renamed.items()]
            lines.append(f"  renamed {len(pairs)}: {_few(pairs)}")
        if self.head_replaced:
            fate = "rebuilt for the file's classes" if self.head == "rebuilt" else "new"
            lines.append(f"  head {fate}; the file has {self.num_classes or 'no'} classes")
        if self.missing:
            lines.append(f"  missing {len(self.missing)}: {_few(self.missing)}")
        if facts := ", ".join(key for key in self.metadata if key != "format"):
            lines.append(f"  the file also says: {facts}")
        return "\n".join(lines)


def load_weights(network: Network, path: str | Path, *, role: Role) -> LoadReport:
    """Loads the weights in ``path`` into ``network``; what else to make of them depends on ``role``.

    ``path`` is a safetensors file or a file of ``torch.save``, which is read without running any code in
    it. Wrappers (``{"model": ...}``), prefixes (``module.``) and other spellings of shortcuts, stages and
    heads are understood where names and shapes then agree. A head of another size:

    - ``teacher``: the network's head is rebuilt for the file's classes, and ``network.num_classes`` with
      it; mapping the classes is the caller's business.
    - ``student``: all but the head is loaded, the head is drawn anew and small (so that training starts at
      the loss of a guess), with a warning; also where the file has no head.
    - ``exact``: an error.

    Where the file says what its net wants to see (``input_spec``, or ``mean`` and ``std``) and the names
    of its classes, the network takes them over, the names only with the head.

    Raises ``ValueError`` for anything else that does not match, and leaves the network as it was.
    """
    path = Path(path)
    found, metadata = _read(path)
    source, state = _unwrap(found, path)
    own = network_state(network)
    state, renamed = _match(state, own)

    head_paths = [head for head, _ in heads_of(network)]
    head_keys = {key for head in head_paths for key in (f"{head}.weight", f"{head}.bias") if key in own}
    differing = {key for key in own.keys() & state.keys() if own[key].shape != state[key].shape}
    missing = {key for key in own.keys() - state.keys() if not key.endswith(BOOKKEEPING)}
    unexpected = {key for key in state.keys() - own.keys() if not key.endswith(BOOKKEEPING)}
    first = state.get(f"{head_paths[0]}.weight")
    file_classes = None if first is None else int(first.shape[0])

    resized_head = bool(differing) and differing <= head_keys and not missing
    resized_head = resized_head and all(own[key].shape[1:] == state[key].shape[1:] for key in differing)
    headless = bool(missing) and missing == head_keys
    head: Literal["loaded", "rebuilt", "new"] = "loaded"
    if role == "teacher" and resized_head and not unexpected:
        head = "rebuilt"
    elif role == "student" and (resized_head or headless) and not unexpected and not differing - head_keys:
        head = "new"
    elif differing or missing or unexpected:
        raise ValueError(_mismatch(network, path, role, own, state, differing, missing, unexpected))

    input_spec = _stated_input(network.input_spec, metadata)
    if head == "rebuilt":
        assert file_classes is not None
        replace_heads(network, file_classes)
        network.classes = None
    left = head_keys if head == "new" else set()
    loaded = {key: value for key, value in state.items() if key in own and key not in left}
    bare_net(network).load_state_dict(loaded, strict=False)
    if head == "new":
        soften_heads(network)
        warnings.warn(
            f"load_weights: the head of {network.name} has {network.num_classes} classes, that of {path.name} "
            f"{file_classes or 'none'}; the head stays new, everything else is loaded.",
            stacklevel=2,
        )
    network.set_input_spec(input_spec)
    classes = metadata.get("classes")
    if head != "new" and isinstance(classes, list) and len(classes) == network.num_classes:
        network.classes = tuple(str(name) for name in classes)
    return LoadReport(
        path=path,
        source=source,
        loaded=tuple(loaded),
        renamed={old: new for old, new in renamed.items() if new in loaded},
        missing=tuple(sorted(left)),
        head=head,
        num_classes=file_classes,
        metadata=metadata,
    )


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


def write_weights(state: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """A safetensors file, whole or not at all; its folder is made where it is lacking."""
    # copies, as safetensors refuses two names for one storage
    own = {key: value.detach().cpu().clone().contiguous() for key, value in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(own, unfinished, metadata=dict(metadata))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict in a file, unwrapped, and what the file says of itself; ``ValueError`` as load_weights."""
    found, metadata = _read(Path(path))
    return _unwrap(found, Path(path))[1], metadata


def network_state(network: Network) -> dict[str, Tensor]:
    """The state of the bare net, without the prefixes of what is wrapped around it."""
    return dict(bare_net(network).state_dict())


def _read(path: Path) -> tuple[Any, dict[str, Any]]:
    """What the file holds, and what it says of itself."""
    if not path.is_file():
        raise ValueError(
            f"load_weights: needs a file of weights, got {str(path)!r}, which is "
            f"{'a directory' if path.is_dir() else 'not there'}; give the .safetensors or .pt file itself."
        )
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, _decoded(file.metadata() or {})  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(
                f"load_weights: needs a whole safetensors file, got {path} with an error ({error}); fetch it again."
            ) from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True), {}
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"load_weights: needs a file of tensors alone, got {path}, which is damaged or holds pickled objects that "
            "could run code when read; if you trust it, open it yourself and save its state_dict() as safetensors "
            f"(torch says: {(str(error) or type(error).__name__).splitlines()[0][:200]})."
        ) from error


def _decoded(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Values as JSON where they are JSON; the model's name stays text."""
    decoded: dict[str, Any] = {}
    for key, text in metadata.items():
        try:
            decoded[key] = text if key == "model" else json.loads(text)
        except json.JSONDecodeError:
            decoded[key] = text
    return decoded


def _unwrap(found: Any, path: Path) -> tuple[str, dict[str, Tensor]]:
    """The state dict in what a file holds, and under which keys it stood."""
    source: list[str] = []
    while isinstance(found, Mapping):
        if found and all(isinstance(value, Tensor) for value in found.values()):
            return ".".join(source), {str(key): value for key, value in found.items()}
        inside = next((key for key in WRAPPERS if isinstance(found.get(key), Mapping) and found[key]), None)
        if inside is None:
            break
        source.append(inside)
        found = found[inside]
    keys = _few([str(key) for key in found]) if isinstance(found, Mapping) else type(found).__name__
    raise ValueError(
        f"load_weights: needs a state dict, at the top of the file or under {', '.join(WRAPPERS)}, got {keys} in "
        f"{path}; save model.state_dict()."
    )


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


def _stated_input(stated: InputSpec, metadata: Mapping[str, Any]) -> InputSpec:
    """``stated`` with what the file says of its input, under ``input_spec`` or as ``mean`` and ``std``."""
    spec = metadata.get("input_spec")
    if not isinstance(spec, Mapping):
        spec = {key: metadata.get(key) for key in ("mean", "std")}
    changes: dict[str, Any] = {
        key: spec[key]
        for key in ("size", "interpolation", "crop_pct")
        if key in spec  # a size of None is an answer: any size
    }
    for key in ("mean", "std"):
        if isinstance(spec.get(key), list):
            changes[key] = tuple(float(number) for number in spec[key])
    return replace(stated, **changes)


def _mismatch(
    network: Network,
    path: Path,
    role: str,
    own: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    differing: set[str],
    missing: set[str],
    unexpected: set[str],
) -> str:
    shapes = [f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}" for key in sorted(differing)]
    wrong = [
        f"{len(keys)} {kind} ({_few(keys)})"
        for kind, keys in (
            ("missing in the file", sorted(missing)),
            ("unexpected in the file", sorted(unexpected)),
            ("of another shape", shapes),
        )
        if keys
    ]
    return (
        f"load_weights: needs the weights of {network.name} (role {role}), got {path} with {', '.join(wrong)}; "
        "check that the file belongs to this architecture, its width and its number of classes."
    )


def _few(items: Iterable[str], most: int = 5) -> str:
    listed = list(items)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")
