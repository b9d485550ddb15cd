"""Small C files, compiled on this machine at first use.

A file compiles within a second, without PyTorch's headers. The library is cached for later processes.
Every caller has a fallback for machines without a compiler.
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
    """Compile ``source`` to a shared library and return its path.

    The file name has a hash of source, flags, compiler and processor. ``$CC`` comes before ``compilers``.
    ``OSError`` if there is no compiler or the cache cannot be written; ``subprocess.SubprocessError`` if the
    compiler fails.
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
        made.replace(kept)  # atomic: another process may be building the same file
    return kept


def processor_flags() -> frozenset[str]:
    """The processor's feature flags, as Linux lists them; empty elsewhere."""
    return frozenset(_processor().partition(":")[2].split())


def _processor() -> str:
    """What ``-march=native`` depends on: machines with different processors may share a home directory."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
