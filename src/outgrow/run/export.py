"""``outgrow export``: write the student of a run for deployment.

The result is a folder in the layout of the Hugging Face hub: the requested formats, ``config.json`` and a model card.
It is written to a temporary folder, which is moved into place once every file is checked.
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
from outgrow.run.predict import find_images
from outgrow.run.tasks import finished_task
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
"""The files of an export. Other files in its folder are kept."""
FULL = 1 << 16
"""A disk with fewer free bytes counts as full: no file of an export is smaller."""


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
    """Export the student of the run in ``folder`` to ``out`` (default: ``folder/export``).

    ``format`` is one of ``safetensors``, ``onnx``, ``torch``, or ``all``; ``quantize="int8"`` adds an 8-bit ONNX
    file. Each file is compared with the student on images of the run's data, or on ``images`` (files, folders and globs)
    if the data are no longer available. ``push`` is a repository of the hub to upload the folder to.

    ``ValueError``, with nothing written, for a run that is not finished, a folder that is not empty, a format that
    cannot be written, and a file whose outputs differ from the student's.
    """
    report = reporter or Reporter()
    if format not in (*FORMATS, "all"):
        raise ValueError(f"--format: needs one of {', '.join(FORMATS)}, all, got {format!r}; choose one.")
    if quantize not in (None, "int8"):
        raise ValueError(f"--quantize: needs int8, got {quantize!r}; leave it out for float32.")
    run = open_run(Path(folder))
    target = Path(out) if out is not None else run.folder / "export"
    formats = FORMATS if format == "all" else (format,)
    copies = len(formats) + (3 if quantize else 0)  # int8 has two intermediate files
    _check_target(target, overwrite=overwrite, room=copies * (run.folder / STUDENT).stat().st_size)
    pictures = tuple(map(Path, find_images([str(path) for path in images], what="--images", log=report.note)))
    # on the same disk as the target, which may be a mount of its own
    part = (target if target.is_dir() else target.parent) / f".{target.name}.{os.getpid()}.part"
    part.mkdir(parents=True)
    try:
        request = Request(part, formats, quantize == "int8", pictures, format == "all")  # type: ignore[arg-type]
        exported = _export(run, request, report)
        write_atomically(part / CARD, model_card(run.record, exported))
        _move(part, target)
    except Exception as error:  # libraries raise many types on a full disk
        if isinstance(error, NotWritten) or shutil.disk_usage(part).free >= FULL:
            raise
        reason = os.strerror(errno.ENOSPC)
        raise NotWritten(errno.ENOSPC, f"needs to write {target}, got {reason}; free some room") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    for note in exported.notes:
        report.note(f"note: {note}")
    result = {
        "folder": str(target),
        "files": {one.name: {"bytes": one.bytes, "check": one.check} for one in exported.files},
        "notes": list(exported.notes),
    }
    report.event("exported", **result)
    report.show(f"{target}: {', '.join(result['files'])}, {CARD} (please choose a licence in it)")
    if push is not None:
        result["pushed"] = _push(target, push, report)
    return result


def _export(run: FinishedRun, request: Request, report: Reporter) -> Exported:
    module = import_module(f"outgrow.{finished_task(run.record)}.export")
    exported: Exported = module.export_student(run, request, report)
    return exported


def _check_target(target: Path, *, overwrite: bool, room: int) -> None:
    """``ValueError`` if the folder cannot be written, or is not empty without ``overwrite``."""
    check_writable(target if target.is_dir() else target.parent, what="--out", room=room)
    if target.exists() and not target.is_dir():
        raise ValueError(f"--out: needs a folder, got the file {target}; choose another path.")
    files = sorted(path.name for path in target.iterdir()) if target.is_dir() else []
    if files and not overwrite:
        raise ValueError(
            f"--out {target}: needs an empty folder, got one with {', '.join(files[:3])}{', ...' if len(files) > 3 else ''}; "
            "choose another, or replace an export with --overwrite (other files stay)."
        )


def _move(part: Path, target: Path) -> None:
    """Move the finished files into place: by one rename if there is no folder yet, else file by file."""
    if not target.exists():
        part.rename(target)
        return
    for name in FILES:
        if not (part / name).exists():
            (target / name).unlink(missing_ok=True)
    # the card last, as it describes the other files
    for name in (*(path.name for path in part.iterdir() if path.name != CARD), CARD):
        (part / name).replace(target / name)


def _push(folder: Path, repository: str, report: Reporter) -> str:
    """Upload the files of an export. A new repository is created as private."""
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
            f"--push {repository}: needs the Hugging Face hub and a token with write access, got an error ({reason[:200]}); "
            f"the export is complete in {folder}: run `hf auth login`, then `hf upload {repository} {folder}`."
        ) from None
    address = str(getattr(commit, "repo_url", None) or f"https://huggingface.co/{name}")
    report.event("pushed", repository=name, address=address)
    report.show(f"pushed to {address}")
    return address
