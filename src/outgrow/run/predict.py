"""``outgrow predict``: predictions of a student for image files, as CSV or JSON.

The model is a run, an export, or a file of one. Images are prepared as in the evaluation of the run.
"""

import csv
import glob
import io
import itertools
import json
import re
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from PIL.Image import Image

from outgrow.data.files import look_into, notes_of, read_picture
from outgrow.data.notes import printable, some
from outgrow.data.pixels import decode
from outgrow.machine.files import check_writable, counted, write_atomically
from outgrow.models.create import DETECTORS
from outgrow.models.portable import OnnxModel, read_program
from outgrow.models.weights import read_weights
from outgrow.run.tasks import SOURCES, finished_task
from outgrow.training.deployment import STUDENT, open_run

READERS = 4
"""Threads that decode. Pillow releases the GIL."""
AHEAD = 32
"""Images that are decoded ahead."""
MAX_LOGGED = 10
"""The most unreadable images that are logged by name. Further ones are only counted."""
ADVICE = "replace the file, or leave it out."
"""What to do about an unreadable image."""
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""Characters with which a formula may start in a spreadsheet."""
NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")
"""Text that a spreadsheet reads as a number, not as a formula."""


def predict_files(
    model: str | Path,
    images: Sequence[str],
    *,
    out: str | Path | None = None,
    as_json: bool = False,
    top: int | None = None,
    batch_size: int = 32,
    score: float | None = None,
    pictures: str | Path | None = None,
    log: Callable[[str], None] = lambda text: None,
    stream: IO[str] | None = None,
) -> dict[str, Any]:
    """Write the predictions of ``model`` for ``images`` to ``out`` (``.csv`` or ``.json``), or to ``stream``.

    ``images`` are files, folders (with all subfolders) and globs. ``top`` is the number of classes, or the most boxes,
    per image. ``score`` is the lowest score of a box. ``pictures`` is a folder for images with their boxes drawn.
    Images that cannot be read are logged and left out; ``ValueError`` if none can be read. Returns ``read``, the
    number of images, and ``broken``, the error of each unreadable file.
    """
    if out is not None and Path(out).suffix.lower() not in (".csv", ".json"):
        raise ValueError(
            f"--out: needs a file that ends in .csv or .json, got {str(out)!r}; change the suffix."
        )
    files = find_images(images, log=log)
    module, predictor = open_model(Path(model))
    if predictor.task != "detection" and (score is not None or pictures is not None):
        raise ValueError("--score and --pictures: need a detector, got a classifier; leave them out.")
    for folder, what in ((out and Path(out).absolute().parent, "--out"), (pictures, "--pictures")):
        if folder is not None:
            check_writable(Path(folder), what=what)
    broken: dict[str, str] = {}
    rows = predictor.predict(
        decoded_images(files, broken, log),
        top=top,
        batch_size=batch_size,
        score=score,
        drawn=None if pictures is None else Path(pictures),
    )
    boxes: list[int] = []
    rows = _counting(rows, boxes)
    as_json = as_json or (out is not None and Path(out).suffix.lower() == ".json")
    lines = json_lines(rows) if as_json else csv_lines(module.columns(rows, top, len(predictor.classes)))
    lines = unless_all_broken(lines, files, broken)
    if out is None:
        target = stream or sys.stdout
        for line in lines:
            print_bytes(line, target)
    else:
        write_atomically(out, "".join(lines).encode("utf-8", "surrogateescape"))
        log(f"{len(files) - len(broken):,} images: {out}")
    if boxes and not any(boxes):
        log("no boxes: none has the lowest score that is shown; a lower --score shows more")
    if broken:
        log(f"{len(broken)} of {len(files)} images could not be read and were left out")
    return {"read": len(files) - len(broken), "broken": broken}


def _counting(rows: Iterable[dict[str, Any]], boxes: list[int]) -> Iterator[dict[str, Any]]:
    """``rows``, with the number of boxes of each appended to ``boxes`` where they have some."""
    for row in rows:
        if "boxes" in row:
            boxes.append(len(row["boxes"]))
        yield row


def open_model(path: Path) -> tuple[ModuleType, Any]:
    """The ``predict`` module of the task, and the predictor in ``path``.

    ``ValueError`` if ``path`` is no run, no export and no file of one.
    """
    if path.is_dir():
        exported = [path / name for name in ("model.safetensors", "model.pt2", "model.onnx")]
        present = [file for file in exported if file.is_file()]
        if not present or (path / "record.json").is_file():
            run = open_run(path, command="predict")
            module = _module(finished_task(run.record))
            return module, module.of_run(run)
        path = _usable(present)
    if path.suffix == ".onnx" and path.is_file():
        model = OnnxModel(path)
        module = _module(str(model.facts.get("task")))
        return module, module.of_onnx(model)
    if path.suffix == ".pt2" and path.is_file():
        facts = read_program(path)[1]
        module = _module(str(facts.get("task")))
        return module, module.of_program(path, facts)
    if path.name == STUDENT and (path.parent / "record.json").is_file():
        return open_model(path.parent)
    if path.suffix == ".safetensors" and path.is_file():
        metadata = read_weights(path)[1]
        family = str(metadata.get("model")).partition(":")[0]
        detects = metadata.get("task") == "detection" or family in DETECTORS
        module = _module("detection" if detects else "classification")
        return module, module.of_weights(path)
    raise ValueError(
        f"predict {path}: needs the folder of a run or of an export, or a .safetensors, .onnx or .pt2 file of one, got "
        f"{'another file' if path.exists() else 'no such path'}; pass what `outgrow distill --out` or `outgrow export` "
        "wrote."
    )


def _usable(files: Sequence[Path]) -> Path:
    """The weights. If their model is defined in a user's file that is missing here: a format that does not need it."""
    first = files[0]
    if first.suffix == ".safetensors" and len(files) > 1:
        name = str(read_weights(first)[1].get("model"))
        if name.startswith("py:") and not Path(name.removeprefix("py:").rpartition(":")[0]).is_file():
            return files[1]
    return first


