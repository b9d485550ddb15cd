"""What a classifier's outputs on a whole split are worth: accuracy by class, calibration, confusions.

torchmetrics counts confusions and measures the calibration error; it is imported on use, as that takes seconds.
Shares and accuracies are in percent. A tie goes to the class with the lower number.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from outgrow.outputs import lift

ECE_BINS = 15
"""As in Guo et al. (2017), https://arxiv.org/abs/1706.04599, section 6."""


@dataclass(frozen=True)
class ClassMetrics:
    """Percent, but ``nll``, which is in nats an image, and infinite where an image's own class is ruled out.

    ``top5`` is of as many classes as there are where these are fewer; a class that is ruled out (a logit of
    -inf) is never among them. ``per_class`` is None for a class without an image, which does not count in
    ``balanced_accuracy`` either, the mean of the others. ``majority_share`` is what always guessing the most
    frequent class would score. ``ece``: the expected calibration error over 15 bins of equal width.
    ``confusion[i][j]`` counts images of class i that were taken for class j.
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
    """The images whose largest probability is in one bin: its mean, and how many are right, in percent.

    Both are None where ``count`` is 0.
    """

    confidence: float | None
    accuracy: float | None
    count: int


@torch.no_grad()
def classification_metrics(
    logits: Float[Tensor, "rows classes"], label: Int64[Tensor, " rows"], num_classes: int
) -> ClassMetrics:
    """All that :class:`ClassMetrics` says, of the logits of a split and its labels.

    Raises ValueError for no rows, labels or a width that do not fit ``num_classes``, and logits that are no
    numbers: nan, +inf, or -inf for every class of a row.
    """
    from torchmetrics.functional.classification import (
        multiclass_calibration_error,
        multiclass_confusion_matrix,
    )

    _check(logits, label, num_classes, "classification_metrics")
    logits, rows = lift(logits), len(label)
    own = logits.gather(1, label.unsqueeze(1))
    before = torch.arange(num_classes, device=label.device) < label.unsqueeze(1)
    rank = ((logits > own) | ((logits == own) & before)).sum(1)
    among5 = (rank < 5) & (own.squeeze(1) > -torch.inf)
    # torchmetrics has a bin of its own for exactly 1, where float32 rounds many confident rows to
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


@torch.no_grad()
def reliability_diagram(
    logits: Float[Tensor, "rows classes"], label: Int64[Tensor, " rows"], bins: int = ECE_BINS
) -> list[Bin]:
    """How often a classifier is right, by how sure it is: ``bins`` of equal width, from 0 to 1.

    A bin has its lower edge, the last both.

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
            f"{name}: needs one row or more of {num_classes} logits, got {rows} x {classes}; pass the logits of a "
            "whole split and its number of classes."
        )
    if label.min() < 0 or label.max() >= num_classes:
        raise ValueError(
            f"{name}: needs labels from 0 to {num_classes - 1}, got {int(label.min())} to {int(label.max())}; leave "
            "out rows without a label."
        )
    largest = logits.amax(1)  # nan where any is
    bad = ~largest.isfinite()
    if bad.any():
        first = int(bad.nonzero()[0])
        raise ValueError(
            f"{name}: needs numbers as logits, or -inf for some classes of a row, got {largest[first].item()} as the "
            f"largest of row {first} ({int(bad.sum())} such rows); look for the step from which on training diverged."
        )
