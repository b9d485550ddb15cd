"""How far AP depends on which images were tested: 95 % intervals by resampling the test images.

    before = resample(annotations, image_ids, category_ids, teacher_found)
    after = resample(annotations, image_ids, category_ids, student_found)
    after.intervals["ap"]                     # Interval(low=41.2, high=47.9, images=72)
    difference(after, before)                 # the same draws of images on both sides

A draw takes as many images as there are, with replacement, and computes COCO's AP on them. Detections are matched once, as
an image's matches do not depend on the other images. So a draw only counts again: each detection as often as its image
was drawn. The interval is over images. It knows nothing of other seeds of the training.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor
from torchvision.ops import box_iou

from outgrow.detection.boxes import Detections
from outgrow.machine.files import counted

DRAWS = 1000
"""Enough that an end of the interval moves by less than a tenth of its length from seed to seed."""
CONFIDENCE = 0.95
FEWEST = 20
"""Images with such an object below which there is no interval: percentiles of fewer are clearly too narrow."""
THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
MOST = 100
"""Detections of a class in an image that count."""
SIZES = {"": (0.0, 1e10), "_small": (0.0, 32.0**2), "_medium": (32.0**2, 96.0**2), "_large": (96.0**2, 1e10)}
"""COCO's ranges of area, by the ending of their AP's name."""
_BLOCK = 4_000_000
"""Numbers that are held at once: a few hundred draws of a small data set, a few of COCO."""


@dataclass(frozen=True)
class Interval:
    """The 95 % interval of a number in percent, over the ``images`` that have such an object.

    ``low`` and ``high`` are None where there is no interval; ``reason`` then says why.
    """

    low: float | None
    high: float | None
    images: int
    reason: str | None = None


@dataclass(frozen=True)
class Resampled:
    """The numbers of each draw, in percent: ``ap``, ``ap50``, ``ap75``, AP by size, and AP by class. NaN where a draw has no
    such object. ``images`` counts the images that have one."""

    numbers: Mapping[str, Float64[Tensor, " draws"]]
    classes: Mapping[str, Float64[Tensor, " draws"]]
    images: Mapping[str, int]
    class_images: Mapping[str, int]

    @property
    def intervals(self) -> dict[str, Interval]:
        """The interval of each of COCO's APs."""
        return {name: interval(values, self.images[name]) for name, values in self.numbers.items()}

    @property
    def per_class(self) -> dict[str, Interval]:
        """The interval of each class's AP."""
        return {name: interval(values, self.class_images[name]) for name, values in self.classes.items()}


@dataclass(frozen=True)
class Matched:
    """The detections of a class, by falling score, and its objects of one range of size.

    ``image`` is the position of each detection's image. ``right`` and ``ignored`` are by IoU threshold. ``objects`` counts
    the objects of each image.
    """

    image: Int64[Tensor, " found"]
    right: Bool[Tensor, "thresholds found"]
    ignored: Bool[Tensor, "thresholds found"]
    objects: Float64[Tensor, " images"]


