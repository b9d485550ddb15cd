"""The table of a study: one row per method, with differences paired by seed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from outgrow.report.statistics import Contrast, Difference, Summary, contrasts, paired, summarize
from outgrow.training.record import Metric, Run, RunRecord, common_metric, parse_record, read_record

Records = dict[str, list[RunRecord]]
"""Records of runs by method, ordered by seed."""
AnyRecords = Mapping[str, Sequence[Run]]
"""The same, or dictionaries as ``outgrow.distill`` returns them."""
NO_TEACHER = "none"
"""The preset that has no teacher: the null of every study, whatever its runs are called."""
PLAIN = "kd"
"""The preset of plain distillation."""


@dataclass(frozen=True)
class Row:
    """One method; scores in percent. Differences are paired by seed, None if there is nothing to compare with.

    ``outgrew`` is True where the student beats the teacher as it is, the teacher after correction, and
    the same student without a teacher, each by a 95 % interval over seeds. ``wrong_rate`` is None where there was no teacher, or
    one that gives no logits. ``conditions`` are those that the other
    methods have otherwise, where such runs were compared anyway.
    """

    method: str
    score: Summary
    score_best: Summary
    over_none: Difference | None
    over_teacher: Difference | None
    over_corrected: Difference | None
    wrong_rate: float | None
    parameters: int
    versus: tuple[Contrast, ...] = ()
    """Against each baseline that was asked for."""
    conditions: tuple[str, ...] = ()

    @property
    def outgrew(self) -> bool:
        differences = (self.over_none, self.over_teacher, self.over_corrected)
        return all(d is not None and d.better for d in differences)


@dataclass(frozen=True)
class Table:
    """The table of a study. ``corrected`` is None if no correction changed a score."""

    metric: Metric
    """The metric of all its runs."""
    rows: tuple[Row, ...]
    teacher: Summary | None
    corrected: Summary | None
    teacher_parameters: int | None
    teacher_wrong_rate: Summary | None
    """On the training views, before any correction."""
    null: str | None = None
    """The method without a teacher."""
    plain: str | None = None
    """Plain distillation."""
    baselines: tuple[str, ...] = ()
    together: int = 1
    """Intervals are widened for so many comparisons with one thing."""
    other_teachers: tuple[str, ...] = ()
    """Methods with another teacher than the one that ``teacher`` and ``corrected`` are of. Their differences are to their own."""

    def as_dict(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "metric": self.metric.key,
            "outgrew": {row.method: row.outgrew for row in self.rows},
        }


def read_records(folder: str | Path) -> Records:
    """The finished runs under ``folder``: ``<method>/seed<k>/record.json``, by method, ordered by seed.

    ``ValueError`` if methods have different seeds, since differences are paired by seed.
    """
    folder = Path(folder)
    found: dict[str, dict[int, RunRecord]] = {}
    for path in sorted(folder.glob("*/seed*/record.json")):
        record = read_record(path)
        runs = found.setdefault(path.parts[-3], {})
        if record.seed in runs:
            raise ValueError(
                f"report: needs one run of each seed, got seed {record.seed} again in {path}; move one away."
            )
        runs[record.seed] = record
    if not found:
        raise ValueError(
            f"report: needs finished runs as METHOD/seedK/record.json, got none under {folder}; "
            "give each run --out FOLDER/METHOD/seedK."
        )
    seeds = {name: sorted(runs) for name, runs in found.items()}
    if len({tuple(value) for value in seeds.values()}) > 1:
        raise ValueError(f"report: needs the same seeds for every method, got {seeds}; run the missing ones.")
    return {name: [runs[seed] for seed in sorted(runs)] for name, runs in found.items()}


def parse_records(records: AnyRecords) -> Records:
    """``records`` with every run as a :class:`RunRecord`, without the methods that have no run."""
    return {name: [parse_record(run) for run in runs] for name, runs in records.items() if runs}


def null_of(records: Records) -> str | None:
    """The method without a teacher: found by its preset, whatever it is called."""
    return next((name for name, runs in records.items() if runs[0].preset == NO_TEACHER), None)


def plain_of(records: Records) -> str | None:
    """Plain distillation: the preset ``kd`` with no rule and no loss of another kind. Of several, such as one with another
    weight, the one in which least is set."""

    def plain(run: RunRecord) -> bool:
        method = run.config.method
        return (
            run.preset == PLAIN
            and method.loss is None
            and method.rule is None
            and method.task in (None, "label")
        )

    found = {name: runs[0].config.method for name, runs in records.items() if plain(runs[0])}
    return min(found, key=lambda name: len(found[name].model_dump(exclude_defaults=True)), default=None)


def tabulate(records: AnyRecords) -> Table:
    """Means over seeds, and what is better than what. Runs that were not judged alike are refused.

    Intervals stand each by itself; :func:`compare` widens them.
    """
    return _tabulate(parse_records(records), together=1)


def compare(studies: Mapping[str, AnyRecords], baselines: Sequence[str] = ()) -> dict[str, Table]:
    """The tables of one or more studies that belong together, with intervals and p-values that know of each other.

    ``baselines`` are names of methods; without any they are the student without a teacher and plain distillation.
    All comparisons with one baseline, over all studies, are corrected together. Those of one seed say nothing that could be
    corrected and are not counted.
    """
    parsed = {name: parse_records(records) for name, records in studies.items()}
    chosen = {name: _baselines(records, baselines) for name, records in parsed.items()}
    several = [sum(len(runs) > 1 for runs in records.values()) for records in parsed.values()]
    number = sum(methods - 1 or 1 for methods in several if methods) or 1
    tables = {name: _tabulate(records, together=number) for name, records in parsed.items()}
    found: dict[str, dict[str, list[Contrast]]] = {name: {} for name in parsed}
    # one position is one family: the first baseline of every study, the second of every study
    for place in range(max((len(names) for names in chosen.values()), default=0)):
        members = [
            (study, names[place], method)
            for study, names in chosen.items()
            if place < len(names)
            for method in parsed[study]
            if method != names[place] and _common(parsed[study][method], parsed[study][names[place]])
        ]
        pairs = [scores_of(parsed[study][method], parsed[study][base]) for study, base, method in members]
        # all intervals of a table are widened alike, also where a seed that failed leaves a baseline with fewer comparisons
        judged = contrasts("", pairs, together=number)
        for (study, base, method), contrast in zip(members, judged, strict=True):
            found[study].setdefault(method, []).append(replace(contrast, baseline=base))
    return {
        study: replace(
            table,
            baselines=tuple(chosen[study]),
            rows=tuple(replace(row, versus=tuple(found[study].get(row.method, ()))) for row in table.rows),
        )
        for study, table in tables.items()
    }


def _baselines(records: Records, asked: Sequence[str]) -> list[str]:
    if unknown := [name for name in asked if name not in records]:
        raise ValueError(
            f"--baseline: needs one of the methods {', '.join(map(repr, records))}, got {unknown[0]!r}; name one as the "
            "table does."
        )
    if asked:
        return list(dict.fromkeys(asked))
    found = [name for name in (null_of(records), plain_of(records)) if name is not None]
    return found if len(records) > 1 else []


def _tabulate(parsed: Records, *, together: int) -> Table:
    metric = common_metric([run for runs in parsed.values() for run in runs])
    null = null_of(parsed)
    teacher = _first(parsed, lambda run: run.teacher_score)
    corrected = _corrected(parsed)
    rates = _first(parsed, lambda run: run.teacher_wrong_rate)
    rows = []
    for name, runs in parsed.items():
        wrong = [run.wrong_rate for run in runs if run.wrong_rate is not None]
        rows.append(
            Row(
                method=name,
                score=summarize([run.student_score for run in runs]),
                score_best=summarize([run.best_score for run in runs]),
                over_none=None
                if null is None or name == null
                else _paired(runs, {run.seed: run.student_score for run in parsed[null]}, together),
                over_teacher=_paired(runs, _own(runs, teacher), together),
                over_corrected=_paired(runs, _own_corrected(runs, parsed, corrected or teacher), together),
                wrong_rate=summarize(wrong).mean if wrong else None,
                parameters=runs[0].student.parameters,
            )
        )
    return Table(
        metric=metric,
        rows=tuple(rows),
        teacher=summarize(list(teacher.values())) if teacher else None,
        # of the seeds that have it, as a seed may have failed: left alone in all of them, it is the teacher as it is
        corrected=summarize(list(corrected.values()))
        if any((teacher or {}).get(seed) != score for seed, score in (corrected or {}).items())
        else None,
        teacher_parameters=next(
            (run.teacher.parameters for runs in parsed.values() for run in runs if run.teacher is not None),
            None,
        ),
        teacher_wrong_rate=summarize(list(rates.values())) if rates else None,
        null=null,
        plain=plain_of(parsed),
        together=together,
        other_teachers=tuple(name for name, runs in parsed.items() if not _has_the_teacher(runs, parsed)),
    )


def _has_the_teacher(runs: Sequence[RunRecord], records: Records) -> bool:
    """Whether the teacher of ``runs`` is the one that a table shows: the first net, with the first score of the seed."""
    taught = [run for one in records.values() for run in one if run.teacher_score is not None]
    scores = _first(records, lambda run: run.teacher_score)
    return all(
        run.teacher_score is None or (_one_net(run, taught[0]) and run.teacher_score == scores[run.seed])
        for run in runs
    )


def other_teachers(table: Table, about: Mapping[str, str]) -> str:
    """What to say where methods have teachers of their own, else nothing. ``about`` maps methods to the names to show."""
    names = ", ".join(about.get(name, name) for name in table.other_teachers)
    return f"the differences of {names} are to another teacher, or to another score of it" if names else ""


def _paired(runs: Sequence[RunRecord], others: Mapping[int, float], together: int) -> Difference | None:
    """The students' scores against ``others``, by seed; None where they have no seed in common."""
    seeds = [run.seed for run in runs if run.seed in others]
    scores = {run.seed: run.student_score for run in runs}
    if not seeds:
        return None
    return paired([scores[seed] for seed in seeds], [others[seed] for seed in seeds], together=together)


