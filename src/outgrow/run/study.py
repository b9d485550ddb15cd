"""Methods x seeds under equal conditions: the same data, views, epochs and teacher for each seed.

    records = run_study(base, methods, seeds, out=...)     # out/<method>/seed<k>/record.json
    table = tabulate(records)                              # outgrow.report.table

A study that was interrupted goes on with what is missing. It is what a script calls, with teachers of its own;
`outgrow compare` (:mod:`outgrow.run.compare`) plans, estimates and spreads the same runs.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from outgrow.report.table import NO_TEACHER, Records
from outgrow.run.distillation import distill
from outgrow.run.work import finished, state_of
from outgrow.training.config import Config, build_config, merge, settle
from outgrow.training.progress import Reporter
from outgrow.training.record import parse_record


def run_study(
    base: Mapping[str, Any],
    methods: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int],
    *,
    out: str | Path | None = None,
    teacher: Callable[[Config], nn.Module] | None = None,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> Records:
    """Run every method with every seed and return the records by method, in the order of seeds.

    ``base`` and the methods' values are layers of configuration. ``teacher(config)`` makes the teacher of
    a seed, once for all methods; without it each run makes its own from the configuration. With ``out``
    finished runs are kept and not repeated, and begun ones continue. ``ValueError`` for a folder that holds a run
    of another configuration, unless ``overwrite`` replaces it.
    """
    report = reporter or Reporter()
    records: Records = {name: [] for name in methods}
    for seed in seeds:
        made: nn.Module | None = None
        for name, method in methods.items():
            folder = Path(out) / name / f"seed{seed}" if out is not None else None
            layer = {"seed": seed, "out": None if folder is None else str(folder)}
            config = settle(build_config(merge(base, {"method": method}, layer)))
            record = finished(folder, config)
            if record is None:
                if made is None and teacher is not None and config.method.preset != NO_TEACHER:
                    made = teacher(config)
                report.note(f"{name}, seed {seed}")
                begun = state_of(folder, config) == "begun"
                replace = overwrite and not begun
                made_here = distill(
                    config, teacher=made, resume=begun, overwrite=replace, reporter=Quiet(report)
                )
                record = parse_record(made_here)
            records[name].append(record)
            report.event("run", method=name, seed=seed, score=record.student_score, metric=record.metric)
    return records


class Quiet(Reporter):
    """Only the bars of a run: a study's own lines say the rest."""

    def __init__(self, inner: Reporter) -> None:
        self.bar = inner.bar  # type: ignore[method-assign]
