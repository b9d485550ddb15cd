"""Lists of which of a network's classes is which of the data's: ``data.class_map``.

    teacher,data
    golden retriever,dog
    "tabby, tabby cat",cat

A list is a CSV file with these two columns. Several of the teacher's classes may form one of the data's. A class of the
data that is not listed is matched by its name. Names may differ in spelling as in :mod:`outgrow.data.classes`, and
words stand for WordNet ids. The outputs of a teacher without class names are named by their numbers, from 0.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from outgrow.data.classes import Match, find_names, match_classes, near_names
from outgrow.data.identity import fingerprint
from outgrow.data.notes import printable, some
from outgrow.data.table import read_table

COLUMNS = ("teacher", "data")


@dataclass(frozen=True)
class ClassMap:
    """``pairs`` of a teacher's class, as it is written in the file at ``path``, and a class of the data."""

    path: str
    pairs: tuple[tuple[str, str], ...]

    @property
    def digest(self) -> str:
        """A hash of the pairs, whatever their order."""
        return fingerprint([part for pair in sorted(self.pairs) for part in pair])[:16]

    @property
    def aliases(self) -> dict[str, str]:
        """The data's class for each other name of it. A class with several is left out: no row of a head is all of them."""
        counts = Counter(data for _, data in self.pairs)
        return {name: data for name, data in self.pairs if counts[data] == 1}


def read_class_map(path: str | Path, classes: Sequence[str]) -> ClassMap:
    """The list at ``path`` for data with these ``classes``. ``ValueError`` if it is none, or names other classes."""
    lines = read_table(path, option="data.class_map", made_by="write one with the columns teacher and data")
    where = printable(path)
    header = [name.strip() for name in lines[0]] if lines else []
    if not set(COLUMNS) <= set(header):
        raise ValueError(
            f"data.class_map: needs columns called teacher and data, got {some(header, 6) or 'no line'} in {where}; add that "
            "header."
        )
    at = [header.index(name) for name in COLUMNS]
    pairs: list[tuple[str, str]] = []
    for number, line in enumerate(lines[1:], start=2):
        teacher, data = (line[place].strip() if place < len(line) else "" for place in at)
        if not teacher and not data:
            continue
        if not teacher or not data:
            raise ValueError(
                f"data.class_map: needs a teacher's class and one of the data's in every line, got "
                f"{','.join(line) or 'nothing'} in line {number} of {where}; complete it, or remove it."
            )
        pairs.append((teacher, data))
    if not pairs:
        raise ValueError(
            f"data.class_map: needs a line for each class that is spelled otherwise, got none in {where}; leave it out if "
            "the names agree."
        )
    repeated = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    if repeated:
        raise ValueError(
            f"data.class_map: needs each of the teacher's classes once, got {some(repeated)} twice in {where}; remove all but "
            "one of its lines."
        )
    listed = list(dict.fromkeys(data for _, data in pairs))
    places = find_names(classes, listed)
    unknown = [name for name, place in zip(listed, places, strict=True) if place is None]
    if unknown:
        raise ValueError(
            f"data.class_map: needs classes of the data ({some(classes)}) in the column data, got {len(unknown)} others in "
            f"{where} ({some(unknown)}){_near(unknown, classes)}"
        )
    named = {name: classes[place] for name, place in zip(listed, places, strict=True) if place is not None}
    return ClassMap(str(path), tuple((teacher, named[data]) for teacher, data in pairs))


def match_through(
    class_map: ClassMap, own: Sequence[str] | None, num_own: int, requested: Sequence[str], *, who: str
) -> Match:
    """Find the ``requested`` classes among ``num_own`` classes with the names ``own``, the listed ones as they are listed.

    ``columns`` are set if each class has one of its own, else ``groups``. ``ValueError`` if a listed name is none of
    ``own``, or if a class has none. A network that has all the classes by name, and none of the listed ones, needs no list.
    """
    names = tuple(map(str, range(num_own))) if own is None else tuple(own)
    where, listed = printable(class_map.path), [name for name, _ in class_map.pairs]
    places = find_names(names, listed)
    if own is not None and not any(place is not None for place in places):
        plain = match_classes(own, num_own, requested)
        if plain.how in ("names", "spelling"):
            return replace(plain, note=f"{plain.note} (data.class_map is not needed)")
    _check_listed(places, listed, names, where, who, nameless=own is None)
    groups: dict[str, list[int]] = {name: [] for name in requested}
    for (_, data), place in zip(class_map.pairs, places, strict=True):
        assert place is not None
        groups[data].append(place)
    rest = [name for name, members in groups.items() if not members]
    if own is not None:
        for name, place in zip(rest, find_names(names, rest), strict=True):
            if place is not None and place not in places:
                groups[name].append(place)
    empty = [name for name, members in groups.items() if not members]
    if empty:
        near = near_names(empty[0], names)
        raise ValueError(
            f"{who}: needs one of its classes or more for each of the data's {len(requested)} classes, got none for "
            f"{some(empty, 6)}; add lines for them to {where}{f' (near: {some(near)})' if near else ''}, or leave "
            "data.class_map out, so that a map is fitted on the labels."
        )
    found = tuple(tuple(sorted(groups[name])) for name in requested)
    used = {place for members in found for place in members}
    extra = tuple(name for place, name in enumerate(names) if place not in used)
    single = all(len(members) == 1 for members in found)
    columns = tuple(members[0] for members in found) if single else None
    note = f"by {where}: {len(used)} of its {num_own} classes are the data's {len(requested)}"
    return Match(
        columns, "map", (), extra, tuple(columns or [None] * len(found)), note, None if single else found
    )


def _check_listed(
    places: Sequence[int | None],
    listed: Sequence[str],
    names: Sequence[str],
    where: str,
    who: str,
    *,
    nameless: bool,
) -> None:
    unknown = []
    for name, place in zip(listed, places, strict=True):
        if place is not None:
            continue
        (alone,) = find_names(names, [name])
        if alone is None:
            unknown.append(name)
            continue
        other = next((one for one, at in zip(listed, places, strict=True) if at == alone), name)
        raise ValueError(
            f"data.class_map: needs each of the teacher's classes once, got {printable(name)} (as {printable(other)}) twice "
            f"in {where}; remove one of its lines."
        )
    if unknown and nameless:
        raise ValueError(
            f"data.class_map: {who} is without class names, so it needs the numbers of outputs, 0 to {len(names) - 1}, in the "
            f"column teacher, got {len(unknown)} others in {where} ({some(unknown)}); write numbers, or name its classes."
        )
    if unknown:
        raise ValueError(
            f"data.class_map: needs classes of {who}, got {len(unknown)} others in the column teacher of {where} "
            f"({some(unknown)}){_near(unknown, names)}"
        )


def _near(unknown: Sequence[str], names: Sequence[str]) -> str:
    near = near_names(unknown[0], names)
    return (
        f"; did you mean {' or '.join(map(printable, near))}?"
        if near
        else "; correct them, or remove their lines."
    )
