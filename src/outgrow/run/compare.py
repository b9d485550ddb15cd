"""`outgrow compare`: methods x pairs x seeds, or runs that are finished already, as one table and one page.

    plan -> what it will take -> teachers -> caches -> students -> table.md, .csv, .tex, .json and index.html

Nothing here trains: see :mod:`outgrow.run.plan`, :mod:`outgrow.run.rehearsal`, :mod:`outgrow.run.work` and
:mod:`outgrow.run.executors`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from outgrow.machine.files import check_writable, write_atomically
from outgrow.report import formats
from outgrow.report.gather import Gathered, gather
from outgrow.report.page import write_overview, write_page
from outgrow.report.table import NO_TEACHER, Records, Table
from outgrow.report.table import compare as tables_of
from outgrow.run.board import Board, make_board
from outgrow.run.executors import Executor, make_executor
from outgrow.run.plan import (
    PLAN_FILE,
    Plan,
    cache_groups,
    make_plan,
    read_options,
    read_plan_file,
    without_cache,
    write_plan,
)
from outgrow.run.rehearsal import Trials, check_disk, estimate, plan_lines
from outgrow.run.tasks import task_of
from outgrow.run.work import Work, differences, fill, finished, state_of, train_student, train_teacher
from outgrow.training.folder import LEAST_ROOM
from outgrow.training.progress import Reporter
from outgrow.training.record import RunRecord

flushed = partial(print, flush=True)
"""To standard output at once, which may be a pipe."""


class Failed(ValueError):
    """Some trainings failed; the others are in the table."""


def run_compare(
    plan: Plan,
    *,
    executor: str = "local",
    workers: int = 1,
    dry_run: bool = False,
    overwrite: bool = False,
    title: str | None = None,
    say: Callable[[str], None] = flushed,
) -> dict[str, Table]:
    """Train what a plan has and is not finished yet; the tables by pair. ``say`` gets the plan and the table.

    A dry run stops after the plan. ``ValueError`` for what cannot be done, before anything is trained;
    :class:`Failed` at the end, where trainings failed.
    """
    engine = make_executor(executor, workers=workers, folder=plan.out / "jobs")
    check_writable(plan.out, what="--out", room=LEAST_ROOM)
    if not overwrite:
        _refuse_others(plan)
    board = make_board(plan)
    waiting = _waiting(plan)
    if waiting or dry_run:
        trials = Trials()
        found = estimate(plan, report=_Notes(board), trials=trials)
        if plan.cached and found.mapped:
            # a mapped teacher says the same under every method: more of them can share a cache
            plan = make_plan(plan.base, plan.options, plan.out, found.mapped)
            found = estimate(plan, report=_Notes(board), trials=trials)
        if not check_disk(plan, found):
            plan = without_cache(plan)
            found = replace(found, disk=found.disk - found.cache_bytes, cache_bytes=0, cache_runs=0)
        for line in plan_lines(plan, found, workers=workers):
            say(line)
        if len(waiting) < len(plan.trainings):
            say(
                f"finished  {len(plan.trainings) - len(waiting)} of {len(plan.trainings)} runs, which are kept"
            )
    if dry_run:
        return {}
    write_plan(plan)
    failures = _train(plan, engine, board, overwrite) if waiting else {}
    tables = _write(plan, failures, title)
    say("\n" + formats.text(tables))
    say(f"\n{plan.out / 'index.html'}, table.md, table.csv, table.tex, table.json")
    if failures:
        lines = "\n".join(f"  {name}: {failure}" for name, failure in failures.items())
        raise Failed(
            f"compare: needs all {len(plan.trainings)} trainings, got {len(failures)} failures:\n{lines}\nmend what they "
            "say; the same command then runs these alone."
        )
    return tables


def _waiting(plan: Plan) -> list[Any]:
    return [one for one in plan.trainings if state_of(one.folder, one.config) != "finished"]


def _refuse_others(plan: Plan) -> None:
    """``ValueError`` where the folder holds runs of another configuration."""
    for one in plan.trainings:
        if state_of(one.folder, one.config) == "other":
            raise ValueError(
                f"--out {plan.out}: needs a folder without another comparison, got {one.folder}, which differs in "
                f"{', '.join(differences(one.folder, one.config))}; give another --out, set these as they were "
                f"({plan.out / PLAN_FILE}), or give --overwrite."
            )
    for teacher in plan.teachers:
        if (teacher.folder / "config.yaml").is_file():
            found = differences(teacher.folder, teacher.config)
            if found:
                raise ValueError(
                    f"--out {plan.out}: needs a folder without another comparison, got the teacher {teacher.folder}, which "
                    f"differs in {', '.join(found)}; give another --out, or --overwrite."
                )


def _train(plan: Plan, engine: Executor, board: Board, overwrite: bool) -> dict[str, str]:
    """Teachers, caches, students: what each of these needs is there before it starts. Failures by title."""
    failures: dict[str, str] = {}

    def all_of(function: Callable[..., None], jobs: Sequence[Any], *, counted: bool = True) -> None:
        work = Work(function, engine.threads, overwrite)
        call = (lambda one: work(one, board.reporter(one))) if engine.here else work
        for one, failure in engine.map(call, jobs):
            if failure is not None:
                failures[one.title] = failure
            if counted or failure is not None:
                board.ended(one, failure)

    with board.shown():
        missing = [one for one in plan.teachers if not _there(one) or overwrite]
        board.done = len(plan.teachers) - len(missing) + len(plan.trainings) - len(_waiting(plan))
        all_of(train_teacher, missing)
        ready = [one for one in _waiting(plan) if _teacher_there(one)]
        if not engine.here:
            # two processes would write one file; here the first student fills it as it goes
            waiting = {one.folder for one in ready}
            groups = [[one for one in group if one.folder in waiting] for group in cache_groups(plan)]
            all_of(fill, [group[0] for group in groups if len(group) > 1], counted=False)
        all_of(train_student, [one for one in ready if one.title not in failures])
    return failures


def _there(teacher: Any) -> bool:
    return (teacher.folder / "teacher.safetensors").is_file()


def _teacher_there(one: Any) -> bool:
    """Whether the teacher of a run was trained: one that failed has said so."""
    if one.teacher_file is not None:
        return bool(one.teacher_file.is_file())
    weights = one.config.teacher.weights
    return one.config.method.preset == NO_TEACHER or weights is None or Path(weights).is_file()


def report_plan(
    plan: Plan, *, title: str | None = None, say: Callable[[str], None] = flushed
) -> dict[str, Table]:
    """The table and the page of what is finished, with nothing trained."""
    tables = _write(plan, {}, title)
    say(formats.text(tables))
    say(f"\n{plan.out / 'index.html'}, table.md, table.csv, table.tex, table.json")
    return tables


def _write(plan: Plan, failures: Mapping[str, str], title: str | None) -> dict[str, Table]:
    studies: dict[str, Records] = {}
    conditions: dict[str, dict[str, tuple[str, ...]]] = {}
    for pair in plan.pairs:
        studies[pair], conditions[pair] = _records(plan, pair)
    studies = {pair: records for pair, records in studies.items() if records}
    if not studies:
        raise ValueError(
            "compare: needs at least one finished run, got none:\n"
            + "\n".join(f"  {name}: {failure}" for name, failure in failures.items())
            + "\nmend what they say; the same command then goes on."
        )
    protocol = [*_protocol(plan), *(f"Failed: {name}. {failure}" for name, failure in failures.items())]
    return write_tables(
        plan.out,
        studies,
        baselines=plan.options.baselines,
        title=title or plan.out.resolve().name,
        conditions=conditions,
        protocol=protocol,
    )


def _records(plan: Plan, pair: str) -> tuple[Records, dict[str, tuple[str, ...]]]:
    """Finished runs by method, and what is missing of each."""
    records: Records = {}
    missing: dict[str, tuple[str, ...]] = {}
    for method in plan.methods:
        runs = {one.seed: finished(one.folder, one.config) for one in plan.of(pair, method)}
        there = [run for run in runs.values() if run is not None]
        if there:
            records[method] = there
        lacking = [str(seed) for seed, run in runs.items() if run is None]
        if lacking and there:
            missing[method] = (f"without seed {', '.join(lacking)}",)
    return records, missing


def _protocol(plan: Plan) -> list[str]:
    """How the runs came to be comparable."""
    seeds = len(plan.options.seeds)
    said = [
        f"All methods of a seed have the same images, views, initial student, epochs and teacher; {seeds} seed"
        f"{'' if seeds == 1 else 's'} of each."
    ]
    if plan.teachers and plan.options.same_teacher:
        said.append(
            "One teacher was trained for all seeds, so the intervals speak of students of this one teacher, not of what "
            "another training of it would give."
        )
    elif plan.teachers:
        said.append(
            "Every seed has a teacher of its own, trained once for all of its methods, so the intervals speak of the whole "
            "procedure: the teacher's training too."
        )
    elif any(one.config.method.preset != NO_TEACHER for one in plan.trainings):
        said.append(
            "All seeds have the same given teacher, so the intervals speak of students of this one teacher."
        )
    if cache_groups(plan):
        said.append(
            "Methods that read logits alone share a cache of what the teacher said, in float16; the others asked it anew."
        )
    return said


def write_tables(
    out: Path,
    studies: Mapping[str, Records],
    *,
    baselines: Sequence[str],
    title: str,
    conditions: Mapping[str, Mapping[str, tuple[str, ...]]],
    protocol: Sequence[str],
) -> dict[str, Table]:
    """Write table.md, .csv, .tex, .json and the page; one page more for each of several pairs."""
    tables = {
        name: replace(
            table,
            rows=tuple(
                replace(row, conditions=conditions.get(name, {}).get(row.method, ())) for row in table.rows
            ),
        )
        for name, table in tables_of(studies, baselines).items()
    }
    for name, content in (
        ("table.md", formats.markdown(tables)),
        ("table.csv", formats.csv_text(tables)),
        ("table.tex", formats.latex(tables)),
        ("table.json", formats.as_json(tables, protocol=list(protocol))),
    ):
        write_atomically(out / name, content)
    pages: dict[str, str] = {}
    protocol = [*protocol, *(line for records in studies.values() for line in _twins(records))]
    for name, records in studies.items():
        page = out / "index.html" if len(studies) == 1 else out / f"pair{len(pages) + 1}.html"
        pages[name] = page.name
        shown, test = _with_pictures(records)
        write_page(
            page,
            title=f"{title}: {name}" if name else title,
            records=shown,
            table=tables[name],
            about={},
            test=test,
            protocol=protocol,
        )
    if len(studies) > 1:
        write_overview(out / "index.html", title=title, tables=tables, pages=pages, protocol=protocol)
    return tables


def _twins(records: Records) -> list[str]:
    """Methods that ended with the same scores in every seed, in words."""
    groups: dict[tuple[tuple[int, float], ...], list[str]] = {}
    for name, runs in records.items():
        groups.setdefault(tuple((run.seed, run.student_score) for run in runs), []).append(name)
    mapped = any(run.is_mapped for runs in records.values() for run in runs)
    why = (
        ": a teacher of other classes is mapped to these, and so corrected, under any of them"
        if mapped
        else ""
    )
    return [
        f"{' and '.join(names)} ended with the same scores in every seed{why}."
        for scores, names in groups.items()
        if len(names) > 1 and scores
    ]


def _with_pictures(records: Records) -> tuple[Records, Any]:
    """The records with the images that they point into; without pointing where the images are no longer there."""
    first = next(iter(records.values()))[0]
    try:
        return records, task_of(first.config.data.source).examples_from(first.config)
    except ValueError:

        def without(run: RunRecord) -> RunRecord:
            return run.model_copy(update={"compared": None})

        return {name: [without(run) for run in runs] for name, runs in records.items()}, None


def compare_runs(
    folders: Sequence[Path],
    *,
    out: Path | None = None,
    baselines: Sequence[str] = (),
    anyway: bool = False,
    title: str | None = None,
    say: Callable[[str], None] = flushed,
) -> dict[str, Table]:
    """Compare finished runs. A comparison's own folder is read by its plan; without ``out`` nothing is written."""
    if len(folders) == 1 and (folders[0] / PLAN_FILE).is_file():
        base, section = read_plan_file(folders[0] / PLAN_FILE)
        if baselines:
            section["baselines"] = list(baselines)
        return report_plan(make_plan(base, read_options(section), folders[0]), title=title, say=say)
    return report_gathered(
        gather(folders, anyway=anyway), out=out, baselines=baselines, title=title or "Finished runs", say=say
    )


def report_gathered(
    found: Gathered,
    *,
    out: Path | None,
    baselines: Sequence[str] = (),
    title: str,
    say: Callable[[str], None] = flushed,
) -> dict[str, Table]:
    """The table, and with ``out`` all files, of runs that were gathered."""
    protocol = ["Finished runs, paired by seed.", *found.notes]
    if out is None:
        tables = {
            name: replace(
                table,
                rows=tuple(
                    replace(row, conditions=found.conditions.get(row.method, ())) for row in table.rows
                ),
            )
            for name, table in tables_of({"": found.records}, baselines).items()
        }
        say(formats.text(tables))
        return tables
    check_writable(out, what="--out", room=LEAST_ROOM)
    tables = write_tables(
        out,
        {"": found.records},
        baselines=baselines,
        title=title,
        conditions={"": found.conditions},
        protocol=protocol,
    )
    say(formats.text(tables))
    say(f"\n{out / 'index.html'}, table.md, table.csv, table.tex, table.json")
    return tables


class _Notes(Reporter):
    def __init__(self, board: Board) -> None:
        self.board = board

    def note(self, text: str) -> None:
        self.board.say(text)
