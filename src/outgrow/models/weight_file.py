"""Read and write files of weights with their metadata, and check that they are intact.

read_file       read a safetensors file, or one of torch.save or a pickle of arrays without running code in it
candidates      the state dicts in a file, moving averages first
check_tensors   raise unless tensors are finite, dense and floating-point
write_weights   write a safetensors file atomically, with a checksum of itself
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

from outgrow.data.classes import NAME_KEYS
from outgrow.machine.files import CHECKSUM, tensors_checksum, write_atomically
from outgrow.models.array_pickle import is_array_pickle, read_array_pickle

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
"""Keys of moving averages. They have priority, because the authors of a checkpoint evaluated the average."""
NO_WEIGHTS = re.compile(r"optim|sched|scaler|rng|callbacks|loops|hyper|config|args", re.IGNORECASE)
BOOKKEEPING = ("num_batches_tracked", "total_ops", "total_params")
"""Suffixes of keys that are not needed: counters of batch norms, and those of FLOP counters."""
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
METADATA_KEYS = (
    *("arch", "architecture", "model_name", "model", "input_spec", "mean", "std", "num_classes", "norm_eps"),
    *NAME_KEYS,
)
"""The keys of a torch.save file that are read as metadata."""
DEEPEST = 4
"""How many levels of nested mappings are searched for state dicts."""
SEAL = 64
"""Spaces after the header in files that we write. The format allows any number, and other writers use fewer than
eight. A file without them was rewritten by another program, so its checksum does not apply."""


@dataclass(frozen=True)
class WeightFile:
    """``found``: the content of the file; ``metadata``: facts about the net, such as its name and classes."""

    path: Path
    found: Any
    metadata: Mapping[str, Any] = field(default_factory=dict)


def read_file(path: str | Path, *, caller: str = "load_weights") -> WeightFile:
    """Read a file; ``ValueError`` if it is damaged or has no weights. ``caller`` starts the message."""
    path = Path(path)
    start = _start_of(path, caller)
    # the first eight bytes of a safetensors file are the header's length, so they may equal any magic number
    is_torch = start.startswith((b"PK\x03\x04", b"\x80")) or path.suffix != ".safetensors"
    if is_torch and start[8:9] != b"{":
        found = _read_torch(path, start, caller)
        return WeightFile(path, found, _metadata(found))
    tensors, texts = read_safetensors(path, caller=caller)
    return WeightFile(path, tensors, _decoded(texts))


def read_safetensors(path: str | Path, *, caller: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; its checksum is verified if it has one."""
    path = Path(path)
    _start_of(path, caller)
    try:
        with safe_open(path, framework="pt") as file:
            texts = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except Exception as error:  # SafetensorError, ValueError, TypeError, MemoryError, ...
        raise ValueError(
            f"{caller}: needs an intact safetensors file, got {path} with an error ({first_line(error)}); fetch it again."
        ) from error
    stated = texts.pop(CHECKSUM, None)
    if stated is not None and _is_sealed(path) and stated != tensors_checksum(tensors, texts):
        raise ValueError(
            f"{caller}: needs the file as it was written, got {path}, which was damaged since (its checksum differs); "
            "fetch it again."
        )
    return tensors, texts