def _module(task: str) -> ModuleType:
    if task not in {"classification", *SOURCES.values()}:
        raise ValueError(
            f"predict: needs a file that `outgrow export` wrote, got one for the task {task!r}; export again."
        )
    return import_module(f"outgrow.{task}.predict")


def find_images(
    images: Sequence[str], *, what: str = "predict", log: Callable[[str], None] = lambda text: None
) -> list[str]:
    """The files in the given order, those of folders and globs sorted by path, each once.

    What is left out of a folder is logged. ``ValueError``, which starts with ``what``, for a missing path, or a folder or
    glob without images.
    """
    found: dict[str, None] = {}
    for text in images:
        path = Path(text)
        if path.is_dir():
            members = _pictures_in(path, log)
            if not members:
                raise ValueError(
                    f"{what}: needs images, got the folder {printable(text)} without any; choose another."
                )
        elif path.exists():
            members = [text]
        else:
            matches = sorted(glob.glob(text, recursive=True))
            members = []
            for match in matches:
                members += _pictures_in(Path(match), log) if Path(match).is_dir() else [match]
            if not members:
                raise ValueError(
                    f"{what}: needs files, folders or globs that exist, got {printable(text)!r}; check the path, "
                    "and quote a glob."
                )
        found.update(dict.fromkeys(members))
    return list(found)


def _pictures_in(folder: Path, log: Callable[[str], None]) -> list[str]:
    """The images in ``folder``. What else is in it is logged."""
    seen = look_into(folder)
    for note in notes_of(seen, folder):
        log(note.removeprefix("data: "))
    if seen.gone:
        log(f"left out {len(seen.gone)} links whose target does not exist ({some(seen.gone)}).")
    return seen.pictures


def decoded_images(
    files: Sequence[str], broken: dict[str, str], log: Callable[[str], None]
) -> Iterator[tuple[str, Image]]:
    """Decode images ahead, in order. Unreadable ones are added to ``broken`` with the error."""

    def read(file: str) -> Image:
        return decode(read_picture(file), where=lambda: printable(file), advice=ADVICE)

    with ThreadPoolExecutor(READERS) as pool:
        waiting: deque[tuple[str, Future[Image]]] = deque()
        rest = iter(files)
        while True:
            while len(waiting) < AHEAD and (file := next(rest, None)) is not None:
                waiting.append((file, pool.submit(read, file)))
            if not waiting:
                return
            file, decoded = waiting.popleft()
            try:
                image = decoded.result()
            except ValueError as error:
                broken[file] = str(error)
                if len(broken) <= MAX_LOGGED:
                    log(f"left out: {str(error).splitlines()[0]}")
                continue
            yield file, image


def unless_all_broken(lines: Iterable[str], files: Sequence[str], broken: dict[str, str]) -> Iterator[str]:
    """``lines``; ``ValueError`` if no image can be read. The first may be a header, so it waits for the second."""
    rest = iter(lines)
    held = list(itertools.islice(rest, 1))
    for line in rest:
        yield from (*held, line)
        held = []
    if broken and len(broken) == len(files):
        raise ValueError(
            f"predict: needs images that can be read, got {counted(len(files), 'unreadable one')} (the first: "
            f"{next(iter(broken.values())).splitlines()[0]}); check the files."
        )
    yield from held


def csv_lines(table: Iterable[Sequence[Any]]) -> Iterator[str]:
    """CSV (RFC 4180). Cells that a spreadsheet would run as a formula get a prefix: ./ for files, ' for other text."""
    for row in table:
        text = io.StringIO()
        first, *rest = row
        csv.writer(text, lineterminator="\n").writerow([_file(first), *(_cell(value) for value in rest)])
        yield text.getvalue()


def _file(name: Any) -> Any:
    """An equivalent path that does not start a formula."""
    return f"./{name}" if str(name).startswith(FORMULA) else name


def _cell(value: Any) -> Any:
    if not isinstance(value, str) or not value.startswith(FORMULA) or NUMBER.fullmatch(value):
        return value
    return f"'{value}"


def json_lines(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """A JSON list, one image per line."""
    before = "[\n"
    for row in rows:
        yield before + json.dumps(row)
        before = ",\n"
    yield "\n]\n" if before != "[\n" else "[]\n"


def print_bytes(line: str, target: IO[str]) -> None:
    """Write ``line``; file names that are not UTF-8 are written as their bytes."""
    buffer = getattr(target, "buffer", None)
    if buffer is None:
        target.write(line)
    else:
        target.flush()
        buffer.write(line.encode("utf-8", "surrogateescape"))
