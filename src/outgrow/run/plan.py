"""Plan a comparison: methods x pairs x seeds as a list of trainings, checked before the first one starts.

    base, section = read_plan_file(path)
    plan = make_plan(base, read_options(section), out)
    plan.teachers, plan.trainings

The section ``compare`` of a configuration:

    compare:
      methods:                      # presets, or your own names with fields of `method`
        none: {preset: none}
        kd: {preset: kd}
        kd + pair: {preset: kd, rule: pair}
      pairs: [cifar/resnet56 -> cifar/resnet20]     # or mappings with the sections teacher and student
      seeds: 3                      # or a list
      baselines: [kd]               # default: the student alone, and plain distillation
      same_teacher: false
      cache: true                   # a teacher cache for runs with the same outputs; null: if the disk has room
"""

import difflib
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from outgrow.machine.files import write_atomically
from outgrow.objective import PRESETS
from outgrow.report.gather import method_name
from outgrow.report.table import NO_TEACHER
from outgrow.run.distillation import method_of
from outgrow.run.tasks import task_name
from outgrow.spec import lookup
from outgrow.training.config import (
    Config,
    MethodConfig,
    TrainConfig,
    build_config,
    explain_field,
    load_config,
    merge,
    settle,
    with_checksum,
)
from outgrow.training.noise import wanted_noise

PLAN_FILE = "compare.yaml"
"""The plan in the folder of a comparison. `outgrow compare --config` repeats it."""
DEFAULT_METHODS = ("none", "kd", "outgrow")
TEACHERS, CACHE = "teachers", "cache"
"""Folders next to those of the methods."""
ARROW = "->"


