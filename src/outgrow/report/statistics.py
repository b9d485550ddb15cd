"""Statistics over seeds: means, deviations, and paired differences."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


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
    """Mean of paired differences and its 95 % interval (Student's t; infinite for one seed)."""

    n: int
    mean: float
    low: float
    high: float

    @property
    def better(self) -> bool:
        """Whether the whole interval is above zero."""
        return self.low > 0

    def __str__(self) -> str:
        interval = f"[{self.low:+.2f}, {self.high:+.2f}]" if self.n > 1 else "(one seed)"
        return f"{self.mean:+.2f} {interval}"


def summarize(values: Sequence[float]) -> Summary:
    """Mean and standard deviation of ``values``.

    >>> str(summarize([1.0, 2.0, 3.0]))
    '2.00 +- 1.00'
    """
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return Summary(len(values), statistics.fmean(values), deviation)


def paired(values: Sequence[float], others: Sequence[float]) -> Difference:
    """``values`` minus ``others``, seed by seed.

    >>> str(paired([3.0, 4.0, 5.0], [1.0, 2.0, 2.5]))
    '+2.17 [+1.45, +2.88]'
    """
    if len(values) != len(others):
        raise ValueError(
            f"paired: needs the same seeds on both sides, got {len(values)} and {len(others)}; run the missing ones."
        )
    differences = [a - b for a, b in zip(values, others, strict=True)]
    summary = summarize(differences)
    if summary.n < 2:
        return Difference(summary.n, summary.mean, -math.inf, math.inf)
    from scipy.stats import t

    half = float(t.ppf(0.5 + CONFIDENCE / 2, summary.n - 1)) * summary.deviation / math.sqrt(summary.n)
    return Difference(summary.n, summary.mean, summary.mean - half, summary.mean + half)
