"""The beliefs of a run's teacher, averaged over views of each training image, and kept on disk if there is a cache."""

import math
from collections.abc import Sequence

import numpy as np
import torch

from outgrow.classification.caching import cache_facts, image_set
from outgrow.classification.correction import FEATURE_BYTES
from outgrow.classification.data import RunData
from outgrow.data import Loader
from outgrow.models import Network
from outgrow.models.taps import PENULTIMATE
from outgrow.objective import Objective
from outgrow.teacher import AveragedTeacher, BaseTeacher
from outgrow.teacher.cache import LOGITS, TeacherCache, check_room, feature_half, to_half
from outgrow.training.config import Config
from outgrow.training.processes import process_group
from outgrow.training.task import RunContext


def check_views(config: Config, objective: Objective) -> None:
    """``ValueError`` for what has no belief of its own in an image."""
    options, augment = config.teacher, config.data.augment
    if options.views == 1:
        return
    refused = {
        "losses on features": objective.reads_features,
        "data.augment.mixup": augment.mixup > 0,
        "data.augment.cutmix": augment.cutmix > 0,
        "teacher.correct_views": options.correct_views > 1,
    }
    got = [name for name, given in refused.items() if given]
    if got:
        raise ValueError(
            f"teacher.views: needs losses on logits, views of one image each, and one belief for each image, got "
            f"{' and '.join(got)}; leave that out, or teacher.views."
        )


def averaged(
    run: RunContext, data: RunData, teacher: BaseTeacher, networks: Sequence[Network], views: Loader
) -> AveragedTeacher:
    """``teacher`` with its beliefs averaged over the views of the first ``teacher.views`` epochs. ``networks`` are its own, and
    those whose input the views depend on."""
    number, images = run.config.teacher.views, views.num_indices
    example = teacher(next(iter(views.epoch(0))).images[:1])
    width = math.prod(example.features[PENULTIMATE].shape[1:]) if PENULTIMATE in example.features else 0
    keep = bool(width) and (4 * width * images <= FEATURE_BYTES or not example.num_classes)
    found = AveragedTeacher(teacher, images, keep_features=keep).to(run.device)
    cache = _cache(run, data, teacher, networks, images, example.num_classes, width if keep else 0)
    if cache is not None and _read(found, cache):
        run.report.note(
            f"teacher: its beliefs, means over {number} views of each image, are those in {cache.folder}"
        )
        return found
    with run.report.bar("teacher on views to average", number * views.num_samples) as advance:
        done = 0
        for epoch in range(number):
            for batch in views.epoch(epoch):
                assert batch.index is not None
                found.add(batch.images, batch.index)
                done += len(batch.images)
                advance(done)
    run.report.note(f"teacher: its belief in each training image is the mean over {number} views")
    if cache is not None and process_group() is None:  # several processes do not write to one file
        _write(found, cache)
        _read(found, cache)  # rounded as in later runs
    return found


def _cache(
    run: RunContext,
    data: RunData,
    teacher: BaseTeacher,
    networks: Sequence[Network],
    images: int,
    classes: int,
    width: int,
) -> TeacherCache | None:
    if run.config.teacher.cache is None or not classes:
        return None
    # a file has one belief for each image of its run: that of a run with fewer images lacks some
    facts = {"classes": str(classes), "images": image_set(data.train.index.sort().values)}
    cache = TeacherCache(
        run.config.teacher.cache,
        cache_facts(run, data, teacher, networks) | facts,
        num_indices=images,
        num_classes=classes,
        features={PENULTIMATE: (width,)} if width else None,
    )
    if process_group() is None:
        check_room([cache], 1)
    return cache


def _read(found: AveragedTeacher, cache: TeacherCache) -> bool:
    """Fill ``found`` from the cache; False if something is missing."""
    held = {name: cache.read(0, name) for name in cache.shapes}
    if any(value is None for value in held.values()):
        return False
    tables = {
        name: torch.from_numpy(np.array(value)).float().to(found.count.device) for name, value in held.items()
    }
    known = ~tables[LOGITS][:, 0].isnan()
    found.count = known.long()
    found.log_sum = tables[LOGITS]
    if PENULTIMATE in tables:
        found.features = tables[PENULTIMATE]
    return True


def _write(found: AveragedTeacher, cache: TeacherCache) -> None:
    index = (found.count > 0).nonzero()[:, 0]
    outputs = found.believed(index)
    at = index.cpu().numpy()
    for name in cache.shapes:
        half = to_half(outputs.logits) if name == LOGITS else feature_half(outputs.features[name], name)
        part = cache.start(0, name)
        part[at] = half.cpu().numpy()
        cache.finish(0, part, name)
