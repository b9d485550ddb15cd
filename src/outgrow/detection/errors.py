"""Errors of a detector by class. Each detection has one kind; each object is found or missed.

The kinds are those of TIDE (Bolya et al., TIDE: A General Toolbox for Identifying Object Detection Errors, 2020,
arXiv 2008.08115, section 2.2), with its IoU thresholds of 0.5 and 0.1. ``own`` is the largest IoU with an object of
the detection's class, ``other`` the largest with an object of another class. The first kind that applies counts:

    found          matched with an object of its class: greedily by score, IoU >= 0.5, as COCO matches
    ignored        at least half of its area is in one crowd region
    duplicated     own >= 0.5 and own >= other, but the object is already found
    confused       other >= 0.5
    badly_placed   own in [0.1, 0.5)
    both           other in [0.1, 0.5): wrong class and badly placed
    background     IoU < 0.1 with everything

Differences from TIDE:

- A box that covers an object of another class (other >= 0.5) and slightly overlaps one of its own class is confused
  here, badly placed in TIDE. Where objects touch, as cells do, nearly every box overlaps one of its own class.
- A box over objects of both classes gets its kind from the larger IoU, not always from the other class.
- Crowd regions have no class here, so detections of any class are ignored in them.
- TIDE weights kinds by the AP that fixing them would gain, over all detections. These are counts above one score
  threshold, for a table by class.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from outgrow.detection.boxes import Detections, Truth

FOREGROUND, TOUCHING = 0.5, 0.1
"""TIDE's two IoU thresholds, section 2.2. The first is also COCO's lowest."""
KINDS = ("found", "ignored", "duplicated", "confused", "badly_placed", "both", "background")
REASONS = ("missed_altogether", "missed_confused", "missed_badly_placed")

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ClassErrors:
    """Counts per class, at the position ``label - 1``, of detections with at least the score ``threshold``.

    ``found`` counts matched pairs of an object and a detection. ``missed`` counts objects, and is the sum of three
    reasons: a confused detection covers the object (IoU >= 0.5); else a badly placed detection of its class overlaps
    it (IoU >= 0.1); else it is missed altogether. The other kinds count detections, by their predicted class.
    ``f1`` in [0, 1] is over all classes.
    """

    objects: Int64[Tensor, " classes"]
    found: Int64[Tensor, " classes"]
    missed_altogether: Int64[Tensor, " classes"]
    missed_confused: Int64[Tensor, " classes"]
    missed_badly_placed: Int64[Tensor, " classes"]
    confused: Int64[Tensor, " classes"]
    duplicated: Int64[Tensor, " classes"]
    badly_placed: Int64[Tensor, " classes"]
    both: Int64[Tensor, " classes"]
    background: Int64[Tensor, " classes"]
    ignored: Int64[Tensor, " classes"]
    threshold: float
    f1: float

    @property
    def missed(self) -> Int64[Tensor, " classes"]:
        return self.missed_altogether + self.missed_confused + self.missed_badly_placed

    def count(self, name: str) -> Int64[Tensor, " classes"]:
        """The counts of one kind, by name."""
        counts: Tensor = getattr(self, name)
        return counts


def class_errors(
    truth: Sequence[Truth],
    found: Sequence[Detections],
    num_classes: int,
    *,
    score_threshold: float | None = None,
) -> ClassErrors:
    """Count the errors of a split; ``found[i]`` are the detections in the image of ``truth[i]``.

    Detections below ``score_threshold`` are left out. Scores of different detectors are not comparable, so the
    default is ``best_threshold`` of this detector on this split.

    ``ValueError`` for lengths that differ and labels outside 1 to ``num_classes``.
    """
    check(truth, found, num_classes, "class_errors")
    threshold = best_threshold(truth, found) if score_threshold is None else score_threshold
    kinds = np.zeros((len(KINDS), num_classes), dtype=np.int64)
    reasons = np.zeros((len(REASONS) + 1, num_classes), dtype=np.int64)
    for objects, detections in zip(truth, found, strict=True):
        detections = confident(detections, threshold)
        kind, reason = _explain(objects, detections)
        np.add.at(kinds, (kind, detections.label.numpy() - 1), 1)
        np.add.at(reasons, (reason, objects.label.cpu().numpy() - 1), 1)
    # the last row of reasons counts the objects that were found
    per_kind = dict(zip(KINDS, torch.from_numpy(kinds), strict=True))
    per_reason = dict(zip(REASONS, torch.from_numpy(reasons), strict=False))
    right = int(kinds[0].sum())
    wrong = int(kinds[2:].sum())
    return ClassErrors(
        objects=torch.from_numpy(reasons.sum(axis=0)),
        **per_kind,
        **per_reason,
        threshold=threshold,
        f1=f1(right, wrong, int(reasons.sum())),
    )


def best_threshold(truth: Sequence[Truth], found: Sequence[Detections]) -> float:
    """The score threshold with the largest F1 at IoU 0.5 on the split, over all classes together.

    If several have the same F1, the lowest; 0 without detections. Detections are matched in the order of scores,
    so those below a threshold do not change those above it, and one pass is enough.
    """
    scores, rights = [], []
    for objects, detections in zip(truth, found, strict=True):
        right, ignored = judge(objects, detections)
        scores.append(detections.score.cpu()[~ignored])
        rights.append(right[~ignored])
    score = torch.cat([torch.zeros(0), *scores])
    right = torch.cat([torch.zeros(0, dtype=torch.bool), *rights])
    if not len(score):
        return 0.0
    score, order = score.sort(descending=True)
    hits = right[order].cumsum(0).double()
    value = 2 * hits / (torch.arange(1, len(score) + 1) + sum(len(objects.label) for objects in truth))
    # a threshold keeps all detections of its score, so only the last of equal ones is a candidate
    last = torch.ones(len(score), dtype=torch.bool)
    last[:-1] = score[1:] < score[:-1]
    candidates, value = score[last], value[last]
    return float(candidates[value == value.max()][-1])


def confident(found: Detections, threshold: float) -> Detections:
    """The detections with at least this score, on the CPU."""
    found = found.to("cpu")
    keep = found.score >= threshold
    return Detections(found.boxes[keep], found.label[keep], found.score[keep])


def judge(truth: Truth, found: Detections) -> tuple[Bool[Tensor, " n"], Bool[Tensor, " n"]]:
    """Masks of the detections in one image that are right at IoU 0.5, and that are ignored in a crowd."""
    own, _ = _overlaps(truth, found)
    right = _match(own, found) >= 0
    return torch.from_numpy(right), torch.from_numpy(~right & _in_crowd(truth, found))


def f1(right: int, wrong: int, objects: int) -> float:
    """2 right / (right + wrong + objects); 1 without objects and detections."""
    return 2 * right / (right + wrong + objects) if right + wrong + objects else 1.0


def check(truth: Sequence[Truth], found: Sequence[Detections], num_classes: int, caller: str) -> None:
    """``ValueError`` for lengths that differ and for labels outside 1 to ``num_classes``; ``caller`` is for messages."""
    if len(truth) != len(found):
        raise ValueError(
            f"{caller}: needs detections for each of {len(truth)} images, got {len(found)}; "
            "pass one Detections per Truth, empty if nothing was found."
        )
    for number, (objects, detections) in enumerate(zip(truth, found, strict=True)):
        for label in (objects.label, detections.label):
            outside = label[(label < 1) | (label > num_classes)]
            if len(outside):
                raise ValueError(
                    f"{caller}: needs labels from 1 to {num_classes}, got {int(outside[0])} in the image at "
                    f"position {number}; pass the number of classes without the background, which is 0."
                )


def _explain(truth: Truth, found: Detections) -> tuple[Ints, Ints]:
    """The kind of each detection and the reason of each object, as indices into ``KINDS`` and ``REASONS``.

    An object that was found has the index ``len(REASONS)``.
    """
    own, other = _overlaps(truth, found)
    match = _match(own, found)
    best_own, best_other = own.max(axis=1, initial=0), other.max(axis=1, initial=0)
    rules = [
        match >= 0,
        _in_crowd(truth, found),
        (best_own >= FOREGROUND) & (best_own >= best_other),
        best_other >= FOREGROUND,
        best_own >= TOUCHING,
        best_other >= TOUCHING,
    ]
    kind = np.select(rules, range(len(rules)), default=len(rules)).astype(np.int64)

    confused, badly_placed = kind == KINDS.index("confused"), kind == KINDS.index("badly_placed")
    reason = np.zeros(len(truth.label), dtype=np.int64)
    # a badly placed detection overlaps no object of its class by 0.5 or more
    reason[(own[badly_placed] >= TOUCHING).any(axis=0)] = 2
    reason[(other[confused] >= FOREGROUND).any(axis=0)] = 1
    reason[match[match >= 0]] = len(REASONS)
    return kind, reason


def _match(own: Floats, found: Detections) -> Ints:
    """The index of the object that each detection is matched with, or -1: greedy by score, as COCO does."""
    match = np.full(len(own), -1, dtype=np.int64)
    if not own.size:
        return match
    free = own.copy()
    # stable: equal scores keep the order of the detections, as in COCO
    order = np.argsort(-found.score.cpu().double().numpy(), kind="stable")
    for place in order[(own[order] >= FOREGROUND).any(axis=1)]:
        # the last of equal overlaps, as in COCO
        best = free.shape[1] - 1 - int(free[place, ::-1].argmax())
        if free[place, best] >= FOREGROUND:
            match[place] = best
            free[:, best] = 0
    return match


def _overlaps(truth: Truth, found: Detections) -> tuple[Floats, Floats]:
    """IoU of detections with objects, n x m: with those of the same class, and of other classes; 0 elsewhere."""
    detected, objects = _numpy(found.boxes), _numpy(truth.boxes)
    shared = _shared(detected, objects)
    union = _area(detected)[:, None] + _area(objects)[None, :] - shared
    # two boxes without area have no union
    iou = shared / np.where(union > 0, union, 1)
    same = found.label.cpu().numpy()[:, None] == truth.label.cpu().numpy()[None, :]
    return np.where(same, iou, 0.0), np.where(same, 0.0, iou)


def _in_crowd(truth: Truth, found: Detections) -> Bools:
    detected = _numpy(found.boxes)
    inside = _shared(detected, _numpy(truth.crowd)).max(axis=1, initial=0)
    area = _area(detected)
    return (area > 0) & (inside >= FOREGROUND * area)


def _shared(a: Floats, b: Floats) -> Floats:
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    return np.clip(high - low, 0, None).prod(axis=2)


def _area(boxes: Floats) -> Floats:
    return np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1)


def _numpy(boxes: Tensor) -> Floats:
    # double, so that an IoU of exactly 0.5 reaches the threshold
    numbers: Floats = boxes.detach().cpu().double().numpy()
    return numbers
