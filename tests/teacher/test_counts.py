"""Tests on counts: known values, and judgements that cannot be had from nothing."""

import math

import pytest

from outgrow.teacher.counts import above, apart, has_memorised, interval, paired


def choose(n, k):
    return math.comb(n, k)


@pytest.mark.parametrize("right, rows", [(0, 15), (15, 15), (7, 20), (998, 1000)])
def test_an_interval_holds_its_share_and_stays_in_bounds(right, rows):
    low, high = interval(right, rows)
    assert 0 <= low <= 100 * right / rows <= high <= 100
    assert high - low > 0


def test_intervals_of_the_literature():
    # Newcombe (1998), Statistics in Medicine 17, table I, method 3: 81/263 and 15/148
    assert interval(81, 263) == (pytest.approx(25.53, abs=0.01), pytest.approx(36.62, abs=0.01))
    assert interval(15, 148) == (pytest.approx(6.24, abs=0.01), pytest.approx(16.05, abs=0.01))


def test_an_interval_needs_rows():
    with pytest.raises(ValueError, match="needs 0 <= right <= rows"):
        interval(0, 0)


def test_above_is_the_tail_of_the_binomial():
    tail = sum(choose(12, k) * 0.3**k * 0.7 ** (12 - k) for k in range(6, 13))
    assert above(6, 12, 0.3) == pytest.approx(tail)


def test_paired_is_the_sign_test_of_the_rows_that_changed():
    assert paired(9, 1) == pytest.approx(2 * (choose(10, 0) + choose(10, 1)) / 2**10)
    assert paired(1, 9) == paired(9, 1)
    assert paired(5, 5) == 1.0


def test_apart_is_the_tail_of_the_hypergeometric():
    # 9 of 10 against 4 of 10: tables with at least 9 right in the first row
    total = sum(choose(10, k) * choose(10, 13 - k) for k in (9, 10)) / choose(20, 13)
    assert apart(9, 10, 4, 10) == pytest.approx(total)


@pytest.mark.parametrize(
    "counts, chance, memory",
    [
        ((100, 870, 0, 15), 0.10, False),  # 11.5 % of fitted and none of 15: nothing is known
        (
            (1150, 10_000, 0, 200),
            0.10,
            False,
        ),  # significant, but hardly above chance: there is nothing to remember
        ((990, 1000, 600, 1000), 0.10, True),
        ((990, 1000, 980, 1000), 0.10, False),
        ((9900, 10_000, 9600, 10_000), 0.10, True),  # three points, and certain
        (
            (9900, 10_000, 9750, 10_000),
            0.10,
            False,
        ),  # as certain, but a correction is worth more than one point and a half costs
        ((2000, 10_000, 1000, 10_000), 0.001, True),  # a part of a thousand classes
        ((990, 1000, 13, 15), 0.10, False),  # two misses of fifteen: too few to tell
        ((990, 1000, 3, 15), 0.10, True),
        ((700, 1000, 640, 1000), 0.05, False),  # not beyond what chance gives
        ((7000, 10_000, 6300, 10_000), 0.05, True),
        ((600, 1000, 900, 1000), 0.10, False),  # better on rows that it has not seen: views are hard
    ],
)
def test_memory_is_not_had_from_nothing(counts, chance, memory):
    assert has_memorised(*counts, chance=chance) is memory
