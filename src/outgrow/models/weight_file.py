"""Files of weights: what they hold, what they say of themselves, and whether they are whole.

read_file       a safetensors file or one of torch.save, read without running code in it
candidates      the state dicts in it, moving averages first
check_tensors   only finite, plain, floating-point weights are copied into a net
write_weights   a safetensors file, whole or not at all, with a checksum of itself
"""

import argparse
import json
import pathlib
import re
import stat
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from outgrow.machine.files import CHECKSUM, tensors_checksum, write_atomically

WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "module",
    "params",
    "weights",
    "student",
)
AVERAGES = re.compile(r"(^|[_.])(ema|swa)([_.]|$)|averaged|shadow", re.IGNORECASE)
"""Keys of moving averages, which go first: where a checkpoint has one, it is what its author evaluated."""
NO_WEIGHTS = re.compile(r"optim|sched|scaler|rng|callbacks|loops|hyper|config|args", re.IGNORECASE)
BOOKKEEPING = ("num_batches_tracked", "total_ops", "total_params")
"""Ends of keys that do not matter: counters of batch norms, and what a FLOP counter leaves behind."""
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
STATEMENTS = (
    *("arch", "architecture", "model_name", "model", "input_spec", "mean", "std", "num_classes"),
    *("classes", "class_names", "class_to_idx", "idx_to_class", "id2label", "label_names"),
)
"""What a file of torch.save may say of itself beside its tensors."""
DEEPEST = 4
SEAL = 64
"""Spaces behind the header of our own files, where its format allows any number and its writers put less than eight:
they are gone once another program has written the file anew."""


@dataclass(frozen=True)
class WeightFile:
    """``found``: what the file holds; ``metadata``: what it says of itself."""

    path: Path
    found: Any
    metadata: Mapping[str, Any] = field(default_factory=dict)


def read_file(path: str | Path, *, who: str = "load_weights") -> WeightFile:
    """``ValueError`` for what is no file of weights, or is damaged; ``who`` begins its message."""
    path = Path(path)
    start = _start_of(path, who)
    # a safetensors file begins with the length of its header, eight bytes that may be anything
    torchs = start.startswith((b"PK\x03\x04", b"\x80")) or path.suffix != ".safetensors"
    if torchs and start[8:9] != b"{":
        found = _read_torch(path, start, who)
        return WeightFile(path, found, _statements(found))
    tensors, texts = read_safetensors(path, who=who)
    return WeightFile(path, tensors, _decoded(texts))


