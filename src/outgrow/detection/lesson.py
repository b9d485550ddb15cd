"""Turn a batch into rows for distillation: the student's proposals, or some of its anchors, points or queries.

    Detect      the outputs of student and teacher for the student's rows, and their labels
    Balanced    a rectifier that also weights rows, so that background rows do not dominate

:class:`outgrow.Rectifier` and :class:`outgrow.Objective` then work as for classifiers. The task loss is the sum of
the detector's own losses.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from outgrow.detection.boxes import BACKGROUND, Scenes, Truth, in_crowd
from outgrow.detection.families.detector import NoDetector, Proposals, TrainingOutputs
from outgrow.detection.scale import resized
from outgrow.models.taps import NOT_TAPS, OBJECTS
from outgrow.outputs import IGNORE, UNLABELLED, Knowledge, Outputs, Target
from outgrow.training.lesson import Lesson, without_rows

MAX_FACTOR = 8.0
"""The largest factor on the weight of an object row. Without a limit, one object in a large batch would weigh as
much as hundreds of background rows."""


@dataclass(frozen=True)
class Detect:
    """One row per proposal of the student, per anchor or point that :mod:`outgrow.detection.families.dense` chooses, or per query
    and class that :mod:`outgrow.detection.families.queries` does.

    The student proposes and classifies as in normal training. Its matcher labels each row with the object that it
    overlaps, or as background. The teacher classifies the same rows on its own features. Background
    rows inside a crowd region may be objects, so their label is :data:`outgrow.IGNORE`. Pyramid levels that
    only one of the two networks has are left out.
    """

    least: int = 1
    """The smallest number of images that the student takes in training mode."""

    fixed_shape = False
    apart = "each process samples its own proposals, averages its detector's losses and balances its own rows"

    def __call__(self, student: nn.Module, teacher: nn.Module, batch: Scenes) -> Lesson:
        if not len(batch.images):
            device = next(student.parameters()).device
            return without_rows(self(student, teacher, _blank(device, self.least)))
        with resized(student, teacher, batch.short_side):
            taught = not isinstance(teacher, NoDetector)
            step: TrainingOutputs = student(batch.images, batch.truth, rows=taught)
            teacher_outputs: Outputs = teacher(batch.images, step.proposals)
        own, other = _shared_levels(step.outputs, teacher_outputs)
        return Lesson(own, other, target_of(step.proposals, batch.truth), step.task)


def _blank(device: torch.device, count: int) -> Scenes:
    """A batch of ``count`` empty images, for a process whose share of the batch is empty."""
    nothing = torch.zeros(0, 4, device=device)
    label = torch.zeros(0, dtype=torch.int64, device=device)
    truth = Truth(boxes=nothing, label=label, crowd=nothing, index=0)
    return Scenes([torch.zeros(3, 64, 64, device=device)] * count, [truth] * count)


def target_of(proposals: Proposals, truth: Sequence[Truth]) -> Target:
    """The label of each proposal, with :data:`outgrow.IGNORE` in crowd regions. Those of an image without annotations have
    none."""
    crowded = torch.cat([in_crowd(boxes, t) for boxes, t in zip(proposals.boxes, truth, strict=True)])
    label = torch.where(crowded & proposals.unmatched, IGNORE, proposals.label)
    if not all(one.labelled for one in truth):
        labelled = torch.tensor([one.labelled for one in truth], device=label.device)
        label = torch.where(labelled[proposals.image], label, UNLABELLED)
    return Target(label, image=proposals.image, may_ignore=True)


def levels_to_compare(lesson: Lesson) -> list[str]:
    """The levels that losses on maps compare where they name none: those of more than one place in both networks.

    The last map of SSDLite is one place: it says nothing about where, and losses over positions refuse it.
    """
    return [
        name
        for name, value in lesson.student.features.items()
        if name not in NOT_TAPS
        and min(one.shape[2] * one.shape[3] for one in (value, lesson.teacher.features[name])) > 1
    ]


def _shared_levels(student: Outputs, teacher: Outputs) -> tuple[Outputs, Outputs]:
    shared = [name for name in student.features if name in teacher.features]
    own = [name for name in student.features if name in teacher.features or name == OBJECTS]
    return (
        replace(student, features={name: student.features[name] for name in own}),
        replace(teacher, features={name: teacher.features[name] for name in shared}),
    )


@dataclass(frozen=True)
class Balanced:
    """``rectify``, then :func:`balance`."""

    rectify: Callable[[Outputs, Target], Knowledge]

    def __call__(self, teacher: Outputs, target: Target) -> Knowledge:
        return balance(self.rectify(teacher, target))


def balance(knowledge: Knowledge) -> Knowledge:
    r"""Weight the rows so that objects and background count alike, within a limit.

    If objects are a share :math:`f` of the rows, they get the share
    :math:`f' = \max(f, \min(\tfrac12, 8 f))` of the weight, spread evenly, and the background gets the rest.
    The mean weight over the rows that count stays 1, so the loss keeps its scale. A batch without objects is not
    changed. On a row without a label there is an object where the teacher sees one.

    >>> from outgrow.knowledge import rectify
    >>> label = torch.tensor([1, 0, 0, 0])
    >>> balance(rectify(torch.eye(4)[label], label)).weight
    tensor([2.0000, 0.6667, 0.6667, 0.6667])
    """
    label, counted = knowledge.target.label, knowledge.target.takes_part
    seen = knowledge.teacher.logits.argmax(dim=1) > BACKGROUND
    objects = torch.where(label == UNLABELLED, seen, label > BACKGROUND) & counted
    share = objects.sum() / counted.sum().clamp_min(1)
    object_share = torch.maximum(share, (MAX_FACTOR * share).clamp_max(0.5))
    one = torch.ones_like(share)
    on_object = object_share / torch.where(share > 0, share, one)
    on_rest = (1 - object_share) / torch.where(share < 1, 1 - share, one)
    factor = torch.where(objects, on_object, on_rest).to(knowledge.weight.dtype)
    return replace(knowledge, weight=knowledge.weight * factor)
