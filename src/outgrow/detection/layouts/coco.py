"""COCO's layout: ``coco:IMAGES:ANNOTATIONS``, or ``coco:FOLDER`` as Roboflow exports it.

IMAGES       a folder of images, or one with a folder for each split
ANNOTATIONS  a folder with instances_train*.json and instances_val*.json, instances_test*.json or both; or one
             such file to evaluate on
FOLDER       train/, valid/ and test/ with their images and a _annotations.coco.json each; or COCO's own folder,
             whose annotations are in annotations/

The images of ``instances_train2017.json`` are in ``IMAGES/train2017``, else ``IMAGES/train``, else IMAGES.
Upper and lower case are the same.
"""

from pathlib import Path
from typing import Any

from outgrow.data.folder import SPLIT_NAMES
from outgrow.data.reading import OnFault
from outgrow.detection.layouts.annotations import (
    Content,
    Faults,
    check_content,
    load_content,
    read_annotations,
)
from outgrow.detection.layouts.listed import (
    SPLITS,
    Listed,
    digest_of,
    hold_out,
    only_pictures,
    read_each,
)

_PREFIX = "instances_"
_WITHOUT_BOXES = "image_info_"
"""What COCO's files of images without annotations start with."""
ROBOFLOW = "_annotations.coco.json"


def read_coco(source: str, where: str, on_fault: OnFault) -> dict[str, Listed]:
    """The splits of ``coco:WHERE``."""
    images, annotations = _places(source, where)
    if annotations is None:
        return _read_roboflow(images, on_fault)
    paths = _split_files(annotations) if annotations.is_dir() else {"test": annotations}

    def read(split: str) -> Listed:
        file = read_annotations(paths[split], on_fault=on_fault)
        folder = _image_folder(images, paths[split], file.names[0])
        return Listed(file, folder, images, digest_of([paths[split]]), stated=True)

    return read_each(paths, read)


def coco_pictures(source: str, where: str, on_fault: OnFault) -> Listed:
    """The images that the training file lists, or the only file there is."""
    images, annotations = _places(source, where)
    if annotations is None:
        files = _roboflow_files(images)
        path = next(files[split] for split in SPLITS if split in files)
        home = path.parent
    else:
        path = _file_of_pictures(annotations) if annotations.is_dir() else annotations
        home = images
    faults = Faults(str(path), on_fault)
    names = []
    for place, entry in enumerate(load_content(path, ("images",))["images"]):
        name = entry.get("file_name") if isinstance(entry, dict) else None
        if isinstance(name, str) and name.strip():
            names.append(name)
        else:
            faults.add("image", f"number {place}", "text as file_name", name)
    folder = home if annotations is None else _image_folder(images, path, names[0] if names else "")
    return only_pictures(names, folder, home, faults)


def _places(source: str, where: str) -> tuple[Path, Path | None]:
    """The images and the annotations of ``coco:WHERE``; None if these are beside the images, as Roboflow has them."""
    parts = where.split(":")
    if len(parts) not in (1, 2) or not all(parts):
        raise ValueError(
            "data: needs coco:IMAGES:ANNOTATIONS (a folder of images; a folder of instances_*.json, or one file) or "
            f"coco:FOLDER, got {source!r}; write for example coco:data/coco:data/coco/annotations."
        )
    images = Path(parts[0]).expanduser()
    annotations = Path(parts[1]).expanduser() if len(parts) == 2 else images / "annotations"
    if not images.is_dir():
        raise ValueError(
            f"data: needs an existing folder of images in {source!r}, got {images.absolute()}; check the path."
        )
    if len(parts) == 1 and not annotations.is_dir():
        return images, None
    if not annotations.exists():
        raise ValueError(
            f"data: needs an existing file or folder of annotations in {source!r}, got {annotations.absolute()}; check the "
            "path."
        )
    return images, annotations


def _file_of_pictures(folder: Path) -> Path:
    """The file of the first split; without splits the only file."""
    named, jsons = _named_files(folder), _jsons(folder)
    if not named and len(jsons) != 1:
        got = ", ".join(path.name for path in jsons) or "no .json file"
        raise ValueError(
            f"data: needs {_PREFIX}train*.json or a single file that lists images, got {got} in {folder}; pass the file."
        )
    return next(iter(named.values()), jsons[0])


