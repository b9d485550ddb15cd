"""Read folders of images: one folder per class, inside one folder per split or without splits.

    train/CLASS/...  val/CLASS/...  test/CLASS/...      any of them; names as in SPLIT_NAMES, in any case
    CLASS/...                                           training images, some of which become the test set
    photos/CLASS/...                                    the only folder of a folder is used instead, with a note

Images may be at any depth of a class folder. They are numbered in the order of their paths.
"""

import os
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from outgrow.data.files import PICTURES, PathList, Seen, folders_in, is_hidden, look_into, notes_of
from outgrow.data.identity import fingerprint, look_at
from outgrow.data.notes import printable, some
from outgrow.data.reading import Opening, split_of
from outgrow.data.splits import Found, Part

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "eval": "val",
    "test": "test",
    "testing": "test",
}
"""Common folder names of splits, in lower case, and our name of the split."""
_WRAPPED = 4
"""How many levels of single folders to descend in search of the class folders."""


@dataclass(frozen=True)
class Layout:
    """The folder of each split. ``flat``: there is one folder of class folders without splits."""

    folders: Mapping[str, Path]
    flat: bool


def open_folder(root: Path, opening: Opening) -> Found:
    """Read the images below ``root``, by split; the classes are the class folders' names, sorted."""
    layout = find_layout(root, opening)
    names = {split: _unwrapped(folder, opening) for split, folder in layout.folders.items()}
    classes = _classes({split: (folder, folders_in(folder)) for split, folder in names.items()}, opening)
    parts: dict[str, Part] = {}
    facts: list[object] = [*classes]
    for split, folder in names.items():
        own = {_key(name): name for name in folders_in(folder)}
        seen = {name: look_into(folder / own[_key(name)]) for name in classes if _key(name) in own}
        paths = _pictures(split, folder, seen, opening)
        labels = [number for number, name in enumerate(classes) for _ in seen.get(name, Seen()).pictures]
        identity = fingerprint([os.path.realpath(folder)])
        look = look_at(paths, opening.store(root.name, identity))
        inside = [unicodedata.normalize("NFC", os.path.relpath(path, folder)) for path in paths]
        facts += [split, *inside, look.digests.tobytes()]
        parts[split] = split_of(
            PathList(paths),
            torch.tensor(labels, dtype=torch.int64),
            look,
            name=f"{root.name}-{split}",
            identity=identity,
            key=fingerprint([look.key, *inside]),
            pack=False,
            opening=opening,
        )
    return Found(tuple(classes), parts, fingerprint(facts), flat=layout.flat)


def open_pictures(root: Path, opening: Opening) -> Found:
    """All images below ``root``, at any depth, without labels. Of a folder with splits those of train."""
    folder = root
    split = [name for name in folders_in(root) if SPLIT_NAMES.get(name.lower()) == "train"]
    if split:
        folder = root / split[0]
        opening.note(
            f"data: the unlabelled images of {printable(root)} are those in {printable(split[0])} alone."
        )
    seen = {"": look_into(folder)}
    if not seen[""].pictures:
        raise ValueError(
            f"data: needs at least one image below {printable(folder)}, got none; add images ({', '.join(PICTURES)}), or "
            "name another folder."
        )
    paths = _pictures("unlabelled", folder, seen, opening)
    identity = fingerprint([os.path.realpath(folder)])
    look = look_at(paths, opening.store(root.name, identity))
    inside = [unicodedata.normalize("NFC", os.path.relpath(path, folder)) for path in paths]
    part = split_of(
        PathList(paths),
        opening.no_labels(len(paths)),
        look,
        name=f"{root.name}-unlabelled",
        identity=identity,
        key=fingerprint([look.key, *inside]),
        pack=False,
        opening=opening,
    )
    return Found((), {"train": part}, fingerprint([*inside, look.digests.tobytes()]))


def check_outside(out: Path, spec: str) -> None:
    """``ValueError`` where files written to ``out`` would be read as a class, or as images, of the folder of ``spec``."""
    kind, _, where = spec.partition(":")
    root, out = Path(where).expanduser().resolve(), out.resolve()
    if kind not in ("folder", "imagenet") or not root.is_dir() or out == root or not out.is_relative_to(root):
        return
    below = out.relative_to(root).parts
    splits = [name for name in folders_in(root) if name.lower() in SPLIT_NAMES]
    beside = bool(splits) and below[0] not in splits  # left out when the images are read
    if not beside and not any(map(is_hidden, below)):
        raise ValueError(
            f"--out: needs a folder outside of the images, got {printable(out)}, which would be read as one of a class of "
            f"{printable(spec)}; name a folder elsewhere."
        )


