"""Metrics of a classifier's outputs on a split: accuracy by class, calibration, confusions.

torchmetrics computes the confusions and the calibration error. It is imported on use, because that takes seconds.
Shares and accuracies are in percent. A tie goes to the class with the lower number.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from outgrow.outputs import lift

ECE_BINS = 15
"""As in Guo et al. (2017), https://arxiv.org/abs/1706.04599, section 6."""


@dataclass(frozen=True)
class ClassMetrics:
    """All values are in percent, except ``nll``.

    ``nll`` is in nats per image. It is infinite if the logit of an image's class is -inf. ``top5`` uses all classes if
    there are fewer than five; a class with a logit of -inf is never among them. ``per_class`` is None for a class
    without images. ``balanced_accuracy`` is the mean over the classes with images. ``majority_share`` is the accuracy of always
    predicting the most frequent class. ``ece`` is the expected calibration error over 15 bins of equal width.
    ``confusion[i][j]`` counts images of class i that were predicted as class j.
    """

    top1: float
    top5: float
    nll: float
    balanced_accuracy: float
    per_class: list[float | None]
    majority_share: float
    ece: float
    confusion: list[list[int]]


@dataclass(frozen=True)
class Bin:
    """The images whose largest probability is in one bin: mean confidence and accuracy, in percent.

    Both are None if ``count`` is 0.
    """

    confidence: float | None
    accuracy: float | None
    count: int


@torch.no_grad()
def classification_metrics(
    logits: Float[Tensor, "rows classes"], label: Int64[Tensor, " rows"], num_classes: int
) -> ClassMetrics:
    """The metrics of the logits of a split.

    Raises ValueError for an empty split, for labels or a number of columns that do not fit ``num_classes``, and for
    logits that are nan, +inf, or -inf for every class of a row.
    """
    from torchmetrics.functional.classification import (
        multiclass_calibration_error,
        multiclass_confusion_matrix,
    )

    _check(logits, label, num_classes, "classification_metrics")
    logits, rows = lift(logits), len(label)
    among5 = in_top5(logits, label)
    # torchmetrics has a separate bin for exactly 1, to which float32 rounds many confident rows
    probabilities = logits.softmax(1).float().clamp(max=1 - 2**-24)
    ece = multiclass_calibration_error(probabilities, label, num_classes, n_bins=ECE_BINS)
    confusion = multiclass_confusion_matrix(logits.argmax(1), label, num_classes).cpu()
    right, there = confusion.diag().tolist(), confusion.sum(1).tolist()
    per_class = [100 * hits / count if count else None for hits, count in zip(right, there, strict=True)]
    shown = [accuracy for accuracy in per_class if accuracy is not None]
    return ClassMetrics(
        top1=100 * sum(right) / rows,
        top5=100 * int(among5.sum()) / rows,
        nll=F.cross_entropy(logits, label).item(),
        balanced_accuracy=sum(shown) / len(shown),
        per_class=per_class,
        majority_share=100 * max(there) / rows,
        ece=100 * ece.item(),
        confusion=confusion.tolist(),
    )


def in_top5(logits: Float[Tensor, "rows classes"], label: Int64[Tensor, " rows"]) -> Bool[Tensor, " rows"]:
    """Whether the label is among the five best classes, of which the lower number comes first in a tie.

    >>> in_top5(torch.zeros(2, 6), torch.tensor([4, 5]))
    tensor([ True, False])
    """
    own = logits.gather(1, label.unsqueeze(1))
    before = torch.arange(logits.shape[1], device=label.device) < label.unsqueeze(1)
    rank = ((logits > own) | ((logits == own) & before)).sum(1)
    return (rank < 5) & (own.squeeze(1) > -torch.inf)


@torch.no_grad()
def reliability_diagram(
    logits: Float[Tensor, "rows classes"], label: Int64[Tensor, " rows"], bins: int = ECE_BINS
) -> list[Bin]:
    """Accuracy by confidence, in ``bins`` of equal width from 0 to 1.

    A bin includes its lower edge, and the last one both edges.

    >>> reliability_diagram(torch.tensor([[2.0, 0.0], [0.0, 0.5]]), torch.tensor([0, 0]), bins=2)[1]
    Bin(confidence=75.1..., accuracy=50.0, count=2)

    Raises ValueError as :func:`classification_metrics` does.
    """
    _check(logits, label, logits.shape[1], "reliability_diagram")
    if bins < 1:
        raise ValueError(f"reliability_diagram: needs bins >= 1, got {bins}; 15 is common.")
    confidence, predicted = lift(logits).softmax(1).float().max(1)
    edges = torch.linspace(0, 1, bins + 1, device=confidence.device)[1:-1]
    place = torch.bucketize(confidence, edges, right=True)
    count, sure, right = (
        torch.bincount(place, weights=weight, minlength=bins).tolist()
        for weight in (None, confidence.double(), (predicted == label).double())
    )
    return [
        Bin(100 * s / n, 100 * r / n, n) if n else Bin(None, None, 0)
        for s, r, n in zip(sure, right, count, strict=True)
    ]


def _check(logits: Tensor, label: Tensor, num_classes: int, name: str) -> None:
    rows, classes = logits.shape
    if not rows or classes != num_classes:
        raise ValueError(
            f"{name}: needs at least one row of {num_classes} logits, got {rows} x {classes}; pass the logits of a "
            "whole split and its number of classes."
        )
    if label.min() < 0 or label.max() >= num_classes:
        raise ValueError(
            f"{name}: needs labels from 0 to {num_classes - 1}, got {int(label.min())} to {int(label.max())}; leave "
            "out rows without a label."
        )
    largest = logits.amax(1)  # nan if any logit of the row is
    bad = ~largest.isfinite()
    if bad.any():
        first = int(bad.nonzero()[0])
        raise ValueError(
            f"{name}: needs finite logits, or -inf for some classes of a row, got {largest[first].item()} as the "
            f"largest logit of row {first} ({int(bad.sum())} such rows); look for the step at which the training diverged."
        )
