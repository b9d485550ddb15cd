"""The rows of a detection transformer: one per query and class.

    choose    the student's queries that make rows: those matched to an object, and the most confident others
    partners  the teacher's query for each of them
    rows_of   the outputs of either for these rows

Boxes are ``(centre x, centre y, width, height)`` as shares of the image, as the detectors predict them. They do not
depend on the size that a detector resizes its input to.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou

from outgrow.detection.boxes import BACKGROUND
from outgrow.detection.families.detector import Layout, Proposals, iou
from outgrow.models.taps import BOX, BOX_IOU, PENULTIMATE
from outgrow.outputs import IGNORE, Outputs

PER_OBJECT = 3
"""Unmatched queries per object that make rows: Faster R-CNN samples three background proposals for an object."""
AT_LEAST = 10
"""Unmatched queries per image that make rows, also in images with few objects or none."""
BOX_COST, GIOU_COST = 5.0, 2.0
"""Weights of L1 distance and generalised IoU in the pairing of background queries: those of the detectors' matcher."""
OFFSET_SCALE = (10.0, 10.0, 5.0, 5.0)
"""Weights of the offsets of a box: Faster R-CNN's, so that ``box`` has the same scale for all detectors."""

LAYOUT = Layout("transformer", rows="queries")
"""Of all these detectors: one of them answers for the queries of any other."""

Pairs = Sequence[tuple[Tensor, Tensor]]
"""Per image: the indices of queries, and of the objects that they are matched to."""


@dataclass(frozen=True)
class Queries(Proposals):
    """Queries of the student, each with one row per class: those of an image's first query come first.

    The label of a row is 1 if its query is matched to an object of its class, else 0. ``asked`` are the classes of a
    query's rows, by the detector's number of them. ``counts`` are the queries per image. Of each query ``object`` is the
    number of its object's class, from 1 on, or 0 if it is unmatched; ``query`` is its box and ``goal`` its object's (zeros
    without one).
    """

    counts: tuple[int, ...]
    object: Int64[Tensor, " queries"]
    query: Float[Tensor, "queries 4"]
    goal: Float[Tensor, "queries 4"]
    asked: Int64[Tensor, " classes"]

    @staticmethod
    def of(
        sizes: Sequence[tuple[int, int]],
        counts: Sequence[int],
        object: Int64[Tensor, " queries"],
        query: Float[Tensor, "queries 4"],
        goal: Float[Tensor, "queries 4"],
        num_classes: int,
    ) -> "Queries":
        """The rows of these queries in images of ``sizes`` (height, width), for ``num_classes`` without the background."""
        scale = torch.tensor([(w, h, w, h) for h, w in sizes], dtype=query.dtype, device=query.device)
        scale = scale.repeat_interleave(torch.tensor(counts, device=query.device), dim=0)
        boxes, truth = (
            (box_convert(part, "cxcywh", "xyxy") * scale).repeat_interleave(num_classes, dim=0)
            for part in (query, goal)
        )
        classes = torch.arange(1, num_classes + 1, device=object.device)
        return Queries(
            boxes=boxes.split([count * num_classes for count in counts]),
            label=(object[:, None] == classes).long().flatten(),
            truth=truth,
            counts=tuple(counts),
            object=object,
            query=query,
            goal=goal,
            asked=classes,
        )

    @property
    def layout(self) -> Layout:
        return LAYOUT

    @property
    def all_classes(self) -> bool:
        return False

    @property
    def unmatched(self) -> Tensor:
        return (self.object == BACKGROUND).repeat_interleave(len(self.asked))

    def in_classes(self, columns: Int64[Tensor, " classes"]) -> "Queries":
        asked = columns[self.asked]
        # a class that the other side lacks has no number there but the background's
        label = torch.where(asked.repeat(len(self.object)) > 0, self.label, IGNORE)
        return replace(self, object=columns[self.object], asked=asked, label=label)

    @cached_property
    def targets(self) -> list[dict[str, Tensor]]:
        """The objects per image, in the layout that transformers' matcher takes."""
        found = []
        for object, goal in zip(self.object.split(self.counts), self.goal.split(self.counts), strict=True):
            at = object != BACKGROUND
            found.append({"class_labels": object[at] - 1, "boxes": goal[at]})
        return found


