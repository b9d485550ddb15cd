"""Intervals and p-values against scipy's own tests, and against what is counted by hand."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from outgrow.report.statistics import contrasts, holm, paired, sign_flips, summarize, t_test

VALUES = [91.2, 90.4, 92.7, 91.9, 90.8]
OTHERS = [90.1, 90.6, 91.0, 91.1, 90.2]
THIRD = [90.9, 90.2, 91.1, 91.5, 89.9]


def test_an_interval_is_scipys():
    found = paired(VALUES, OTHERS)
    result = stats.ttest_rel(VALUES, OTHERS).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((result.low, result.high))


@pytest.mark.parametrize("number", [2, 5, 12])
def test_a_widened_interval_is_scipys_at_the_level_of_bonferroni(number):
    found = paired(VALUES, OTHERS, together=number)
    result = stats.ttest_rel(VALUES, OTHERS).confidence_interval(1 - 0.05 / number)
    assert (found.low, found.high) == pytest.approx((result.low, result.high))


def test_a_p_value_is_scipys():
    found = [a - b for a, b in zip(VALUES, OTHERS, strict=True)]
    assert t_test(found) == pytest.approx(stats.ttest_rel(VALUES, OTHERS).pvalue)


def test_sign_flips_are_scipys_permutations_and_those_counted_by_hand():
    found = np.array(VALUES) - np.array(OTHERS)
    exact = stats.permutation_test(
        (found,),
        lambda x, axis: x.mean(axis),
        permutation_type="samples",
        n_resamples=np.inf,
        vectorized=True,
    )
    assert sign_flips(list(found)) == pytest.approx(exact.pvalue)
    flips = list(itertools.product((1, -1), repeat=len(found)))
    extreme = sum(abs(np.dot(flip, found)) >= abs(found.sum()) - 1e-9 for flip in flips)
    assert sign_flips(list(found)) == extreme / 32


def test_the_least_p_of_sign_flips():
    assert [sign_flips([1.0 + i for i in range(n)]) for n in (2, 3, 5, 6)] == [0.5, 0.25, 0.0625, 0.03125]
    assert sign_flips([1.0]) is None
    assert sign_flips([1.0] * 17) is None


def test_differences_without_spread():
    assert (t_test([0.0, 0.0, 0.0]), t_test([2.0, 2.0, 2.0]), t_test([2.0])) == (1.0, 0.25, None)
    assert sign_flips([0.0, 0.0, 0.0]) == 1.0
    for gap in (0.0, 0.66):  # two seeds that differ by one image of 152, each
        same = paired([68.2 + gap, 67.5 + gap], [68.2, 67.5])
        assert (same.low, same.high, same.better) == (-math.inf, math.inf, False)
        assert same.unknown == "the same in all seeds"
    assert str(same) == "+0.66 (the same in all seeds)"
    assert paired([1.0], [0.0]).unknown == "one seed"
    assert paired([1.0, 2.0], [0.0, 0.0]).unknown is None


def test_holm_by_hand():
    """Sorted 0.001, 0.01, 0.02, 0.04: times 4, 3, 2, 1, never falling."""
    assert holm([0.04, 0.001, 0.02, 0.01]) == pytest.approx([0.04, 0.004, 0.04, 0.03])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_all_comparisons_with_a_baseline():
    first, second = contrasts("kd", [(VALUES, OTHERS), (THIRD, OTHERS)])
    p = [stats.ttest_rel(values, OTHERS).pvalue for values in (VALUES, THIRD)]
    assert [first.p, second.p] == pytest.approx(p)
    assert [first.p_holm, second.p_holm] == pytest.approx([max(p[0] * 1, 2 * min(p)), max(p[1], 2 * min(p))])
    joint = stats.ttest_rel(VALUES, OTHERS).confidence_interval(0.975)
    assert (first.together.low, first.together.high) == pytest.approx((joint.low, joint.high))
    assert first.difference == paired(VALUES, OTHERS)
    assert first.shown == (joint.low > 0)


def test_comparisons_of_one_seed_are_not_counted():
    """They have no interval, so they cannot widen that of another."""
    first, one = contrasts("kd", [(VALUES, OTHERS), (VALUES[:1], OTHERS[:1])])
    assert first.together == first.difference
    assert first.p_holm == first.p
    assert one.p is None


def test_one_seed_shows_nothing():
    (one,) = contrasts("none", [([91.0], [90.0])])
    assert (one.p, one.p_exact, one.p_holm, one.shown) == (None, None, None, False)
    assert math.isinf(one.together.high)
    assert summarize([91.0]).deviation == 0.0
