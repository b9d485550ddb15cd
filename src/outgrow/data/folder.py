"""Folders of images: one folder per class, in one folder per split or in one for all."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from outgrow.data.cache import CacheFile, cached_split, file_facts, fingerprint
from outgrow.data.splits import Found, PathList, Split

_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


def open_folder(root: Path, *, cache_dir: Path) -> Found:
    """The images below ``root``, by split; classes are the class folders' names, sorted.

    Splits are ``train/``, ``val/`` and ``test/``, as many as there are; with none of them the
    class folders of ``root`` itself are all ``train``. Images are found at any depth in a class
    folder and numbered in the order of their paths.
    """
    folders = {name: root / name for name in ("train", "val", "test") if (root / name).is_dir()}
    if not folders:
        folders = {"train": root}
    names = {split: class_folders(folder) for split, folder in folders.items()}
    (first, classes), *others = names.items()
    for split, found in others:
        if found != classes:
            missing = sorted(set(classes) - set(found)) or "none"
            extra = sorted(set(found) - set(classes)) or "none"
            raise ValueError(
                f"data: needs the same class folders in {folders[first]} and {folders[split]}, got a difference "
                f"(missing from {split}: {missing}; only in {split}: {extra}); rename or complete the folders."
            )
    splits: dict[str, Split] = {}
    facts: list[object] = [*classes]
    for split, folder in folders.items():
        paths, labels = [], []
        for number, name in enumerate(classes):
            members = sorted(_walk(folder / name))
            if not members:
                raise ValueError(
                    f"data: needs at least one image in every class folder, got none in {folder / name}; "
                    f"add images ({', '.join(_IMAGES)}) or remove the folder."
                )
            paths += members
            labels += [number] * len(members)
        found_facts = list(file_facts(Path(path) for path in paths))
        facts += [split, *found_facts]
        files = PathList(paths)
        cache = CacheFile(
            folder=cache_dir,
            stem=f"{root.name}-{split}-{fingerprint([folder.resolve()])[:8]}",
            fingerprint=fingerprint(found_facts),
        )
        splits[split] = cached_split(
            lambda files=files: (files.read(row) for row in range(len(files))),  # type: ignore[misc]
            torch.tensor(labels),
            describe=files.describe,
            encoded=files,
            cache=cache,
        )
    return Found(tuple(classes), splits, fingerprint(facts))


def class_folders(folder: Path) -> list[str]:
    """The names of the class folders in ``folder``, sorted; ValueError where there are none."""
    names = sorted(
        entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )
    if not names:
        raise ValueError(
            f"data: needs one folder per class in {folder}, got no folders; arrange the images as "
            "train/<class>/*.jpg and val/<class>/*.jpg, or as <class>/*.jpg."
        )
    return names


def _walk(folder: Path) -> Iterator[str]:
    for parent, _, files in os.walk(folder, followlinks=True):
        for name in files:
            if name.lower().endswith(_IMAGES) and not name.startswith("."):
                yield os.path.join(parent, name)
