"""An interrupted run goes on where its last epoch ended. The teacher is never in here."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from outgrow.training.config import Config

FORMAT = 1


def save_checkpoint(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write ``state`` (state dicts, numbers, strings) and the random state, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    random = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        random["cuda"] = torch.cuda.get_rng_state()
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        torch.save({"format": FORMAT, "random": random, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def load_checkpoint(path: str | Path, *, run: str) -> dict[str, Any]:
    """What :func:`save_checkpoint` wrote, after restoring the random state.

    ``run`` identifies the configuration; a checkpoint of another is refused.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"--resume: needs a checkpoint, got none at {path}; start the run without --resume.")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"--resume: needs a whole checkpoint, got one at {path} that cannot be read ({type(error).__name__}); "
            "delete it and start again."
        ) from error
    if state.get("format") != FORMAT or state.get("run") != run:
        raise ValueError(
            f"--resume: needs the checkpoint of this configuration, got another one at {path}; "
            "rerun with OUT/config.yaml as it was, or choose another --out."
        )
    torch.set_rng_state(state["random"]["cpu"])
    if "cuda" in state["random"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["random"]["cuda"])
    return state


def fingerprint(config: Config) -> str:
    """The identity of a run: its configuration without where it is written."""
    text = config.model_copy(update={"out": None}).model_dump_json()
    return hashlib.sha256(text.encode()).hexdigest()[:16]
