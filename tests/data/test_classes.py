"""Classes have names, and names decide: what is found by name, in another spelling, by position, or not."""

import subprocess
import sys

import pytest

from outgrow.data.classes import is_guess, match_classes, spelling, stated_names

ANIMALS = ("bird", "cat", "dog")


def test_names_in_any_order():
    match = match_classes(["dog", "bird", "cat"], 3, ANIMALS)
    assert (match.columns, match.how, match.missing, match.extra) == ((1, 2, 0), "names", (), ())


def test_more_names_than_wanted_are_selected_from():
    match = match_classes([*ANIMALS, "owl"], 4, ("owl", "bird"))
    assert (match.columns, match.how, match.extra) == ((3, 0), "names", ("cat", "dog"))


@pytest.mark.parametrize(
    "own, wanted",
    [
        ("Polar Bear", "polar_bear"),
        ("jack-o'-lantern", "Jack_o_Lantern"),
        ("caf\u00e9", "cafe\u0301"),
        ("l\u2019ours", "l'ours"),
        ("STRASSE", "stra\u00dfe"),
        ("\uff21\uff22", "ab"),
        ("007", "7"),
        ("well\u2010known", "well-known"),
    ],
)
def test_spellings_of_one_name(own, wanted):
    match = match_classes(["fox", own], 2, [wanted])
    assert (match.columns, match.how) == ((1,), "spelling")
    assert wanted in match.note


@pytest.mark.parametrize("own, wanted", [("1-1", "11"), ("ice cream", "icecream"), ("c++", "c")])
def test_other_names_are_other_names(own, wanted):
    assert match_classes([own, "fox"], 2, [wanted, "fox"]).how == "partial"


def test_two_names_of_one_spelling_match_as_written_or_not_at_all():
    assert match_classes(["Cat", "cat"], 2, ["cat", "Cat"]).columns == (1, 0)
    match = match_classes(["Cat", "cat"], 2, ["cat", "CAT"])
    assert (match.columns, match.how, match.missing, match.extra) == (None, "partial", ("CAT",), ("Cat",))
    assert match_classes(["cat"], 1, ["Cat", "CAT"]).how == "none"
    assert match_classes(["cat", "cat"], 2, ["cat"]).how == "none"


def test_some_names_in_common_are_no_order():
    match = match_classes(ANIMALS, 3, ("cat", "dog", "fowl"))
    assert (match.columns, match.how, match.places) == (None, "partial", (1, 2, None))
    assert (match.missing, match.extra) == (("fowl",), ("bird",))
    assert "fowl" in match.note
    assert "bird" in match.note


def test_other_names_are_never_taken_by_position():
    match = match_classes(ANIMALS, 3, ("vogel", "katze", "hund"))
    assert (match.columns, match.how) == (None, "none")


@pytest.mark.parametrize(
    "own, wanted",
    [
        (None, ANIMALS),
        (["0", "1", "2"], ANIMALS),
        (["LABEL_0", "LABEL_1", "LABEL_2"], ANIMALS),
        (ANIMALS, "012"),
    ],
)
def test_position_counts_where_a_side_has_no_names(own, wanted):
    match = match_classes(own, 3, list(wanted))
    assert (match.columns, match.how) == ((0, 1, 2), "position")
    assert "by position, as" in match.note
    assert match_classes(own, 3, [*wanted, "more"]).columns is None


def test_numbers_are_names_where_both_sides_have_them():
    assert match_classes(["0", "1", "10", "2"], 4, ["0", "1", "2", "10"]).columns == (0, 1, 3, 2)
    assert match_classes(["0", "1", "2"], 3, ["1", "2", "3"]).how == "partial"


def test_the_order_of_numbers_is_a_guess():
    numbers = sorted(map(str, range(12)))
    assert is_guess(numbers)
    assert not is_guess([f"{n:02}" for n in range(12)])
    assert not is_guess(ANIMALS)
    assert "guess" in match_classes(None, 12, numbers).note
    assert "guess" not in match_classes(None, 3, ANIMALS).note


class TestImageNet:
    @pytest.fixture
    def ids(self):
        from timm.data import ImageNetInfo

        return tuple(ImageNetInfo().label_names())

    def test_ids_for_words_and_back(self, ids):
        words = ("tench", "Great_White Shark", "goldfish, Carassius auratus")
        assert match_classes(ids, 1000, words).columns == (0, 2, 1)
        match = match_classes(words, 3, ["n01443537", "n01484850", "n01440764"])
        assert (match.columns, match.how) == ((2, 1, 0), "spelling")

    def test_whole_lists_in_their_own_order(self, ids):
        from timm.data import ImageNetInfo
        from torchvision.models._meta import _IMAGENET_CATEGORIES

        info = ImageNetInfo()
        texts = [info.index_to_description(place) for place in range(1000)]
        for words in (texts, list(_IMAGENET_CATEGORIES)):
            assert match_classes(words, 1000, ids).columns == tuple(range(1000))
        backwards = match_classes(texts[::-1], 1000, ids)
        assert len(backwards.missing) < 10  # two classes are called crane
        assert all(place in (None, 999 - number) for number, place in enumerate(backwards.places))

    def test_a_word_for_two_classes_is_neither(self, ids):
        assert match_classes(ids, 1000, ["crane"]).how == "none"


def test_what_files_say():
    assert stated_names({"classes": ["a", "b"]}) == ("a", "b")
    assert stated_names({"id2label": {"1": "b", "0": "a"}}) == ("a", "b")
    assert stated_names({"class_to_idx": {"b": 1, "a": 0}}) == ("a", "b")
    assert stated_names({"class_to_idx": {"10": 1, "2": 0}}) == ("2", "10")
    # names that are numbers: the key says which of the two are the outputs
    names, places = ("1", "2", "0"), {0: 1, 1: 2, 2: 0}
    for key in ("id2label", "idx_to_class", "classes"):
        assert stated_names({key: places}) == names
        assert stated_names({key: {str(k): str(v) for k, v in places.items()}}) == names
    for text in (str, int):
        assert stated_names({"class_to_idx": {str(v): text(k) for k, v in places.items()}}) == names
    for none in (
        {},
        {"classes": 10},
        {"classes": []},
        {"class_to_idx": {"a": 0, "b": 5}},
        {"classes": "a,b"},
    ):
        assert stated_names(none) is None


def test_one_name_for_each_class():
    with pytest.raises(ValueError, match="needs one name for each of 4 classes, got 3; name all"):
        match_classes(ANIMALS, 4, ANIMALS)


def test_the_standard_library_is_enough():
    code = (
        "import sys; from outgrow.data.classes import match_classes as m; m(['a', 'B'], 2, ['b', 'a']); "
        "print([n for n in ('timm', 'torchvision') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_spelling_is_settled():
    for name in ("Jack-o'-Lantern", "\u0130stanbul", "\ufb01sh", "a  b__c"):
        assert spelling(spelling(name)) == spelling(name)
