"""Match the classes of a network to the classes of a data set, by name.

    match = match_classes(network.classes, network.num_classes, data.classes)
    match.columns     the network's output for each of the data's classes; None if they do not fit

Names match exactly, or after normalising common differences in spelling. Classes are matched by position only
if one side has no names; ``match.note`` reports this. The module imports only the standard library;
timm is imported where classes are compared with ImageNet's.
"""

import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

How = Literal["names", "spelling", "position", "none", "partial", "map"]

APOSTROPHES = "'`\u00b4\u2018\u2019\u02bc\uff07"
SEPARATORS = re.compile(r"[\s_\-\u00ad\u2010-\u2015\u2212]+")
NUMBER = re.compile(r"[0-9]+")
INVENTED = re.compile(r"label[_ ]?[0-9]+", re.IGNORECASE)
"""Hugging Face's default class names (LABEL_0, ...) for a model without names."""
NAME_KEYS = ("classes", "class_names", "class_to_idx", "idx_to_class", "id2label", "label_names")
"""The keys of class names in a file's metadata."""
NAME_FIRST = ("class_to_idx",)
"""Those of them whose mappings lead from names to outputs."""
WORDNET = re.compile(r"n[0-9]{8}")
IN_ORDER = 0.99
"""A list of words is in ImageNet's class order if at least this share of its 1,000 words fits the class at its
position. Lists in use differ from one another in up to two classes."""


@dataclass(frozen=True)
class Match:
    """Where the requested classes are among the network's own classes."""

    columns: tuple[int, ...] | None
    """The index of each requested class among the own classes; None unless all were found."""
    how: How
    missing: tuple[str, ...]
    """Wanted names that are not among the own names."""
    extra: tuple[str, ...]
    """Own names that are not requested."""
    places: tuple[int | None, ...]
    """Like ``columns``, with None for each class that is missing."""
    note: str
    """A summary for messages."""
    groups: tuple[tuple[int, ...], ...] | None = None
    """The indices of each requested class, if a class map gives some of them several; ``columns`` is then None."""

    @property
    def foreign(self) -> bool:
        """Whether the requested classes cannot be read from the own ones."""
        return self.columns is None and self.groups is None


def match_classes(own: Sequence[str] | None, num_own: int, requested: Sequence[str]) -> Match:
    """Find each of the ``requested`` classes among ``num_own`` classes with the names ``own``.

    The values of ``how``:

    - ``names``: all were found, with the same names;
    - ``spelling``: all were found, one for one. Names may differ in case, Unicode form, underscores, hyphens,
      spaces and apostrophes, or one side has WordNet ids and the other ImageNet's words;
    - ``partial``: some were found;
    - ``none``: no name was found; or one side has no names and the numbers of classes differ;
    - ``position``: one side has no names, or only numbers or ``LABEL_0``, ``LABEL_1``, ..., and both sides have
      the same number of classes.

    (``map`` is of :func:`outgrow.data.class_map.match_through`.)

    >>> match_classes(["dog", "Polar_Bear", "cat"], 3, ["cat", "polar bear"]).columns
    (2, 1)
    >>> match_classes(None, 3, ["bird", "cat", "dog"]).how
    'position'
    """
    requested = tuple(map(str, requested))
    names = None if own is None else tuple(map(str, own))
    if names is not None and len(names) != num_own:
        raise ValueError(
            f"classes: needs one name for each of {num_own} classes, got {len(names)}; name all of them or none."
        )
    nothing: tuple[int | None, ...] = (None,) * len(requested)
    if names is not None:
        places, spelled = _places(names, requested)
        found = [place for place in places if place is not None]
        missing = tuple(name for name, place in zip(requested, places, strict=True) if place is None)
        extra = tuple(name for place, name in enumerate(names) if place not in found)
        if not missing:
            note = "by name" + (f", in another spelling ({_few(spelled)})" if spelled else "")
            return Match(tuple(found), "spelling" if spelled else "names", (), extra, places, note)
        # numbers that occur on both sides count as names, such as those of folders
        if found or not (_nameless(names) or _nameless(requested)):
            how: How = "partial" if found else "none"
            note = (
                f"{len(found) or 'none'} of {len(requested)} found by name (missing: {_few(missing)}; "
                f"not needed: {_few(extra)})"
            )
            return Match(None, how, missing, extra, places, note)
    if num_own != len(requested):
        note = f"{num_own} classes without names for {len(requested)}"
        return Match(None, "none", requested, names or (), nothing, note)
    columns = tuple(range(num_own))
    return Match(columns, "position", (), (), columns, _by_position(names, requested))


