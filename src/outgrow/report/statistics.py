"""Statistics over seeds: means, deviations, and paired comparisons corrected for their number.

A single interval is Student's t. ``together`` intervals hold jointly at 95 % (Bonferroni), whatever the dependence
between methods. The p-value is that of the paired t test, corrected by Holm. The exact sign-flip test is given beside
it: it assumes only that a difference is as likely positive as negative, and with ``n`` seeds it cannot be below 2 / 2^n.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
NO_SPREAD = 1e-9
"""Points of difference that are rounding."""
MAX_FLIPS = 16
"""Seeds up to which all sign flips are counted: 65,536 of them."""


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation over ``n`` seeds; the deviation is 0 for one seed."""

    n: int
    mean: float
    deviation: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} +- {self.deviation:.2f}" if self.n > 1 else f"{self.mean:.2f}"


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences and its 95 % interval by Student's t.

    It is infinite for one seed, and where the difference is the same in all seeds: their spread is then unknown. A small test set
    makes that happen, as its accuracies are multiples of one image.
    """

    n: int
    mean: float
    low: float
    high: float

    @property
    def better(self) -> bool:
        """Whether the whole interval is above zero."""
        return self.low > 0

    @property
    def unknown(self) -> str | None:
        """Why there is no interval; None if there is one."""
        if math.isfinite(self.low):
            return None
        return "one seed" if self.n < 2 else "the same in all seeds"

    def __str__(self) -> str:
        interval = f"({self.unknown})" if self.unknown else f"[{self.low:+.2f}, {self.high:+.2f}]"
        return f"{self.mean:+.2f} {interval}"


def summarize(values: Sequence[float]) -> Summary:
    """Mean and standard deviation of ``values``.

    >>> str(summarize([1.0, 2.0, 3.0]))
    '2.00 +- 1.00'
    """
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return Summary(len(values), statistics.fmean(values), deviation)


@dataclass(frozen=True)
class Contrast:
    """A method against a baseline, one of several that were looked at.

    ``difference`` has the interval by itself, ``together`` the one widened for all comparisons with this baseline.
    ``p`` is the paired t test's, ``p_holm`` the same corrected for all comparisons, ``p_exact`` that of all sign
    flips. None where one seed tells nothing, and where there are too many flips to count.
    """

    baseline: str
    difference: Difference
    together: Difference
    p: float | None
    p_exact: float | None
    p_holm: float | None

    @property
    def shown(self) -> bool:
        """Whether the difference is real at 95 %, all comparisons together."""
        return self.together.low > 0 or self.together.high < 0


def differences(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """``values`` minus ``others``, seed by seed."""
    if len(values) != len(others):
        raise ValueError(
            f"paired: needs the same seeds on both sides, got {len(values)} and {len(others)}; run the missing ones."
        )
    return [a - b for a, b in zip(values, others, strict=True)]


def paired(values: Sequence[float], others: Sequence[float], *, together: int = 1) -> Difference:
    """``values`` minus ``others``, seed by seed; the interval is widened for ``together`` comparisons.

    >>> str(paired([3.0, 4.0, 5.0], [1.0, 2.0, 2.5]))
    '+2.17 [+1.45, +2.88]'
    >>> str(paired([3.0, 4.0, 5.0], [1.0, 2.0, 2.5], together=4))
    '+2.17 [+0.69, +3.64]'
    """
    summary = summarize(differences(values, others))
    if summary.n < 2 or summary.deviation <= NO_SPREAD * (1 + abs(summary.mean)):
        return Difference(summary.n, summary.mean, -math.inf, math.inf)
    from scipy.stats import t

    quantile = float(t.ppf(1 - (1 - CONFIDENCE) / (2 * max(together, 1)), summary.n - 1))
    half = quantile * summary.deviation / math.sqrt(summary.n)
    return Difference(summary.n, summary.mean, summary.mean - half, summary.mean + half)


def t_test(found: Sequence[float]) -> float | None:
    """The two-sided p-value that differences as far from zero come by chance; None for one seed.

    Of differences without any spread, which have no t, it is the exact p-value of all sign flips.
    """
    summary = summarize(found)
    if summary.n < 2:
        return None
    if summary.deviation <= NO_SPREAD * (1 + abs(summary.mean)):
        return 1.0 if abs(summary.mean) <= NO_SPREAD else 2.0 ** (1 - summary.n)
    error = summary.deviation / math.sqrt(summary.n)
    from scipy.stats import t

    return float(2 * t.sf(abs(summary.mean) / error, summary.n - 1))


def sign_flips(found: Sequence[float]) -> float | None:
    """The share of all sign flips under which the sum is as far from zero; None beyond ``MAX_FLIPS`` seeds.

    >>> sign_flips([1.0, 2.0, 3.0]), sign_flips([1.0, -1.0])
    (0.25, 1.0)
    """
    if not 1 < len(found) <= MAX_FLIPS:
        return None
    import numpy as np

    flips = (np.arange(2 ** len(found))[:, None] >> np.arange(len(found))) & 1
    sums = np.abs((1 - 2 * flips) @ np.asarray(found, dtype=float))
    # sums of the same numbers in another order round otherwise
    return float(np.mean(sums >= abs(sum(found)) - 1e-9 * (1 + np.abs(found).sum())))


def holm(values: Sequence[float]) -> list[float]:
    """P-values corrected for there being several: the smallest times their number, and so on up.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(values)), key=lambda i: values[i])
    corrected, highest = [1.0] * len(values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - rank) * values[i]))
        corrected[i] = highest
    return corrected


def contrasts(
    baseline: str, pairs: Sequence[tuple[Sequence[float], Sequence[float]]], *, together: int = 1
) -> list[Contrast]:
    """All comparisons with one baseline: each pair is the scores of a method and of the baseline, by seed.

    Pairs of one seed have no interval and no p-value, so they are not counted among the comparisons. Intervals are widened
    for no fewer than ``together`` comparisons.
    """
    found = [differences(values, others) for values, others in pairs]
    p_values = [t_test(one) for one in found]
    corrected = iter(holm([p for p in p_values if p is not None]))
    counted = sum(p is not None for p in p_values)
    return [
        Contrast(
            baseline,
            paired(values, others),
            paired(values, others, together=max(counted, together)),
            p,
            sign_flips(one),
            None if p is None else next(corrected),
        )
        for (values, others), one, p in zip(pairs, found, p_values, strict=True)
    ]
