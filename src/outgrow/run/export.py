"""``outgrow export``: the student of a run, alone, for whoever uses it.

A folder in the hub's layout: the formats that were asked for, ``config.json``, and a model card. It is written beside
its place and moved there when every file in it has been checked.
"""

import errno
import os
import shutil
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from outgrow.machine.files import NotWritten, check_writable, write_atomically
from outgrow.report.card import model_card
from outgrow.run.tasks import task_name
from outgrow.training.deployment import FORMATS, STUDENT, Exported, FinishedRun, Request, open_run
from outgrow.training.progress import Reporter

CARD = "README.md"
FILES = (
    "model.safetensors",
    "model.pt2",
    "model.onnx",
    "model.int8.onnx",
    "config.json",
    "preprocessor_config.json",
    CARD,
)
"""What an export writes; other files in its folder stay."""
FULL = 1 << 16
"""A disk with fewer free bytes is full: no file of an export is smaller."""


def export_run(
    folder: str | Path,
    *,
    out: str | Path | None = None,
    format: str = "safetensors",
    quantize: str | None = None,
    images: Sequence[Path] = (),
    overwrite: bool = False,
    push: str | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Write the student of the run in ``folder`` into ``out`` (``folder/export`` by default).

    ``format`` is one of ``safetensors``, ``onnx``, ``torch``, or ``all``; ``quantize="int8"`` adds an ONNX file of 8
    bits. ``images`` are compared on where the run's data are not there any more. ``push`` names a repository of the
    hub that the folder is uploaded to.

    ``ValueError`` for a run that is not finished, a folder that holds something, a format that cannot be written, and a
    file that does not compute what the student does: then nothing is written.
    """
    report = reporter or Reporter()
    if format not in (*FORMATS, "all"):
        raise ValueError(f"--format: needs one of {', '.join(FORMATS)}, all, got {format!r}; choose one.")
    if quantize not in (None, "int8"):
        raise ValueError(f"--quantize: needs int8, got {quantize!r}; leave it out for float32.")
    run = open_run(Path(folder))
    there = Path(out) if out is not None else run.folder / "export"
    formats = FORMATS if format == "all" else (format,)
    room = (run.folder / STUDENT).stat().st_size * (
        len(formats) + (3 if quantize else 0)
    )  # int8: two steps on the way
    _check_place(there, overwrite=overwrite, room=room)
    # on one disk with its place: a folder that is there may be a disk of its own
    part = (there if there.is_dir() else there.parent) / f".{there.name}.{os.getpid()}.part"
    part.mkdir(parents=True)
    try:
        request = Request(part, formats, quantize == "int8", tuple(images), format == "all")  # type: ignore[arg-type]
        exported = _export(run, request, report)
        write_atomically(part / CARD, model_card(run.record, exported))
        _move(part, there)
    except Exception as error:  # libraries make of a full disk what they like
        if isinstance(error, NotWritten) or shutil.disk_usage(part).free >= FULL:
            raise
        reason = os.strerror(errno.ENOSPC)
        raise NotWritten(errno.ENOSPC, f"needs to write {there}, got {reason}; free some room") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    for note in exported.notes:
        report.note(f"note: {note}")
    result = {
        "folder": str(there),
        "files": {one.name: {"bytes": one.bytes, "check": one.check} for one in exported.files},
        "notes": list(exported.notes),
    }
    report.event("exported", **result)
    if push is not None:
        result["pushed"] = _push(there, push, report)
    return result


def _export(run: FinishedRun, request: Request, report: Reporter) -> Exported:
    room = import_module(f"outgrow.{task_name(run.record.config.data.source)}.export")
    exported: Exported = room.export_student(run, request, report)
    return exported


def _check_place(there: Path, *, overwrite: bool, room: int) -> None:
    """``ValueError`` where the folder cannot be written, or holds something that an export must not touch."""
    check_writable(there if there.is_dir() else there.parent, what="--out", room=room)
    if there.exists() and not there.is_dir():
        raise ValueError(f"--out: needs a folder, got the file {there}; name another.")
    held = sorted(path.name for path in there.iterdir()) if there.is_dir() else []
    if held and not overwrite:
        raise ValueError(
            f"--out {there}: needs an empty folder, got one with {', '.join(held[:3])}{', ...' if len(held) > 3 else ''}; "
            "name another, or replace an export with --overwrite (other files stay)."
        )


def _move(part: Path, there: Path) -> None:
    """The finished files to their place, in one step where no folder is there."""
    if not there.exists():
        part.rename(there)
        return
    for name in FILES:
        if not (part / name).exists():
            (there / name).unlink(missing_ok=True)
    # the card last: what it says is then there
    for name in (*(path.name for path in part.iterdir() if path.name != CARD), CARD):
        (part / name).replace(there / name)


def _push(folder: Path, repository: str, report: Reporter) -> str:
    """Upload what an export wrote; a repository that is not there yet is made, private."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        api = HfApi()
        name = api.create_repo(repository, exist_ok=True, private=True).repo_id
        commit = api.upload_folder(
            repo_id=name,
            folder_path=folder,
            allow_patterns=list(FILES),
            commit_message="Student exported by outgrow",
        )
    except (OSError, HfHubHTTPError, HFValidationError, ValueError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"--push {repository}: needs the Hugging Face hub and a token that may write there, got an error ({reason[:200]}); "
            f"the export is whole in {folder}: go online and `hf auth login`, then upload it with `hf upload {repository} "
            f"{folder}`."
        ) from None
    address = str(getattr(commit, "repo_url", None) or f"https://huggingface.co/{name}")
    report.event("pushed", repository=name, address=address)
    return address
