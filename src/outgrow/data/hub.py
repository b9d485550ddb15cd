"""Read data sets of the Hugging Face hub with the ``datasets`` library, by name or from a local folder."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outgrow.data.files import read_picture
from outgrow.data.folder import SPLIT_NAMES
from outgrow.data.identity import fingerprint, look_at
from outgrow.data.labels import check_same, choose_label, column_of, to_classes
from outgrow.data.notes import printable
from outgrow.data.reading import Opening, look_inside, split_of
from outgrow.data.splits import Found, Part

OBJECTS = "objects"
"""The column of boxes in data sets for detection."""


@dataclass(frozen=True)
class HubImages:
    """The encoded images of one split of a ``datasets`` data set.

    Images in separate files are only read below the folder ``home``, because the data set is not trusted.
    """

    dataset: Any
    column: str
    name: str
    home: str

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, row: int) -> bytes:
        return self._bytes(self._value(row), row)

    def describe(self, row: int) -> str:
        path = self._value(row).get("path")
        return f"row {row} of {self.name}" + (f" ({printable(path)})" if path else "")

    def stream(self) -> Iterator[bytes]:
        return (self.read(row) for row in range(len(self)))

    def _value(self, row: int) -> dict[str, Any]:
        try:
            return self.dataset[row][self.column] or {}
        except Exception as error:  # pyarrow's exceptions depend on how the file is damaged
            raise ValueError(
                f"data: needs a readable data set, got an error at row {row} of {self.name} ({error}); download it "
                "again."
            ) from error

    def paths(self) -> list[str] | None:
        """The paths of all images; None if any image is stored in the data set itself."""
        found = []
        for row in range(len(self)):
            value = self._value(row)
            if value.get("bytes") is not None:
                return None
            found.append(self._path(value, row))
        return found

    def _bytes(self, value: dict[str, Any], row: int) -> bytes:
        data = value.get("bytes")
        return data if isinstance(data, bytes) else read_picture(self._path(value, row))

    def _path(self, value: dict[str, Any], row: int) -> str:
        path = value.get("path")
        if not path:
            raise ValueError(
                f"data: needs an image in every row, got no image at row {row} of {self.name}; remove the row."
            )
        real = os.path.realpath(path)
        if os.path.commonpath([real, self.home]) != self.home:
            raise ValueError(
                f"data: needs images below {printable(self.home)}, got {printable(path)} at row {row} of {self.name}, "
                "which is outside; copy the image into the data set and correct its path."
            )
        return real


def load_hub(where: str, opening: Opening) -> tuple[dict[str, Any], str]:
    """The splits of a data set by its name on the hub, or of a local folder, and the folder its files are below."""
    import datasets

    local = Path(where).expanduser()
    try:
        # not into memory, which the library may be set to: the files say whether the content has changed
        load, name = (
            (datasets.load_from_disk, str(local)) if _is_saved(local) else (datasets.load_dataset, where)
        )
        opened = load(name, keep_in_memory=False)
    except Exception as error:  # not found, offline, gated, several configurations: see the library's message
        raise ValueError(
            f"data: needs a data set of the hub or a local folder of one, got {where!r}, which cannot be loaded "
            f"({error}); check the name, go online, or name a local folder."
        ) from error
    home = os.path.realpath(local if local.exists() else datasets.config.HF_CACHE_HOME)
    if isinstance(opened, datasets.Dataset):
        opened = {"train": opened}
    named: dict[str, Any] = {}
    for name, data in opened.items():
        split = SPLIT_NAMES.get(str(name).lower())
        if split in named:
            raise ValueError(
                f"data: needs one {split} split in {where!r}, got {', '.join(map(str, opened))}; rename one."
            )
        if split is None:
            opening.note(f"data: left out the split {name} of {where}: it is not train, validation or test.")
        elif len(data):
            named[split] = data
    if not named:
        raise ValueError(
            f"data: needs a split named train, test or validation in {where!r}, got {', '.join(map(str, opened))}; rename one."
        )
    return {split: named[split] for split in ("train", "val", "test") if split in named}, home


def has_boxes(where: str) -> bool:
    """Whether a data set of the hub, or a local folder of one, has a column of objects. False if it cannot be read."""
    import datasets

    try:
        features = None
        if not _is_saved(Path(where).expanduser()):
            features = datasets.load_dataset_builder(where).info.features
        if features is None:  # known only once the files are read
            splits, _ = load_hub(where, Opening(None, "refuse", None))
            features = next(iter(splits.values())).features
    except Exception:  # whoever opens it says what is wrong
        return False
    return OBJECTS in features


def _is_saved(local: Path) -> bool:
    """Whether a folder was written by ``save_to_disk``."""
    return (local / "dataset_dict.json").is_file() or (local / "dataset_info.json").is_file()


def image_column(data: Any, where: str) -> str:
    """The name of the column of images."""
    import datasets

    column = next((name for name, kind in data.features.items() if isinstance(kind, datasets.Image)), None)
    if column is None:
        raise ValueError(
            f"data: needs a column of images in {where!r}, got {', '.join(data.column_names)}; cast one to "
            "datasets.Image."
        )
    return str(column)


def open_hub(where: str, opening: Opening) -> Found:
    """Open a data set by its name on the hub, or from a local folder."""
    import datasets

    local = Path(where).expanduser()
    named, home = load_hub(where, opening)
    images, columns = {}, {}
    facts: list[object] = []
    chosen_of = {
        split: choose_label(data.column_names, opening.label, where=where) if opening.labelled else ""
        for split, data in named.items()
    }
    check_same(chosen_of, printable(where))
    for split, data in named.items():
        column, chosen = image_column(data, where), chosen_of[split]
        name = f"column {chosen or column!r} of {where} ({split})"
        try:
            values = list(data[chosen]) if chosen else []
            encoded = data.cast_column(column, datasets.Image(decode=False))
        except Exception as error:
            raise ValueError(
                f"data: needs a readable data set, got an error in {name} ({error}); download it again."
            ) from error
        if chosen:
            names = getattr(data.features[chosen], "names", None)
            columns[split] = [column_of(values, tuple(names) if names else None, name)]
        images[split] = HubImages(encoded, column, f"{where} ({split})", home)
        facts += [split, chosen, column]
    classes: tuple[str, ...] = ()
    labels = {split: opening.no_labels(len(rows)) for split, rows in images.items()}
    if opening.labelled:
        classes, labels = to_classes(columns, opening)
    parts: dict[str, Part] = {}
    for split, rows in images.items():
        identity = fingerprint([os.path.realpath(local), where, split, rows.column])
        name = f"{local.name}-{split}"
        files = [str(file["filename"]) for file in named[split].cache_files]
        look = look_at(files, opening.store(name, identity))
        size, key = sum(os.path.getsize(file) for file in files), look.key
        paths = rows.paths()
        if paths is not None:
            inside = look_at(paths, opening.store(f"{name}-files", identity))
            key = fingerprint([key, inside.key])
        else:
            inside = look_inside(rows, size=size, name=name, identity=identity, key=key, opening=opening)
        facts += [*labels[split].tolist(), (inside if inside.known else look).digests.tobytes()]
        parts[split] = split_of(
            rows, labels[split], inside, name=name, identity=identity, key=key, pack=False, opening=opening
        )
    return Found(classes, parts, fingerprint([*classes, *facts]))
