"""Small files in C, built by the machine's compiler when they are first needed.

A file builds within a second, without PyTorch's headers, and the library is kept for the next process.
Whoever uses one has a plain path for machines without a compiler.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")


def build(
    source: Path, flags: Sequence[str] = (), *, compilers: Sequence[str] = ("gcc", "clang", "cc")
) -> Path:
    """The path of ``source`` as a library; its name tells source, flags, compiler and processor apart.

    ``$CC`` comes before ``compilers``. ``OSError`` where there is none or the cache cannot be written;
    ``subprocess.SubprocessError`` where the compiler fails.
    """
    compiler = os.environ.get("CC") or next((c for c in compilers if shutil.which(c)), None)
    if compiler is None:
        raise OSError("none")
    flags = (*FLAGS, *flags)
    key = (source.read_text(), flags, compiler, platform.machine(), _processor())
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "outgrow"
    kept = home / f"{source.stem}-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.so"
    if kept.is_file():
        return kept
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home) as folder:
        made = Path(folder) / kept.name
        command = [*compiler.split(), *flags, str(source), "-o", str(made), "-lm"]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
        made.replace(kept)  # at once: another process may be building the same
    return kept


def processor_flags() -> frozenset[str]:
    """What the processor can do, as Linux lists it; empty elsewhere."""
    return frozenset(_processor().partition(":")[2].split())


def _processor() -> str:
    """What ``-march=native`` depends on: a home may be shared by unlike machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
