"""The folder of one run: it holds one run, and nothing in it changes before the run is sure to be wanted.

config.yaml          what the run does; written first
checkpoint.pt        where it is, and checkpoint.previous.pt
teacher.pt, teacher.safetensors, correction.safetensors
student.safetensors, index.html, curves.png
record.json          the result; written last
"""

from pathlib import Path

from outgrow.machine.files import check_writable, write_atomically
from outgrow.training.checkpoint import differing_fields
from outgrow.training.config import Config, build_config, known_fields, load_config, with_checksum

BEGUN = ("config.yaml", "checkpoint.pt", "checkpoint.previous.pt", "teacher.pt", "teacher.safetensors")
FILES = (
    *BEGUN,
    "teacher.previous.pt",
    "correction.safetensors",
    "student.safetensors",
    "index.html",
    "curves.png",
    "record.json",
)
"""What a run writes, beside the folder ``pictures`` of a detector."""
LEAST_ROOM = 64 << 20
"""Bytes that a folder must have free at the start."""


def open_folder(out: Path, config: Config, *, resume: bool = False, overwrite: bool = False) -> None:
    """Make ``out`` the folder of this run.

    ``ValueError``, with nothing changed on disk, where it cannot be written, where it holds a run and neither
    ``resume`` nor ``overwrite`` is given, and where the run to resume is another one.
    """
    check_writable(out, what="--out", room=LEAST_ROOM)
    finished, begun = (out / "record.json").exists(), [name for name in BEGUN if (out / name).exists()]
    if resume and overwrite:
        raise ValueError("--resume and --overwrite: needs one of them, got both; --overwrite starts again.")
    if (finished or begun) and not (resume or overwrite):
        state = "a finished run (record.json)" if finished else f"a run that was begun ({begun[0]})"
        raise ValueError(
            f"--out {out}: needs a folder without a run, got {state}; give another folder, --resume to continue it, or "
            "--overwrite to replace it."
        )
    if resume and (out / "config.yaml").is_file():
        _check_same(out / "config.yaml", config)
        return
    if overwrite:
        clear(out)
    write_config(out, config)


def write_config(out: Path, config: Config) -> None:
    """Write ``config.yaml``, which reruns the run."""
    write_atomically(out / "config.yaml", with_checksum(config.to_yaml()))


def clear(out: Path) -> None:
    """Take away what a run has written; other files stay. The record goes first: without it no run is finished."""
    for name in reversed(FILES):
        (out / name).unlink(missing_ok=True)
    for picture in (out / "pictures").glob("*.jpg"):
        picture.unlink()


def _check_same(path: Path, config: Config) -> None:
    saved = build_config(known_fields(load_config(path)))
    every = tuple(name for name in Config.model_fields if name not in ("recipe", "out"))
    differences = differing_fields(saved, config, every)
    if config.train.epochs < saved.train.epochs:
        differences.append(
            f"train.epochs (was {saved.train.epochs}, is {config.train.epochs}: more is possible)"
        )
    if differences:
        raise ValueError(
            f"--resume: needs the run that {path.parent} holds, got another in {', '.join(differences)}; rerun with "
            f"--config {path}, or give another --out."
        )