def read_safetensors(path: str | Path, *, who: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file, as they were written where it carries a checksum."""
    path = Path(path)
    _start_of(path, who)
    try:
        with safe_open(path, framework="pt") as file:
            texts = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except Exception as error:  # its own errors, and those of numbers, types and memory
        raise ValueError(
            f"{who}: needs a whole safetensors file, got {path} with an error ({_line(error)}); fetch it again."
        ) from error
    stated = texts.pop(CHECKSUM, None)
    if stated is not None and _is_sealed(path) and stated != tensors_checksum(tensors, texts):
        raise ValueError(
            f"{who}: needs the file as it was written, got {path}, which was damaged since (its checksum differs); "
            "fetch it again."
        )
    return tensors, texts


def write_weights(state: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str]) -> None:
    """A safetensors file, whole or not at all, with a checksum; its folder is made where it is lacking."""
    # copies, as safetensors refuses two names for one storage
    own = {key: value.detach().cpu().clone().contiguous() for key, value in state.items()}
    whole = memoryview(save(own, {**metadata, CHECKSUM: tensors_checksum(own, metadata)}))
    end = 8 + int.from_bytes(whole[:8], "little")

    def write(part: Path) -> None:
        with part.open("wb") as file:
            file.write((end - 8 + SEAL).to_bytes(8, "little"))
            file.write(whole[8:end])
            file.write(b" " * SEAL)
            file.write(whole[end:])

    write_atomically(path, write)


def _is_sealed(path: Path) -> bool:
    """Whether the checksum is of this file: a program that changes tensors may copy the metadata as they are."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        file.seek(8 + length - SEAL)
        return file.read(SEAL) == b" " * SEAL


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The first state dict in a file, checked, and what the file says of itself; ``ValueError`` as load_weights."""
    file = read_file(path)
    _, state = next(iter(candidates(file)))
    for prefix in ("module.", "_orig_mod."):
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    check_tensors(state, state, file.path)
    return state, dict(file.metadata)


def candidates(file: WeightFile) -> list[tuple[str, dict[str, Tensor]]]:
    """The state dicts in a file and where they stand: moving averages, then the usual wrappers, then others.

    ``ValueError`` where there is none.
    """
    found = list(_states(file.found, ()))
    if not found:
        got = (
            _few([str(key) for key in file.found])
            if isinstance(file.found, Mapping)
            else type(file.found).__name__
        )
        raise ValueError(
            f"load_weights: needs a state dict, at the top of the file or under {', '.join(WRAPPERS)}, got {got} in "
            f"{file.path}; save model.state_dict()."
        )
    found.sort(key=lambda pair: rank(pair[0]))  # stable
    return [(".".join(source), state) for source, state in found]


def rank(source: Iterable[str]) -> int:
    """0 for a moving average, 1 for a usual place, 2 for any other."""
    parts = tuple(source)
    if any(AVERAGES.search(part) for part in parts):
        return 0
    return 1 if all(part in (*WRAPPERS, "_orig_mod") for part in parts) else 2


def unnamed_averages(file: WeightFile) -> list[str]:
    """Where a file keeps moving averages as lists of tensors without names."""
    return [".".join(source) for source, value in _inside(file.found, ()) if _is_list_of_tensors(value)]


def check_tensors(state: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path) -> None:
    """``ValueError`` for tensors that cannot be copied into ``own`` as they are, or that are not finite."""
    odd = []
    for key, value in state.items():
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            kind = "meta" if value.is_meta else "quantised" if value.is_quantized else "sparse"
            odd.append(f"{key} {kind}")
            continue
        wanted = own[key].dtype if key in own else value.dtype
        fits = value.dtype in FLOATS if wanted.is_floating_point else not value.dtype.is_complex
        if not wanted.is_floating_point and key in own and not key.endswith(BOOKKEEPING):
            fits = value.dtype == wanted or not (value.is_floating_point() or value.is_complex())
        if not fits:
            odd.append(f"{key} {value.dtype}".replace("torch.", ""))
    if odd:
        raise ValueError(
            f"load_weights: needs plain tensors of floating-point weights, got {path} with {_few(odd)}; "
            "save the weights before they are quantised or pruned, as float16, bfloat16 or float32."
        )
    infinite = [
        key
        for key, value in state.items()
        if value.is_floating_point()
        and not value.to(own[key].dtype if key in own else value.dtype).isfinite().all()
        # such as the mask of a causal attention
        and not (key in own and own[key] is not value and not own[key].isfinite().all())
    ]
    if infinite:
        raise ValueError(
            f"load_weights: needs finite weights, got {path} with NaN or infinity in {len(infinite)} tensors "
            f"({_few(infinite)}); take a checkpoint from before the training diverged."
        )


def _start_of(path: Path, who: str) -> bytes:
    """The first bytes of a regular file."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            with path.open("rb") as file:
                return file.read(64)
        kind = "a directory" if stat.S_ISDIR(mode) else "no regular file (a pipe, a socket or a device)"
    except FileNotFoundError:
        kind = "not there"
    except (OSError, ValueError) as error:
        kind = f"not readable ({_line(error)})"
    raise ValueError(
        f"{who}: needs a file of weights, got {str(path)!r}, which is {kind}; give the .safetensors or .pt file itself."
    )


def _read_torch(path: Path, start: bytes, who: str) -> Any:
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(
            f"{who}: needs a file of tensors, got {path}, which is a pointer of Git LFS; fetch the file itself (git lfs pull)."
        )
    try:
        if start.startswith(b"PK"):
            _check_archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of outdated formats, which are read all the same
            with (
                torch.serialization.safe_globals(_harmless()),
                path.open("rb") as file,
            ):  # by its content, whatever its name ends in
                return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(
            f"{who}: needs a file of tensors alone, got {path}, which is damaged or holds pickled objects that "
            "could run code when read; if you trust it, open it yourself and save its state_dict() as safetensors "
            f"(torch says: {_line(error)})."
        ) from error


def _harmless() -> list[Any]:
    """What training scripts keep beside the weights (options, paths, a best accuracy): values that run nothing."""
    import numpy as np

    scalar = getattr(np, "_core", getattr(np, "core", None)).multiarray.scalar  # type: ignore[union-attr]
    kinds = [type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")]
    names = [(scalar, f"numpy.{room}.multiarray.scalar") for room in ("core", "_core")]
    return [argparse.Namespace, pathlib.PosixPath, np.dtype, *kinds, *names]


def _check_archive(path: Path) -> None:
    """torch does not compare the checksums that stand in its archives."""
    with zipfile.ZipFile(path) as archive:
        # all zero where torch was told to compute none
        damaged = archive.testzip() if any(member.CRC for member in archive.infolist()) else None
    if damaged is not None:
        raise ValueError(f"the checksum of {damaged} differs")


def _statements(found: Any) -> dict[str, Any]:
    if not isinstance(found, Mapping):
        return {}
    plain = str | int | float | list | tuple | dict
    return {
        key: found[key]
        for key in STATEMENTS
        if isinstance(found.get(key), plain) and not _has_tensors(found[key])
    }


def _has_tensors(value: Any) -> bool:
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return isinstance(value, Tensor) or any(map(_has_tensors, inner))


def _decoded(texts: Mapping[str, str]) -> dict[str, Any]:
    """Values as JSON where they are JSON; the model's name stays text."""
    decoded: dict[str, Any] = {}
    for key, text in texts.items():
        try:
            decoded[key] = text if key == "model" else json.loads(text)
        except (ValueError, RecursionError):
            decoded[key] = text
    return decoded


def _states(found: Any, source: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    for place, value in ((source, found), *_inside(found, source)):
        if isinstance(value, Mapping):
            tensors = {str(key): tensor for key, tensor in value.items() if isinstance(tensor, Tensor)}
            if tensors:
                yield place, tensors


def _inside(found: Any, source: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All that stands in nested mappings, the usual wrappers first."""
    if not isinstance(found, Mapping) or len(source) == DEEPEST:
        return
    inner = [(str(key), value) for key, value in found.items() if not isinstance(value, Tensor)]
    inner = [(key, value) for key, value in inner if not NO_WEIGHTS.search(key)]
    inner.sort(key=lambda pair: WRAPPERS.index(pair[0]) if pair[0] in WRAPPERS else len(WRAPPERS))
    for key, value in inner:
        yield (*source, key), value
        yield from _inside(value, (*source, key))


def _is_list_of_tensors(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(v, Tensor) for v in value)


def _line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def _few(items: Iterable[str], most: int = 5) -> str:
    listed = list(items)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")
