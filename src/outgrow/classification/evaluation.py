"""The result of ``outgrow evaluate`` for a classifier."""

import warnings
from pathlib import Path
from typing import Any

from outgrow.classification.data import check_takes, eval_loader
from outgrow.classification.order import check_order
from outgrow.classification.scores import evaluate
from outgrow.data import open_data
from outgrow.data.classes import match_classes
from outgrow.data.notes import some
from outgrow.data.reading import OnFault
from outgrow.models import create_model, num_parameters
from outgrow.models.structure import has_head
from outgrow.teacher import SelectedClasses, Teacher
from outgrow.teacher.counts import interval
from outgrow.training.acceleration import make_accelerator
from outgrow.training.config import TrainConfig
from outgrow.training.progress import Reporter
from outgrow.training.record import IntervalRecord

TOP = 5
"""Of as many classes the right one is always among the top five."""


def evaluate_classifier(
    source: str,
    name: str,
    *,
    weights: str | Path | None,
    label: str | None,
    batch_size: int,
    workers: int,
    report: Reporter,
    on_fault: OnFault = "refuse",
) -> dict[str, Any]:
    """Top-1, top-5 and likelihood on the test images of ``source``.

    ``intervals`` has Wilson's 95 % intervals of top-1 and top-5. They are over the images of this test set, not over seeds of
    the training. Of five classes or fewer all images are right in the top five, whichever are tested: no interval.
    The model keeps its own input size, crop and normalisation. Without ``weights`` its published weights are used.
    Classes are matched by name. If one side has no names they are matched by position, with a warning.
    ``ValueError`` if the model lacks a class of the data, if it has no weights, or if its predictions show that its
    classes are in another order.
    """
    data = open_data(source, label=label, whole=True, on_fault=on_fault)
    own = name.startswith(("py:", "hf/"))
    network = create_model(name, pretrained=weights is None and not own, weights=weights)
    if network.weights is None:
        raise ValueError(
            f"evaluate {name}: needs weights, got a model without weights; save them beside its config.json, or "
            "give --weights FILE."
        )
    if not has_head(network):
        raise ValueError(
            f"evaluate {name}: needs a classifier, got a backbone without one (num_classes 0), which has no classes; evaluate a "
            "student, or audit it as a teacher (outgrow audit --teacher), which fits a linear probe on its features."
        )
    match = match_classes(network.classes, network.num_classes, data.classes)
    if match.columns is None:
        raise ValueError(
            f"evaluate {name}: needs the data's {data.num_classes} classes, got a model with {network.num_classes} classes: "
            f"{match.note}; rename classes that only differ in spelling, or map the classes with outgrow distill --teacher."
        )
    for note in network.notes:
        report.note(note)
    if match.how == "position":
        warnings.warn(f"evaluate {name}: its classes are matched {match.note}.", stacklevel=2)
    elif match.how == "spelling":
        report.note(f"evaluate {name}: its classes are matched {match.note}")
    if match.extra:
        report.note(
            f"evaluate {name}: {len(match.extra)} of its {network.num_classes} classes are not in the data "
            f"({some(match.extra)}); it chooses among the other {len(match.columns)}, and predict among all"
        )
    check_takes(network, data.test)
    train = TrainConfig(batch_size=batch_size)
    device = make_accelerator(train).device
    loader = eval_loader(data.test, network, train, device, workers)
    model = SelectedClasses(Teacher(network), match.columns).to(device)
    with report.bar(f"{name} on the test images", len(data.test)) as advance:
        scores = evaluate(model, loader, progress=advance)
    if match.how == "position":
        check_order(scores.predicted, data.test.labels, data.classes, who=f"evaluate {name}")
    return {
        "model": name,
        "weights": None if weights is None else str(weights),
        "data": source,
        "metric": "top1",
        "images": len(data.test),
        "parameters": num_parameters(network),
        "top1": scores.top1,
        "top5": scores.top5,
        "nll": scores.nll,
        "intervals": {
            "top1": _interval(scores.top1, len(data.test)),
            "top5": _interval(scores.top5, len(data.test), data.num_classes),
        },
    }


def _interval(percent: float, images: int, classes: int | None = None) -> dict[str, Any]:
    if classes is not None and classes <= TOP:
        one = IntervalRecord(low=None, high=None, images=images, reason=f"{classes} classes")
    else:
        low, high = interval(round(percent * images / 100), images)
        one = IntervalRecord(low=low, high=high, images=images)
    return one.model_dump()
