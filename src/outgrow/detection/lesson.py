"""Rows of a detector: the student's proposals, what both networks say of each, and how rows are balanced.

    Detect      proposals of the student -> its own answer, the teacher's, and the matcher's label
    Balanced    a rectifier under which many background rows do not drown the objects

The same :class:`outgrow.Rectifier` and :class:`outgrow.Objective` follow as for images; the detector's
own losses are the task.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from outgrow.detection.boxes import BACKGROUND, Scenes, Truth
from outgrow.detection.detector import Answer, Proposals
from outgrow.outputs import IGNORE, Knowledge, Outputs, Target
from outgrow.training.lesson import Lesson, without_rows

MOST = 8.0
"""How much more a row of an object may count than it would unbalanced: with one object in a large batch
the two halves would else stand one row against hundreds."""
IN_CROWD = 0.5
"""Share of a background proposal inside a crowd region from which on nothing true is known about it."""


@dataclass(frozen=True)
class Detect:
    """A row is a proposal of the student's.

    The student proposes and classifies as in its own training, which labels each proposal by the object
    that it overlaps (background included). The teacher looks at the same regions, on its own features.
    Background proposals inside a crowd region get :data:`outgrow.IGNORE`: they may well be objects.
    Pyramid levels that only one of the two has are left out.
    """

    fixed_shape = False

    def __call__(self, student: nn.Module, teacher: nn.Module, batch: Scenes) -> Lesson:
        if not len(batch.images):
            device = next(student.parameters()).device
            return without_rows(self(student, teacher, _blank(device)))
        answer: Answer = student(batch.images, batch.truth)
        said: Outputs = teacher(batch.images, answer.proposals)
        own, other = _shared_levels(answer.outputs, said)
        return Lesson(own, other, target_of(answer.proposals, batch.truth), answer.task)


def _blank(device: torch.device) -> Scenes:
    """A picture with nothing on it, for a process that has none."""
    nothing = torch.zeros(0, 4, device=device)
    label = torch.zeros(0, dtype=torch.int64, device=device)
    truth = Truth(boxes=nothing, label=label, crowd=nothing, index=0)
    return Scenes([torch.zeros(3, 64, 64, device=device)], [truth])


def target_of(proposals: Proposals, truth: Sequence[Truth]) -> Target:
    """What is true of each proposal."""
    lost = [
        _inside(boxes, t.crowd) >= IN_CROWD if len(t.crowd) else boxes.new_zeros(len(boxes), dtype=torch.bool)
        for boxes, t in zip(proposals.boxes, truth, strict=True)
    ]
    unknown = torch.cat(lost) & (proposals.label == BACKGROUND)
    return Target(torch.where(unknown, IGNORE, proposals.label), image=proposals.image, may_ignore=True)


def _inside(boxes: Float[Tensor, "n 4"], crowd: Float[Tensor, "m 4"]) -> Float[Tensor, " n"]:
    """The largest share of each box that lies in one of the regions."""
    corner = torch.maximum(boxes[:, None, :2], crowd[None, :, :2])
    other = torch.minimum(boxes[:, None, 2:], crowd[None, :, 2:])
    both = (other - corner).clamp_min(0).prod(dim=2)
    area = (boxes[:, 2:] - boxes[:, :2]).clamp_min(0).prod(dim=1)
    return both.amax(dim=1) / torch.where(area > 0, area, torch.ones_like(area))


def _shared_levels(student: Outputs, teacher: Outputs) -> tuple[Outputs, Outputs]:
    shared = [name for name in student.features if name in teacher.features]
    return (
        replace(student, features={name: student.features[name] for name in shared}),
        replace(teacher, features={name: teacher.features[name] for name in shared}),
    )


@dataclass(frozen=True)
class Balanced:
    """``rectify``, and then objects and background brought into balance (:func:`balance`)."""

    rectify: Callable[[Outputs, Target], Knowledge]

    def __call__(self, teacher: Outputs, target: Target) -> Knowledge:
        return balance(self.rectify(teacher, target))


def balance(knowledge: Knowledge) -> Knowledge:
    r"""Row weights under which objects and background count alike, as far as there are objects.

    With a share :math:`f` of the batch's rows on objects, these get the share
    :math:`f' = \max(f, \min(\tfrac12, 8 f))` of the weight and the background the rest, evenly within
    each. The mean weight over the valid rows stays 1, so that a term's size does not depend on it; a
    batch without objects is left as it is.

    >>> from outgrow.knowledge import rectify
    >>> label = torch.tensor([1, 0, 0, 0])
    >>> balance(rectify(torch.eye(4)[label], label)).weight
    tensor([2.0000, 0.6667, 0.6667, 0.6667])
    """
    valid = knowledge.target.valid
    objects = (knowledge.target.label > BACKGROUND) & valid
    share = objects.sum() / valid.sum().clamp_min(1)
    wanted = torch.maximum(share, (MOST * share).clamp_max(0.5))
    one = torch.ones_like(share)
    on_object = wanted / torch.where(share > 0, share, one)
    on_rest = (1 - wanted) / torch.where(share < 1, 1 - share, one)
    factor = torch.where(objects, on_object, on_rest).to(knowledge.weight.dtype)
    return replace(knowledge, weight=knowledge.weight * factor)