def _common(runs: Sequence[RunRecord], others: Sequence[RunRecord]) -> list[int]:
    there = {run.seed for run in others}
    return [run.seed for run in runs if run.seed in there]


def scores_of(runs: Sequence[RunRecord], others: Sequence[RunRecord]) -> tuple[list[float], list[float]]:
    """Both methods' scores at the seeds that they have in common."""
    seeds = _common(runs, others)
    first, second = ({run.seed: run.student_score for run in one} for one in (runs, others))
    return [first[seed] for seed in seeds], [second[seed] for seed in seeds]


BySeed = dict[int, float]


def _own(runs: Sequence[RunRecord], shared: BySeed) -> BySeed:
    """A method's own teacher's scores; without one those of the others' teacher."""
    if all(run.teacher_score is not None for run in runs):
        return {run.seed: run.teacher_score for run in runs if run.teacher_score is not None}
    return shared


def _own_corrected(runs: Sequence[RunRecord], records: Records, shared: BySeed) -> BySeed:
    """A method's own teacher's scores after correction: by its own runs, or by others of the seed with this teacher.

    Where the teacher was corrected in some seeds only, the others are left out; where in none, it stands as it is.
    """
    every = [run for of in records.values() for run in of]
    found: BySeed = {}
    for run in runs:
        here = [run, *(one for one in every if one.seed == run.seed and _one_teacher(one, run))]
        value = next((one.corrected_score for one in here if one.corrected_score is not None), None)
        if run.teacher is None:
            value = shared.get(run.seed)
        elif value is None and (_sought(here) or not _sought([one for one in every if _one_net(one, run)])):
            value = run.teacher_score
        if value is not None:
            found[run.seed] = value
    return found