def write_weights(state: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically, with a checksum; its folder is created if necessary."""
    # copies, because safetensors raises if two tensors share storage
    own = {key: value.detach().cpu().clone().contiguous() for key, value in state.items()}
    whole = memoryview(save(own, {**metadata, CHECKSUM: tensors_checksum(own, metadata)}))
    end = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(bytes(whole[8:end]))
    # safetensors writes the metadata in random order: equal runs shall write equal bytes
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8 + SEAL)  # the tensors are aligned

    def write(part: Path) -> None:
        with part.open("wb") as file:
            file.write(len(text).to_bytes(8, "little"))
            file.write(text)
            file.write(whole[end:])

    write_atomically(path, write)


def _is_sealed(path: Path) -> bool:
    """Whether we wrote this file. A program that changes tensors may copy our metadata, with an outdated checksum."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        file.seek(8 + length - SEAL)
        return file.read(SEAL) == b" " * SEAL


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The first state dict in a file, checked, and the file's metadata; ``ValueError`` like ``load_weights``."""
    file = read_file(path)
    states = [state for _, state in candidates(file)]
    # an average may have its counter beside the weights ({"module": ..., "updates": tensor(3)})
    state = next((one for one in states if any(value.ndim for value in one.values())), states[0])
    for prefix in ("module.", "_orig_mod."):
        named = {key: value for key, value in state.items() if "." in key or value.ndim}  # without counters
        if named and all(key.startswith(prefix) for key in named):
            state = {key.removeprefix(prefix): value for key, value in named.items()}
    check_tensors(state, state, file.path)
    return state, dict(file.metadata)


def candidates(file: WeightFile) -> list[tuple[str, dict[str, Tensor]]]:
    """The state dicts in a file with their keys: first moving averages, then common wrappers, then others.

    ``ValueError`` if there is none.
    """
    found = list(_states(file.found, ()))
    if not found:
        got = (
            few([str(key) for key in file.found]) or "nothing"
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
    """0 for a moving average, 1 for a common wrapper, 2 for any other key."""
    parts = tuple(source)
    if any(AVERAGES.search(part) for part in parts):
        return 0
    return 1 if all(part in (*WRAPPERS, "_orig_mod") for part in parts) else 2


def unnamed_averages(file: WeightFile) -> list[str]:
    """The keys under which a file has moving averages as lists of tensors without names."""
    return [".".join(source) for source, value in _inside(file.found, ()) if _is_list_of_tensors(value)]


def check_tensors(state: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path) -> None:
    """``ValueError`` for tensors that are not finite, not dense, or of a dtype that ``own`` cannot take."""
    odd = []
    for key, value in state.items():
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            kind = "meta" if value.is_meta else "quantised" if value.is_quantized else "sparse"
            odd.append(f"{key} {kind}")
            continue
        dtype = own[key].dtype if key in own else value.dtype
        fits = value.dtype in FLOATS if dtype.is_floating_point else not value.dtype.is_complex
        if not dtype.is_floating_point and key in own and not key.endswith(BOOKKEEPING):
            fits = value.dtype == dtype or not (value.is_floating_point() or value.is_complex())
        if not fits:
            odd.append(f"{key} {value.dtype}".replace("torch.", ""))
    if odd:
        raise ValueError(
            f"load_weights: needs dense tensors of floating-point weights, got {path} with {few(odd)}; "
            "save the weights before they are quantised or pruned, as float16, bfloat16 or float32."
        )
    infinite = [
        key
        for key, value in state.items()
        if value.is_floating_point()
        and not value.to(own[key].dtype if key in own else value.dtype).isfinite().all()
        # infinity is allowed if the net's own tensor has it, such as a causal attention mask
        and not (key in own and own[key] is not value and not own[key].isfinite().all())
    ]
    if infinite:
        raise ValueError(
            f"load_weights: needs finite weights, got {path} with NaN or infinity in {len(infinite)} tensors "
            f"({few(infinite)}); use a checkpoint from before the training diverged."
        )


def _start_of(path: Path, caller: str) -> bytes:
    """The first bytes of a regular file; ``ValueError`` for anything else."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            with path.open("rb") as file:
                return file.read(64)
        problem = "is a directory" if stat.S_ISDIR(mode) else "is a pipe, a socket or a device"
    except FileNotFoundError:
        problem = "does not exist"
    except (OSError, ValueError) as error:
        problem = f"cannot be read ({first_line(error)})"
    raise ValueError(
        f"{caller}: needs a file of weights, got {str(path)!r}, which {problem}; pass the path of the .safetensors or "
        ".pt file."
    )


def _read_torch(path: Path, start: bytes, caller: str) -> Any:
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(
            f"{caller}: needs a file of tensors, got {path}, which is a Git LFS pointer; fetch the file (git lfs pull)."
        )
    try:
        if start.startswith(b"PK"):
            _check_archive(path)
        if is_array_pickle(start):
            with path.open("rb") as file:
                return read_array_pickle(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old formats, which can be read too
            # an open file instead of the path: torch.load would choose the format by the path's suffix
            with torch.serialization.safe_globals(_safe_types()), path.open("rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise any exception
        raise ValueError(
            f"{caller}: needs a file with only tensors, got {path}, which is damaged or has pickled objects that "
            "could run code when read; if you trust it, open it yourself and save its state_dict() as safetensors "
            f"(the error: {first_line(error)})."
        ) from error


def _safe_types() -> list[Any]:
    """Types that training scripts save with the weights (options, paths, a best accuracy) and that run no code."""
    import numpy as np

    scalar = getattr(np, "_core", getattr(np, "core", None)).multiarray.scalar  # type: ignore[union-attr]
    kinds = [type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")]
    names = [(scalar, f"numpy.{room}.multiarray.scalar") for room in ("core", "_core")]
    return [argparse.Namespace, pathlib.PosixPath, np.dtype, *kinds, *names]


def _check_archive(path: Path) -> None:
    """Verify the checksums of a torch.save archive, because torch.load does not."""
    with zipfile.ZipFile(path) as archive:
        # all are zero if torch was configured to compute none
        damaged = archive.testzip() if any(member.CRC for member in archive.infolist()) else None
    if damaged is not None:
        raise ValueError(f"the checksum of {damaged} differs")


def _metadata(found: Any) -> dict[str, Any]:
    if not isinstance(found, Mapping):
        return {}
    plain = str | int | float | list | tuple | dict
    return {
        key: found[key]
        for key in METADATA_KEYS
        if isinstance(found.get(key), plain) and not _has_tensors(found[key])
    }


def _has_tensors(value: Any) -> bool:
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return isinstance(value, Tensor) or any(map(_has_tensors, inner))


def _decoded(texts: Mapping[str, str]) -> dict[str, Any]:
    """Parse values that are JSON; others, and the model's name, stay text."""
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
    """All values in nested mappings with their keys, common wrappers first."""
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


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 200 characters; its type if the message is empty."""
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def few(items: Iterable[str], most: int = 5) -> str:
    """The first ``most`` items, and how many more there are."""
    listed = list(items)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")