def choose(
    logits: Float[Tensor, "images queries classes"], pairs: Pairs, num_objects: Sequence[int]
) -> list[Tensor]:
    """The queries of each image that make rows: the matched ones in their order, then the most confident others.

    Unmatched queries with a high score are the false positives that AP counts; on the others student and teacher agree
    that there is nothing. Three per object and at least ten per image are kept (:data:`PER_OBJECT`, :data:`AT_LEAST`), so
    that background does not outweigh the objects.
    """
    best = logits.detach().amax(dim=2)
    chosen = []
    for scores, (matched, _), objects in zip(best, pairs, num_objects, strict=True):
        matched = matched.to(scores.device)
        scores = scores.index_fill(0, matched, -torch.inf)
        most = min(len(scores) - len(matched), max(AT_LEAST, PER_OBJECT * objects))
        # a stable sort: of equal scores the first query counts, on every machine
        others = scores.argsort(descending=True, stable=True)[:most]
        chosen.append(torch.cat([matched, others]))
    return chosen


def partners(queries: Queries, boxes: Float[Tensor, "images own 4"], pairs: Pairs) -> list[Tensor]:
    """For each of the student's queries the index of the teacher's query that is compared with it.

    A query with an object is compared with the teacher's query that is matched to the same object, so both describe one
    thing whatever their order. An unmatched one is compared with the teacher's unmatched query that is nearest, by Hungarian
    matching on L1 distance and generalised IoU, so that both describe one place and no query of the teacher counts twice.
    """
    from scipy.optimize import linear_sum_assignment

    found = []
    objects = queries.object.split(queries.counts)
    for own, (matched, which), object, query in zip(
        boxes, pairs, objects, queries.query.split(queries.counts), strict=True
    ):
        cost = _distance(query, own).cpu()
        place = cost.argmin(dim=1)  # stays where the teacher has too few queries; some then count twice
        known = (object != BACKGROUND).cpu()
        on_object, alone = known.nonzero()[:, 0], (~known).nonzero()[:, 0]
        matched, which = matched.cpu(), which.cpu()
        place[on_object[which]] = matched
        free = torch.ones(len(own), dtype=torch.bool)
        free[matched] = False
        rows, columns = map(torch.as_tensor, linear_sum_assignment(cost[alone][:, free]))
        place[alone[rows]] = free.nonzero()[:, 0][columns]
        found.append(place.to(boxes.device))
    return found


def _distance(a: Float[Tensor, "n 4"], b: Float[Tensor, "m 4"]) -> Float[Tensor, "n m"]:
    corners = (box_convert(part, "cxcywh", "xyxy") for part in (a, b))
    return torch.nan_to_num(BOX_COST * torch.cdist(a, b, p=1) - GIOU_COST * generalized_box_iou(*corners))


def rows_of(
    queries: Queries,
    logits: Float[Tensor, "queries all"],
    boxes: Float[Tensor, "queries 4"],
    vectors: Float[Tensor, "queries width"],
    maps: Mapping[str, Tensor],
) -> Outputs:
    """The outputs of one network for the rows of ``queries``: two logits ``[0, z]`` each, whose softmax is ``z``'s sigmoid.

    ``logits`` have the network's classes.

    The features are the maps, and per row ``PENULTIMATE`` (the decoder's vector), ``box`` (offsets from the object's box
    in shares of its size, weighted as Faster R-CNN's) and ``box_iou``; the last two are 0 on rows of label 0.
    """
    logits = logits[:, queries.asked - 1]
    z = logits.flatten()
    on_object = (queries.label == 1).view(logits.shape).to(boxes.dtype)
    matched = queries.object[:, None] != BACKGROUND
    # without an object the query's own box stands in, so that nothing is divided by zero
    offsets = _offsets(boxes, torch.where(matched, queries.goal, boxes.detach()))
    overlap = iou(*(box_convert(part, "cxcywh", "xyxy") for part in (boxes, queries.goal)))
    features: dict[str, Any] = {
        **maps,
        PENULTIMATE: vectors.repeat_interleave(len(queries.asked), dim=0),
        BOX: (offsets[:, None] * on_object[:, :, None]).flatten(0, 1),
        BOX_IOU: (overlap[:, None] * on_object).flatten(),
    }
    return Outputs(torch.stack([torch.zeros_like(z), z], dim=1), features)


def _offsets(boxes: Float[Tensor, "n 4"], start: Float[Tensor, "n 4"]) -> Float[Tensor, "n 4"]:
    """Faster R-CNN's regression from ``start`` to ``boxes``."""
    size = start[:, 2:].clamp_min(1e-6)
    moved = (boxes[:, :2] - start[:, :2]) / size
    grown = (boxes[:, 2:].clamp_min(1e-6) / size).log()
    return torch.cat([moved, grown], dim=1) * boxes.new_tensor(OFFSET_SCALE)