def find_layout(root: Path, opening: Opening) -> Layout:
    """Find the split folders below ``root``. ``ValueError`` if they are ambiguous."""
    here = root
    for _ in range(_WRAPPED):
        names = folders_in(here)
        splits = [name for name in names if name.lower() in SPLIT_NAMES]
        if splits or len(names) != 1 or not folders_in(here / names[0]):
            break
        opening.note(
            f"data: {printable(here)} contains only the folder {printable(names[0])}, which is used instead."
        )
        here = here / names[0]
    if not splits:
        return Layout({"train": here}, flat=True)
    others = [name for name in names if name not in splits]
    holding = [name for name in splits if folders_in(here / name)]
    if others and not holding:
        opening.note(
            f"data: {some(splits)} in {printable(here)} contains no class folders, so it is used as a class, like "
            f"{some(others)}."
        )
        return Layout({"train": here}, flat=True)
    if others:
        opening.note(f"data: left out {some(others)} in {printable(here)}: not a split like {some(holding)}.")
    found: dict[str, str] = {}
    for name in splits:
        split = SPLIT_NAMES[name.lower()]
        if name not in holding:
            _check_unlabelled(here, name, split, holding, opening)
        elif split in found:
            raise ValueError(
                f"data: needs one folder of {split} images in {printable(here)}, got {found[split]} and {name}; "
                "merge them, or move one away."
            )
        else:
            found[split] = name
    return Layout(
        {split: here / found[split] for split in ("train", "val", "test") if split in found}, flat=False
    )


def _check_unlabelled(here: Path, name: str, split: str, holding: Sequence[str], opening: Opening) -> None:
    """Handle a split without class folders: a note for an unlabelled test split, else ``ValueError``."""
    seen = look_into(here / name)
    got = f"{len(seen.pictures)} images and no folders" if seen.pictures else "an empty folder"
    if split != "test" or not holding:
        raise ValueError(
            f"data: needs one folder per class in {printable(here / name)}, got {got}; arrange the images as "
            f"{printable(name)}/<class>/*.jpg{'' if seen.pictures else ', or remove it'}."
        )
    opening.note(f"data: left out {printable(here / name)}: {got}, so its images have no labels.")


def _unwrapped(folder: Path, opening: Opening) -> Path:
    """``folder``, or its only subfolder if that one contains the class folders."""
    for _ in range(_WRAPPED):
        names = folders_in(folder)
        if len(names) != 1 or len(folders_in(folder / names[0])) < 2:
            break
        opening.note(
            f"data: {printable(folder)} contains only the folder {printable(names[0])}, which is used instead."
        )
        folder = folder / names[0]
    if not names:
        seen = look_into(folder)
        got = f"{len(seen.pictures)} images and no folders" if seen.pictures else "no folders"
        raise ValueError(
            f"data: needs one folder per class in {printable(folder)}, got {got}; arrange the images as "
            "train/<class>/*.jpg and val/<class>/*.jpg, or as <class>/*.jpg."
        )
    with os.scandir(folder) as entries:
        loose = sum(
            entry.name.lower().endswith(tuple(PICTURES))
            and not entry.name.startswith(".")
            and entry.is_file()
            for entry in entries
        )
    if loose:
        opening.note(
            f"data: left out {loose} images in {printable(folder)} itself, outside the class folders."
        )
    return folder


def _key(name: str) -> str:
    """The normal form of a class name: two spellings of one class have the same key.

    >>> _key("Cafe\\u0301 ") == _key("caf\\u00e9")
    True
    """
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold()).strip()


