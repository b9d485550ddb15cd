"""Methods x seeds under equal conditions: all methods of a seed have the same data, views, epochs and teacher.

    records = run_study(base, methods, seeds, out=...)     # out/<method>/seed<k>/record.json
    table = tabulate(records)                              # outgrow.report.table

Called again after an interruption, a study runs what is missing. It is for scripts, which may pass their own
teachers. `outgrow compare` (:mod:`outgrow.run.compare`) also plans, estimates and distributes such runs.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from outgrow.report.table import NO_TEACHER, Records
from outgrow.run.distillation import distill
from outgrow.run.layers import as_config
from outgrow.run.work import finished, state_of
from outgrow.training.config import Config, merge, settle
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

    ``base`` and the values of ``methods`` are layers of configuration. ``teacher(config)`` creates the teacher of a
    seed, once for all methods; without it, each run creates its teacher from the configuration. With ``out``, finished
    runs are read and not repeated, and interrupted ones continue. ``ValueError`` for a folder with a run of another
    configuration, unless ``overwrite`` replaces it.
    """
    report = reporter or Reporter()
    records: Records = {name: [] for name in methods}
    for seed in seeds:
        shared: nn.Module | None = None
        for name, method in methods.items():
            folder = Path(out) / name / f"seed{seed}" if out is not None else None
            layer = {"seed": seed, "out": None if folder is None else str(folder)}
            config = settle(as_config(merge(base, {"method": method}, layer)))
            record = finished(folder, config)
            if record is None:
                if shared is None and teacher is not None and config.method.preset != NO_TEACHER:
                    shared = teacher(config)
                report.note(f"{name}, seed {seed}")
                begun = state_of(folder, config) == "begun"
                replace = overwrite and not begun
                content = distill(
                    config, teacher=shared, resume=begun, overwrite=replace, reporter=Quiet(report)
                )
                record = parse_record(content)
            records[name].append(record)
            report.event("run", method=name, seed=seed, score=record.student_score, metric=record.metric)
    return records


class Quiet(Reporter):
    """Shows only the progress bars of a run. The study prints one line per run itself."""

    def __init__(self, inner: Reporter) -> None:
        self.bar = inner.bar  # type: ignore[method-assign]
