"""The folder of a run. It holds one run, and nothing in it changes before all checks have passed.

config.yaml          the configuration; written first
checkpoint.pt        the state of the training; checkpoint.previous.pt is the one before
teacher.pt, teacher.safetensors, correction.safetensors
correction-2.safetensors, ..., mixture.safetensors    with teacher.others
student.safetensors, index.html, curves.png
track.json, tensorboard    with --track: what the trackers have, and TensorBoard's files
record.json          the result; written last
.replaced            the run that --overwrite replaces, until the new one has passed its checks
.running             the process that trains here, until it ends
"""

import contextlib
import json
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal

import psutil

from outgrow.machine.files import check_writable, write_atomically
from outgrow.training.checkpoint import differing_fields
from outgrow.training.config import Config, build_config, known_fields, load_config, with_checksum

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

TRACKED, TENSORBOARD = "track.json", "tensorboard"
BEGUN = ("config.yaml", "checkpoint.pt", "checkpoint.previous.pt", "teacher.pt", "teacher.safetensors")
FILES = (
    *BEGUN,
    "teacher.previous.pt",
    "correction.safetensors",
    "mixture.safetensors",
    "student.safetensors",
    "index.html",
    "curves.png",
    TRACKED,
    "record.json",
)
"""Files that a run writes. A detector also writes the folder ``pictures``, and ``--track`` the one of TensorBoard."""
BEFORE = ".replaced"
"""A folder with the run that ``--overwrite`` replaces, until the new one has passed its checks."""
RUNNING = ".running"
"""A file that names the process of the run. It may be left behind by one that was killed."""
TRIES = 20
"""To open that file, which another process may remove in between."""
STUDY = ("compare.yaml", "table.json")
"""Files that a comparison writes."""
LEAST_ROOM = 64 << 20
"""Free bytes that the disk of a run folder must have at the start."""


def open_folder(out: Path, config: Config, *, resume: bool = False, overwrite: bool = False) -> None:
    """Make ``out`` the folder of this run, until :func:`vacate`.

    ``ValueError``, with nothing changed on disk, if the folder cannot be written, if another process trains in it,
    if it holds a run and neither ``resume`` nor ``overwrite`` is given, or if the run to resume has another
    configuration.
    """
    check_folder(out, resume=resume, overwrite=overwrite)
    _occupy(out)
    try:
        if resume and (out / "config.yaml").is_file():
            _check_same(out / "config.yaml", config)
            return
        if overwrite:
            _check_weights_stay(out, config)
            set_aside(out)
        elif not resume:
            _claim(out)
        try:
            write_config(out, config)
        except OSError:  # such as a full disk
            release(out)
            raise
    except (ValueError, OSError):
        vacate(out)
        raise


@contextlib.contextmanager
def occupied(out: Path) -> Iterator[None]:
    """``ValueError`` if another process of this machine works in ``out``; in the block no other one may."""
    _occupy(out)
    try:
        yield
    finally:
        vacate(out)


def vacate(out: Path) -> None:
    """The run of this process in ``out`` has ended: other processes may continue or replace it."""
    if not (out / RUNNING).exists():
        return
    # if it cannot be written, the reason is on its way
    with contextlib.suppress(OSError), _running_file(out) as file:
        if _owner(file, out) == "this process":
            (out / RUNNING).unlink(missing_ok=True)


def _occupy(out: Path) -> None:
    with _running_file(out) as file:
        _refuse_other(_owner(file, out), out)
        mine = {"pid": os.getpid(), "began": psutil.Process().create_time(), **_place(out)}
        file.seek(0)
        file.truncate()
        file.write(json.dumps(mine))


def _refuse_other(owner: int | str | None, out: Path) -> None:
    """``ValueError`` if another process works in ``out``: two would write each other's files."""
    if isinstance(owner, int):
        raise ValueError(
            f"--out {out}: needs a folder in which no other process works, got one in which process {owner} does; wait for "
            "it, stop it, or give another folder."
        )


@contextlib.contextmanager
def _running_file(out: Path) -> Iterator[IO[str]]:
    """The file that names the process of a run, for this process alone. The lock is short: forked workers inherit none."""
    out.mkdir(parents=True, exist_ok=True)
    for left in reversed(range(TRIES)):
        with (out / RUNNING).open("a+", encoding="utf-8") as file:
            if fcntl is not None:
                with contextlib.suppress(OSError):  # file systems of clusters may have no locks
                    fcntl.flock(file, fcntl.LOCK_EX)
            try:
                same = os.path.samestat(os.fstat(file.fileno()), (out / RUNNING).stat())
            except FileNotFoundError:  # its process has just ended and removed it
                same = False
            if same or not left:  # some file systems give one file several numbers
                file.seek(0)
                yield file
                return


def _place(out: Path) -> dict[str, str]:
    """What a copy of the folder has not, nor the same folder seen from another machine."""
    return {"host": platform.node(), "folder": str(out.resolve())}