def _classes(found: Mapping[str, tuple[Path, list[str]]], opening: Opening) -> list[str]:
    """The classes of all splits, in the spelling of the first split (train, if there is one)."""
    for folder, names in found.values():
        for name in names:
            if not name.strip() or not _is_text(name):
                raise ValueError(
                    f"data: needs class folders with names in UTF-8, got {printable(name)!r} in {printable(folder)}; "
                    "rename it."
                )
        twice = [key for key, count in Counter(_key(name) for name in names).items() if count > 1]
        if twice:
            same = [name for name in names if _key(name) == twice[0]]
            raise ValueError(
                f"data: needs one folder per class in {printable(folder)}, got {' and '.join(map(ascii, same))}, which "
                "differ only in case, spaces or Unicode form; merge them, or rename one."
            )
    (_, (home, classes)), *others = found.items()
    known = {_key(name): name for name in classes}
    for split, (folder, names) in others:
        extra = sorted(name for name in names if _key(name) not in known)
        missing = sorted(name for key, name in known.items() if key not in {_key(other) for other in names})
        if extra:
            raise ValueError(
                f"data: needs the same class folders in {printable(home)} and {printable(folder)}, got a difference "
                f"(missing from {split}: {missing or 'none'}; only in {split}: {extra}); rename the folders or add the "
                "missing ones."
            )
        if missing:
            opening.note(
                f"data: {len(missing)} of {len(known)} classes have no folder in {printable(folder)} ({some(missing)}): "
                "their accuracy is not measured."
            )
        respelt = [(known[_key(name)], name) for name in names if name != known[_key(name)]]
        if respelt:
            mine, theirs = respelt[0]
            opening.note(
                f"data: {len(respelt)} class folders of {printable(folder)} have another spelling in {printable(home)} "
                f"(case, spaces or Unicode form) and are matched: {theirs!a} is {mine!a}."
            )
    return classes


def _is_text(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _pictures(split: str, folder: Path, seen: Mapping[str, Seen], opening: Opening) -> list[str]:
    """All pictures of a split by class and path. Other findings add a note or raise ``ValueError``."""
    gone = [path for found in seen.values() for path in found.gone]
    if gone:
        if opening.on_fault == "refuse":
            raise ValueError(
                f"data: needs links to existing files, got {some(gone)}, whose target does not exist; fetch the files "
                "(dvc pull, git annex get), mount their disk, or remove the links."
            )
        opening.note(f"data: left out {len(gone)} links whose target does not exist ({some(gone)}).")
        opening.faults += [printable(path) for path in gone]
    everything = Seen()
    for found in seen.values():
        everything.left_out += found.left_out
        everything.special += found.special
        everything.again += found.again
    for note in notes_of(everything, folder):
        opening.note(note)
    empty = [name for name, found in seen.items() if not found.pictures]
    if empty and (split == "train" or len(empty) == len(seen)):
        others = sum(everything.left_out.values())
        got = f"none in {printable(folder / empty[0])}" + (
            f" ({others} files that are not images)" if others else ""
        )
        raise ValueError(
            f"data: needs at least one image in every class folder, got {got}; add images ({', '.join(PICTURES)}) or "
            "remove the folder."
        )
    if empty:
        opening.note(
            f"data: {len(empty)} class folders of {printable(folder)} contain no image ({some(empty)})."
        )
    if opening.labelled:
        _note_depth(folder, seen, opening)
    return [path for found in seen.values() for path in found.pictures]


def _note_depth(folder: Path, seen: Mapping[str, Seen], opening: Opening) -> None:
    """Handle folders below class folders: a note, or ``ValueError`` if all classes have the same ones."""
    deep = {name: found for name, found in seen.items() if found.below}
    if not deep:
        return
    common = set.intersection(*(found.below for found in seen.values()))
    if len(seen) > 1 and common and not any(found.direct for found in seen.values()):
        raise ValueError(
            f"data: needs one folder per class in {printable(folder)}, got {some(list(seen))}, which all contain folders "
            f"named {some(sorted(common))}, so either level may be the classes; remove the level that is not, or name one "
            "of these folders."
        )
    if len(seen) > 1 and all(len(one.below) == 1 and not one.direct for one in seen.values()):
        inner = [folder / name / next(iter(one.below)) for name, one in seen.items()]
        same = set.intersection(*({path.name for path in one.iterdir() if path.is_dir()} for one in inner))
        if same:
            raise ValueError(
                f"data: needs one folder per class in {printable(folder)}, got {some(list(seen))}, which each hold one folder with "
                f"folders named {some(sorted(same))} in it, as if they were splits; move those up, and call the splits train and "
                "test."
            )
    count = sum(len(found.pictures) - found.direct for found in deep.values())
    name, found = next(iter(deep.items()))
    opening.note(
        f"data: {count} images in {printable(folder)} are in subfolders of class folders and have that class "
        f"({printable(name)}/{printable(sorted(found.below)[0])} is {printable(name)})."
    )
