"""The cache of a run's teacher: its logits and features by view, and what they depend on."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
from jaxtyping import Int64
from torch import Tensor

from outgrow.classification.data import RunData, view_size
from outgrow.data import FileSplit, Loader
from outgrow.machine.files import counted, readable
from outgrow.models import Network
from outgrow.models.sources import net_identity
from outgrow.objective import Objective
from outgrow.teacher import BaseTeacher, CorrectedTeacher, MixedTeacher
from outgrow.teacher.cache import CachedTeacher, TeacherCache, check_room, digest
from outgrow.training.config import Config
from outgrow.training.processes import process_group
from outgrow.training.task import Parts, RunContext


def cached_teacher(run: RunContext, parts: Parts, student: Network, *, epochs: int) -> BaseTeacher:
    """The teacher with the configured cache, if any.

    The objective must be set up, because the cache holds the features that it reads. The contents and the size for
    ``epochs`` epochs are printed first; ``ValueError`` if the disk is too small.
    """
    options, report, teacher = run.config.teacher, run.report, parts.taught.module
    objective, loader, data = parts.objective, cast(Loader, parts.loader), cast(RunData, parts.data)
    if options.cache is None:
        if options.cache_features:
            report.note("warning: teacher.cache_features is ignored without teacher.cache, its folder")
        return teacher
    if parts.teacher is None:
        return teacher
    if objective.reads_features and not options.cache_features:
        raise ValueError(
            "teacher.cache: needs losses that read only logits, got an objective that reads features; set "
            "teacher.cache_features=true to cache features too, leave the cache out, or choose other losses."
        )

    def cache_of(cached: BaseTeacher, features: Mapping[str, tuple[int, ...]] | None = None) -> TeacherCache:
        return TeacherCache(
            str(options.cache),
            cache_facts(run, data, cached, [cast(Network, parts.teacher), student]),
            num_indices=loader.num_indices,
            num_classes=data.num_classes,
            features=features,
        )

    features = _features_read(teacher, objective, loader)
    plain = None
    if isinstance(teacher, CorrectedTeacher) and teacher.correction.is_identity:
        # left as it is: it shares the cache of runs that do not correct it
        cache = cache_of(cast(BaseTeacher, teacher.teacher), features)
    else:
        cache = cache_of(teacher, features)
        if options.cache_plain and isinstance(teacher, CorrectedTeacher) and not _is_foreign(teacher):
            plain = cache_of(cast(BaseTeacher, teacher.teacher))
    # several processes do not write to one file; they only read an existing cache
    write = process_group() is None
    caches = [cache] if plain is None else [cache, plain]
    for one in caches:
        total, missing = epochs * one.bytes_per_epoch(), one.bytes_missing(epochs)
        report.note(
            f"cache: {one.contents}{' before the correction' if one is plain else ''} in {one.folder}: "
            f"{readable(one.bytes_per_epoch())} per epoch, {readable(total)} for {counted(epochs, 'epoch')}, of which "
            f"{readable(missing)} {'to be written' if write else 'missing'}"
        )
    if write:
        check_room(caches, epochs)
    return CachedTeacher(teacher, cache, write=write, plain=plain)


def _is_foreign(teacher: CorrectedTeacher) -> bool:
    """Whether the correction maps the teacher's classes to others: no run reads its logits as they are."""
    return teacher.correction.report is not None and teacher.correction.report.raw is None


def cache_facts(
    run: RunContext, data: RunData, teacher: BaseTeacher, networks: Sequence[Network]
) -> dict[str, str]:
    """Everything that the cached outputs depend on."""
    config, options = run.config, run.config.teacher
    specs = [network.input_spec for network in networks]
    members = list(teacher.teachers) if isinstance(teacher, MixedTeacher) else [teacher]
    correction = " ".join(
        one.correction.source if isinstance(one, CorrectedTeacher) else "none" for one in members
    )
    more = {} if data.class_map is None else {"class map": data.class_map.digest}
    # nets with the same weights may differ: in their padding, their activation, or their code
    more["net"] = " ".join(net_identity(m.name) for m in teacher.modules() if isinstance(m, Network))
    if config.data.augment.mixup or config.data.augment.cutmix:  # a partner is any of the training images
        more["mixed with"] = image_set(data.train.index)
    if options.views > 1:
        more["beliefs"] = f"mean over {options.views} views"
    if len(members) > 1:
        more["teachers"] = " ".join(str(m.input_spec) for m in teacher.modules() if isinstance(m, Network))
    first, last = ((spec.crop_pct, spec.interpolation) for spec in (specs[0], specs[-1]))
    if first != last and _cropped(config, data, networks):
        more["crop"] = f"{last[0]} {last[1]}"  # the views have the crop of the student
    return more | {
        "teacher": f"{specs[0]} {digest(teacher)} {correction}",
        "data": data.fingerprint,
        "views": f"{config.data.augment.model_dump_json()} size {config.data.size or [spec.size for spec in specs]} "
        f"seed {config.seed}{_mixed(config)}",
        "precision": config.train.precision if options.precision == "as_student" else options.precision,
    }


def image_set(index: Int64[Tensor, " images"]) -> str:
    """A hash of the numbers of some images."""
    return hashlib.sha256(index.cpu().numpy().astype(np.int64).tobytes()).hexdigest()[:16]


def _cropped(config: Config, data: RunData, networks: Sequence[Network]) -> bool:
    """Whether the views are resized, so that they depend on the crop and the interpolation of the student."""
    return view_size(config.data.size, data.train, networks) is not None or isinstance(
        data.unlabelled, FileSplit
    )


def _mixed(config: Config) -> str:
    """The options that determine which unlabelled images are in which step."""
    if config.data.unlabelled is None:
        return ""
    return f" batches of {config.train.batch_size}, {config.data.unlabelled_share} of them unlabelled"


def _features_read(teacher: BaseTeacher, objective: Objective, loader: Loader) -> dict[str, tuple[int, ...]]:
    """The taps of the teacher that the losses read in each step, and the shape of each for one image."""
    if not objective.reads_features:
        return {}
    images = next(loader.epoch(0)).images
    if not len(images):  # an empty share: one blank image has the same shapes
        images = images.new_zeros(1, *images.shape[1:])
    features = teacher(images).features
    read = objective.teacher_taps(features)
    for name in read:
        if len(features[name]) != len(images):
            raise ValueError(
                f"teacher.cache_features: needs one feature per image, got {tuple(features[name].shape)} from {name!r} for "
                f"{len(images)} images; tap another module, or leave teacher.cache out."
            )
    return {name: tuple(value.shape[1:]) for name, value in features.items() if name in read}
