"""Evaluate a model on the test split of a source."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from outgrow.data.reading import OnFault
from outgrow.machine.files import counted
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
    on_fault: OnFault = "refuse",
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Score a model on the test images of ``source``: top-1, top-5 and negative log-likelihood of a classifier, COCO's
    numbers of a detector.

    ``intervals`` in the result are 95 % intervals over the images of this test set: how far a number depends on which images
    were tested. They hold nothing of what another seed of the training gives. Without ``weights``, the published weights are
    downloaded. ``on_fault="skip"`` leaves out images that cannot be decoded, with a warning that names them. ``ValueError`` if the
    classes do not match the data.
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
        on_fault=on_fault,
    )
    report.show(summary(result))
    report.event("result", **result)
    return result


def summary(scores: Mapping[str, Any]) -> str:
    """The scores of :func:`evaluate_model` in a line, each with its interval over test images or why it has none."""
    if scores["metric"] == "ap":
        shown = {"box AP": "ap", "AP50": "ap50", "AP75": "ap75"}
        numbers = ", ".join(f"{name} {_number(scores, key)}" for name, key in shown.items())
    else:
        nll = "infinite" if scores["nll"] is None else f"{scores['nll']:.4f}"
        numbers = f"top-1 {_number(scores, 'top1', ' %')}, top-5 {_number(scores, 'top5', ' %')}, nll {nll}"
    return f"{scores['model']}: {numbers} on {counted(scores['images'], 'image')} ({scores['parameters']:,} parameters)"


def _number(scores: Mapping[str, Any], key: str, unit: str = "") -> str:
    value, over = scores[key], scores["intervals"].get(key)
    if value is None:
        return "none (no such object)"
    if over["reason"] is not None:
        return f"{value:.2f}{unit} ({over['reason']}: no interval)"
    return f"{value:.2f}{unit} [{over['low']:.1f}, {over['high']:.1f}]"