def _roboflow_files(root: Path) -> dict[str, Path]:
    paths: dict[str, Path] = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        split = SPLIT_NAMES.get(folder.name.lower())
        if split is None or not (folder / ROBOFLOW).is_file():
            continue
        if split in paths:
            raise ValueError(
                f"data: needs one folder of {split} images in {root.absolute()}, got {paths[split].parent.name} and {folder.name}; "
                "merge them, or move one away."
            )
        paths[split] = folder / ROBOFLOW
    if not paths:
        raise ValueError(
            f"data: needs train/{ROBOFLOW} with valid/ or test/ beside it, or annotations/instances_*.json, got neither in "
            f"{root.absolute()}; pass coco:IMAGES:ANNOTATIONS."
        )
    return paths


def _read_roboflow(root: Path, on_fault: OnFault) -> dict[str, Listed]:
    paths = _roboflow_files(root)
    contents = _without_umbrella({split: load_content(path) for split, path in paths.items()})

    def read(split: str) -> Listed:
        path = paths[split]
        file = check_content(contents[split], path, Faults(str(path), on_fault))
        return Listed(file, path.parent, path.parent, digest_of([path]), stated=True)

    return hold_out(read_each(paths, read), root)


def _without_umbrella(contents: dict[str, Any]) -> dict[str, Content]:
    """Without the category that Roboflow adds as the common parent of the others, which no box has."""
    categories = next(iter(contents.values()))["categories"]
    entries = [entry for entry in categories if isinstance(entry, dict)]
    parents = {entry.get("supercategory") for entry in entries} - {None, "none", ""}
    used = {
        entry.get("category_id")
        for content in contents.values()
        for entry in content["annotations"]
        if isinstance(entry, dict) and isinstance(entry.get("category_id"), int)
    }
    umbrella = [
        entry.get("id")
        for entry in entries
        if entry.get("name") in parents
        and entry.get("supercategory") in (None, "none", "")
        and entry.get("id") not in used
    ]
    if not umbrella or len(entries) == len(umbrella):
        return contents
    return {
        split: {
            **content,
            "categories": [
                entry
                for entry in content["categories"]
                if not (isinstance(entry, dict) and entry.get("id") in umbrella)
            ],
        }
        for split, content in contents.items()
    }


def _split_files(folder: Path) -> dict[str, Path]:
    """The file of each split. If only val is held out, it becomes test."""
    found = _named_files(folder)
    if "test" not in found and "val" in found:
        found["test"] = found.pop("val")
    if "test" not in found:
        got = ", ".join(path.name for path in _jsons(folder)) or "no .json file"
        raise ValueError(
            f"data: needs {_PREFIX}val*.json or {_PREFIX}test*.json to report on, got {got} in {folder}; rename a "
            "file, hold out some images in one, or pass a single file to evaluate on."
        )
    return found


def _jsons(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() == ".json")


def _named_files(folder: Path) -> dict[str, Path]:
    """The files that are named after a split, by split."""
    found: dict[str, Path] = {}
    jsons = _jsons(folder)
    for split in SPLITS:
        paths = [path for path in jsons if path.name.lower().startswith(f"{_PREFIX}{split}")]
        if len(paths) > 1:
            raise ValueError(
                f"data: needs one file for {split}, got {', '.join(path.name for path in paths)} in {folder}; "
                "move the others away, or pass the one to evaluate on."
            )
        if paths:
            found[split] = paths[0]
    return found


def _image_folder(images: Path, annotations: Path, name: str) -> Path:
    """The first candidate folder that has the image ``name``; else the first one that exists."""
    tag = annotations.stem.lower().removeprefix(_PREFIX).removeprefix(_WITHOUT_BOXES)
    wanted = [tag, *(split for split in SPLITS if tag.startswith(split))]
    there = sorted(path for path in images.iterdir() if path.name.lower() in wanted and path.is_dir())
    folders = [*sorted(there, key=lambda path: wanted.index(path.name.lower())), images]
    # file names may include the folder of the split (train2017/1.jpg), relative to IMAGES
    return next((folder for folder in folders if (folder / name).is_file()), folders[0])
