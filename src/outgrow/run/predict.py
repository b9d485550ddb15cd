"""``outgrow predict``: what a student says of pictures in files, as a table or as JSON.

A run, an export, or one of its files; every picture is prepared as in the evaluation of the run.
"""

import csv
import glob
import io
import json
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from PIL.Image import Image

from outgrow.data.files import look_into, read_picture
from outgrow.data.notes import printable
from outgrow.data.pixels import decode
from outgrow.machine.files import check_writable, write_atomically
from outgrow.models.portable import OnnxModel, read_program
from outgrow.models.weights import read_weights
from outgrow.run.tasks import SOURCES, task_name
from outgrow.training.deployment import STUDENT, open_run

READERS = 4
"""Threads that decode: Pillow lets others run meanwhile."""
AHEAD = 32
"""Pictures that are decoded before they are asked for."""
BROKEN = 10
"""Pictures that could not be read, by name; more are counted."""
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the start of a formula."""


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
    say: Callable[[str], None] = lambda text: None,
    stream: IO[str] | None = None,
) -> dict[str, Any]:
    """Write what ``model`` says of ``images`` to ``out`` (``.csv`` or ``.json``), or to ``stream``.

    ``images`` are files, folders (at any depth) and globs. ``top`` is how many classes, or boxes, of each picture;
    ``score`` the least of a box; ``pictures`` a folder for pictures with boxes drawn. A picture that cannot be read is
    named through ``say`` and left out; where all cannot, that is a ``ValueError``. Returns how many were ``read``, and
    the ``broken`` ones.
    """
    if out is not None and Path(out).suffix.lower() not in (".csv", ".json"):
        raise ValueError(f"--out: needs a file that ends in .csv or .json, got {str(out)!r}; name one.")
    files = find_pictures(images)
    room, reader = open_model(Path(model))
    if reader.task != "detection" and (score is not None or pictures is not None):
        raise ValueError("--score and --pictures: need a detector, got a classifier; leave them out.")
    for folder, what in ((out and Path(out).absolute().parent, "--out"), (pictures, "--pictures")):
        if folder is not None:
            check_writable(Path(folder), what=what)
    broken: dict[str, str] = {}
    rows = reader.predict(
        readable(files, broken, say),
        top=top,
        batch_size=batch_size,
        score=score,
        drawn=None if pictures is None else Path(pictures),
    )
    as_json = as_json or (out is not None and Path(out).suffix.lower() == ".json")
    lines = json_lines(rows) if as_json else csv_lines(room.columns(rows, top, len(reader.classes)))
    lines = checked(lines, files, broken)
    if out is None:
        target = stream or sys.stdout
        for line in lines:
            print_bytes(line, target)
    else:
        write_atomically(out, "".join(lines).encode("utf-8", "surrogateescape"))
    if broken:
        say(f"{len(broken)} of {len(files)} pictures could not be read, and were left out")
    return {"read": len(files) - len(broken), "broken": broken}


def open_model(path: Path) -> tuple[ModuleType, Any]:
    """What ``path`` predicts with, and its task's module. ``ValueError`` where it is no run, export, or file of one."""
    if path.is_dir():
        exported = [path / name for name in ("model.safetensors", "model.pt2", "model.onnx")]
        there = [file for file in exported if file.is_file()]
        if not there or (path / "record.json").is_file():
            run = open_run(path, command="predict")
            room = _room(task_name(run.record.config.data.source))
            return room, room.of_run(run)
        path = _fitting(there)
    if path.suffix == ".onnx" and path.is_file():
        model = OnnxModel(path)
        room = _room(str(model.facts.get("task")))
        return room, room.of_onnx(model)
    if path.suffix == ".pt2" and path.is_file():
        facts = read_program(path)[1]
        room = _room(str(facts.get("task")))
        return room, room.of_program(path, facts)
    if path.name == STUDENT and (path.parent / "record.json").is_file():
        return open_model(path.parent)
    if path.suffix == ".safetensors" and path.is_file():
        name = str(read_weights(path)[1].get("model"))
        room = _room("detection" if name.startswith("fasterrcnn:") else "classification")
        return room, room.of_weights(path)
    raise ValueError(
        f"predict {path}: needs the folder of a run or of an export, or a .safetensors, .onnx or .pt2 file of one, got "
        f"{'another file' if path.exists() else 'nothing there'}; give what `outgrow distill --out` or `outgrow export` "
        "wrote."
    )


