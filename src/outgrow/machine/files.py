"""Files that are whole or not there, and that show damage.

write_atomically    temporary file, fsync, rename; the umask's mode
sealed, unsealed    JSON with a checksum of itself
parse_yaml          YAML of somebody else
tensors_checksum    of a state dict and its metadata
check_writable      at the start: a folder that can be written and has room
"""

import contextlib
import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

CHECKSUM = "checksum"
"""The key of a file's own checksum."""


class NotWritten(OSError):
    """A file could not be written: a full disk, a read-only folder. What stood there before is still there."""


def write_atomically(path: str | Path, content: bytes | str | Callable[[Path], None]) -> None:
    """Write ``content`` to ``path``: whole, or not at all.

    A function gets the path of a temporary file beside ``path`` and writes that. :class:`NotWritten` says why
    nothing was written.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(content):
            content(part)
        else:
            part.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        os.chmod(part, 0o666 & ~_umask())
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise NotWritten(
            error.errno,
            f"needs to write {path}, got {error.strerror or error}; free some room or make the folder writable",
        ) from error
    finally:
        with contextlib.suppress(OSError):  # of a read-only folder: the reason is on its way
            part.unlink(missing_ok=True)


def check_writable(folder: Path, *, what: str, room: int = 0) -> None:
    """``ValueError`` where ``folder`` cannot be made, cannot be written, or has less than ``room`` bytes free.

    ``what`` is the option that named it.
    """
    import shutil

    try:
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{what}: needs a folder, got the file {folder}; name another.")
        folder.mkdir(parents=True, exist_ok=True)
        # of a name of its own, as other processes may test at the same time
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"test")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ValueError(
            f"{what}: needs a folder that can be written, got {folder} ({reason}); name another or change its rights."
        ) from None
    free = shutil.disk_usage(folder).free
    if free < room:
        raise ValueError(
            f"{what}: needs about {readable(room)}, got {readable(free)} free at {folder}; free some room "
            "or name a folder on another disk."
        )


def readable(size: int | float) -> str:
    """A number of bytes for messages.

    >>> readable(40), readable(1536), readable(3 * 2**20), readable(5 * 2**30)
    ('40 bytes', '1.5 KiB', '3.0 MiB', '5.0 GiB')
    """
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size:.0f} bytes"


def counted(number: int, noun: str) -> str:
    """A number of things for messages.

    >>> counted(1, "epoch"), counted(2500, "step")
    ('1 epoch', '2,500 steps')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def finite(content: Any) -> Any:
    """``content`` for JSON, with None for numbers that are not finite: JSON has none.

    >>> finite({"nll": float("nan"), "top1": 50.0})
    {'nll': None, 'top1': 50.0}
    """
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {str(key): finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return content


class _PlainLoader(yaml.SafeLoader):
    """A YAML loader that refuses what is not plain.

    Aliases: with them a few bytes can expand to billions of values. Keys that are there twice: the first would be lost.
    Numbers of YAML 1.1 that are not what they look like: 010 would be 8, and 1:30 would be 90.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed; write the value itself")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: dict[Any, Any] = {}
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":  # <<: a mapping that the others override
                continue
            name = self.construct_object(key, deep=True)
            if isinstance(name, Hashable) and name in seen:
                lines = f"lines {seen[name].line + 1} and {key.start_mark.line + 1}"
                raise yaml.YAMLError(f"the key {name!r} is there twice, in {lines}; leave out one of them")
            if isinstance(name, Hashable):
                seen[name] = key.start_mark
        return super().construct_mapping(node, deep=deep)

    def construct_yaml_int(self, node: Any) -> Any:
        text = self.construct_scalar(node).replace("_", "")
        if ":" in text or re.fullmatch(r"[-+]?0[0-9]+", text):
            raise yaml.YAMLError(
                f"{node.value} is another number in YAML ({super().construct_yaml_int(node)}); write it without leading "
                "zeros and colons, or in quotes if it is text"
            )
        return super().construct_yaml_int(node)

    def construct_yaml_float(self, node: Any) -> Any:
        if ":" in self.construct_scalar(node):
            raise yaml.YAMLError(
                f"{node.value} is another number in YAML ({super().construct_yaml_float(node)}); write it without colons, or in "
                "quotes if it is text"
            )
        return super().construct_yaml_float(node)


_PlainLoader.add_constructor("tag:yaml.org,2002:int", _PlainLoader.construct_yaml_int)
_PlainLoader.add_constructor("tag:yaml.org,2002:float", _PlainLoader.construct_yaml_float)


def parse_yaml(text: str | bytes) -> Any:
    """The content of ``text``. ``yaml.YAMLError`` for what is no YAML, for aliases, keys that are there twice, and numbers
    such as 010."""
    return yaml.load(text, Loader=_PlainLoader)


def sealed(content: Mapping[str, Any]) -> str:
    """``content`` as JSON with a checksum of itself."""
    body = {key: value for key, value in finite(content).items() if key != CHECKSUM}
    return json.dumps({**body, CHECKSUM: _json_checksum(body)}, indent=1, allow_nan=False) + "\n"


def unsealed(
    text: str, *, where: str, optional: Callable[[dict[str, Any]], bool] = lambda content: False
) -> dict[str, Any]:
    """What :func:`sealed` wrote, without its checksum.

    ``optional(content)`` says whether a file without one is taken as it is, as older versions wrote none. A checksum
    of null is always taken: somebody changed the file by hand and says so. ``ValueError`` for text that is no JSON
    object, or that was changed since it was written.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"needs JSON, got {where}, which cannot be read ({error}); restore the file."
        ) from None
    if not isinstance(content, dict):
        raise ValueError(f"needs a JSON object, got {type(content).__name__} in {where}; restore the file.")
    given = CHECKSUM in content
    stated = content.pop(CHECKSUM, None)
    right = stated is None if given else optional(content)
    if not right and stated != _json_checksum(content):
        raise ValueError(
            f"needs the file as it was written, got {where}, which was changed or damaged since (its checksum differs); "
            f"restore it, or set its {CHECKSUM!r} to null if the change is yours."
        )
    return content


def _json_checksum(body: Mapping[str, Any]) -> str:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def tensors_checksum(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Of names, types, shapes and bytes of all tensors, and of ``metadata`` but its own checksum."""
    total = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    body = {key: value for key, value in metadata.items() if key != CHECKSUM}
    total.update(json.dumps(body, sort_keys=True).encode())
    return total.hexdigest()[:32]


def digest(parts: Iterable[bytes]) -> bytes:
    """SHA-256 of ``parts`` in order."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    return total.digest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """The rename itself on disk, where the system can do that."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
