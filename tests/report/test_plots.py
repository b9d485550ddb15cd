"""Plots as they stand in a page: read as a browser would."""

import math
import re
import sys
import threading
from xml.etree import ElementTree

import matplotlib
import pytest

from outgrow.report.palette import LIGHT, PALETTE
from outgrow.report.plots import (
    Effect,
    Level,
    Series,
    dot_plot,
    line_plot,
    short,
    spread,
    teacher_levels,
)
from tests.report.reading import Page

LEVELS = [Level("teacher", 30.0, "teacher")]


def lines(*series, levels=(), ceiling=100.0, name="a"):
    return line_plot(series, levels, name=name, title="A plot", ceiling=ceiling)


def dots(*effects):
    return dot_plot(effects, name="d", title="Differences", x_label="points over none")


def effect(label="a", values=(5.0, 6.0), mean=5.5, low=-0.85, high=11.85, colour="s1"):
    return Effect(label, values, mean, low, high, f"mean {mean}", colour)


def texts(svg):
    """What can be read, and where: text, x, y."""
    found = ElementTree.fromstring(svg).iter("text")
    return [(one.text.replace("\u2212", "-"), float(one.get("x")), float(one.get("y"))) for one in found]


def words(svg):
    return [text for text, _, _ in texts(svg)]


def marks(svg, colour):
    """Marks with a title in a colour: title, x, y."""
    return [
        (one.find("title").text, float(one.get("x")), float(one.get("y")))
        for one in ElementTree.fromstring(svg).iter("use")
        if one.find("title") is not None and f"var(--{colour})" in one.get("style")
    ]


def strokes(svg, colour):
    """End points of the straight lines in a colour: (x, y), (x, y)."""
    found = []
    for one in ElementTree.fromstring(svg).iter("path"):
        if "id" not in one.attrib and f"stroke: var(--{colour})" in one.get("style", ""):
            numbers = [float(number) for number in re.findall(r"-?[\d.]+", one.get("d"))]
            found.append((tuple(numbers[:2]), tuple(numbers[-2:])))
    return found


def test_a_line_is_where_its_numbers_are():
    plot = lines(Series("ours", [(1, 10.0), (3, 20.0), (5, 60.0)], colour="s2"), levels=LEVELS)
    # ticks tell where a number is: the axis goes from 10 to 60 and from epoch 1 to 5
    ticks = {text: (x, y) for text, x, y in texts(plot.wide)}
    assert {"10", "20", "30", "40", "50", "60", "epoch", "ours", "teacher"} <= set(ticks)
    rise = (ticks["60"][1] - ticks["10"][1]) / 50
    drawn = marks(plot.wide, "s2")
    assert [title for title, _, _ in drawn] == [
        "ours, epoch 1: 10.00",
        "ours, epoch 3: 20.00",
        "ours, epoch 5: 60.00",
    ]
    (x1, y1), (x3, y3), (x5, y5) = [(x, y) for _, x, y in drawn]
    assert x3 == pytest.approx((x1 + x5) / 2)
    assert y3 - y1 == pytest.approx(10 * rise, abs=0.02)
    assert y5 - y1 == pytest.approx(50 * rise, abs=0.02)
    assert rise < 0  # higher is up
    assert ((x1, y1), (x5, y5)) in strokes(plot.wide, "s2")
    ((left, across), (right, end)) = strokes(plot.wide, "teacher")[0]
    assert (left, right, across) == (x1, x5, end)
    assert across - y1 == pytest.approx(20 * rise, abs=0.02)


def test_names_stand_beside_the_ends_of_lines_or_in_the_legend():
    plot = lines(
        Series("low", [(1, 5.0), (2, 10.0)]),
        Series("high", [(1, 5.0), (2, 90.0)], colour="s1"),
        levels=LEVELS,
    )
    places = {text: y for text, _, y in texts(plot.wide)}
    assert places["high"] < places["teacher"] < places["low"]
    assert not {"high", "teacher", "low"} & set(words(plot.narrow))
    assert [(key.label, key.colour) for key in plot.legend] == [
        ("low", "s0"),
        ("high", "s1"),
        ("teacher", "teacher"),
    ]


