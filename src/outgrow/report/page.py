"""The HTML page of a study, and the one above several studies: self-contained, without a script."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outgrow.data import Split
from outgrow.report import parts, words
from outgrow.report.palette import colour
from outgrow.report.plots import Effect, Plot, Series, dot_plot, line_plot, short, teacher_levels
from outgrow.report.statistics import Contrast, Difference, differences, paired, summarize
from outgrow.report.table import AnyRecords, Records, Row, Table, parse_records, scores_of
from outgrow.training.record import RunRecord

OWN = "outgrow"
"""The preset whose images are shown, if the study has it."""


def write_page(
    path: str | Path,
    *,
    title: str,
    records: AnyRecords,
    table: Table,
    about: Mapping[str, str],
    test: Split | None,
    notes: Sequence[str] = (),
    protocol: Sequence[str] = (),
) -> None:
    """Write the page of a study: headline, table, plots, images and conditions.

    ``about`` maps methods to the names on the page. ``test`` are the test images that the records' comparisons
    refer to, None if no record has a comparison. ``notes`` are paragraphs on why the teacher is imperfect. A table with
    baselines (:func:`outgrow.report.table.compare`) adds the comparisons with them. ``protocol`` says in sentences why
    its runs are comparable.
    """
    parsed = parse_records(records)
    if not table.rows or not all(row.method in parsed for row in table.rows):
        raise ValueError(
            f"write_page: needs at least one finished run of each method, got {[row.method for row in table.rows]} "
            f"in the table and {list(parsed)} in the records; make the table with tabulate(records)."
        )
    names = {row.method: about.get(row.method, row.method) for row in table.rows}
    colours = _colours(table)
    over_kd = _over(parsed, table.plain, table.together)
    best = words.best_row(table)
    shown = _shown(parsed, best.method)
    runs = [run for name in names for run in parsed[name]]
    mapped = any(run.is_mapped for run in runs)
    context = {
        "title": title,
        "table": table,
        "metric": table.metric,
        "headline": words.headline(table, about),
        "lede": words.lede(table, about, over_kd),
        "best": names[best.method],
        "comparisons": words.comparisons(best, table, mapped=mapped) if table.teacher is not None else (),
        "lines": [_line(row, names, over_kd, best, table) for row in table.rows],
        "has": {
            # the comparisons with baselines have a table of their own
            "none": not table.baselines and any(row.over_none is not None for row in table.rows),
            "kd": not table.baselines and bool(over_kd),
            "conditions": any(row.conditions for row in table.rows),
            "teacher": table.teacher is not None,
            "mapped": mapped,
            "several": best.score.n > 1,
        },
        "contrasts": contrast_groups(table, names),
        "least_p": least_p(table),
        "protocol": protocol,
        "teacher_name": next((run.teacher.short_name for run in runs if run.teacher is not None), ""),
        "notes": notes,
        "curves": _curves(parsed, names, colours, table),
        "curve_table": _curve_table(parsed, names),
        "effects": _effects(parsed, names, colours, table),
        "pictures": _pictures(parsed, shown, names, test),
        "corrections": _corrections(parsed),
        "conditions": [
            *parts.conditions(runs),
            *((names[name], (parsed[name][0].method_text,)) for name in names),
        ],
        "config": parsed[shown or best.method][0].config.to_yaml(),
        "config_of": names[shown or best.method],
    }
    parts.write_template(path, "study.html", context)


def write_overview(
    path: str | Path,
    *,
    title: str,
    tables: Mapping[str, Table],
    pages: Mapping[str, str],
    protocol: Sequence[str] = (),
    heading: str = "",
    about: Mapping[str, str] | None = None,
) -> None:
    """Write the page above those of several pairs: their tables, and where their own pages are.

    ``heading`` replaces the number of pairs; ``about`` maps methods to the names on the page.
    """
    about = about or {}
    studies = [
        {
            "name": name,
            "page": pages[name],
            "table": table,
            "headline": words.headline(table, about),
            "best": words.best_row(table).method,
            "outgrown": {row.method: words.outgrown(row, table) for row in table.rows},
            "groups": contrast_groups(table, about),
            # comparisons with baselines have a table of their own
            "alone": not table.baselines and any(row.over_none is not None for row in table.rows),
        }
        for name, table in tables.items()
    ]
    first = next(iter(tables.values()))
    context = {
        "title": title,
        "heading": heading or f"{len(studies)} pairs of teacher and student",
        "about": about,
        "studies": studies,
        "protocol": protocol,
        "together": first.together,
        "least_p": least_p(first),
    }
    parts.write_template(path, "overview.html", context)


@dataclass(frozen=True)
class _Line:
    """A line of the table of results. The student won ``won`` of the ``compared`` comparisons that have an interval."""

    name: str
    row: Row
    over_kd: Difference | None
    best: bool
    alone: bool
    outgrown: str
    won: int
    compared: int


def _line(
    row: Row, names: Mapping[str, str], over_kd: Mapping[str, Difference], best: Row, table: Table
) -> _Line:
    three = (row.over_teacher, row.over_corrected, row.over_none)
    better = [d.better for d in three if d is not None and d.unknown is None]
    return _Line(
        name=names[row.method],
        row=row,
        over_kd=over_kd.get(row.method),
        best=row is best,
        alone=row.method == table.null,
        outgrown=words.outgrown(row, table),
        won=sum(better),
        compared=len(better),
    )


@dataclass(frozen=True)
class ContrastGroup:
    """All comparisons with one baseline: names of methods and what was found."""

    against: str
    lines: tuple[tuple[str, Contrast], ...]


def contrast_groups(table: Table, names: Mapping[str, str]) -> list[ContrastGroup]:
    """The comparisons of a table, baseline by baseline."""
    groups = [
        ContrastGroup(
            names.get(base, base),
            tuple(
                (names.get(row.method, row.method), one)
                for row in table.rows
                for one in row.versus
                if one.baseline == base
            ),
        )
        for base in table.baselines
    ]
    return [group for group in groups if group.lines]


def least_p(table: Table) -> float | None:
    """The smallest p-value that sign flips can have with so many seeds."""
    seeds = [one.difference.n for row in table.rows for one in row.versus if one.p_exact is not None]
    return 2.0 ** (1 - max(seeds)) if seeds else None


def _colours(table: Table) -> dict[str, str]:
    """A colour for each method: the first for our own preset (or the best method), grey for no teacher."""
    lead = next((row.method for row in table.rows if row.method == OWN), words.best_row(table).method)
    others = [row.method for row in table.rows if row.method not in (lead, table.null)]
    return {
        lead: colour(0),
        **({} if table.null is None else {table.null: "alone"}),
        **{name: colour(number) for number, name in enumerate(others, start=1)},
    }


def _over(records: Records, null: str | None, together: int = 1) -> dict[str, Difference]:
    """Each method's difference to the method ``null``, at the seeds that both have."""
    if null is None:
        return {}
    return {
        name: paired(*sides, together=together)
        for name, runs in records.items()
        if name != null and (sides := scores_of(runs, records[null]))[0]
    }


