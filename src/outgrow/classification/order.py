"""Detect a classifier whose classes are in another order than those of the data.

It is used when classes are matched by position. If the order is wrong, even a perfect network scores near zero. A
permutation that is fitted on half of the images then explains the predictions on the other half.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

TIMES, POINTS = 2.0, 0.2
"""A permutation must be right this many times as often as the given order, and on this share of the images more. A
teacher that is right on 41 % and predicts the next class on 45 % keeps its order, and so does one that guesses."""
ERRORS = 3.0
"""Standard errors by which the permutation must exceed the majority class, so that chance does not suffice."""
MOST_CLASSES = 4096
"""Limit on the number of classes: the assignment takes quadratic memory and more than quadratic time."""


@dataclass(frozen=True)
class Order:
    """Shares of images that are right. In the ``balanced`` ones every class with images has the same weight."""

    by_position: float
    balanced: float
    crossed: float
    """The share under the best permutation of the other half of the images."""
    balanced_crossed: float
    chance: float
    """The share of the most frequent class."""
    num_images: int
    likely: tuple[int | None, ...]
    """The class of each output if a permutation explains them; None if it is not known."""

    @property
    def is_wrong(self) -> bool:
        """Whether a permutation explains the predictions, and the given order does not."""
        error = math.sqrt(self.chance * (1 - self.chance) / self.num_images)
        if self.crossed < self.chance + ERRORS * error:
            return False
        pairs = ((self.by_position, self.crossed), (self.balanced, self.balanced_crossed))
        return all(after >= TIMES * before and after >= before + POINTS for before, after in pairs)


def order_of(predicted: Int[Tensor, " rows"], label: Int[Tensor, " rows"], num_classes: int) -> Order:
    """The agreement of ``predicted`` outputs with labels, as they are and under a permutation.

    The permutation is fitted on every second image of a class and measured on the others, and vice versa. On few
    images some permutation always fits.

    >>> label = torch.arange(3).repeat(8)
    >>> order_of((label + 1) % 3, label, 3).likely
    (2, 0, 1)
    """
    predicted, label = predicted.cpu().long(), label.cpu().long()
    right = predicted == label
    crossed = torch.zeros_like(right)
    half = _halves(label, num_classes)
    for number in (0, 1):
        fitted = _assignment(predicted[half != number], label[half != number], num_classes)
        held = half == number
        crossed[held] = fitted[predicted[held]] == label[held]
    likely = _assignment(predicted, label, num_classes).tolist()
    return Order(
        right.float().mean().item(),
        _balanced(right, label, num_classes),
        crossed.float().mean().item(),
        _balanced(crossed, label, num_classes),
        torch.bincount(label).max().item() / len(label),
        len(label),
        tuple(None if place < 0 else place for place in likely),
    )


def check_order(
    predicted: Int[Tensor, " rows"], label: Int[Tensor, " rows"], classes: Sequence[str], *, who: str
) -> None:
    """``ValueError`` if the outputs of ``who`` are those of ``classes`` in another order. Called if classes are matched
    by position."""
    if not 1 < len(classes) <= MOST_CLASSES or len(label) < 2:
        return
    order = order_of(predicted, label, len(classes))
    if not order.is_wrong:
        return
    names = ["?" if place is None else classes[place] for place in order.likely]
    listed = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    raise ValueError(
        f"{who}: needs its outputs in the order of the data's classes ({', '.join(classes[:12])}"
        f"{', ...' if len(classes) > 12 else ''}), got {100 * order.by_position:.1f} % right by position and "
        f"{100 * order.crossed:.1f} % in the order that fits the other half of the images: its outputs are likely {listed}; "
        "name its classes in their own order (a JSON list as 'classes' in the metadata of its safetensors file, or "
        "Network(classes=...)), so that they are matched by name."
    )


def _halves(label: Tensor, num_classes: int) -> Tensor:
    """0 and 1 alternating within every class, by position. Classes with an odd number of images start with 0 and 1 in turn."""
    half = torch.empty_like(label)
    start = 0
    for number in range(num_classes):
        rows = (label == number).nonzero()[:, 0]
        half[rows] = (torch.arange(len(rows)) + start) % 2
        start += len(rows) % 2
    return half


def _assignment(predicted: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """The one-to-one assignment of classes to outputs with the most right predictions; -1 for outputs that were never predicted."""
    from scipy.optimize import linear_sum_assignment

    counts = torch.bincount(predicted * num_classes + label, minlength=num_classes**2)
    counts = counts.view(num_classes, num_classes)
    outputs, classes = linear_sum_assignment(counts.numpy(), maximize=True)
    place = torch.full((num_classes,), -1)
    place[torch.from_numpy(outputs)] = torch.from_numpy(classes)
    place[counts.sum(1) == 0] = -1
    return place


def _balanced(right: Tensor, label: Tensor, num_classes: int) -> float:
    images = torch.bincount(label, minlength=num_classes)
    hits = torch.bincount(label, weights=right.double(), minlength=num_classes)
    there = images > 0
    return (hits[there] / images[there]).mean().item()
