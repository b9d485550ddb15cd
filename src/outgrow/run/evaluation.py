"""Evaluate a model on the test split of a source."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from outgrow.run.tasks import task_of
from outgrow.training.progress import Reporter


def evaluate_model(
    source: str,
    name: str,
    *,
    weights: str | Path | None = None,
    label: str | None = None,
    batch_size: int = 100,
    workers: int = 2,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Score a model on the test images of ``source``: top-1, top-5 and negative log-likelihood of a classifier, COCO's
    numbers of a detector.

    Without ``weights``, the published weights are downloaded. ``ValueError`` if the classes do not match the data.
    """
    report = reporter or Reporter()
    result = task_of(source).evaluate_model(
        source,
        name,
        weights=weights,
        label=label,
        batch_size=batch_size,
        workers=workers,
        report=report,
    )
    report.show(summary(result))
    report.event("result", **result)
    return result


def summary(scores: Mapping[str, Any]) -> str:
    """The scores of :func:`evaluate_model` in a line."""
    if scores["metric"] == "ap":
        numbers = f"box AP {scores['ap']:.2f}, AP50 {scores['ap50']:.2f}, AP75 {scores['ap75']:.2f}"
    else:
        numbers = f"top-1 {scores['top1']:.2f} %, top-5 {scores['top5']:.2f} %, nll {scores['nll']:.4f}"
    return (
        f"{scores['model']}: {numbers} on {scores['images']:,} images ({scores['parameters']:,} parameters)"
    )
