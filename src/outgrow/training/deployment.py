"""The interface between ``outgrow export`` and a task.

    open_run        a finished run, or an error that names the missing part
    Request         the requested formats and the output folder
    Exported        the files, the results of checking them, and how to load them

Each task implements it in ``export.py``: ``export_student(run, request, report) -> Exported``.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from outgrow.training.record import RunRecord, read_record

FORMATS = ("safetensors", "onnx", "torch")
Format = Literal["safetensors", "onnx", "torch"]
ADVICE = "replace the file, or leave it out of --images."
"""What to do about an image of ``--images`` that cannot be decoded."""
STUDENT = "student.safetensors"


@dataclass(frozen=True)
class FinishedRun:
    """A run folder with its record and its student."""

    folder: Path
    record: RunRecord

    @property
    def student(self) -> Path:
        return self.folder / STUDENT


@dataclass(frozen=True)
class Request:
    """Write ``formats`` into ``folder``, an empty temporary folder.

    The files are checked on ``images`` if the test images of the run are not available. With ``every``, a format
    that is impossible is left out with a note, instead of raising an error.
    """

    folder: Path
    formats: tuple[Format, ...]
    int8: bool = False
    images: tuple[Path, ...] = ()
    every: bool = False


@dataclass(frozen=True)
class ExportedFile:
    """A file by its name in the folder, and the result of its comparison with the student, in one sentence."""

    name: str
    bytes: int
    check: str


@dataclass(frozen=True)
class Exported:
    """The written files. ``library`` is the hub's name of the library that loads them, ``loading`` the instructions in
    Markdown."""

    files: tuple[ExportedFile, ...]
    library: str
    loading: str
    pipeline: str
    preparation: str
    """The required format of the images, in one sentence."""
    notes: tuple[str, ...] = field(default=())


def open_run(folder: Path, *, command: str = "export") -> FinishedRun:
    """Open a finished run. ``ValueError`` if ``folder`` is not a run, or the run is unfinished or has no student."""
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
            f"{command} {folder}: needs a finished run, got one without record.json; finish it: outgrow "
            f"distill --config {folder / 'config.yaml'} --resume."
        )
    got = "a folder without record.json" if folder.is_dir() else "a path without a folder"
    raise ValueError(
        f"{command} {folder}: needs the folder of a run, got {got}; give the --out of outgrow distill."
    )


def public_name(name: str) -> str:
    """The name of a model without the folders of this machine, for publication.

    >>> public_name("py:/home/me/nets.py:small"), public_name("timm/resnet50")
    ('py:nets.py:small', 'timm/resnet50')
    """
    if name.startswith("py:"):
        file, _, attribute = name.removeprefix("py:").rpartition(":")
        return f"py:{Path(file).name}:{attribute}"
    folder = Path(name.removeprefix("hf/"))
    return f"hf/{folder.name}" if name.startswith("hf/") and folder.is_dir() else name


def public_source(source: str) -> str:
    """The name of a data source without the folders of this machine, for publication.

    >>> public_source("folder:/home/me/photos"), public_source("coco:/data/coco:/data/coco/annotations")
    ('folder:photos', 'coco:coco:annotations')
    """
    kind, _, rest = source.partition(":")
    if kind == "hf" and not Path(rest).exists():
        return source
    return ":".join([kind, *(Path(part).name for part in rest.split(":") if part)])