def _fitting(there: Sequence[Path]) -> Path:
    """The weights, unless their net is in a file of the user's, which may not be here: then what needs none."""
    first = there[0]
    if first.suffix == ".safetensors" and len(there) > 1:
        name = str(read_weights(first)[1].get("model"))
        if name.startswith("py:") and not Path(name.removeprefix("py:").rpartition(":")[0]).is_file():
            return there[1]
    return first


def _room(task: str) -> ModuleType:
    if task not in {"classification", *SOURCES.values()}:
        raise ValueError(
            f"predict: needs a file that `outgrow export` wrote, got one for the task {task!r}; export again."
        )
    return import_module(f"outgrow.{task}.predict")


def find_pictures(images: Sequence[str]) -> list[str]:
    """Files in the order they were named, folders and globs by their paths; each once. ``ValueError`` where a path
    is absent, or nothing is there."""
    found: dict[str, None] = {}
    for text in images:
        path = Path(text)
        if path.is_dir():
            members = look_into(path).pictures
            if not members:
                raise ValueError(
                    f"predict: needs pictures, got the folder {printable(text)} without any; name another."
                )
        elif path.exists():
            members = [text]
        else:
            matches = sorted(glob.glob(text, recursive=True))
            members = []
            for match in matches:
                members += look_into(Path(match)).pictures if Path(match).is_dir() else [match]
            if not members:
                raise ValueError(
                    f"predict: needs files, folders or globs that match something, got {printable(text)!r}, which is not "
                    "there; check the path, and quote a glob."
                )
        found.update(dict.fromkeys(members))
    return list(found)


def readable(
    files: Sequence[str], broken: dict[str, str], say: Callable[[str], None]
) -> Iterator[tuple[str, Image]]:
    """The pictures that can be read, decoded ahead in order; the others go into ``broken`` with the reason."""

    def read(file: str) -> Image:
        return decode(read_picture(file), where=lambda: printable(file))

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
                picture = decoded.result()
            except ValueError as error:
                broken[file] = str(error)
                if len(broken) <= BROKEN:
                    say(f"left out: {str(error).splitlines()[0]}")
                continue
            yield file, picture


def checked(lines: Iterable[str], files: Sequence[str], broken: dict[str, str]) -> Iterator[str]:
    """``lines``; ``ValueError`` before the first where not one picture could be read."""
    held: list[str] = []
    for line in lines:
        if len(broken) < len(files):
            yield from (*held, line)
            held = []
        else:
            held.append(line)
    if broken and len(broken) == len(files):
        raise ValueError(
            f"predict: needs pictures that can be read, got {len(files)} of which none can (the first: "
            f"{next(iter(broken.values())).splitlines()[0]})."
        )
    yield from held


def csv_lines(table: Iterable[Sequence[Any]]) -> Iterator[str]:
    """RFC 4180, and no cell that a spreadsheet would run: a file is named with ./ before it, other text with '."""
    for row in table:
        text = io.StringIO()
        first, *rest = row
        csv.writer(text, lineterminator="\n").writerow([_file(first), *(_cell(value) for value in rest)])
        yield text.getvalue()


def _file(name: Any) -> Any:
    """The same file by a name that starts no formula."""
    return f"./{name}" if str(name).startswith(FORMULA) else name


def _cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def json_lines(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """A JSON list, a picture a line."""
    before = "[\n"
    for row in rows:
        yield before + json.dumps(row)
        before = ",\n"
    yield "\n]\n" if before != "[\n" else "[]\n"


def print_bytes(line: str, target: IO[str]) -> None:
    """Names that are not UTF-8 come out as the bytes that they are."""
    buffer = getattr(target, "buffer", None)
    if buffer is None:
        target.write(line)
    else:
        target.flush()
        buffer.write(line.encode("utf-8", "surrogateescape"))
