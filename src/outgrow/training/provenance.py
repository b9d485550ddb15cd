"""The conditions of a result: versions, commit, command, hardware, seconds, and hashes of the files that it reads."""

import hashlib
import os
import platform
import subprocess
import sys
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from outgrow.machine.files import counted
from outgrow.training.config import Config


def provenance(device: torch.device, started: float) -> dict[str, Any]:
    """The provenance fields of a record. ``started`` is in seconds since the epoch."""
    import torchvision

    from outgrow import __version__

    return {
        "versions": {
            "outgrow": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
        "commit": _commit(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "hardware": _hardware(device),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": round(time.time() - started, 1),
    }


def files_of(config: Config) -> dict[str, str]:
    """A hash of each file that ``config`` names, by the field: another file under the same name is another run."""
    named = {
        "teacher.weights": config.teacher.weights,
        "student.weights": config.student.weights,
        "data.class_map": config.data.class_map,
        **{f"teacher.others[{i}].weights": one.weights for i, one in enumerate(config.teacher.others)},
    }
    found = {}
    for name, path in named.items():
        if path is not None and Path(path).expanduser().is_file():
            state = Path(path).expanduser().stat()
            found[name] = _hash(Path(path).expanduser(), state.st_size, state.st_mtime_ns)
    return found


@lru_cache(maxsize=64)
def _hash(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _commit() -> str | None:
    """The commit of this source tree, with a plus if tracked files have changed since.

    None for an installed copy: a repository around it would be another project's.
    """
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(
            command, cwd=here.parent, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD")[:12] + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [
            line.split(":", 1)[1].strip()
            for line in cpuinfo.read_text().splitlines()
            if line.startswith("model name")
        ]
        model = names[0] if names else model
    return f"{model}, {os.cpu_count()} cores, {counted(torch.get_num_threads(), 'thread')}"
