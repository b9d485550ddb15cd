"""Small data sets in COCO's layout, with pictures whose pixels say where they are."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CATEGORIES = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}, {"id": 20, "name": "bird"}]


def picture(number: int, *, height: int, width: int) -> Image.Image:
    """Red is x, green is y, blue the number: any part of it tells which part it is."""
    assert max(height, width) <= 256
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x, y, np.full_like(x, number)], axis=2).astype(np.uint8))


def annotation(number: int, image: int, bbox: Sequence[object], **other: object) -> dict[str, Any]:
    return {"id": number, "image_id": image, "category_id": 3, "bbox": list(bbox), **other}


def image(number: int, *, height: int = 80, width: int = 100) -> dict[str, Any]:
    return {"id": number, "file_name": f"{number}.png", "height": height, "width": width}


def write_json(
    path: Path,
    images: Sequence[object],
    annotations: Sequence[object],
    categories: Sequence[object] = CATEGORIES,
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))
    return path


def write_pictures(folder: Path, images: Sequence[dict[str, Any]]) -> None:
    for entry in images:
        path = folder / entry["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(entry["id"], height=entry["height"], width=entry["width"]).save(path)
