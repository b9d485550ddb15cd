"""Data sets of the Hugging Face hub with a column ``objects``: ``hf:NAME``, a name or a local folder.

objects     bbox (left, top, width, height in pixels) and category, or label; area and iscrowd where there are some
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from outgrow.data.hub import OBJECTS, HubImages, image_column, load_hub
from outgrow.data.identity import fingerprint
from outgrow.data.reading import Opening
from outgrow.detection.layouts.annotations import AnnotationFile, Faults, check_content
from outgrow.detection.layouts.listed import Listed, hold_out, read_each, seen_size, without_objects

_CATEGORIES = ("category", "label", "category_id", "categories", "labels")
_NAME = "{:08d}"
"""The name of the image of a row."""


def read_hub(where: str, opening: Opening) -> dict[str, Listed]:
    """The splits of ``hf:WHERE``."""
    splits, home = load_hub(where, opening)
    tables = {split: _objects(data, where) for split, data in splits.items()}
    classes = _classes(tables.values(), where)

    def read(split: str) -> Listed:
        rows = _rows(splits[split], where, split, home)
        faults = Faults(rows.name, opening.on_fault)
        content = _content(rows, tables[split], classes, faults)
        file = check_content(content, Path(rows.name), faults)
        digest = fingerprint(map(str, (*content["images"], *content["annotations"]))).encode()
        return _listed(file, rows, digest)

    return hold_out(read_each(splits, read), where)


def hub_pictures(where: str, opening: Opening) -> Listed:
    """The images of the training split, or of the first split there is. No other column is read."""
    splits, home = load_hub(where, opening)
    split, data = next(iter(splits.items()))
    rows = _rows(data, where, split, home)
    sizes = [seen_size(picture) for picture in rows.stream()]
    names = [_NAME.format(number) for number in range(len(rows))]
    file = without_objects(names, sizes, Path(rows.name), Faults(rows.name, opening.on_fault))
    return _listed(file, rows, b"")


def _rows(data: Any, where: str, split: str, home: str) -> HubImages:
    import datasets

    column = image_column(data, where)
    images = data.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    return HubImages(images, column, f"{where} ({split})", home)


def _listed(file: AnnotationFile, rows: HubImages, digest: bytes) -> Listed:
    """The images of ``file``, whose ids are rows."""
    home = Path(rows.home)
    return Listed(
        file, home, home, digest, replace(rows, dataset=rows.dataset.select(file.image_ids.tolist()))
    )


class _Table:
    """The objects of a split: for each row the boxes, the categories, and other columns that there are."""

    def __init__(self, rows: list[dict[str, list[Any]]], kind: str, names: tuple[str, ...] | None) -> None:
        self.rows, self.kind, self.names = rows, kind, names


def _objects(data: Any, where: str) -> _Table:
    if OBJECTS not in data.features:
        raise ValueError(
            f"data: needs a column {OBJECTS} in every split of {where!r}, got {', '.join(data.column_names)}; name the column "
            "of boxes so."
        )
    feature = data.features[OBJECTS]
    inner = getattr(feature, "feature", feature)
    inner = inner[0] if isinstance(inner, list) else inner
    fields = inner if isinstance(inner, Mapping) else {}
    kind = next((name for name in _CATEGORIES if name in fields), None)
    if "bbox" not in fields or kind is None:
        raise ValueError(
            f"data: needs bbox and category in the column {OBJECTS} of {where!r}, got {', '.join(fields) or type(inner).__name__}; "
            "rename them."
        )
    values = fields[kind]
    names = getattr(values, "names", None) or getattr(getattr(values, "feature", None), "names", None)
    rows = [_columns(row) for row in data[OBJECTS]]
    return _Table(rows, kind, tuple(names) if names else None)


def _columns(row: Any) -> dict[str, list[Any]]:
    """The objects of an image as columns; the library gives columns or a list, by the way they were declared."""
    if isinstance(row, Mapping):
        return {name: list(values or ()) for name, values in row.items()}
    keys = row[0] if row else {}
    return {name: [one.get(name) for one in row] for name in keys}


def _classes(tables: Any, where: str) -> tuple[str, ...]:
    """The names in the metadata, else those that occur: text as it is, numbers as text in their order."""
    tables = list(tables)
    stated = {table.names for table in tables} - {None}
    if len(stated) == 1:
        return tuple(next(iter(stated)))
    if stated:
        raise ValueError(
            f"data: needs the same classes in every split of {where!r}, got {len(stated)} lists; correct them."
        )
    seen = {value for table in tables for row in table.rows for value in row.get(table.kind, ())}
    numbers = sorted(value for value in seen if isinstance(value, int))
    return tuple(map(str, numbers)) or tuple(sorted(value for value in seen if isinstance(value, str)))


def _content(
    rows: HubImages, table: _Table, classes: tuple[str, ...], faults: Faults
) -> dict[str, list[Any]]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    place_of = {name: number for number, name in enumerate(classes)}
    origins: dict[int, str] = {}
    for number, columns in enumerate(table.rows):
        size = seen_size(rows.read(number))
        if size is None:
            faults.add("image", number, "an image whose size can be read", "none")
            continue
        width, height = size
        images.append({"id": number, "file_name": _NAME.format(number), "width": width, "height": height})
        boxes, kinds = columns.get("bbox", []), columns.get(table.kind, [])
        if len(boxes) != len(kinds):
            place = f"row {number} of {faults.path}"
            needed = f"as many values in {table.kind} as in bbox"
            faults.add("annotation", number, needed, f"{len(kinds)} for {len(boxes)}", place=place)
            images.pop()
            continue
        for at, (box, kind) in enumerate(zip(boxes, kinds, strict=True)):
            entry = len(annotations)
            origins[entry] = f"object {at} of row {number} of {faults.path}"
            category = kind if table.names is not None else place_of.get(str(kind))
            found = {"id": entry, "image_id": number, "category_id": category, "bbox": box}
            annotations.append(found | _more(columns, at))
    faults.origins = origins
    categories = [{"id": number, "name": name} for number, name in enumerate(classes)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _more(columns: Mapping[str, list[Any]], at: int) -> dict[str, Any]:
    """Area and crowd of an object, where there are some."""
    found = {}
    for name in ("area", "iscrowd"):
        values = columns.get(name, [])
        if at < len(values) and values[at] is not None:
            found[name] = int(values[at]) if name == "iscrowd" else values[at]
    return found
