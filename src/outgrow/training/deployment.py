"""What ``outgrow export`` asks of a task, and what it gets back.

    open_run        a finished run, or an error that says what is missing
    Request         the formats that are asked for, and where they go
    Exported        the files, what was checked of them, and how they are loaded

A task answers in ``export.py``: ``export_student(run, request, report) -> Exported``.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from outgrow.training.record import RunRecord, read_record

FORMATS = ("safetensors", "onnx", "torch")
Format = Literal["safetensors", "onnx", "torch"]
STUDENT = "student.safetensors"


@dataclass(frozen=True)
class FinishedRun:
    """A run folder that has its record and its student."""

    folder: Path
    record: RunRecord

    @property
    def student(self) -> Path:
        return self.folder / STUDENT


@dataclass(frozen=True)
class Request:
    """Write ``formats`` into ``folder``, which is empty and not yet where it will be.

    ``images`` are pictures to compare on where the run's own test images are not there; ``every`` leaves a format out,
    with a note, where it is impossible, instead of refusing.
    """

    folder: Path
    formats: tuple[Format, ...]
    int8: bool = False
    images: tuple[Path, ...] = ()
    every: bool = False


@dataclass(frozen=True)
class ExportedFile:
    """A file by its name in the folder, and in a sentence what was found when it was compared with the student."""

    name: str
    bytes: int
    check: str


@dataclass(frozen=True)
class Exported:
    """What was written. ``library`` is the hub's word for what loads it, ``loading`` Markdown that says how."""

    files: tuple[ExportedFile, ...]
    library: str
    loading: str
    pipeline: str
    preparation: str
    """What the pictures must look like, in a sentence."""
    notes: tuple[str, ...] = field(default=())


def open_run(folder: Path, *, command: str = "export") -> FinishedRun:
    """``ValueError`` where ``folder`` is no run, is one that did not end, or has no student."""
    record = folder / "record.json"
    if record.is_file():
        if not (folder / STUDENT).is_file():
            raise ValueError(
                f"{command} {folder}: needs a run with {STUDENT}, got one without; run it again: outgrow distill --config "
                f"{folder / 'config.yaml'} --overwrite."
            )
        return FinishedRun(folder, read_record(record))
    if (folder / "config.yaml").is_file():
        raise ValueError(
            f"{command} {folder}: needs a finished run, got one without record.json, which was begun; finish it: outgrow "
            f"distill --config {folder / 'config.yaml'} --resume."
        )
    got = "a folder without record.json" if folder.is_dir() else "no folder"
    raise ValueError(f"{command} {folder}: needs the folder of a run (distill --out), got {got}; name one.")


def public_name(name: str) -> str:
    """A model's name for others to read: without the folders of this machine.

    >>> public_name("py:/home/me/nets.py:small"), public_name("timm/resnet50")
    ('py:nets.py:small', 'timm/resnet50')
    """
    if name.startswith("py:"):
        file, _, attribute = name.removeprefix("py:").rpartition(":")
        return f"py:{Path(file).name}:{attribute}"
    folder = Path(name.removeprefix("hf/"))
    return f"hf/{folder.name}" if name.startswith("hf/") and folder.is_dir() else name


def public_source(source: str) -> str:
    """A data source for others to read: without the folders of this machine.

    >>> public_source("folder:/home/me/photos"), public_source("coco:/data/coco:/data/coco/annotations")
    ('folder:photos', 'coco:coco:annotations')
    """
    kind, _, rest = source.partition(":")
    if kind == "hf" and not Path(rest).exists():
        return source
    return ":".join([kind, *(Path(part).name for part in rest.split(":") if part)])