def find_names(names: Sequence[str], requested: Sequence[str]) -> tuple[int | None, ...]:
    """The index of each of the ``requested`` names among ``names``, in the same or another spelling; None if it is not
    among them, or not alone.

    >>> find_names(["dog", "Polar_Bear"], ["polar bear", "cat"])
    (1, None)
    """
    return _places(tuple(map(str, names)), tuple(map(str, requested)))[0]


def renamed(names: Sequence[str] | None, aliases: Mapping[str, str] | None) -> tuple[str, ...] | None:
    """``names`` with those that ``aliases`` has, in the same or another spelling, replaced by what it has for them.

    A name that is there already is not given twice.

    >>> renamed(["Golden_Retriever", "teapot"], {"golden retriever": "dog"})
    ('dog', 'teapot')
    """
    if names is None or not aliases:
        return None if names is None else tuple(names)
    result = list(map(str, names))
    own = find_names(names, list(aliases.values()))
    for place, name, there in zip(find_names(names, list(aliases)), aliases.values(), own, strict=True):
        if place is not None and there is None:
            result[place] = name
    return tuple(result)


def near_names(name: str, names: Sequence[str], most: int = 3) -> list[str]:
    """Those of ``names`` that are spelled much like ``name``. For WordNet ids the words of ImageNet are searched."""
    known = {spelling(one): one for one in names}
    if any(WORDNET.fullmatch(one) for one in names):
        known |= {word: word for words in _imagenet().words for word in words if not WORDNET.fullmatch(word)}
    return [known[one] for one in difflib.get_close_matches(spelling(name), known, n=most)]


def spelling(name: str) -> str:
    """The normalised spelling of a class name.

    >>> spelling("Jack-o'-Lantern"), spelling("jack_o_lantern"), spelling("007")
    ('jack o lantern', 'jack o lantern', '7')
    """
    text = "".join(letter for letter in name if letter not in APOSTROPHES)
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    text = SEPARATORS.sub(" ", text).strip()
    return str(int(text)) if NUMBER.fullmatch(text) else text


def alike(names: Iterable[str]) -> list[list[str]]:
    """The names that have one :func:`spelling`, where several have.

    >>> alike(["cat", "Dog", "dog"])
    [['Dog', 'dog']]
    """
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(spelling(name), []).append(name)
    return [same for same in found.values() if len(same) > 1]


def stated_names(statements: Mapping[str, object]) -> tuple[str, ...] | None:
    """The class names in a file's metadata, in the order of the outputs; None if there are none.

    The common keys are read, with a list of names or a mapping in either direction (``class_to_idx``,
    ``id2label``).

    >>> stated_names({"class_to_idx": {"dog": 1, "cat": 0}})
    ('cat', 'dog')
    >>> stated_names({"id2label": {"0": 1, "1": 2, "2": 0}}), stated_names({"class_to_idx": {"1": 0, "2": 1, "0": 2}})
    (('1', '2', '0'), ('1', '2', '0'))
    """
    for key in NAME_KEYS:
        value = statements.get(key)
        if isinstance(value, list | tuple) and value and all(isinstance(name, str | int) for name in value):
            return tuple(map(str, value))
        if not isinstance(value, Mapping) or not value:
            continue
        tables = [value, {str(place): name for name, place in value.items()}]
        if key in NAME_FIRST:  # names may be numbers too, so the key says which of the two are the outputs
            tables.reverse()
        for table in tables:
            if all(NUMBER.fullmatch(str(place)) for place in table):
                ordered = {int(str(place)): str(name) for place, name in table.items()}
                if sorted(ordered) == list(range(len(value))):
                    return tuple(ordered[place] for place in range(len(value)))
    return None


def is_guess(requested: Sequence[str]) -> bool:
    """Whether the names are integers that are not in numerical order: 0, 1, 10, 11, 2."""
    numbers = [int(name) for name in requested if NUMBER.fullmatch(name)]
    return len(numbers) == len(requested) and numbers != sorted(numbers)


