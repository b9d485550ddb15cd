"""`outgrow compare`: methods x pairs x seeds, or finished runs, as a table and a page.

    plan -> estimate -> teachers -> caches -> students -> table.md, .csv, .tex, .json and index.html

This file coordinates: :mod:`outgrow.run.plan` plans, :mod:`outgrow.run.rehearsal` estimates, :mod:`outgrow.run.work`
trains, and :mod:`outgrow.run.executors` runs the trainings.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from outgrow.machine.files import check_writable, counted, write_atomically
from outgrow.report import formats
from outgrow.report.gather import Found, Gathered, gather, other_images
from outgrow.report.page import write_overview, write_page
from outgrow.report.table import NO_TEACHER, Records, Table
from outgrow.report.table import compare as tables_of
from outgrow.run.board import Board, make_board
from outgrow.run.executors import Executor, make_executor
from outgrow.run.plan import (
    PLAN_FILE,
    Plan,
    in_order,
    make_plan,
    read_options,
    read_plan_file,
    shared_caches,
    without_cache,
    write_plan,
)
from outgrow.run.rehearsal import Trials, check_disk, data_key, estimate, plan_lines
from outgrow.run.tasks import task_of
from outgrow.run.work import (
    Step,
    Work,
    differences,
    fill,
    finished,
    state_of,
    threads,
    train_student,
    train_teacher,
)
from outgrow.training.folder import LEAST_ROOM, check_no_run
from outgrow.training.progress import JsonReporter, LogStyle, Reporter
from outgrow.training.record import RunRecord

print_flushed = partial(print, flush=True)
"""Standard output may be a pipe, which is buffered."""


class Failed(ValueError):
    """Some trainings failed. The table has the others."""


def run_compare(
    plan: Plan,
    *,
    executor: str = "local",
    workers: int = 1,
    dry_run: bool = False,
    overwrite: bool = False,
    title: str | None = None,
    style: LogStyle = "auto",
    log: Callable[[str], None] | None = None,
) -> dict[str, Table]:
    """Run the trainings of ``plan`` that are not finished; returns the tables by pair.

    ``style`` is that of the output; ``log``, if given, is called with the plan and the table as text. A dry run stops
    after the plan. ``ValueError``, before any training, for a plan that cannot be run; :class:`Failed`, at the end, if
    trainings failed.
    """
    engine = make_executor(executor, workers=workers, folder=plan.out / "jobs")
    _check_out(plan.out)
    if not overwrite:
        _refuse_others(plan)
    report = _output(style, log)
    board = make_board(plan, style, report)
    waiting = _waiting(plan)
    if waiting or dry_run:
        trials = Trials()
        with threads(engine.threads):  # of a worker: several share the cores
            found = estimate(plan, report=_Notes(board.log), trials=trials)
            if plan.cached and found.mapped:
                # a mapped teacher has the same outputs under every method, so more methods can share a cache
                plan = make_plan(plan.base, plan.options, plan.out, found.mapped)
                found = estimate(plan, report=_Notes(board.log), trials=trials)
        _refuse_other_images(plan, trials)
        if not check_disk(plan, found):
            plan = without_cache(plan)
            found = replace(found, disk=found.disk - found.cache_bytes, cache_bytes=0, cache_runs=0)
        for line in plan_lines(plan, found, workers=workers):
            report.note(line)
        if len(waiting) < len(plan.trainings):
            report.note(
                f"finished  {len(plan.trainings) - len(waiting)} of {len(plan.trainings)} runs are kept"
            )
    if dry_run:
        return {}
    write_plan(plan)
    failures = _train(plan, engine, board, overwrite) if waiting else {}
    tables = _write(plan, failures, title, plan.out)
    _report_tables(report, tables, plan.out)
    if failures:
        lines = "\n".join(f"  {name}: {failure}" for name, failure in failures.items())
        raise Failed(
            f"compare: needs all {len(plan.trainings)} trainings, got {len(failures)} failures:\n{lines}\nfix these "
            "errors; the same command then runs only what is missing."
        )
    return tables


def _check_out(out: Path) -> None:
    check_no_run(out)
    check_writable(out, what="--out", room=LEAST_ROOM)


def _waiting(plan: Plan) -> list[Any]:
    return [one for one in in_order(plan) if state_of(one.folder, one.config) != "finished"]


def _refuse_others(plan: Plan) -> None:
    """``ValueError`` if the folder has runs of another configuration."""
    for one in plan.trainings:
        if state_of(one.folder, one.config) == "other":
            raise ValueError(
                f"--out {plan.out}: needs a folder without another comparison, got {one.folder}, which differs in "
                f"{', '.join(differences(one.folder, one.config))}; set another --out, restore these fields "
                f"({plan.out / PLAN_FILE} has them), or add --overwrite."
            )
    for teacher in plan.teachers:
        if (teacher.folder / "config.yaml").is_file():
            found = differences(teacher.folder, teacher.config)
            if found:
                raise ValueError(
                    f"--out {plan.out}: needs a folder without another comparison, got the teacher {teacher.folder}, which "
                    f"differs in {', '.join(found)}; set another --out, or add --overwrite."
                )


def _refuse_other_images(plan: Plan, trials: Trials) -> None:
    """``ValueError`` if the images of finished runs are not those that the others would have."""
    for one in plan.trainings:
        run, data = finished(one.folder, one.config), one.config.data
        by_seed = data.val_fraction or data.unlabelled_rows
        known = trials.opened.get(data_key(data, one.seed if by_seed else plan.options.seeds[0]))
        if run is None or known is None:
            continue
        was, now = ((of.fingerprint, of.unlabelled_fingerprint) for of in (run.data, known[1]))
        if was != now:
            raise ValueError(
                f"--out {plan.out}: needs the images that its finished runs had, got others in {data.source} than {one.folder} "
                "had; set another --out, or restore the images."
            )


def _train(plan: Plan, engine: Executor, board: Board, overwrite: bool) -> dict[str, str]:
    """Train the teachers, fill the caches, then train the students. Returns errors by the title of the training.

    Students that need no teacher train beside the teachers, and those that share no cache beside the filling of caches.
    """
    failures: dict[str, str] = {}
    work = Work(engine.threads, overwrite)
    call = (lambda step: work(step, board.reporter(step[1]))) if engine.in_process else work

    def run_all(steps: Sequence[Step]) -> None:
        for (function, one), failure in engine.map(call, steps) if steps else ():
            if failure is not None:
                failures[one.title] = failure
            if function is not fill or failure is not None:
                board.ended(one, failure)

    with board.shown():
        missing = [one for one in plan.teachers if not _is_trained(one) or overwrite]
        board.begin(len(plan.teachers) - len(missing) + len(plan.trainings) - len(_waiting(plan)))
        if engine.in_process:
            run_all([(train_teacher, one) for one in missing])
            run_all([(train_student, one) for one in _waiting(plan) if _has_teacher(one)])
            return failures
        first: list[Step] = [(train_teacher, one) for one in missing]
        if missing:
            first += [
                (train_student, one) for one in _waiting(plan) if one.config.method.preset == NO_TEACHER
            ]
        run_all(first)
        ready = [one for one in _waiting(plan) if _has_teacher(one) and one.title not in failures]
        # a cache is filled by one process only; in a single process, the first student fills it
        waiting = {one.folder for one in ready}
        groups = [one for one in shared_caches(plan) if len(waiting & {run.folder for run in one.runs}) > 1]
        sharing = {run.folder for one in groups for run in one.runs}
        fills: list[Step] = [(fill, run) for one in groups for run in one.fills if run.folder in waiting]
        if fills:
            board.log(f"teacher cache: filled first, for the {len(sharing & waiting)} runs that read it ...")
        run_all([*fills, *((train_student, one) for one in ready if one.folder not in sharing)])
        run_all(
            [(train_student, one) for one in ready if one.folder in sharing and one.title not in failures]
        )
    return failures


def _is_trained(teacher: Any) -> bool:
    return (teacher.folder / "teacher.safetensors").is_file()


def _has_teacher(one: Any) -> bool:
    """Whether the teacher of a run is available. If not, its training failed, which was logged."""
    if one.teacher_file is not None:
        return bool(one.teacher_file.is_file())
    weights = one.config.teacher.weights
    return one.config.method.preset == NO_TEACHER or weights is None or Path(weights).is_file()


def report_plan(
    plan: Plan,
    *,
    out: Path | None = None,
    title: str | None = None,
    style: LogStyle = "auto",
    log: Callable[[str], None] | None = None,
) -> dict[str, Table]:
    """Log the table of the finished runs of ``plan``, without training; with ``out``, write all files."""
    if out is not None:
        _check_out(out)
    tables = _write(plan, {}, title, out)
    _report_tables(_output(style, log), tables, out)
    return tables


def _write(plan: Plan, failures: Mapping[str, str], title: str | None, out: Path | None) -> dict[str, Table]:
    """The tables of the finished runs; with ``out``, all files too."""
    studies: dict[str, Records] = {}
    conditions: dict[str, dict[str, tuple[str, ...]]] = {}
    for pair in plan.pairs:
        studies[pair], conditions[pair] = _records(plan, pair)
    studies = {pair: records for pair, records in studies.items() if records}
    runs = [
        Found(one.folder, run)
        for one in plan.trainings
        if (run := finished(one.folder, one.config)) is not None
    ]
    if others := other_images(runs):
        raise ValueError(
            f"compare: needs runs on the same images, got {'; '.join(others)}; delete the runs on images that are no "
            "longer those of the study. The same command then trains them again."
        )
    if not studies:
        raise ValueError(
            "compare: needs at least one finished run, got none:\n"
            + "\n".join(f"  {name}: {failure}" for name, failure in failures.items())
            + "\nfix these errors; the same command then continues."
        )
    if out is None:
        return _tables(studies, plan.options.baselines, conditions)
    protocol = [*_protocol(plan), *(f"Failed: {name}. {failure}" for name, failure in failures.items())]
    return write_tables(
        out,
        studies,
        baselines=plan.options.baselines,
        title=title or plan.out.resolve().name,
        conditions=conditions,
        protocol=protocol,
    )


def _records(plan: Plan, pair: str) -> tuple[Records, dict[str, tuple[str, ...]]]:
    """The finished runs by method, and a note on missing seeds by method."""
    records: Records = {}
    missing: dict[str, tuple[str, ...]] = {}
    for method in plan.methods:
        runs = {one.seed: finished(one.folder, one.config) for one in plan.of(pair, method)}
        present = [run for run in runs.values() if run is not None]
        if present:
            records[method] = present
        absent = [str(seed) for seed, run in runs.items() if run is None]
        if absent and present:
            missing[method] = (f"without seed {', '.join(absent)}",)
    return records, missing


def _protocol(plan: Plan) -> list[str]:
    """Sentences for the page: what the runs of a comparison have in common."""
    seeds = len(plan.options.seeds)
    lines = [
        f"All methods of a seed have the same images, views, initial student, epochs and teacher; "
        f"{counted(seeds, 'seed')} per method."
    ]
    if plan.teachers and plan.options.same_teacher:
        lines.append(
            "One teacher was trained for all seeds, so the intervals are for students of this one teacher. Another training "
            "of it may give other results."
        )
    elif plan.teachers:
        lines.append(
            "Every seed has its own teacher, trained once for all methods of the seed, so the intervals include the "
            "variation between trainings of the teacher."
        )
    elif any(one.config.method.preset != NO_TEACHER for one in plan.trainings):
        lines.append(
            "All seeds have the same given teacher, so the intervals are for students of this one teacher."
        )
    if shared_caches(plan):
        lines.append(
            "Methods that read only logits share a cache of the teacher's outputs, in float16; the others compute the "
            "teacher themselves."
        )
    return lines


def _tables(
    studies: Mapping[str, Records],
    baselines: Sequence[str],
    conditions: Mapping[str, Mapping[str, tuple[str, ...]]],
) -> dict[str, Table]:
    """The tables, with what the runs of a method have otherwise."""
    return {
        name: replace(
            table,
            rows=tuple(
                replace(row, conditions=conditions.get(name, {}).get(row.method, ())) for row in table.rows
            ),
        )
        for name, table in tables_of(studies, baselines).items()
    }


def write_tables(
    out: Path,
    studies: Mapping[str, Records],
    *,
    baselines: Sequence[str],
    title: str,
    conditions: Mapping[str, Mapping[str, tuple[str, ...]]],
    protocol: Sequence[str],
) -> dict[str, Table]:
    """Write table.md, .csv, .tex, .json and index.html; with several pairs, also a page per pair."""
    tables = _tables(studies, baselines, conditions)
    for name, content in (
        ("table.md", formats.markdown(tables)),
        ("table.csv", formats.csv_text(tables)),
        ("table.tex", formats.latex(tables)),
        ("table.json", formats.as_json(tables, protocol=list(protocol))),
    ):
        write_atomically(out / name, content)
    pages: dict[str, str] = {}
    protocol = [*protocol, *(line for records in studies.values() for line in _same_scores(records))]
    for name, records in studies.items():
        page = out / "index.html" if len(studies) == 1 else out / f"pair{len(pages) + 1}.html"
        pages[name] = page.name
        shown, test = _with_examples(records)
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


def _same_scores(records: Records) -> list[str]:
    """A sentence for each group of methods with the same scores in every seed."""
    groups: dict[tuple[tuple[int, float], ...], list[str]] = {}
    for name, runs in records.items():
        groups.setdefault(tuple((run.seed, run.student_score) for run in runs), []).append(name)
    mapped = any(run.is_mapped for runs in records.values() for run in runs)
    why = (
        ": the teacher has other classes, so under every method it is mapped to the student's, and thereby corrected"
        if mapped
        else ""
    )
    return [
        f"{' and '.join(names)} ended with the same scores in every seed{why}."
        for scores, names in groups.items()
        if len(names) > 1 and scores
    ]


def _with_examples(records: Records) -> tuple[Records, Any]:
    """The records, and the split whose images their examples refer to.

    Runs on other images have no examples. If the data are no longer available, or others: no run, and None.
    """
    first = next(iter(records.values()))[0]
    try:
        test, known = task_of(first.config.data.source).examples_from(first), True
    except ValueError:
        test, known = None, False

    def shown(run: RunRecord) -> RunRecord:
        return run if known and _same_test(run, first) else run.model_copy(update={"compared": None})

    return {name: [shown(run) for run in runs] for name, runs in records.items()}, test


def _same_test(run: RunRecord, other: RunRecord) -> bool:
    """Whether both runs were tested on the same images."""
    if (run.config.data.source, run.data.test) != (other.config.data.source, other.data.test):
        return False
    # a cut of validation images depends on the seed, and the fingerprint on the cut
    cut = run.config.data.val_fraction and run.seed != other.seed
    return bool(cut) or run.data.fingerprint == other.data.fingerprint


def compare_runs(
    folders: Sequence[Path],
    *,
    out: Path | None = None,
    baselines: Sequence[str] = (),
    anyway: bool = False,
    title: str | None = None,
    style: LogStyle = "auto",
    log: Callable[[str], None] | None = None,
) -> dict[str, Table]:
    """Compare finished runs. A folder of a comparison is read with its plan. Nothing is written without ``out``."""
    if len(folders) == 1 and (folders[0] / PLAN_FILE).is_file():
        base, section = read_plan_file(folders[0] / PLAN_FILE)
        if baselines:
            section["baselines"] = list(baselines)
        plan = make_plan(base, read_options(section), folders[0])
        return report_plan(plan, out=out, title=title, style=style, log=log)
    return report_gathered(
        gather(folders, anyway=anyway),
        out=out,
        baselines=baselines,
        title=title or "Finished runs",
        style=style,
        log=log,
    )


def report_gathered(
    found: Gathered,
    *,
    out: Path | None,
    baselines: Sequence[str] = (),
    title: str,
    style: LogStyle = "auto",
    log: Callable[[str], None] | None = None,
) -> dict[str, Table]:
    """Log the table of gathered runs; with ``out``, write all files."""
    protocol = ["Finished runs, paired by seed.", *found.notes]
    if out is None:
        tables = _tables({"": found.records}, baselines, {"": found.conditions})
        _report_tables(_output(style, log), tables, None)
        return tables
    _check_out(out)
    tables = write_tables(
        out,
        {"": found.records},
        baselines=baselines,
        title=title,
        conditions={"": found.conditions},
        protocol=protocol,
    )
    _report_tables(_output(style, log), tables, out)
    return tables


def _output(style: LogStyle, log: Callable[[str], None] | None) -> Reporter:
    """Standard output: events, or plans and tables as text. The progress goes to the board."""
    return JsonReporter() if style == "json" and log is None else _Notes(log or print_flushed)


def _report_tables(report: Reporter, tables: Mapping[str, Table], out: Path | None) -> None:
    report.note("\n" + formats.text(tables))
    for pair, table in tables.items():
        report.event("table", pair=pair, **table.as_dict())
    if out is not None:
        report.note(f"\n{out / 'index.html'}, table.md, table.csv, table.tex, table.json")


class _Notes(Reporter):
    def __init__(self, log: Callable[[str], None]) -> None:
        self.note = log  # type: ignore[method-assign, assignment]