class PairConfig(BaseModel):
    """The fields of one teacher and one student that differ from the configuration. As text: ``TEACHER->STUDENT``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    teacher: dict[str, Any] = Field(default_factory=dict)
    student: dict[str, Any] = Field(default_factory=dict)


class CompareConfig(BaseModel):
    """The section ``compare``; see the module's docstring."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    methods: dict[str, MethodConfig] = Field(
        default_factory=lambda: {name: MethodConfig(preset=name) for name in DEFAULT_METHODS}, min_length=1
    )
    pairs: tuple[PairConfig, ...] = ()
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    baselines: tuple[str, ...] = ()
    same_teacher: bool = False
    cache: bool | None = None

    @field_validator("methods", mode="before")
    @classmethod
    def _presets(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = split_list(value)
        if isinstance(value, list | tuple) and all(isinstance(name, str) for name in value):
            return {name: {"preset": name} for name in value}
        return value

    @field_validator("pairs", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = split_list(value)
        return [parse_pair(one) if isinstance(one, str) else one for one in value]

    @field_validator("seeds", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            return tuple(range(value))
        return value

    @field_validator("seeds")
    @classmethod
    def _once(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) < len(value) or min(value) < 0:
            raise ValueError(
                f"needs numbers from 0 on, each once, got {list(value)}; write such as [0, 1, 2]"
            )
        return value


def parse_pair(text: str) -> dict[str, Any]:
    """
    >>> parse_pair("cifar/resnet56 -> cifar/resnet20")
    {'teacher': {'name': 'cifar/resnet56'}, 'student': {'name': 'cifar/resnet20'}}
    """
    teacher, arrow, student = (part.strip() for part in text.partition(ARROW))
    if not (teacher and arrow and student):
        raise ValueError(f"needs pairs such as TEACHER{ARROW}STUDENT, got {text!r}; name both networks")
    return {"teacher": {"name": teacher}, "student": {"name": student}}


def split_list(text: str) -> list[str]:
    """Split at commas outside brackets.

    >>> split_list("kd, dkd(alpha=1, beta=6)")
    ['kd', 'dkd(alpha=1, beta=6)']
    """
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def parse_seeds(text: str) -> int | list[int]:
    """``3`` means the seeds 0, 1 and 2; ``4,7`` means these two.

    >>> parse_seeds("3"), parse_seeds("4,7")
    (3, [4, 7])
    """
    try:
        numbers = [int(part) for part in split_list(text)]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 0 or (numbers == [0] and "," not in text):
        raise ValueError(
            f"--seeds: needs a number of seeds, or a list such as 4,7, got {text!r}; correct it."
        )
    return numbers[0] if "," not in text else numbers


def methods_layer(
    presets: str | None, losses: str | None, rules: str | None, constants: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """The methods of the flags: presets, then losses, then rules, the latter two with the preset ``kd``.

    ``constants`` are a recipe's constants, by the bare name of the loss. ``ValueError`` for a loss that is another
    method than the preset of the same name.

    >>> list(methods_layer("none,kd", "dkd(beta=6)", "pair,swap", {}))
    ['none', 'kd', 'dkd(beta=6)', 'kd + pair', 'kd + swap']
    """
    if presets is None and losses is None and rules is None:
        return {}
    found: dict[str, Any] = {name: {"preset": name} for name in split_list(presets or "none,kd")}
    for loss in split_list(losses or ""):
        method = {"preset": "kd", **({} if loss == "kd" else {"loss": loss}), **constants.get(loss, {})}
        if presets is not None and found.get(loss, method) != method:
            raise ValueError(
                f"--losses {loss}: needs one method of this name, got the preset {loss} from --methods and the loss with the "
                f"recipe's constants ({', '.join(f'{k}={v}' for k, v in constants[loss].items())}); leave out one of them."
            )
        found[loss] = method
    for rule in split_list(rules or ""):
        method = {"preset": "kd", "rule": rule}
        found[method_name(MethodConfig(**method))] = method
    return found


def read_options(section: Any) -> CompareConfig:
    """Parse the section ``compare``; ``ValueError`` with the field, and with a similar name for an unknown one."""
    try:
        return CompareConfig.model_validate(section or {})
    except ValidationError as error:
        lines = []
        for item in error.errors():
            where = ".".join(str(part) for part in ("compare", *item["loc"]))
            if item["type"] == "extra_forbidden":
                known = (
                    MethodConfig
                    if "methods" in item["loc"]
                    else PairConfig
                    if "pairs" in item["loc"]
                    else CompareConfig
                )
                names = list(known.model_fields)
                near = difflib.get_close_matches(str(item["loc"][-1]), names, n=1)
                hint = f"did you mean {near[0]}?" if near else f"the fields are {', '.join(names)}."
                lines.append(f"configuration: there is no field {where}; {hint}")
            else:
                lines.append(explain_field(where, item))
        raise ValueError("\n".join(lines)) from None


@dataclass(frozen=True)
class Training:
    """One run. ``teacher_file`` is for a teacher that is trained for several runs."""

    pair: str
    method: str
    config: Config
    teacher_file: Path | None = None

    @property
    def folder(self) -> Path:
        assert self.config.out is not None
        return Path(self.config.out)

    @property
    def seed(self) -> int:
        return self.config.seed

    @property
    def title(self) -> str:
        pair = f"{self.pair}, " if self.pair else ""
        return f"{pair}{self.method}, seed {self.seed}"


@dataclass(frozen=True)
class Preparation:
    """A teacher for several runs, to train into ``folder``."""

    title: str
    config: Config
    folder: Path


@dataclass(frozen=True)
class Plan:
    """All trainings of a comparison. ``base`` and ``options`` are the input of :func:`make_plan`."""

    base: dict[str, Any]
    options: CompareConfig
    out: Path
    pairs: tuple[str, ...]
    """The names of the pairs; a single pair has the name ""."""
    trainings: tuple[Training, ...]
    teachers: tuple[Preparation, ...]
    cached: bool
    mapped: frozenset[str] = frozenset()
    """Pairs whose teacher has other classes. It is mapped, and thereby corrected, under every method."""

    @property
    def methods(self) -> list[str]:
        return list(self.options.methods)

    def of(self, pair: str, method: str) -> list[Training]:
        return [one for one in self.trainings if (one.pair, one.method) == (pair, method)]

    def to_yaml(self) -> str:
        # with all fields, as a recipe may change in a later version
        whole = build_config(self.base).model_dump(mode="json", exclude={"seed", "out"})
        section = self.options.model_dump(mode="json", exclude_unset=True)
        section["methods"] = {
            name: method.model_dump(mode="json", exclude_unset=True)
            for name, method in self.options.methods.items()
        }
        section["seeds"] = list(self.options.seeds)
        section["cache"] = self.cached
        return yaml.safe_dump({**whole, "compare": section}, sort_keys=False)


def make_plan(
    base: Mapping[str, Any], options: CompareConfig, out: Path, mapped: frozenset[str] = frozenset()
) -> Plan:
    """The trainings of a comparison. ``ValueError`` for errors in any of them: names, losses, rules, missing models.

    ``mapped``: see :class:`Plan`.
    """
    out = Path(out)
    _check(base, options)
    pairs = options.pairs or (PairConfig(),)
    names = _pair_names(base, pairs)
    slugs = _slugs(list(options.methods))
    cached = _caches(base, options, out)
    trainings: list[Training] = []
    teachers: dict[str, Preparation] = {}
    for pair, name in zip(pairs, names, strict=True):
        for seed in options.seeds:
            for method, fields in options.methods.items():
                folder = (
                    out / _slug(name) / slugs[method] / f"seed{seed}"
                    if name
                    else out / slugs[method] / f"seed{seed}"
                )
                config = _config(base, pair, fields, seed, folder)
                file = None
                if config.teacher.train and config.method.preset != NO_TEACHER:
                    teacher = _teacher(config, options, out)
                    teachers.setdefault(str(teacher.folder), teacher)
                    file = teacher.folder / "teacher.safetensors"
                    if options.same_teacher:
                        # an ordinary weights file: it may have been trained on the rows of other seeds
                        loaded = {"train": False, "weights": str(file)}
                        config = build_config(merge(config.model_dump(), {"teacher": loaded}))
                        file = None
                trainings.append(Training(name, method, settle(config), file))
    trainings = _with_caches(trainings, out, mapped, wanted=cached)
    return Plan(
        dict(base), options, out, tuple(names), tuple(trainings), tuple(teachers.values()), cached, mapped
    )


def _config(
    base: Mapping[str, Any], pair: PairConfig, method: MethodConfig, seed: int, folder: Path
) -> Config:
    changed = {"method": method.model_dump(exclude_unset=True), "seed": seed, "out": str(folder)}
    return build_config(merge(base, pair.model_dump(), changed))


def _check(base: Mapping[str, Any], options: CompareConfig) -> None:
    for name, method in options.methods.items():
        lookup(PRESETS, method.preset, kind="preset")
        for pair in options.pairs or (PairConfig(),):
            config = _config(base, pair, method, options.seeds[0], Path("."))
            try:
                method_of(config)
            except ValueError as error:
                raise ValueError(f"method {name!r}: {error}") from None
            if not config.student.name:
                raise ValueError(
                    "--student: needs a model such as cifar/resnet8 or timm/mobilenetv3_small_100, got none; "
                    "set it (`outgrow list models` prints all names)."
                )
            if method.preset != NO_TEACHER and config.teacher.name in ("", "none"):
                raise ValueError(
                    f"--teacher: needs a model such as timm/resnet50 for the method {name!r}, got none; set it, or "
                    "compare only students without a teacher (--methods none)."
                )
            if options.same_teacher and config.teacher.train and config.teacher.rows == "disjoint":
                raise ValueError(
                    "--same-teacher: needs a teacher that may be trained on the rows of every seed, got teacher.rows=disjoint, "
                    "where each seed has other rows; leave --same-teacher out, or set teacher.rows=same."
                )
    if unknown := [name for name in options.baselines if name not in options.methods]:
        raise ValueError(
            f"--baseline: needs one of the methods {', '.join(map(repr, options.methods))}, got {unknown[0]!r}; add it to "
            "the methods, or choose another."
        )


def _teacher(config: Config, options: CompareConfig, out: Path) -> Preparation:
    """The training of a teacher for all methods of a seed. It does not depend on student or method."""
    seed = options.seeds[0] if options.same_teacher else config.seed
    # several teachers may have the same name and different initial weights
    same = Counter(str(pair.teacher.get("name", config.teacher.name)) for pair in options.pairs)
    name = _slug(config.teacher.name)
    if same[config.teacher.name] > 1:
        import hashlib

        text = config.teacher.model_dump_json()
        name = f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
    folder = out / TEACHERS / name / ("all-seeds" if options.same_teacher else f"seed{seed}")
    alone = Config(
        recipe=config.recipe,
        data=config.data,
        teacher=config.teacher,
        method=MethodConfig(preset="kd"),
        train=TrainConfig(device=config.train.device),
        teacher_train=config.teacher_train,
        seed=seed,
        out=str(folder),
        track=config.track,
    )
    which = "all seeds" if options.same_teacher else f"seed {seed}"
    return Preparation(f"teacher {config.teacher.name}, {which}", settle(alone), folder)


def _reads_logits(config: Config) -> bool:
    """Whether a run reads the teacher's logits and no features."""
    objective = method_of(config)[1]
    return bool(objective.terms) and not objective.reads_features


def tries_correction(config: Config) -> bool:
    """Whether a run tries to correct its teacher's bias."""
    correct = config.teacher.correct
    asked = PRESETS[config.method.preset].correct_teacher or wanted_noise(config.method) != "none"
    return correct == "always" or (correct == "auto" and asked)


NEVER = "never"
"""How a run corrects its teacher that does not."""


def _logits(one: Training, mapped: frozenset[str]) -> tuple[str, int, str]:
    """What the teacher's logits of a run depend on: the pair, the seed, and how the teacher is corrected."""
    corrected = one.pair in mapped or tries_correction(one.config)
    return one.pair, one.seed, str(wanted_noise(one.config.method)) if corrected else NEVER


def _cache_settings(
    trainings: Sequence[Training], mapped: frozenset[str], saved: Mapping[Path, Mapping[str, Any]]
) -> dict[Path, bool]:
    """The folders of the runs with a cache, and whether each also caches the logits before the correction.

    Two or more runs with the same logits share a cache. Of runs that correct the teacher and runs that do not, one of the
    former computes it, and keeps the logits before the correction for the latter. ``saved`` has the section ``teacher``
    of the runs that have begun.
    """
    found: dict[Path, bool] = {}
    by_seed: dict[tuple[str, int], list[Training]] = {}
    for one in trainings:
        excluded = one.config.teacher.cache is not None or one.config.method.preset == NO_TEACHER
        if excluded or task_name(one.config.data.source) != "classification" or not _reads_logits(one.config):
            continue
        by_seed.setdefault((one.pair, one.seed), []).append(one)
    for every in by_seed.values():
        runs = [one for one in every if one.folder not in saved or saved[one.folder].get("cache") is not None]
        kinds = Counter(_logits(one, mapped) for one in runs)
        found |= {one.folder: False for one in runs if kinds[_logits(one, mapped)] > 1}
        plain = [one for one in runs if _logits(one, mapped)[2] == NEVER]
        # the mean of several teachers has no logits before their corrections; a finished run fills no cache
        corrected = [one for one in runs if one not in plain and not one.config.teacher.others]
        keeps = (one for one in corrected if not _is_finished(one) or _has_plain(saved.get(one.folder)))
        computes = next(keeps, None)
        if computes is not None and not all(_is_finished(one) for one in plain):
            found |= {one.folder: False for one in plain} | {computes.folder: True}
    return found


def _has_plain(teacher: Mapping[str, Any] | None) -> bool:
    return teacher is not None and bool(teacher.get("cache_plain"))


def _is_finished(one: Training) -> bool:
    return (one.folder / "record.json").is_file()


def _saved_teachers(trainings: Sequence[Training]) -> dict[Path, Mapping[str, Any]]:
    """The section ``teacher`` of the runs that have begun."""
    files = {one.folder: one.folder / "config.yaml" for one in trainings}
    return {folder: load_config(file).get("teacher", {}) for folder, file in files.items() if file.is_file()}


def _with_caches(
    trainings: Sequence[Training], out: Path, mapped: frozenset[str], *, wanted: bool
) -> list[Training]:
    """``trainings`` with the caches that they share, if ``wanted``. Runs that have begun keep their setting."""
    saved = _saved_teachers(trainings)
    cached = _cache_settings(trainings, mapped, saved) if wanted else {}

    def with_cache(one: Training) -> Training:
        begun = saved.get(one.folder)
        reads = one.folder in cached if begun is None else begun.get("cache") is not None
        if one.config.teacher.cache is not None or not reads:
            return one
        update = {"cache": str(out / CACHE), "cache_plain": cached.get(one.folder, False)}
        teacher = one.config.teacher.model_copy(update=update)
        return replace(one, config=one.config.model_copy(update={"teacher": teacher}))

    return [with_cache(one) for one in trainings]


def _caches(base: Mapping[str, Any], options: CompareConfig, out: Path) -> bool:
    """Whether to use a cache: the option, or else that of the plan in the folder, or else yes.

    Its size is only known once the data are open: :mod:`outgrow.run.rehearsal` turns it off if the disk is too small.
    """
    if options.cache is not None:
        return options.cache
    if (out / PLAN_FILE).is_file():
        return bool(read_plan_file(out / PLAN_FILE)[1].get("cache", True))
    return True


def without_cache(plan: Plan) -> Plan:
    """The same plan without a cache: each run computes its teacher."""
    return make_plan(plan.base, plan.options.model_copy(update={"cache": False}), plan.out, plan.mapped)


@dataclass(frozen=True)
class Shared:
    """The caches that the runs of one pair and seed share. ``fills`` are the runs that write them, ``kinds`` their number."""

    runs: tuple[Training, ...]
    fills: tuple[Training, ...]
    kinds: int


def shared_caches(plan: Plan) -> list[Shared]:
    """The caches of ``plan``, by pair and seed."""
    by_seed: dict[tuple[str, int], list[Training]] = {}
    for one in plan.trainings:
        if plan.cached and one.config.teacher.cache == str(plan.out / CACHE):
            by_seed.setdefault((one.pair, one.seed), []).append(one)
    found = []
    for runs in by_seed.values():
        kinds = {_logits(one, plan.mapped): one for one in reversed(runs)}  # the first run of each
        keeper = next((one for one in runs if one.config.teacher.cache_plain), None)
        if keeper is not None:  # it fills that of its own kind and that of runs without a correction
            kinds[_logits(keeper, plan.mapped)] = kinds[keeper.pair, keeper.seed, NEVER] = keeper
        fills = tuple(one for one in runs if one in kinds.values())
        found.append(Shared(tuple(runs), fills, len(kinds)))
    return found


def in_order(plan: Plan) -> list[Training]:
    """The trainings of ``plan`` as they run one after the other: of each pair and seed those first that fill a cache."""
    fills = {one.folder for group in shared_caches(plan) for one in group.fills}
    place = {key: at for at, key in enumerate(dict.fromkeys((one.pair, one.seed) for one in plan.trainings))}
    return sorted(plan.trainings, key=lambda one: (place[one.pair, one.seed], one.folder not in fills))


def read_plan_file(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration in a file, and its section ``compare``."""
    content = load_config(path)
    section = content.pop("compare", {})
    if not isinstance(section, Mapping):
        raise ValueError(
            f"--config {path}: needs a mapping under compare, got {type(section).__name__}; write fields such as seeds: 3."
        )
    return content, dict(section)


def write_plan(plan: Plan) -> None:
    """Write the plan to its folder."""
    write_atomically(plan.out / PLAN_FILE, with_checksum(plan.to_yaml()))


def disk_free(folder: Path) -> int:
    """Free bytes on the disk of ``folder``, which need not exist."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _pair_names(base: Mapping[str, Any], pairs: Sequence[PairConfig]) -> list[str]:
    """The names of the pairs: TEACHER -> STUDENT; a single pair has the name ""."""
    if len(pairs) == 1:
        return [""]
    names: list[str] = []
    for pair in pairs:
        layers = merge(base, pair.model_dump())
        ends = [
            str(layers.get(role, {}).get("name", "")).rpartition("/")[2] for role in ("teacher", "student")
        ]
        name, number = f" {ARROW} ".join(ends), 2
        while name in names:
            name, number = f"{' -> '.join(ends)} ({number})", number + 1
        names.append(name)
    return names


def _slugs(names: Sequence[str]) -> dict[str, str]:
    """A unique folder name for each method."""
    found: dict[str, str] = {}
    taken = {TEACHERS, CACHE, ""}
    for name in names:
        slug, number = _slug(name), 2
        while slug in taken:
            slug, number = f"{_slug(name)}-{number}", number + 1
        found[name] = slug
        taken.add(slug)
    return found


def _slug(name: str) -> str:
    """
    >>> _slug("kd + pair"), _slug("dkd(beta=6.0)"), _slug("resnet56 -> resnet20")
    ('kd+pair', 'dkd-beta-6.0', 'resnet56-resnet20')
    """
    text = re.sub(r"\s*\+\s*", "+", name.replace(ARROW, "-"))
    return re.sub(r"[^A-Za-z0-9.+_]+", "-", text).strip("-.")
