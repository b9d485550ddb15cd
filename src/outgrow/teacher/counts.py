"""Tests on counts of right and wrong rows.

    interval(right, rows)      where an accuracy lies, at 95 %
    above(right, rows, share)  whether it is higher than a given share
    paired(gained, lost)       two answers on the same rows
    apart(right, rows, ...)    two sets of different rows

P-values are exact; scipy is imported on use.
"""

import math

LEVEL = 0.01
"""Below this p-value a difference counts as real."""


def interval(right: int, rows: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy, in percent. It is never empty, also for all or none right.

    Reference: Wilson (1927), Probable inference, the law of succession, and statistical inference.

    >>> [round(bound, 1) for bound in interval(0, 15)]
    [0.0, 20.4]
    """
    if not 0 <= right <= rows or rows < 1:
        raise ValueError(
            f"interval: needs 0 <= right <= rows and at least one row, got {right} of {rows}; count again."
        )
    z = 1.959963984540054
    share, spread = right / rows, z * z / rows
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / rows + spread / (4 * rows))
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)


def above(right: int, rows: int, share: float) -> float:
    """How likely so many rows or more are right by chance, where each is right with probability ``share``."""
    from scipy.stats import binomtest

    return float(binomtest(right, rows, share, alternative="greater").pvalue)


def paired(gained: int, lost: int) -> float:
    """The two-sided p-value of a difference on the same rows: ``gained`` and ``lost`` count those that changed.

    Reference: McNemar (1947); the exact form, a sign test of the rows that changed.

    >>> paired(0, 0), round(paired(9, 1), 4)
    (1.0, 0.0215)
    """
    from scipy.stats import binomtest

    return 1.0 if gained + lost == 0 else float(binomtest(gained, gained + lost, 0.5).pvalue)


def apart(right: int, rows: int, other_right: int, other_rows: int) -> float:
    """The one-sided p-value that the first set of rows is right more often than the other.

    Reference: Fisher's exact test.

    >>> round(apart(100, 870, 0, 15), 2)
    0.16
    """
    from scipy.stats import fisher_exact

    table = [[right, rows - right], [other_right, other_rows - other_right]]
    return float(fisher_exact(table, alternative="greater").pvalue)


MEMORY_LEVEL = 0.001
"""A false alarm would deny a user the correction, so it must be rare."""
MEMORY_GAP = 0.02
"""A smaller difference between the accuracies is no memory: a correction gains more than the optimism costs."""
MEMORY_SKILL = 0.05
"""Least accuracy on memorised rows, as a share of the range from chance to all right."""


def has_memorised(right: int, rows: int, held_right: int, held_rows: int, chance: float) -> bool:
    """Whether a teacher is right on rows because it has seen their labels. Runs and audits ask the same.

    It needs a significant difference of more than two points to the held-out rows, and an accuracy on the rows above
    ``chance`` (the share of the most frequent class). A handful of held-out rows is not enough.

    >>> has_memorised(100, 870, 0, 15, chance=0.10), has_memorised(870, 870, 9, 15, chance=0.10)
    (False, True)
    """
    share, held = right / rows, held_right / held_rows
    if share - held <= MEMORY_GAP or share < chance + MEMORY_SKILL * (1 - chance):
        return False
    return apart(right, rows, held_right, held_rows) < MEMORY_LEVEL
