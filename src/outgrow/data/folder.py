"""Folders of images: one folder per class, in one folder per split or in one for all.

    train/CLASS/...  val/CLASS/...  test/CLASS/...      any of them; names as in SPLIT_NAMES, in any case
    CLASS/...                                           all of it for training, of which a part is set aside
    photos/CLASS/...                                    one folder in one folder: looked into, and said

Images are found at any depth of a class folder and numbered in the order of their paths.
"""

import os
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from outgrow.data.files import PICTURES, PathList, Seen, folders_in, look_into, notes_of
from outgrow.data.identity import also_in, fingerprint, look_at
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
"""What others call a split, in lower case, and what it is called here."""
_WRAPPED = 4
"""Folders in folders that are looked into before class folders must be there."""


@dataclass(frozen=True)
class Layout:
    """The folder of each split; ``flat`` where one folder of class folders is all there is."""

    folders: Mapping[str, Path]
    flat: bool


def open_folder(root: Path, opening: Opening) -> Found:
    """The images below ``root``, by split; classes are the class folders' names, sorted."""
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
        _note_two_labels(split, parts[split], classes, opening)
    return Found(tuple(classes), parts, fingerprint(facts), flat=layout.flat)


def find_layout(root: Path, opening: Opening) -> Layout:
    """Which folders below ``root`` are the splits. ``ValueError`` where that has two answers."""
    here = root
    for _ in range(_WRAPPED):
        names = folders_in(here)
        splits = [name for name in names if name.lower() in SPLIT_NAMES]
        if splits or len(names) != 1 or not folders_in(here / names[0]):
            break
        opening.note(
            f"data: {printable(here)} holds one folder alone, {printable(names[0])}, which is taken for it."
        )
        here = here / names[0]
    if not splits:
        return Layout({"train": here}, flat=True)
    others = [name for name in names if name not in splits]
    holding = [name for name in splits if folders_in(here / name)]
    if others and not holding:
        opening.note(
            f"data: {some(splits)} in {printable(here)} holds no class folders, and is taken for a class beside "
            f"{some(others)}."
        )
        return Layout({"train": here}, flat=True)
    if others:
        opening.note(
            f"data: left out {some(others)} in {printable(here)}, which is none of the splits beside {some(holding)}."
        )
    found: dict[str, str] = {}
    for name in splits:
        split = SPLIT_NAMES[name.lower()]
        if name not in holding:
            _check_unlabelled(here, name, split, holding, opening)
        elif split in found:
            raise ValueError(
                f"data: needs one folder for the {split} images in {printable(here)}, got {found[split]} and {name}; "
                "merge them, or move one away."
            )
        else:
            found[split] = name
    return Layout(
        {split: here / found[split] for split in ("train", "val", "test") if split in found}, flat=False
    )


def _check_unlabelled(here: Path, name: str, split: str, holding: Sequence[str], opening: Opening) -> None:
    """A split without class folders: what is to be predicted may lie there, what is to be learnt may not."""
    seen = look_into(here / name)
    got = f"{len(seen.pictures)} images and no folders" if seen.pictures else "an empty folder"
    if split != "test" or not holding:
        raise ValueError(
            f"data: needs one folder per class in {printable(here / name)}, got {got}; arrange the images as "
            f"{printable(name)}/<class>/*.jpg{'' if seen.pictures else ', or remove it'}."
        )
    opening.note(f"data: left out {printable(here / name)}: {got}, so nothing says what its images show.")


def _unwrapped(folder: Path, opening: Opening) -> Path:
    """``folder``, or the one folder in it, if that is where the class folders are."""
    for _ in range(_WRAPPED):
        names = folders_in(folder)
        if len(names) != 1 or len(folders_in(folder / names[0])) < 2:
            break
        opening.note(
            f"data: {printable(folder)} holds one folder alone, {printable(names[0])}, which is taken for it."
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
            f"data: left out {loose} images that lie in {printable(folder)} itself, beside the class folders."
        )
    return folder


def _key(name: str) -> str:
    """What two spellings of a class have in common.

    >>> _key("Cafe\\u0301 ") == _key("caf\\u00e9")
    True
    """
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold()).strip()


def _classes(found: Mapping[str, tuple[Path, list[str]]], opening: Opening) -> list[str]:
    """The classes of all splits, as the first one (train, where there is one) spells them."""
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
                f"(missing from {split}: {missing or 'none'}; only in {split}: {extra}); rename or complete the folders."
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
                f"data: {len(respelt)} class folders of {printable(folder)} are those of {printable(home)} in another "
                f"spelling (case, spaces or Unicode form): {theirs!a} is {mine!a}."
            )
    return classes


def _is_text(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _pictures(split: str, folder: Path, seen: Mapping[str, Seen], opening: Opening) -> list[str]:
    """All pictures of a split by class and path; what else was found is noted or refused."""
    gone = [path for found in seen.values() for path in found.gone]
    if gone:
        if opening.on_fault == "refuse":
            raise ValueError(
                f"data: needs links that lead to a file, got {some(gone)}, whose target is not there; fetch the files "
                "(dvc pull, git annex get), mount their disk, or remove the links."
            )
        opening.note(f"data: left out {len(gone)} links whose target is not there ({some(gone)}).")
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
            f" ({others} files that are no pictures)" if others else ""
        )
        raise ValueError(
            f"data: needs at least one image in every class folder, got {got}; add images ({', '.join(PICTURES)}) or "
            "remove the folder."
        )
    if empty:
        opening.note(
            f"data: {len(empty)} class folders of {printable(folder)} hold no image ({some(empty)})."
        )
    _note_depth(folder, seen, opening)
    return [path for found in seen.values() for path in found.pictures]


def _note_depth(folder: Path, seen: Mapping[str, Seen], opening: Opening) -> None:
    """Folders below class folders: part of the class, unless all classes have the same ones."""
    deep = {name: found for name, found in seen.items() if found.below}
    if not deep:
        return
    common = set.intersection(*(found.below for found in seen.values()))
    if len(seen) > 1 and common and not any(found.direct for found in seen.values()):
        raise ValueError(
            f"data: needs one folder per class in {printable(folder)}, got {some(list(seen))}, each with folders of the same "
            f"names ({some(sorted(common))}), so that the classes may be either; move the level that is none out of the "
            "way, or give one of these folders."
        )
    count = sum(len(found.pictures) - found.direct for found in deep.values())
    name, found = next(iter(deep.items()))
    opening.note(
        f"data: {count} images in {printable(folder)} lie in folders below the class folders, and are of that class "
        f"({printable(name)}/{printable(sorted(found.below)[0])} is {printable(name)})."
    )


def _note_two_labels(split: str, part: Part, classes: Sequence[str], opening: Opening) -> None:
    """The same picture under two classes: one of the labels is wrong."""
    assert part.digests is not None
    labels, first = part.split.labels, torch.from_numpy(also_in(part.digests, part.digests))
    other = ((first >= 0) & (labels != labels[first])).nonzero()[:, 0]
    if len(other):
        at = int(other[0])
        places = [part.describe(row) for row in (int(first[at]), at)]
        opening.note(
            f"data: {len(other)} {split} images are there, byte for byte, under another class, too (the first is "
            f"{places[0]}, also {places[1]}); one of the labels is wrong."
        )
