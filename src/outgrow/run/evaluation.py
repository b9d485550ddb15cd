"""A model on the test split of a source."""

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
    """The numbers of a model on the test images of ``source``: top-1, top-5 and likelihood of a classifier, COCO's
    of a detector.

    Without ``weights`` its published ones are used. ``ValueError`` where its classes are not the data's.
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
    report.event("result", **result)
    return result
