"""The picture in a run folder: what is drawn is where its numbers are."""

import matplotlib
import pytest
from PIL import Image

from outgrow.report.curves import draw_curves
from outgrow.training.record import parse_record
from tests.report.records import as_of_old, detector, record

STUDENT, TEACHER, CORRECTED, FIRST, SECOND = "#0b7a57", "#4a4f54", "#b34700", "#0b7a57", "#0072b2"


def drawn(path, run):
    draw_curves(run, path / "curves.png")
    with Image.open(path / "curves.png") as picture:
        return picture.convert("RGB")


def rows(picture, colour, columns):
    """The rows, from above, on which the colour is found in one of the columns."""
    sought = tuple(bytes.fromhex(colour[1:]))
    return [y for y in range(picture.height) if any(picture.getpixel((x, y)) == sought for x in columns)]


def points(pixels):
    """Pixels of the picture as points: it is drawn at 110 dots an inch."""
    return pixels * 72 / 110


def test_scores_are_where_their_numbers_are(tmp_path):
    # tested at epochs 2 and 4 with 40 and 80, beside a teacher of 50 and 91; the axis goes from 40 to 100,
    # which are 354 and 40 points from above; epoch 4 is 480 points from the left
    picture = drawn(tmp_path, record("kd", 0, 80.0, corrected=True))
    assert picture.height == round(400 * 110 / 72)
    start, end = range(94, 98), range(729, 733)
    for colour, columns, expected in (
        (STUDENT, start, 354.0),
        (STUDENT, end, 354 - 314 * 40 / 60),
        (TEACHER, range(200, 700), 354 - 314 * 10 / 60),
        (CORRECTED, range(200, 700), 354 - 314 * 51 / 60),
    ):
        found = rows(picture, colour, columns)
        assert found, colour
        assert points(sum(found) / len(found)) == pytest.approx(expected, abs=2.5)


def test_terms_are_where_their_numbers_are(tmp_path):
    # two terms that fall from 1 and 2 to a quarter of that, on an axis from 0 to 2
    picture = drawn(tmp_path, record("kd", 0, 80.0, teacher=None))
    last = round(picture.width - (24 + 6.6 * 4) * 110 / 72)
    for colour, value in ((FIRST, 0.25), (SECOND, 0.5)):
        found = rows(picture, colour, range(last - 2, last + 2))
        assert points(sum(found) / len(found)) == pytest.approx(354 - 314 * value / 2, abs=2.5)


def test_without_a_teacher_there_is_none(tmp_path):
    picture = drawn(tmp_path, record("none", 0, 80.0, teacher=None))
    everywhere = range(60, picture.width // 2)
    assert rows(picture, STUDENT, everywhere)
    assert rows(picture, TEACHER, everywhere) == []
    assert rows(picture, CORRECTED, everywhere) == []


@pytest.mark.parametrize("epochs", [1, 100])
@pytest.mark.parametrize("num_terms", [0, 1, 14])
def test_any_run_is_drawn(tmp_path, epochs, num_terms):
    run = record("kd", 0, 80.0, epochs=epochs, terms=tuple(f"term{i}" for i in range(num_terms)))
    picture = drawn(tmp_path, run)
    assert rows(picture, STUDENT, range(60, 800))
    # a run without terms has one plot, and all others have two
    assert (picture.width > 1200) == (num_terms > 0)
    assert bool(rows(picture, SECOND, range(picture.width))) == (num_terms > 1)


def test_a_run_that_was_never_tested_has_its_terms(tmp_path):
    run = record("kd", 0, 80.0)
    for epoch in run["epochs"]:
        epoch["score"] = None
    assert rows(drawn(tmp_path, run), SECOND, range(60, 700))


def test_a_detector_is_drawn(tmp_path):
    picture = drawn(tmp_path, detector("kd", 0, 43.0))
    assert rows(picture, STUDENT, range(60, 800))
    assert rows(picture, TEACHER, range(60, 800))


def test_names_of_any_kind_are_drawn(tmp_path):
    names = ("<script>", "$\\frac$", "_hidden", "\u4e2d\u6587", "n" * 300, "a\nb\x00", "")
    run = record("kd", 0, 80.0, terms=names)
    run["student"]["name"] = "$\\frac$" + "n" * 300
    assert drawn(tmp_path, run).width < 2000


def test_the_same_run_is_the_same_picture(tmp_path):
    """A record, what ``distill`` returns, a record of old; and whatever a user set for pictures of their own."""
    run = record("kd", 0, 80.0, corrected=True)
    draw_curves(run, tmp_path / "first.png")
    draw_curves(as_of_old(run), tmp_path / "old.png")
    draw_curves(parse_record(run), tmp_path / "typed.png")
    with matplotlib.rc_context({"axes.facecolor": "black", "savefig.dpi": 300, "font.size": 30}):
        draw_curves(run, tmp_path / "set.png")
    first = (tmp_path / "first.png").read_bytes()
    for name in ("old", "typed", "set"):
        assert (tmp_path / f"{name}.png").read_bytes() == first, name
