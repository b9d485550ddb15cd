"""Read a pickle of NumPy arrays, such as a checkpoint of Detectron2, without running code from it.

A pickle names the functions that rebuild its objects. Only those that rebuild arrays and plain containers are known
here; any other name raises before it is imported.
"""

import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
import torch

TORCH_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The start of a file of torch.save before version 1.6, which is a series of pickles."""
_KINDS = "fiub"
"""Kinds of numbers that an array may have: no objects, no text, no records."""


def is_array_pickle(start: bytes) -> bool:
    """Whether a file with these first bytes is a plain pickle, and none of torch."""
    return start.startswith(b"\x80") and not start.startswith(TORCH_MAGIC)


def read_array_pickle(file: BinaryIO) -> Any:
    """The content of a pickle, with its arrays as tensors. ``pickle.UnpicklingError`` for anything but plain values."""
    # latin1 keeps the bytes of arrays that Python 2 wrote
    return _as_tensors(_ArrayUnpickler(file, encoding="latin1").load())


class _Kind:
    """The dtype of an array."""

    def __init__(self, text: object = "", *_: object) -> None:
        self.dtype = np.dtype(text if isinstance(text, str) else "O")
        if self.dtype.kind not in _KINDS:
            raise pickle.UnpicklingError(f"an array of {text!r}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """An array, whose content comes as its state."""

    def __init__(self, *_: object) -> None:
        self.array = np.empty(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, data = state
        self.array = _decoded(data, kind).reshape(shape, order="F" if fortran else "C")


def _decoded(data: Any, kind: _Kind) -> np.ndarray:
    return np.frombuffer(data.encode("latin1") if isinstance(data, str) else data, kind.dtype)


def _from_buffer(data: Any, kind: _Kind, shape: Any, order: str, axes: Any = None) -> _Array:
    found = _Array()
    if order == "K" and axes is not None:
        found.array = _decoded(data, kind).reshape(shape).transpose(axes)
    else:
        found.array = _decoded(data, kind).reshape(shape, order="F" if order == "F" else "C")
    return found


def _scalar(kind: _Kind, data: Any) -> Any:
    return _decoded(data, kind)[0].item()


def _encoded(text: str, encoding: str) -> bytes:
    return text.encode("latin1")


_FUNCTIONS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encoded,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Kind,
    **{
        (f"numpy.{room}.multiarray", name): function
        for room in ("core", "_core")
        for name, function in (("_reconstruct", _Array), ("scalar", _scalar))
    },
    **{(f"numpy.{room}.numeric", "_frombuffer"): _from_buffer for room in ("core", "_core")},
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _FUNCTIONS:
            raise pickle.UnpicklingError(f"it needs {module}.{name}")
        return _FUNCTIONS[module, name]


def _as_tensors(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_tensors(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_as_tensors(inner) for inner in value]
    if isinstance(value, _Array):
        # a writable copy in the machine's byte order
        return torch.from_numpy(np.array(value.array, value.array.dtype.newbyteorder("="), order="C"))
    return value