def resample(
    annotations: Mapping[str, Any],
    image_ids: Sequence[int],
    category_ids: Sequence[int],
    found: Sequence[Detections],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Resampled:
    """AP in ``draws`` draws of the images. The arguments are those of :func:`outgrow.detection.scores.coco_scores`, which
    checks them. The same images and seed give the same draws, so two detectors can be compared draw by draw."""
    generator = torch.Generator().manual_seed(seed)
    count = len(image_ids)
    # of the position of an image in the order of ids, so that the order of image_ids has no effect
    chosen = torch.randint(count, (draws, count), generator=generator)
    weight = torch.zeros(draws, count, dtype=torch.float64).scatter_add_(
        1, chosen, torch.ones(draws, count, dtype=torch.float64)
    )
    return average_precisions(annotations, image_ids, category_ids, found, weight)


def average_precisions(
    annotations: Mapping[str, Any],
    image_ids: Sequence[int],
    category_ids: Sequence[int],
    found: Sequence[Detections],
    weight: Float64[Tensor, "draws images"],
) -> Resampled:
    """COCO's APs, where the image with the k-th smallest id counts ``weight[:, k]`` times."""
    names = {category["id"]: str(category["name"]) for category in annotations["categories"]}
    by_size: dict[str, list[Tensor]] = {size: [] for size in SIZES}
    seen = {size: torch.zeros(weight.shape[1], dtype=torch.bool) for size in SIZES}
    classes: dict[str, Tensor] = {}
    class_images: dict[str, int] = {}
    for category, matched in zip(
        category_ids, _matched_by_class(annotations, image_ids, category_ids, found), strict=True
    ):
        for size, one in matched.items():
            if not bool(one.objects.any()):
                continue
            seen[size] |= one.objects > 0
            by_size[size].append(100 * _average_precision(one, weight))
        has = matched[""].objects > 0
        class_images[names[category]] = int(has.sum())
        if bool(has.any()):
            classes[names[category]] = by_size[""][-1].mean(dim=1)
    numbers: dict[str, Tensor] = {}
    images: dict[str, int] = {}
    for size, values in by_size.items():
        if values:
            whole = torch.stack(values).nanmean(dim=0)  # a class without objects in a draw has no AP there
            found_in = int(seen[size].sum())
            parts = {"ap": whole.mean(dim=1), "ap50": whole[:, 0], "ap75": whole[:, 5]}
            for name, drawn in parts.items() if not size else ((f"ap{size}", parts["ap"]),):
                numbers[name], images[name] = drawn, found_in
    return Resampled(numbers, classes, images, class_images)


def interval(values: Float64[Tensor, " draws"], images: int) -> Interval:
    """The middle 95 % of ``values``; no interval from fewer than 20 images, and where all draws agree."""
    values = values[~values.isnan()]
    if images < FEWEST:
        return Interval(None, None, images, counted(images, "image"))
    low, high = torch.quantile(
        values, values.new_tensor([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    ).tolist()
    if high - low < 1e-9:
        return Interval(None, None, images, "the same in all draws")
    return Interval(low, high, images)


def difference(student: Resampled, teacher: Resampled) -> Interval | None:
    """The interval of the student's AP minus the teacher's; None without objects."""
    if "ap" not in student.numbers:
        return None
    return interval(student.numbers["ap"] - teacher.numbers["ap"], student.images["ap"])


def _average_precision(
    matched: Matched, weight: Float64[Tensor, "draws images"]
) -> Float64[Tensor, "draws thresholds"]:
    """AP in 0 to 1 by draw and IoU threshold; NaN in draws without objects."""
    parts = weight.split(max(1, _BLOCK // max(1, len(matched.image))))
    return torch.cat([_one_block(matched, part) for part in parts])


def _one_block(
    matched: Matched, weight: Float64[Tensor, "draws images"]
) -> Float64[Tensor, "draws thresholds"]:
    objects = (weight * matched.objects).sum(dim=1, keepdim=True)
    times = weight[:, matched.image]
    recalls = torch.from_numpy(RECALLS).expand(len(weight), -1).contiguous()
    columns = []
    # few detections are ignored at some thresholds only; the others are counted once for all thresholds
    some = matched.ignored.any(dim=0)
    always = (times * ~some).cumsum(dim=1)
    at_times, before = times[:, some], torch.nn.functional.pad(some.cumsum(0), (1, 0))
    for right, ignored in zip(matched.right, matched.ignored, strict=True):
        # precision is largest, and recall changes, only at detections that are right
        at = right.nonzero()[:, 0]
        others = torch.nn.functional.pad((at_times * ~ignored[some]).cumsum(dim=1), (1, 0))
        counted = always[:, at] + others[:, before[at + 1]]
        hits = times[:, at].cumsum(dim=1)
        precision = hits / counted.clamp_min(1)
        best = precision.flip(1).cummax(dim=1).values.flip(1) if len(at) else precision
        best = torch.nn.functional.pad(best, (0, 1))  # recalls that are never reached
        place = torch.searchsorted(hits / objects.clamp_min(1), recalls)
        columns.append(best.gather(1, place).mean(dim=1))
    return torch.where(objects > 0, torch.stack(columns, dim=1), torch.nan)


def _matched_by_class(
    annotations: Mapping[str, Any],
    image_ids: Sequence[int],
    category_ids: Sequence[int],
    found: Sequence[Detections],
) -> Iterator[dict[str, Matched]]:
    """The matches of each class, by range of size, as COCO's evaluation makes them."""
    order = sorted(range(len(image_ids)), key=lambda i: image_ids[i])
    place = {image_ids[i]: position for position, i in enumerate(order)}
    truth: dict[tuple[int, int], list[Mapping[str, Any]]] = {}
    for annotation in annotations["annotations"]:
        if annotation["image_id"] in place:
            truth.setdefault((annotation["category_id"], place[annotation["image_id"]]), []).append(
                annotation
            )
    labels = [set(one.label.tolist()) for one in found]
    for label, category in enumerate(category_ids, start=1):
        images = {}
        for position, i in enumerate(order):
            objects, one = truth.get((category, position), []), found[i]
            if not objects and label not in labels[i]:
                continue
            mine = (one.label == label).nonzero()[:, 0]
            mine = mine[one.score[mine].argsort(descending=True, stable=True)][:MOST]
            images[position] = _match_image(objects, one.boxes[mine], one.score[mine])
        yield _join(images, len(order))


@dataclass(frozen=True)
class _Image:
    """The matches of one class in one image: score, and by size and threshold which are right and which ignored."""

    score: Float[Tensor, " found"]
    right: Bool[Tensor, "sizes thresholds found"]
    ignored: Bool[Tensor, "sizes thresholds found"]
    objects: Int64[Tensor, " sizes"]


def _match_image(
    truth: Sequence[Mapping[str, Any]], boxes: Float[Tensor, "found 4"], score: Float[Tensor, " found"]
) -> _Image:
    ranges = torch.tensor(list(SIZES.values()), dtype=torch.float64)
    thresholds = torch.from_numpy(THRESHOLDS)
    corners = boxes.double()
    width, height = (corners[:, 2:] - corners[:, :2]).unbind(1)
    outside = _outside(width * height, ranges)
    right = torch.zeros(len(SIZES), len(thresholds), len(boxes), dtype=torch.bool)
    ignored = outside[:, None].expand_as(right).clone()
    if not truth:
        return _Image(score, right, ignored, torch.zeros(len(SIZES), dtype=torch.int64))
    given = torch.tensor([one["bbox"] for one in truth], dtype=torch.float64)
    area = torch.tensor([one.get("area", one["bbox"][2] * one["bbox"][3]) for one in truth])
    crowd = torch.tensor([bool(one.get("iscrowd", 0)) for one in truth])
    left_out = _outside(area.double(), ranges) | crowd
    overlap = _overlap(corners, given, crowd)
    free = torch.ones(len(SIZES), len(thresholds), len(truth), dtype=torch.bool)
    for number in (overlap >= THRESHOLDS[0]).any(dim=1).nonzero()[:, 0].tolist():
        own = overlap[number]
        fits = free & (own >= thresholds[:, None])
        known = fits & ~left_out[:, None]
        # an object that counts comes before one that does not; of equal ones the last is taken
        options = torch.where(known.any(dim=2, keepdim=True), known, fits)
        best = len(truth) - 1 - torch.where(options, own, -1.0).flip(2).argmax(dim=2)
        hit = options.any(dim=2)
        counts = ~left_out.gather(1, best)
        right[:, :, number] = hit & counts
        ignored[:, :, number] = torch.where(hit, ~counts, ignored[:, :, number])
        # a crowd may be found again and again
        taken = hit & ~crowd[best]
        free.scatter_(2, best[:, :, None], free.gather(2, best[:, :, None]) & ~taken[:, :, None])
    return _Image(score, right, ignored, (~left_out).sum(dim=1))


def _outside(area: Float64[Tensor, " n"], ranges: Float64[Tensor, "sizes 2"]) -> Bool[Tensor, "sizes n"]:
    return (area < ranges[:, :1]) | (area > ranges[:, 1:])


def _overlap(
    boxes: Float64[Tensor, "found 4"], given: Float64[Tensor, "objects 4"], crowd: Bool[Tensor, " objects"]
) -> Float64[Tensor, "found objects"]:
    """IoU; with a crowd the share of the box that is inside of it."""
    corners = torch.cat([given[:, :2], given[:, :2] + given[:, 2:]], dim=1)
    shared = (
        torch.minimum(boxes[:, None, 2:], corners[:, 2:]) - torch.maximum(boxes[:, None, :2], corners[:, :2])
    ).clamp_min(0)
    own = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).clamp_min(1e-12)
    return torch.where(crowd, shared.prod(dim=2) / own[:, None], box_iou(boxes, corners))


def _join(images: Mapping[int, _Image], count: int) -> dict[str, Matched]:
    """The detections of all images by falling score. ``images`` are those of ``count`` that have a detection or an object."""
    if not images:
        nothing = torch.zeros(len(THRESHOLDS), 0, dtype=torch.bool)
        none = Matched(
            torch.zeros(0, dtype=torch.int64), nothing, nothing, torch.zeros(count, dtype=torch.float64)
        )
        return dict.fromkeys(SIZES, none)
    score = torch.cat([one.score for one in images.values()])
    order = score.argsort(descending=True, stable=True)
    image = torch.cat([torch.full((len(one.score),), i) for i, one in images.items()])[order]
    right, ignored = (
        torch.cat([getattr(one, name) for one in images.values()], dim=2)[:, :, order]
        for name in ("right", "ignored")
    )
    objects = torch.zeros(len(SIZES), count, dtype=torch.float64)
    objects[:, list(images)] = torch.stack([one.objects for one in images.values()], dim=1).double()
    joined = {}
    for number, size in enumerate(SIZES):
        kept = ~ignored[number].all(dim=0)
        joined[size] = Matched(image[kept], right[number][:, kept], ignored[number][:, kept], objects[number])
    return joined
