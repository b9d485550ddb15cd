"""A data set in COCO's layout, written once more in the layouts that people have."""

import json
import shutil
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape


def _entries(file: Path) -> tuple[dict[str, Any], dict[int, list[dict[str, Any]]]]:
    content = json.loads(file.read_text())
    boxes: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
    for entry in content["annotations"]:
        boxes[entry["image_id"]].append(entry)
    return content, boxes


def _splits(annotations: Path) -> dict[str, Path]:
    found = {}
    for split in ("train", "val", "test"):
        files = sorted(annotations.glob(f"instances_{split}*.json"))
        if files:
            found[split] = files[0]
    return found


def roboflow(images: Path, annotations: Path, out: Path) -> str:
    for split, file in _splits(annotations).items():
        content, _ = _entries(file)
        folder = out / {"val": "valid"}.get(split, split)
        shutil.copytree(images / split, folder)
        for category in content["categories"]:
            category["supercategory"] = "things"
        umbrella = {"id": 0, "name": "things", "supercategory": "none"}
        content["categories"] = [umbrella, *content["categories"]]
        (folder / "_annotations.coco.json").write_text(json.dumps(content))
    return f"coco:{out}"


def yolo(images: Path, annotations: Path, out: Path) -> str:
    lines = []
    for split, file in _splits(annotations).items():
        content, boxes = _entries(file)
        ids = [category["id"] for category in sorted(content["categories"], key=lambda c: c["id"])]
        folder = out / {"val": "valid"}.get(split, split)
        (folder / "labels").mkdir(parents=True)
        (folder / "images").mkdir()
        lines.append(f"{split}: ../{folder.name}/images")
        for image in content["images"]:
            shutil.copy(images / split / image["file_name"], folder / "images")
            text = ""
            for entry in boxes[image["id"]]:
                left, top, wide, high = entry["bbox"]
                x, y = (left + wide / 2) / image["width"], (top + high / 2) / image["height"]
                wide, high = wide / image["width"], high / image["height"]
                text += f"{ids.index(entry['category_id'])} {x:.9f} {y:.9f} {wide:.9f} {high:.9f}\n"
            if text:
                (folder / "labels" / f"{Path(image['file_name']).stem}.txt").write_text(text)
    names = [category["name"] for category in sorted(content["categories"], key=lambda c: c["id"])]
    (out / "data.yaml").write_text("\n".join([*lines, f"nc: {len(names)}", f"names: {json.dumps(names)}"]))
    return f"yolo:{out / 'data.yaml'}"


def voc(images: Path, annotations: Path, out: Path) -> str:
    """Corners count from 1, and lie inside the box."""
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (out / name).mkdir(parents=True)
    for split, file in _splits(annotations).items():
        content, boxes = _entries(file)
        names = {category["id"]: category["name"] for category in content["categories"]}
        stems = []
        for image in content["images"]:
            stem = Path(image["file_name"]).stem
            stems.append(stem)
            shutil.copy(images / split / image["file_name"], out / "JPEGImages")
            objects = ""
            for entry in boxes[image["id"]]:
                left, top, wide, high = entry["bbox"]
                corners = {"xmin": left + 1, "ymin": top + 1, "xmax": left + wide, "ymax": top + high}
                sides = "".join(f"<{key}>{value:g}</{key}>" for key, value in corners.items())
                name = escape(names[entry["category_id"]])
                objects += f"<object><name>{name}</name><bndbox>{sides}</bndbox></object>\n"
            text = f"<annotation><filename>{escape(image['file_name'])}</filename>\n{objects}</annotation>\n"
            (out / "Annotations" / f"{stem}.xml").write_text(text)
        (out / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(stems) + "\n")
    return f"voc:{out}"


def hub(images: Path, annotations: Path, out: Path) -> str:
    """Parquet shards with a column of objects, as on the hub."""
    import datasets

    for split, file in _splits(annotations).items():
        content, boxes = _entries(file)
        order = sorted(content["categories"], key=lambda c: c["id"])
        ids = [category["id"] for category in order]
        objects = {
            "bbox": datasets.Sequence(datasets.Value("float64"), length=4),
            "category": datasets.ClassLabel(names=[category["name"] for category in order]),
        }
        features = datasets.Features({"image": datasets.Image(), "objects": datasets.Sequence(objects)})
        rows = [
            {
                "image": {
                    "bytes": (images / split / image["file_name"]).read_bytes(),
                    "path": image["file_name"],
                },
                "objects": {
                    "bbox": [entry["bbox"] for entry in boxes[image["id"]]],
                    "category": [ids.index(entry["category_id"]) for entry in boxes[image["id"]]],
                },
            }
            for image in content["images"]
        ]
        path = out / "data" / f"{'validation' if split == 'val' else split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_list(rows, features=features).to_parquet(path)
    return f"hf:{out}"


LAYOUTS = {"roboflow": roboflow, "yolo": yolo, "voc": voc, "hub": hub}