def test_labels_keep_their_distance_and_their_order():
    placed = spread([0.0, 10.0, 50.0, 51.0, 52.0, 98.0, 99.0], 16.0, 110.0)
    assert placed == [0.0, 16.0, 46.0, 62.0, 78.0, 94.0, 110.0]


def test_percent_do_not_pass_their_ends():
    plot = lines(Series("a", [(1, 0.0), (2, 99.0)]))
    assert [word for word in words(plot.wide) if word.isdigit()][2:] == ["0", "20", "40", "60", "80", "100"]
    plot = line_plot([Series("loss", [(1, 0.02), (2, 104.0)])], name="a", title="")
    assert "120" in words(plot.wide)
    assert not any(word.startswith("-") for word in words(plot.wide))


def test_one_epoch_has_room_to_either_side():
    assert [word for word in words(lines(Series("a", [(7, 50.0)])).wide) if word.isdigit()][:3] == [
        "6",
        "7",
        "8",
    ]


def test_many_epochs_have_no_marks_and_colours_that_come_again_are_dashed():
    many = Series("many", [(x, x / 10) for x in range(100)])
    assert marks(lines(many).wide, "s0") == []
    two = [Series(name, [(1, 1.0), (2, 2.0)], colour="s3") for name in ("a", "b")]
    svg = lines(*two).wide
    assert len(strokes(svg, "s3")) == 2
    assert svg.count("stroke-dasharray") == 1


def test_bands_are_drawn():
    band = Series("a", [(1, 10.0), (2, 20.0)], [(1, 5.0, 15.0), (2, 18.0, 22.0)])
    assert lines(band).wide.count("fill-opacity: 0.11") == 1
    assert "22.00" not in lines(band).wide


def test_nothing_measured_is_no_plot():
    assert lines() is None
    assert dots() is None


def test_levels_of_a_teacher():
    assert teacher_levels(None, None) == []
    assert [level.label for level in teacher_levels(50.0, 50.0)] == ["teacher"]
    assert teacher_levels(50.0, 60.0)[1] == Level("teacher, corrected", 60.0, "corrected")


def test_differences_are_where_their_numbers_are():
    svg = dots(effect("one"), effect("two", (-2.0, 1.0), -0.5, -3.0, 2.0, "s2")).wide
    ticks = {text: x for text, x, _ in texts(svg)}
    step = (ticks["+10"] - ticks["0"]) / 10
    assert step > 0
    assert strokes(svg, "ink")[0][0][0] == pytest.approx(ticks["0"], abs=0.02)
    drawn = marks(svg, "s1")
    assert [title for title, _, _ in drawn] == ["one: +5.00", "one: +6.00"]
    assert [x for _, x, _ in drawn] == pytest.approx([ticks["0"] + 5 * step, ticks["0"] + 6 * step], abs=0.05)
    ((low, y), (high, end)) = strokes(svg, "s2")[0]
    assert (low, high) == pytest.approx((ticks["0"] - 3 * step, ticks["0"] + 2 * step), abs=0.05)
    assert y == end
    assert y > strokes(svg, "s1")[0][0][1]
    assert {"one", "mean 5.5", "two", "mean -0.5", "points over none"} <= set(words(svg))


@pytest.mark.parametrize("kind", ["wide", "narrow"])
def test_an_interval_that_is_not_known_or_too_wide(kind):
    one = effect("one seed", (2.0,), 2.0, -math.inf, math.inf)
    wild = effect("two seeds", (1.0, 2.0), 1.5, -500.0, 503.0, "s2")
    svg = getattr(dots(one, wild), kind)
    assert strokes(svg, "s1") == []
    assert len(strokes(svg, "s2")) == 1
    assert not re.search(r"\b(nan|inf)", svg)
    # the seeds are what the axis is for: the interval runs out of it
    ticks = {text: x for text, x, _ in texts(svg)}
    assert marks(svg, "s2")[1][1] - ticks["0"] > 20