def _owner(file: IO[str], out: Path) -> int | Literal["this process"] | None:
    """The number of the other process that works in ``out``; None for one that has ended, or of another machine.

    A process is known by its number and its start, as numbers are used again.
    """
    try:
        found = json.loads(file.read())
        if any(found[name] != here for name, here in _place(out).items()):
            return None
        process = psutil.Process(found["pid"])
        same = abs(process.create_time() - found["began"]) < 2  # seconds: the clock may have been set
        if not same or process.status() == psutil.STATUS_ZOMBIE:
            return None
        return "this process" if process.pid == os.getpid() else process.pid
    except (ValueError, KeyError, TypeError, psutil.Error):  # empty, or not one of ours
        return None


def check_folder(out: Path, *, resume: bool = False, overwrite: bool = False) -> None:
    """The checks of :func:`open_folder` that need no configuration."""
    check_writable(out, what="--out", room=LEAST_ROOM)
    with contextlib.suppress(OSError), (out / RUNNING).open(encoding="utf-8") as file:
        _refuse_other(_owner(file, out), out)
    study = next((name for name in STUDY if (out / name).exists()), None)
    if study is not None and not resume:
        raise ValueError(
            f"--out {out}: needs a folder of its own for a run, got that of a comparison ({study}), whose page the run would replace; "
            "name another, such as one in it."
        )
    finished, begun = (out / "record.json").exists(), [name for name in BEGUN if (out / name).exists()]
    if resume and overwrite:
        raise ValueError(
            "--resume and --overwrite: needs at most one of them, got both; leave out --overwrite to continue the run."
        )
    if (finished or begun) and not (resume or overwrite):
        state = "a finished run (record.json)" if finished else f"an unfinished run ({begun[0]})"
        raise ValueError(
            f"--out {out}: needs a folder without a run, got {state}; give another folder, --resume to continue it, or "
            "--overwrite to replace it."
        )


def _claim(out: Path) -> None:
    """``ValueError`` if another process has begun a run here since the checks."""
    try:
        (out / "config.yaml").touch(exist_ok=False)
    except FileExistsError:
        raise ValueError(
            f"--out {out}: needs a folder without a run, got one in which another process has just begun; give another folder."
        ) from None


def check_no_run(out: Path) -> None:
    """``ValueError`` if ``out``, the folder for a comparison, is that of a run."""
    found = next((name for name in ("record.json", "checkpoint.pt") if (out / name).exists()), None)
    if found is not None:
        raise ValueError(
            f"--out {out}: needs a folder of its own for a comparison, got that of a run ({found}), whose page it would replace; "
            "name another, such as the folder above."
        )


def write_config(out: Path, config: Config) -> None:
    """Write ``config.yaml``, which reruns the run."""
    write_atomically(out / "config.yaml", with_checksum(config.to_yaml()))


def _check_weights_stay(out: Path, config: Config) -> None:
    """``ValueError`` if the run that is to be replaced holds weights that the new one reads."""
    weights = {
        "student.weights": config.student.weights,
        "teacher.weights": config.teacher.weights,
        **{f"teacher.others[{i}].weights": other.weights for i, other in enumerate(config.teacher.others)},
    }
    for name, file in weights.items():
        if file is not None and Path(file).resolve().parent == out.resolve():
            raise ValueError(
                f"--overwrite: needs weights that are not in the run it replaces, got {name} {file}; give another --out."
            )


def set_aside(out: Path) -> None:
    """Move the files of the run in ``out`` into a folder of it, until :func:`drop_aside` or :func:`release`. Others stay."""
    before = out / BEFORE
    if before.is_dir():  # a replacement was killed before it had begun
        release(out)
    for file in _files(out):
        target = before / file.relative_to(out)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.replace(target)


def drop_aside(out: Path) -> None:
    """Delete the run that :func:`set_aside` moved: the one that replaces it has passed its checks."""
    shutil.rmtree(out / BEFORE, ignore_errors=True)


def release(out: Path) -> None:
    """Undo :func:`open_folder` for a run that was refused before it wrote anything but its ``config.yaml``.

    The folder then holds no run, or again the one that was to be replaced.
    """
    if any((out / name).exists() for name in FILES if name not in ("config.yaml", TRACKED)):
        return drop_aside(out)
    (out / "config.yaml").unlink(missing_ok=True)
    before = out / BEFORE
    for file in _files(before):
        (out / file.relative_to(before)).parent.mkdir(exist_ok=True)
        file.replace(out / file.relative_to(before))
    return drop_aside(out)


def _files(out: Path) -> list[Path]:
    """The files of a run in ``out``, the record first: a run without one is unfinished."""
    patterns = ("correction-*.safetensors", "pictures/*.jpg", f"{TENSORBOARD}/events.out.tfevents.*")
    named = [out / name for name in reversed(FILES) if (out / name).exists()]
    return named + [file for pattern in patterns for file in out.glob(pattern)]


def _check_same(path: Path, config: Config) -> None:
    saved = build_config(known_fields(load_config(path)))
    every = tuple(name for name in Config.model_fields if name not in ("recipe", "out"))
    differences = differing_fields(saved, config, every)
    if config.train.epochs < saved.train.epochs:
        differences.append(
            f"train.epochs (was {saved.train.epochs}, is {config.train.epochs}: it may only rise)"
        )
    if differences:
        raise ValueError(
            f"--resume: needs the run in {path.parent}, got other values of {', '.join(differences)}; rerun with "
            f"--config {path}, or give another --out."
        )
