"""Lists of which of a network's classes is which of the data's: ``data.class_map``."""

from pathlib import Path

import pytest

from outgrow.data.class_map import ClassMap, match_through, read_class_map

OWN = ("tabby", "Egyptian cat", "beagle", "teapot")
CLASSES = ("cat", "dog")


def write(tmp_path: Path, text: str, name: str = "map.csv") -> str:
    path = tmp_path / name
    path.write_bytes(text.encode())
    return str(path)


def read(tmp_path: Path, text: str, classes: tuple[str, ...] = CLASSES) -> ClassMap:
    return read_class_map(write(tmp_path, text), classes)


class TestFile:
    def test_pairs(self, tmp_path):
        found = read(tmp_path, 'teacher,data\ntabby,cat\n"Egyptian cat",cat\nbeagle,dog\n')
        assert found.pairs == (("tabby", "cat"), ("Egyptian cat", "cat"), ("beagle", "dog"))

    def test_columns_by_name_spaces_and_a_spreadsheets_marks(self, tmp_path):
        text = "\ufeffdata;remark;teacher\r\n cat ; striped ; tabby \r\n\r\ndog;;beagle\r\n"
        assert read(tmp_path, text).pairs == (("tabby", "cat"), ("beagle", "dog"))

    def test_data_names_may_be_spelled_otherwise(self, tmp_path):
        found = read(tmp_path, "teacher,data\na,Polar-Bear\n", ("polar bear", "dog"))
        assert found.pairs == (("a", "polar bear"),)

    def test_the_digest_is_of_the_content_alone(self, tmp_path):
        one = read(tmp_path, "teacher,data\ntabby,cat\nbeagle,dog\n")
        other_order = read(tmp_path, "data;teacher\ndog;beagle\ncat;tabby\n")
        other_content = read(tmp_path, "teacher,data\ntabby,cat\nteapot,dog\n")
        assert one.digest == other_order.digest != other_content.digest

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("tabby,cat\n", r"needs columns called teacher and data, got tabby, cat in .*map.csv; add that"),
            ("teacher,data\n", r"needs a line for each class that is spelled otherwise, got none in"),
            (
                "teacher,data\ntabby\n",
                r"needs a teacher's class and one of the data's in every line, got .*line 2",
            ),
            ("teacher,data\ntabby,kat\n", r"got 1 .*\(kat\).*; did you mean cat"),
            (
                "teacher,data\ntabby,cat\ntabby,dog\n",
                r"needs each of the teacher's classes once, got tabby twice",
            ),
            ('teacher,data\n"tabby,cat\n', r"needs a CSV file, got .* cannot be read"),
        ],
    )
    def test_faults(self, tmp_path, text, message):
        with pytest.raises(ValueError, match=message) as error:
            read(tmp_path, text)
        assert str(error.value).startswith("data.class_map: ")

    def test_no_file(self, tmp_path):
        with pytest.raises(
            ValueError, match=r"data.class_map: needs a CSV file, got .*, which is not there; "
        ):
            read_class_map(tmp_path / "none.csv", CLASSES)


def match(tmp_path, text, own=OWN, classes=CLASSES):
    num = 4 if own is None else len(own)
    return match_through(read(tmp_path, text, classes), own, num, classes, who="--teacher toy")


class TestMatch:
    def test_one_for_one(self, tmp_path):
        found = match(tmp_path, "teacher,data\nbeagle,dog\ntabby,cat\n")
        assert (found.columns, found.groups, found.foreign) == ((0, 2), None, False)
        assert found.how == "map"

    def test_several_for_one(self, tmp_path):
        found = match(tmp_path, "teacher,data\ntabby,cat\nbeagle,dog\nEgyptian cat,cat\n")
        assert (found.columns, found.groups, found.foreign) == (None, ((0, 1), (2,)), False)
        assert found.extra == ("teapot",)
        assert "3 of its 4 classes" in found.note

    def test_what_is_not_listed_is_matched_by_name(self, tmp_path):
        found = match(tmp_path, "teacher,data\ntabby,cat\n", classes=("cat", "Teapot"))
        assert found.columns == (0, 3)

    def test_a_listed_class_of_the_teacher_has_no_second_use(self, tmp_path):
        with pytest.raises(ValueError, match=r"got none for beagle"):
            match(tmp_path, "teacher,data\nbeagle,dog\n", classes=("beagle", "dog"))

    def test_words_for_wordnet_ids(self, tmp_path):
        from outgrow.models.sources import imagenet_classes

        own = imagenet_classes()
        text = "teacher,data\ngolden retriever,dog\nn02085620,dog\ntabby,cat\n"
        found = match(tmp_path, text, own, ("cat", "dog"))
        assert found.groups == ((281,), (151, 207))
        with pytest.raises(ValueError, match=r"\(goldn retriever\).*; did you mean .*golden retriever"):
            match(tmp_path, text.replace("golden", "goldn"), own, ("cat", "dog"))
        with pytest.raises(ValueError, match=r"once, got Chihuahua .* twice"):
            match(tmp_path, text + "Chihuahua,dog\n", own, ("cat", "dog"))

    def test_numbers_for_a_teacher_without_names(self, tmp_path):
        found = match(tmp_path, "teacher,data\n3,dog\n0,cat\n", own=None)
        assert found.columns == (0, 3)
        with pytest.raises(
            ValueError, match=r"without class names.*numbers of outputs, 0 to 3.*got 1 .*\(4\)"
        ):
            match(tmp_path, "teacher,data\n4,dog\n0,cat\n", own=None)

    def test_position_is_never_a_guess_here(self, tmp_path):
        with pytest.raises(ValueError, match=r"got none for cat"):
            match(tmp_path, "teacher,data\n1,dog\n", own=None)

    def test_a_class_without_any(self, tmp_path):
        with pytest.raises(
            ValueError,
            match=r"--teacher toy: needs .* for each of the data's 3 classes, got none for teapots; add lines .*"
            r"\(near: teapot\)",
        ):
            match(tmp_path, "teacher,data\ntabby,cat\nbeagle,dog\n", classes=("cat", "dog", "teapots"))

    def test_a_name_that_neither_has(self, tmp_path):
        with pytest.raises(
            ValueError, match=r"data.class_map: .* --teacher toy, got 1 .*\(tabbi\).*; did you mean tabby"
        ):
            match(tmp_path, "teacher,data\ntabbi,cat\nbeagle,dog\n")

    def test_a_teacher_in_the_datas_own_names_needs_no_map(self, tmp_path):
        found = match(tmp_path, "teacher,data\ntabby,cat\nbeagle,dog\n", own=("dog", "cat", "owl"))
        assert (found.how, found.columns) == ("names", (1, 0))
        assert "data.class_map is not needed" in found.note


def test_aliases_are_the_classes_with_one_name(tmp_path):
    found = read(tmp_path, "teacher,data\ntabby,cat\nEgyptian cat,cat\nbeagle,dog\n")
    assert found.aliases == {"beagle": "dog"}
