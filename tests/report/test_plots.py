"""The geometry of plots."""

import itertools
import math

import pytest

from outgrow.report.plots import (
    LINE_GAP,
    Effect,
    Label,
    Level,
    Series,
    dot_plots,
    line_plots,
    nice_axis,
    spread,
)


@pytest.mark.parametrize(
    "low, high",
    [(0.0, 100.0), (1.2, 9.6), (-0.003, 0.002), (93.4, 94.1), (5.0, 5.0), (0.0, 0.0), (-7.0, -7.0)],
)
def test_an_axis_covers_its_data_with_few_round_ticks(low, high):
    first, last, ticks = nice_axis(low, high)
    assert first <= low
    assert last >= high
    assert 3 <= len(ticks) <= 9
    assert ticks == sorted(set(ticks))


def test_labels_keep_their_distance_and_their_order():
    labels = [Label(0.0, y, str(y), "s0") for y in (50.0, 10.0, 52.0, 51.0, 99.0, 98.0, 0.0)]
    placed = spread(labels, 5.0, 100.0)
    ys = [label.y for label in placed]
    assert [float(label.text) for label in placed] == sorted(label.y for label in labels)
    assert all(b - a >= LINE_GAP for a, b in itertools.pairwise(ys))
    assert ys[-1] <= 100


def test_higher_values_stand_higher_and_levels_too():
    wide, narrow = line_plots(
        [Series("a", ((1.0, 10.0), (2.0, 20.0)))], [Level("teacher", 30.0, "teacher")], ceiling=100.0
    )
    assert (wide.kind, narrow.kind) == ("wide", "narrow")
    first, second = wide.curves[0].marks
    assert first.y > second.y > wide.levels[0].y
    assert first.x < second.x
    assert narrow.labels == ()


def test_percent_do_not_pass_the_ceiling():
    wide, _ = line_plots([Series("a", ((1.0, 0.0), (2.0, 99.0)))], ceiling=100.0)
    assert [tick.text for tick in wide.y_ticks] == ["0", "20", "40", "60", "80", "100"]


def test_nothing_measured_is_no_plot():
    assert line_plots([Series("a", ())]) is None
    assert dot_plots([], x_label="points") is None


def test_zero_is_always_visible():
    wide, _ = dot_plots([Effect("a", (5.0, 6.0), 5.5, -0.85, 11.85, "", "s0")], x_label="points")
    assert wide.left <= wide.zero <= wide.right
    assert any(tick.text == "0" for tick in wide.x_ticks)


def test_an_interval_that_is_not_known_or_too_wide():
    one = Effect("one seed", (2.0,), 2.0, -math.inf, math.inf, "", "s0")
    wild = Effect("two seeds", (1.0, 2.0), 1.5, -500.0, 503.0, "", "s1")
    wide, _ = dot_plots([one, wild], x_label="points")
    assert wide.effects[0].interval is None
    assert wide.effects[1].interval == (wide.left, wide.right)
    assert wide.effects[1].caps == ()
    assert max(dot.x for dot in wide.effects[1].dots) - wide.zero > 50
