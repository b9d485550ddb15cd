"""The sentences on a study's page: its headline, and the three comparisons behind the verdict.

A difference whose interval has zero in it is not called a gain. *Outgrown* needs all three comparisons.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from outgrow.report.parts import signed
from outgrow.report.statistics import Difference
from outgrow.report.table import NO_TEACHER, PLAIN, Row, Table, other_teachers


@dataclass(frozen=True)
class Comparison:
    """One of the three. ``holds`` is None if it is unknown: nothing to compare with, or only one seed."""

    against: str
    difference: Difference | None
    holds: bool | None
    note: str = ""


def best_row(table: Table) -> Row:
    """The row with the highest mean at the last epoch; the first of equal ones."""
    return max(table.rows, key=lambda row: row.score.mean)


def comparisons(row: Row, table: Table, *, mapped: bool = False) -> tuple[Comparison, ...]:
    """The three comparisons that a student must win to have outgrown its teacher.

    ``mapped``: the teacher has other classes, so it has no score before it is mapped to the student's.
    """
    if mapped:
        same = "the map to these classes is the correction, so this is the line above"
        return (
            _comparison("the teacher, mapped to these classes", row.over_teacher),
            _comparison("the teacher after correction of its bias", row.over_corrected, same),
            _comparison("the same student without a teacher", row.over_none),
        )
    # there may have been one: of its temperature alone it changes no score
    uncorrected = (
        "" if table.corrected is not None else "no correction changed its score, so this is the line above"
    )
    return (
        _comparison("the teacher as it is", row.over_teacher),
        _comparison("the teacher after correction of its bias", row.over_corrected, uncorrected),
        _comparison("the same student without a teacher", row.over_none),
    )


def _comparison(against: str, difference: Difference | None, note: str = "") -> Comparison:
    if difference is None:
        return Comparison(against, None, None, "not measured in this study")
    if not math.isfinite(difference.low):
        return Comparison(against, difference, None, f"{difference.unknown}: no interval")
    return Comparison(against, difference, difference.better, note)


def outgrown(row: Row, table: Table) -> str:
    """Whether a student has outgrown its teacher: ``yes``, ``no``, or a dash where no interval says so and none against it."""
    if row.outgrew:
        return "yes"
    missed = any(one.holds is False for one in comparisons(row, table))
    return "no" if missed and row.method != table.null else "\N{EN DASH}"


def headline(table: Table, about: Mapping[str, str]) -> str:
    """One sentence with the measured result of the best student."""
    row = best_row(table)
    name = about.get(row.method, row.method)
    if row.method == table.null:
        best = table.metric.value(row.score.mean)
        ahead = _ahead_of_null(row, table)
        if ahead is None or ahead.over_none is None:
            return f"The student without a teacher is the best, with {best}: no distillation helped here."
        seeds = "one seed" if ahead.over_none.n == 1 else f"{ahead.over_none.n} seeds"
        return (
            f"The student without a teacher has the highest mean, {best}, but over other seeds: "
            f"{about.get(ahead.method, ahead.method)} is {ahead.over_none.mean:.2f} points ahead of it in the {seeds} that both have."
        )
    if row.over_none is None:
        gain = f"The best student, {name}, reaches {table.metric.value(row.score.mean)}"
        return f"{gain}{_verdict(row, table)}."
    points = f"{abs(row.over_none.mean):.2f} points"
    if row.over_none.better:
        return f"The best student, {name}, gains {points} over no teacher{_verdict(row, table)}."
    doubt = (
        "in the one seed that was run"
        if row.over_none.n < 2
        else "by the same in all seeds, so that their spread is unknown"
        if row.over_none.unknown
        else f"in the {row.over_none.n} seeds that both have"
        if row.over_none.high < 0
        else f"which is within the noise of {row.over_none.n} seeds"
    )
    # the best by its own seeds may be behind at those that both have
    side = "ahead of" if row.over_none.mean >= 0 else "behind"
    return f"The best student, {name}, is {points} {side} no teacher, {doubt}{_verdict(row, table)}."


def _ahead_of_null(null: Row, table: Table) -> Row | None:
    """The method that is furthest ahead of the null at the seeds that both have, where one of them has other seeds too."""
    ahead = [
        (row.over_none.mean, row)
        for row in table.rows
        if row.over_none is not None
        and row.over_none.mean > 0
        and row.over_none.n < max(row.score.n, null.score.n)
    ]
    return max(ahead, key=lambda one: one[0])[1] if ahead else None


def _verdict(row: Row, table: Table) -> str:
    if table.teacher is None:
        return ""
    if row.outgrew:
        return ", and has outgrown its teacher"
    holds = [c.holds for c in comparisons(row, table)]
    if False in holds:
        return ", but has not outgrown its teacher"
    return "; whether it outgrew its teacher was not shown"


def lede(table: Table, about: Mapping[str, str], over_kd: Mapping[str, Difference]) -> list[str]:
    """Sentences with the numbers behind the headline."""
    row = best_row(table)
    name = about.get(row.method, row.method)
    seeds = f"{row.score.n} seeds" if row.score.n > 1 else "one seed"
    spread = f" \u00b1 {row.score.deviation:.2f}" if row.score.n > 1 else ""
    sentences = [
        f"{table.metric.title} of {name} at the last epoch: {row.score.mean:.2f}{spread} % ({seeds})."
    ]
    for against, difference in (
        (about.get(table.null or NO_TEACHER, "no teacher"), row.over_none),
        (about.get(table.plain or PLAIN, "plain KD"), over_kd.get(row.method)),
    ):
        if difference is not None:
            sentences.append(f"Against {against}: {interval(difference)} points.")
    if table.teacher is not None:
        corrected = (
            f", and {table.corrected.mean:.2f} % after correction of its bias"
            if table.corrected is not None
            else ""
        )
        sentences.append(f"The teacher {table.metric.sentence.format(table.teacher.mean)}{corrected}.")
        if others := other_teachers(table, about):
            sentences.append(f"{others[0].upper()}{others[1:]}.")
        if table.teacher_parameters and row.method not in table.other_teachers:
            share = row.parameters / table.teacher_parameters
            sentences.append(
                f"The student has {row.parameters:,} parameters, {_share(share)} of the teacher's."
            )
        sentences.append(_who_outgrew(table, about))
    return sentences


def _who_outgrew(table: Table, about: Mapping[str, str]) -> str:
    grown = [about.get(row.method, row.method) for row in table.rows if row.outgrew]
    if not grown:
        return "No student won all three comparisons that it takes to have outgrown the teacher."
    return f"Won all three comparisons that it takes to have outgrown the teacher: {', '.join(grown)}."


def _share(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.1f} %"


def interval(difference: Difference) -> str:
    """A difference with its interval, in text.

    >>> interval(Difference(3, 1.74, 0.35, 3.13))
    '+1.74 [+0.35, +3.13]'
    """
    if not math.isfinite(difference.low):
        return f"{signed(difference.mean)} ({difference.unknown})"
    return f"{signed(difference.mean)} [{signed(difference.low)}, {signed(difference.high)}]"