def _curves(
    records: Records, names: Mapping[str, str], colours: Mapping[str, str], table: Table
) -> Plot | None:
    """Mean score over seeds by epoch, with a band of one standard deviation on each side."""
    lines = []
    for name, label in names.items():
        epochs = {epoch: summarize(values) for epoch, values in _tested(records[name]).items()}
        points = [(epoch, one.mean) for epoch, one in epochs.items()]
        band = [
            (epoch, max(0.0, one.mean - one.deviation), min(100.0, one.mean + one.deviation))
            for epoch, one in epochs.items()
            if one.n > 1
        ]
        if points:
            lines.append(Series(label, points, band, colours[name], lead=colours[name] == colour(0)))
    levels = teacher_levels(
        None if table.teacher is None else table.teacher.mean,
        None if table.corrected is None else table.corrected.mean,
    )
    return line_plot(lines, levels, name="curves", title=f"{table.metric.title} by epoch", ceiling=100.0)


def _tested(runs: Sequence[RunRecord]) -> dict[int, list[float]]:
    """The scores of all seeds by epoch, for the epochs in which every seed was tested."""
    tested = [dict(run.epoch_scores) for run in runs]
    common = [epoch for epoch in tested[0] if all(epoch in one for one in tested)]
    return {epoch: [one[epoch] for one in tested] for epoch in common}


def _curve_table(records: Records, names: Mapping[str, str]) -> list[tuple[int, list[float | None]]]:
    """The plotted means, by epoch and method."""
    tested = [_tested(records[name]) for name in names]
    return [
        (epoch, [statistics.fmean(one[epoch]) if epoch in one else None for one in tested])
        for epoch in sorted(set().union(*tested))
    ]


def _effects(
    records: Records, names: Mapping[str, str], colours: Mapping[str, str], table: Table
) -> dict[str, Any] | None:
    """Differences by seed to the student without a teacher, or to plain KD where a study lacks it."""
    null = table.null or table.plain
    if null is None or null not in names:
        return None
    effects = [
        Effect(
            names[name],
            differences(*scores_of(records[name], records[null])),
            difference.mean,
            difference.low,
            difference.high,
            words.interval(difference),
            colours[name],
        )
        for name, difference in _over(records, null, table.together).items()
        if name in names
    ]
    title = f"Difference to {names[null]}, seed by seed"
    x_label = f"points of {table.metric.name} over {short(names[null])}"
    plot = dot_plot(effects, name="differences", title=title, x_label=x_label)
    return None if plot is None else {"plot": plot, "null": names[null], "title": title}


def _shown(records: Records, best: str) -> str | None:
    """The method whose images are shown: our preset, else the best, else any with a teacher."""
    compared = [name for name, runs in records.items() if runs[0].compared is not None]
    own = [name for name in compared if records[name][0].preset == OWN]
    return next((name for name in (*own, best, *compared) if name in compared), None)


def _pictures(
    records: Records, shown: str | None, names: Mapping[str, str], test: Split | None
) -> parts.PicturesPart | None:
    return None if shown is None else parts.pictures(records[shown], names.get(shown, shown), test)


def _corrections(records: Records) -> list[RunRecord]:
    """The runs of one method that fitted a correction. One is enough: a seed's methods share the teacher."""
    found = [[run for run in runs if run.correction is not None] for runs in records.values()]
    return max(found, key=len, default=[])
