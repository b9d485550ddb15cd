"""Checkpoints, from which an interrupted training continues.

A checkpoint has a checksum and the identity of its run. The previous checkpoint is kept, and is used if the
newer one is damaged.
"""

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from outgrow.machine.files import digest, write_atomically
from outgrow.training.config import Config, known_fields

MAGIC = b"outgrow checkpoint 2\n"

MAY_CHANGE = frozenset(
    {
        "out",
        "recipe",
        "track",
        "data.workers",
        "teacher.cache_plain",
        "train.epochs",
        "train.min_steps",
        "train.eval_every",
        "train.checkpoint_steps",
        *(
            f"{section}.{name}"
            for section in ("train", "teacher_train")
            for name in ("device", "keep_memory")
        ),
        "teacher_train.eval_every",
        "teacher_train.checkpoint_steps",
    }
)
"""Fields that may differ in a resumed run: they change no number of the finished epochs."""
NOTED = ("version", "threads", "processes")
"""Facts that may differ in a resumed run, with a warning: results may then differ by rounding."""


@dataclass(frozen=True)
class Identity:
    """The configuration and the facts, by name, that a checkpoint must match to be resumed.

    ``sections`` are the parts of the configuration that are compared (a teacher does not depend on the student).
    """

    config: Config
    facts: Mapping[str, str] = field(default_factory=dict)
    sections: tuple[str, ...] = ("data", "teacher", "student", "method", "train", "teacher_train", "seed")


@dataclass(frozen=True)
class Checkpoint:
    """The checkpoint file of one training, and the previous one."""

    path: Path
    identity: Identity
    note: Callable[[str], None] = lambda text: None

    @property
    def previous(self) -> Path:
        return self.path.with_name(f"{self.path.stem}.previous{self.path.suffix}")

    def save(self, state: Mapping[str, Any]) -> None:
        """Write ``state`` (state dicts, numbers, strings) and the random state, atomically."""
        random = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            random["cuda"] = torch.cuda.get_rng_state()
        buffer = io.BytesIO()
        identity = {
            "config": self.identity.config.model_dump(mode="json"),
            "facts": dict(self.identity.facts),
        }
        torch.save({"random": random, "identity": identity, **state}, buffer)
        payload = buffer.getvalue()
        content = MAGIC + digest([payload]) + payload

        def write(part: Path) -> None:
            part.write_bytes(content)
            if self.path.is_file():
                self.path.replace(self.previous)

        write_atomically(self.path, write)

    def load(self) -> dict[str, Any] | None:
        """The last undamaged state, after restoring the random state; None if none was written yet.

        ``ValueError`` if all checkpoints are damaged, or if they are of another run; it lists each difference.
        """
        there = [path for path in (self.path, self.previous) if path.is_file()]
        for path in there:
            state = read_state(path)
            if state is None:
                self.note(f"checkpoint: {path} is damaged" + self._instead(path, there))
                continue
            self._check(state.get("identity", {}), path)
            torch.set_rng_state(state["random"]["cpu"])
            if "cuda" in state["random"] and torch.cuda.is_available():
                torch.cuda.set_rng_state(state["random"]["cuda"])
            return state
        if there:
            raise ValueError(
                f"--resume: needs an undamaged checkpoint, got {' and '.join(map(str, there))}, which cannot be read; "
                "delete the damaged files to start again from the first epoch, or give another --out."
            )
        return None

    def _instead(self, path: Path, there: list[Path]) -> str:
        last = path == there[-1]
        return "" if last else f"; continuing from the previous one, {self.previous.name}"

    def _check(self, stored: Mapping[str, Any], path: Path) -> None:
        saved = Config.model_validate(known_fields(stored.get("config", {})))
        differences = differing_fields(saved, self.identity.config, self.identity.sections)
        facts = stored.get("facts", {})
        for name, value in self.identity.facts.items():
            if name not in facts or facts[name] == value:
                continue
            if name in NOTED:
                self.note(
                    f"checkpoint: {name} was {facts[name]} and is {value}; results may differ by rounding"
                )
            else:
                differences.append(f"{name} (was {facts[name]}, is {value})")
        if differences:
            raise ValueError(
                f"--resume: needs the run that wrote {path}, got other values of {', '.join(differences)}; set "
                "them as in OUT/config.yaml, or give another --out."
            )


def read_state(path: Path) -> dict[str, Any] | None:
    """The content of a checkpoint; None if it is damaged or not a checkpoint of outgrow."""
    try:
        content = path.read_bytes()
        start = len(MAGIC) + hashlib.sha256().digest_size
        stated, payload = content[len(MAGIC) : start], content[start:]
        if not content.startswith(MAGIC) or stated != digest([payload]):
            return None
        state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except PermissionError as error:  # it may be whole
        raise ValueError(
            f"--resume: needs a readable checkpoint, got {path} ({error.strerror}); change its permissions."
        ) from error
    except Exception:  # torch raises many types for a damaged file
        return None
    return state if isinstance(state, dict) else None


def differing_fields(saved: Config, now: Config, sections: tuple[str, ...]) -> list[str]:
    """The fields of ``sections`` that must not differ but do, as ``train.lr (was 0.1, is 0.05)``."""
    found = []
    for name in sections:
        here, there = getattr(now, name), getattr(saved, name)
        found += _differences(name, there, here)
    return found


def _differences(name: str, saved: Any, now: Any) -> list[str]:
    if isinstance(now, BaseModel) and isinstance(saved, BaseModel):
        return [
            line
            for field_name in type(now).model_fields
            for line in _differences(
                f"{name}.{field_name}", getattr(saved, field_name), getattr(now, field_name)
            )
        ]
    if saved == now or name in MAY_CHANGE:
        return []
    if name == "teacher.cache" and saved is not None and now is not None:
        return []  # another folder; but outputs with and without a cache differ by rounding
    return [f"{name} (was {saved}, is {now})"]


def fingerprint(config: Config) -> str:
    """A hash of a configuration without its output folder."""
    text = config.model_copy(update={"out": None}).model_dump_json()
    return hashlib.sha256(text.encode()).hexdigest()[:16]