def _by_position(names: tuple[str, ...] | None, requested: tuple[str, ...]) -> str:
    why = (
        "the weights have no class names"
        if names is None
        else f"the weights' class names are only placeholders ({_few(names, 2)})"
        if _nameless(names)
        else f"the data's class names are only numbers ({_few(requested, 2)})"
    )
    note = f"by position, as {why}: output 0 is used as {requested[0]!r}, the last as {requested[-1]!r}"
    if is_guess(requested):
        note += (
            f"; the order is a guess: the data's names are sorted as text ({_few(requested)}), as in torchvision's data sets, "
            "but timm and many others sort them as numbers"
        )
    return note


def _nameless(names: Sequence[str]) -> bool:
    return all(NUMBER.fullmatch(name) or INVENTED.fullmatch(name) for name in names)


def _places(names: tuple[str, ...], requested: tuple[str, ...]) -> tuple[tuple[int | None, ...], list[str]]:
    """The index of each requested name, and the pairs that were matched with different spellings."""
    once = _unique(names)
    places = [once.get(name) if requested.count(name) == 1 else None for name in requested]
    spelled: list[str] = []
    for keys in (_spellings, _wordnet_ids):
        if None not in places:
            break
        theirs, ours = keys(names, requested), keys(requested, names)
        if theirs is None or ours is None:
            continue
        free, counts = _unique(theirs), Counter(ours)
        for number, key in enumerate(ours):
            place = free.get(key)
            if places[number] is None and counts[key] == 1 and place is not None and place not in places:
                places[number] = place
                spelled.append(f"{names[place]} for {requested[number]}")
    return tuple(places), spelled


def _unique(keys: Sequence[str]) -> dict[str, int]:
    counts = Counter(keys)
    return {key: place for place, key in enumerate(keys) if counts[key] == 1}


def _spellings(names: tuple[str, ...], others: tuple[str, ...]) -> list[str] | None:
    return [spelling(name) for name in names]


def _wordnet_ids(names: tuple[str, ...], others: tuple[str, ...]) -> list[str] | None:
    """The WordNet id of each name that is an ImageNet class, else its normalised spelling.

    None unless some name on either side looks like ImageNet's: an id, or a list of words with ", ".
    """
    if not any(WORDNET.fullmatch(name) or ", " in name for name in (*names, *others)):
        return None
    imagenet = _imagenet()
    if len(names) == len(imagenet.ids):
        # words repeat ("crane"), but in ImageNet's class order the position identifies them
        fitting = sum(spelling(name) in w for name, w in zip(names, imagenet.words, strict=True))
        if fitting >= IN_ORDER * len(names):
            return list(imagenet.ids)
    return [imagenet.id_of(spelling(name)) for name in names]


class _ImageNet:
    """ImageNet-1k's WordNet ids in class order, and the words for each."""

    def __init__(self) -> None:
        from timm.data import ImageNetInfo

        info = ImageNetInfo()
        self.ids = tuple(info.label_names())
        texts = [info.index_to_description(place) for place in range(len(self.ids))]
        synonyms = [[spelling(word) for word in text.split(",")] for text in texts]
        self.words = [
            {own, spelling(text), *words} for own, text, words in zip(self.ids, texts, synonyms, strict=True)
        ]
        # the common name of a class is its first word, which may be a synonym of another class ("partridge")
        first = [
            {own, spelling(t), words[0]} for own, t, words in zip(self.ids, texts, synonyms, strict=True)
        ]
        self._meanings = [self._table(first), self._table(self.words)]

    def id_of(self, word: str) -> str:
        """The id for ``word``; ``word`` itself if it is unknown or ambiguous."""
        for meanings in self._meanings:
            found = meanings.get(word, ())
            if found:
                return found[0] if len(found) == 1 else word
        return word

    def _table(self, words: Sequence[set[str]]) -> dict[str, list[str]]:
        table: dict[str, list[str]] = {}
        for own, spellings in zip(self.ids, words, strict=True):
            for word in spellings:
                table.setdefault(word, []).append(own)
        return table


@lru_cache(maxsize=1)
def _imagenet() -> _ImageNet:
    return _ImageNet()


def _few(names: Sequence[str], most: int = 5) -> str:
    listed = ", ".join(names[:most])
    return (listed + (f" and {len(names) - most} more" if len(names) > most else "")) or "none"
