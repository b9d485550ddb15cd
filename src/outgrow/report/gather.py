"""Finished runs of any name, made a study: grouped by method, paired by seed, and refused where they do not compare.

    found = gather(["runs/alone", "runs/first", "runs/second"])
    found.records        # by method, in the order of seeds
    found.conditions     # what a method has otherwise, where it was asked for anyway

Runs of one configuration but for seed and folder are one method. A method is called by its preset, loss and rule,
and by what else sets it apart.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from outgrow.report.table import NO_TEACHER, Records, null_of, read_records
from outgrow.training.config import MethodConfig
from outgrow.training.record import RunRecord, read_record

RECORD = "record.json"
UNSEEN = (
    "seed",
    "out",
    "recipe",
    "track",
    "data.workers",
    *(
        f"{section}.{name}"
        for section in ("train", "teacher_train")
        for name in ("device", "keep_memory", "checkpoint_steps", "eval_every")
    ),
    "teacher.cache",
    "teacher.cache_features",
    "teacher.cache_plain",
)
"""Fields that are not the method's."""
ALONE = ("teacher", "teacher_train", "method")
"""Sections that mean nothing to a student without a teacher."""


@dataclass
class Gathered:
    """``conditions`` by method; ``notes`` are for the page."""

    records: Records
    conditions: dict[str, tuple[str, ...]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Found:
    folder: Path
    record: RunRecord


def gather(folders: Sequence[str | Path], *, anyway: bool = False) -> Gathered:
    """The finished runs in ``folders``, or under them. ``ValueError`` names each difference of runs that do not
    compare, unless ``anyway``."""
    runs = [run for folder in folders for run in find_runs(Path(folder))]
    named = _named(_grouped(runs))
    gathered = Gathered({name: [run.record for run in group] for name, group in named.items()})
    if len(named) < 2:
        raise ValueError(
            f"compare: needs runs of two methods or more, got {len(runs)} of {next(iter(named))}; add the runs that it is "
            "to be compared with."
        )
    faults = _faults(named)
    if faults and not anyway:
        lines = "\n".join(f"  {fault}" for fault in faults)
        raise ValueError(
            f"compare: needs runs that differ in their method alone, got these differences:\n{lines}\nrerun one side under "
            "the other's conditions, or give --anyway to see them in the table."
        )
    if faults:
        gathered.conditions = _conditions(named)
        gathered.notes.append(
            "These runs differ in more than their method, and were compared anyway: see the column of other conditions. "
            "Differences are of the seeds that both sides have."
        )
    return gathered


def gather_study(folder: str | Path) -> Gathered:
    """The finished runs of a folder of METHOD/seedK. Methods may differ in any condition, which the table shows, but not in
    what they were judged on: ``ValueError``."""
    records = read_records(folder)
    named = {
        name: [Found(Path(folder, name, f"seed{run.seed}"), run) for run in runs]
        for name, runs in records.items()
    }
    runs = [run for group in named.values() for run in group]
    faults = _differences(runs, {what: CONDITIONS[what] for what in JUDGED}) + other_images(runs)
    if faults:
        lines = "\n".join(f"  {fault}" for fault in faults)
        raise ValueError(
            f"report: needs runs that were judged on the same images, got these differences:\n{lines}\nmove the others into a "
            "folder of their own, or see them side by side with `outgrow compare RUN RUN --anyway`."
        )
    return Gathered(records, _conditions(named))


def find_runs(folder: Path) -> list[Found]:
    """A run's folder, or all finished runs under one."""
    if not folder.is_dir():
        raise ValueError(
            f"compare: needs folders of finished runs, got {str(folder)!r}, which is not there; give what --out was."
        )
    paths = (
        [folder / RECORD]
        if (folder / RECORD).is_file()
        else sorted(folder.rglob(RECORD), key=lambda p: p.parts)
    )
    if not paths:
        raise ValueError(
            f"compare: needs finished runs, got no {RECORD} in or under {folder}; finish the run with --resume."
        )
    return [Found(path.parent, read_record(path)) for path in paths]


def method_name(method: MethodConfig) -> str:
    """What a method is called: its preset, or its loss and its rule.

    >>> method_name(MethodConfig(preset="kd", rule="pair")), method_name(MethodConfig(preset="kd", loss="dkd(beta=6)"))
    ('kd + pair', 'dkd(beta=6)')
    """
    if method.preset == NO_TEACHER:
        return NO_TEACHER
    kd = method.preset == "kd"
    parts = [method.preset] if not kd or method.loss is None else []
    parts += [part for part in (method.loss, method.rule) if part is not None]
    if method.task == "posterior":
        parts.append("task posterior")
    return " + ".join(parts)


def _fields(record: RunRecord) -> dict[str, Any]:
    """The configuration by field, without what is not the method's."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, section: BaseModel) -> None:
        for name in type(section).model_fields:
            value = getattr(section, name)
            if isinstance(value, BaseModel):
                walk(f"{prefix}{name}.", value)
            elif f"{prefix}{name}" not in UNSEEN:
                flat[f"{prefix}{name}"] = value

    walk("", record.config)
    if record.preset == NO_TEACHER:
        flat = {key: value for key, value in flat.items() if key.partition(".")[0] not in ALONE}
        flat["method.preset"] = NO_TEACHER
    if not flat.get("teacher.train", False):
        flat = {key: value for key, value in flat.items() if not key.startswith("teacher_train.")}
    return flat


def _grouped(runs: Sequence[Found]) -> list[list[Found]]:
    """Runs of one configuration, in the order of seeds. Seeds whose teachers have files of their own are one method."""
    groups: dict[str, list[Found]] = {}
    for run in runs:
        groups.setdefault(repr(sorted(_fields(run.record).items())), []).append(run)
    merged: dict[str, list[Found]] = {}
    for group in groups.values():
        key = {name: value for name, value in _fields(group[0].record).items() if name != "teacher.weights"}
        text = repr(sorted(key.items()))
        seeds = {run.record.seed for run in group}
        while text in merged and seeds & {run.record.seed for run in merged[text]}:
            text += "'"  # the same seed with another teacher: a method of its own
        merged.setdefault(text, []).extend(group)
    for group in merged.values():
        seen: dict[int, Path] = {}
        for run in group:
            if run.record.seed in seen:
                raise ValueError(
                    f"compare: needs one run of each method and seed, got seed {run.record.seed} of "
                    f"{method_name(run.record.config.method)} twice, in {seen[run.record.seed]} and {run.folder}; leave one "
                    "of them out."
                )
            seen[run.record.seed] = run.folder
        group.sort(key=lambda run: run.record.seed)
    return list(merged.values())


def _named(groups: Sequence[list[Found]]) -> dict[str, list[Found]]:
    """Groups by name, the one without a teacher first."""
    short = [method_name(group[0].record.config.method) for group in groups]
    names = []
    for group, name in zip(groups, short, strict=True):
        alike = [other for other, its in zip(groups, short, strict=True) if its == name]
        names.append(name if len(alike) == 1 else f"{name} ({_apart(group, alike)})")
    order = sorted(range(len(groups)), key=lambda i: (short[i] != NO_TEACHER, short[i] != "kd"))
    named: dict[str, list[Found]] = {}
    for i in order:
        name, number = names[i], 2
        while name in named:
            name, number = f"{names[i]} {number}", number + 1
        named[name] = groups[i]
    return named


def _apart(group: Sequence[Found], alike: Sequence[Sequence[Found]]) -> str:
    """The fields in which a group differs from those that are called alike."""
    own = _fields(group[0].record)
    every = [_fields(other[0].record) for other in alike]
    differing = [key for key in own if any(other.get(key) != own[key] for other in every)]
    said = [f"{key} {own[key]}" for key in differing[:3]]
    more = len(differing) - len(said)
    return ", ".join([*said, *([f"{more} more"] if more > 0 else [])]) or "again"


Condition = Callable[[RunRecord], Any]
CONDITIONS: Mapping[str, Condition] = {
    "metric": lambda run: run.metric,
    "test images": lambda run: run.data.test,
    "classes": lambda run: ", ".join(run.data.classes),
    "student": lambda run: f"{run.student.name} ({run.student.parameters:,} parameters)",
    "student's weights": lambda run: (
        run.config.student.weights or ("published" if run.config.student.pretrained else "none")
    ),
    "epochs": lambda run: run.trained_epochs,
    "steps an epoch": lambda run: run.config.train.max_steps or "all",
    "batch size": lambda run: run.config.train.batch_size,
    "training rows": lambda run: run.data.train,
}
"""What has to be alike in all runs."""
OWN_SECTIONS = ("data", "student", "train")
"""Sections of which all other fields have to be alike too."""
FREE = (
    "data.source",  # the images are compared instead
    "data.label",
    "data.on_fault",
    "data.train_rows",
    "data.exclude",
    "data.class_map",  # of a teacher's classes
    "data.val_fraction",
    "data.unlabelled",  # what a method makes of images without labels is what is compared
    "data.unlabelled_share",
    "data.unlabelled_rows",
    "student.name",
    "student.weights",
    "student.pretrained",
    "train.epochs",
    "train.min_steps",
    "train.max_steps",
    "train.batch_size",
    "train.progress",  # of the method's schedule
    "train.precision",  # speed
    "train.channels_last",
    "train.fused_norms",
    "train.compile",
)
"""But these, which are compared in another way, or change nothing but speed and rounding."""
JUDGED = ("metric", "test images", "classes")
"""Those of what the scores are on."""


def _faults(named: Mapping[str, Sequence[Found]]) -> list[str]:
    """Each difference in conditions, with the runs on both sides."""
    runs = [run for group in named.values() for run in group]
    faults = _differences(runs, _conditions_of(runs)) + other_images(runs)
    seeds = {name: tuple(run.record.seed for run in group) for name, group in named.items()}
    if len(set(seeds.values())) > 1:
        said = "; ".join(f"{', '.join(map(str, value))} of {name}" for name, value in seeds.items())
        faults.append(f"seeds: {said}")
    return faults


def _conditions_of(runs: Sequence[Found]) -> dict[str, Condition]:
    """:data:`CONDITIONS`, and the other fields of data, student and training in which ``runs`` differ. A field in which
    runs of one method differ is in the names of the methods (:func:`_apart`), and not among them."""
    fields = [(method_name(run.record.config.method), _fields(run.record)) for run in runs]
    names = dict.fromkeys(name for _, one in fields for name in one if name.partition(".")[0] in OWN_SECTIONS)

    def values(name: str, method: str | None = None) -> set[str]:
        return {repr(one.get(name)) for its, one in fields if method in (None, its)}

    differing = [
        name
        for name in names
        if name not in FREE
        and len(values(name)) > 1
        and all(len(values(name, method)) == 1 for method, _ in fields)
    ]

    def of(name: str) -> Condition:
        return lambda run: repr(_fields(run).get(name))

    return {**CONDITIONS, **{name: of(name) for name in differing}}


def _differences(runs: Sequence[Found], conditions: Mapping[str, Condition]) -> list[str]:
    faults = []
    for what, condition in conditions.items():
        sides: dict[Any, list[str]] = {}
        for run in runs:
            sides.setdefault(condition(run.record), []).append(str(run.folder))
        if len(sides) > 1:
            faults.append(
                f"{what}: " + "; ".join(f"{_short(value)} in {_few(at)}" for value, at in sides.items())
            )
    return faults


def other_images(runs: Sequence[Found]) -> list[str]:
    """Where the images are others. A cut of validation images depends on the seed, and the fingerprint on the cut."""
    sides: dict[int | None, dict[str, list[str]]] = {}
    for run in runs:
        by = run.record.seed if run.record.config.data.val_fraction else None
        sides.setdefault(by, {}).setdefault(run.record.data.fingerprint, []).append(str(run.folder))
    return [
        "images (fingerprint): " + "; ".join(f"{value} in {_few(at)}" for value, at in one.items())
        for one in sides.values()
        if len(one) > 1
    ]


def _conditions(named: Mapping[str, Sequence[Found]]) -> dict[str, tuple[str, ...]]:
    """By method, what it has otherwise than the null, or else than the first method."""
    records = {name: [run.record for run in group] for name, group in named.items()}
    reference = null_of(records) or next(iter(records))
    conditions = _conditions_of([run for group in named.values() for run in group])
    found = {}
    for name, runs in records.items():
        others = []
        for what, condition in {**conditions, "images": lambda run: run.data.fingerprint}.items():
            own = list(dict.fromkeys(condition(run) for run in runs))
            if what == "images" and any(run.config.data.val_fraction for run in runs):
                continue
            if own != list(dict.fromkeys(condition(run) for run in records[reference])):
                others.append(f"{what} {' and '.join(_short(one) for one in own)}")
        seeds = [run.seed for run in runs]
        if seeds != [run.seed for run in records[reference]]:
            others.append(f"seeds {', '.join(map(str, seeds))}")
        if name != reference and others:
            found[name] = tuple(others)
    return found


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _few(folders: Sequence[str], most: int = 3) -> str:
    return ", ".join(folders[:most]) + (f" and {len(folders) - most} more" if len(folders) > most else "")