def _sought(runs: Sequence[RunRecord]) -> bool:
    """Whether one of them has tried to correct its teacher."""
    return any(run.correction is not None for run in runs)


def _one_teacher(one: RunRecord, other: RunRecord) -> bool:
    """Whether two runs of a seed have the same teacher. One may have trained it, and the other read its file."""
    mine, theirs = one.teacher, other.teacher
    same_file = mine is not None and theirs is not None and mine.weights == theirs.weights
    return _one_net(one, other) and (same_file or one.teacher_score == other.teacher_score)


def _one_net(one: RunRecord, other: RunRecord) -> bool:
    """Whether the teachers of two runs, which may be of two seeds, are the same net."""
    mine, theirs = one.teacher, other.teacher
    if mine is None or theirs is None:
        return False
    return (mine.name, mine.parameters) == (theirs.name, theirs.parameters)


def _first(records: Records, number: Callable[[RunRecord], float | None]) -> BySeed:
    """For each seed the number of the first run that has it: methods of a seed share their teacher."""
    found: BySeed = {}
    for run in (run for runs in records.values() for run in runs):
        if run.seed not in found and (value := number(run)) is not None:
            found[run.seed] = value
    return found


def _corrected(records: Records) -> BySeed:
    """The teacher after correction, seed by seed; as it is where the correction left it alone. Empty where none was sought."""
    sought = {name: runs for name, runs in records.items() if runs[0].correction is not None}
    return _first(
        sought,
        lambda run: run.teacher_score if run.corrected_score is None else run.corrected_score,
    )