def test_colours_are_the_page_s():
    assert len(set(LIGHT.values())) == len(LIGHT)
    assert len({dark for _, dark in PALETTE.values()}) == len(PALETTE)
    plot, other = lines(Series("a", [(1, 1.0), (2, 2.0)]), levels=LEVELS), dots(effect())
    for svg in (plot.wide, plot.narrow, other.wide, other.narrow):
        assert set(re.findall(r"var\(--(\w+)\)", svg)) <= {*PALETTE, "font"}
        assert not re.search(r"#[0-9a-fA-F]{6}\b", svg)
        assert set(re.findall(r"font(?:-family)?: (?:[\d.]+(?:px)? )*([^;\d]+)[;\"]", svg)) == {"var(--font)"}


def test_a_plot_says_what_it_shows():
    plot = lines(Series("ours", [(1, 1.0), (2, 94.0)]), levels=LEVELS)
    root = ElementTree.fromstring(plot.wide)
    assert root.get("role") == "img"
    named = {one.get("id"): one.text for one in root if one.tag in ("title", "desc")}
    assert named[root.get("aria-labelledby")] == "A plot"
    assert (
        named[root.get("aria-describedby")]
        == "Line plot by epoch. At the end: ours 94.00, teacher 30.00 across."
    )
    root = ElementTree.fromstring(dots(effect()).narrow)
    assert root.find("desc").text == "Dot plot of points over none. Means: a mean 5.5."


def test_plots_share_a_page():
    """No two ids are the same, what refers to one finds it, and no rule is for more than the plot."""
    series = Series("a", [(1, 1.0), (2, 2.0)], [(1, 0.0, 2.0), (2, 1.0, 3.0)])
    plots = [lines(series, name="a"), lines(series, name="b"), dots(effect(high=900.0), effect("b"))]
    html = "".join(svg for plot in plots for svg in (plot.wide, plot.narrow))
    page = Page(html)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) > 12
    assert len(set(ids)) == len(ids)
    referred = re.findall(r'(?:href="#|url\(#)([^")]+)', html)
    assert referred
    assert set(referred) <= set(ids)
    assert not page.all("style")
    assert "http" not in html


NAMES = [
    "<script>alert(1)</script>",
    "\"'&quot;",
    "$\\frac$",
    "_hidden",
    "\x00\x1b[0m\n",
    "\u4e2d\u6587",
    "n" * 500,
    "",
]


def test_names_are_text_and_nothing_else():
    plot = lines(*[Series(name, [(1, float(i)), (2, 9.0 * i)]) for i, name in enumerate(NAMES)])
    other = dots(*[effect(name) for name in NAMES])
    for svg in (plot.wide, other.wide, other.narrow):
        ElementTree.fromstring(svg)
        assert "<script" not in svg
        for said in ("<script>alert(1)</script>", "\"'&quot;", "$\\frac$", "_hidden", "\u4e2d\u6587"):
            assert short(said) in words(svg)
        assert max(map(len, words(svg))) <= 30


def test_the_same_numbers_are_the_same_bytes_whatever_others_set():
    def drawn():
        plot, other = lines(Series("a", [(1, 1.0), (2, 2.0)]), levels=LEVELS), dots(effect())
        return plot.wide, plot.narrow, other.wide, other.narrow

    before, first = dict(matplotlib.rcParams), drawn()
    with matplotlib.rc_context(
        {"axes.facecolor": "black", "svg.fonttype": "path", "font.size": 30, "lines.linewidth": 9}
    ):
        theirs = dict(matplotlib.rcParams)
        assert drawn() == first
        assert dict(matplotlib.rcParams) == theirs
    assert dict(matplotlib.rcParams) == before

    found = []
    threads = [threading.Thread(target=lambda: found.append(drawn())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [first] * 4
    assert dict(matplotlib.rcParams) == before


def test_pyplot_is_left_alone():
    lines(Series("a", [(1, 1.0)]))
    if "matplotlib.pyplot" in sys.modules:
        assert sys.modules["matplotlib.pyplot"].get_fignums() == []
