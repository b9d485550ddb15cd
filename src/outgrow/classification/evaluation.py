"""What ``outgrow evaluate`` says of a classifier."""

from pathlib import Path
from typing import Any

from outgrow.classification.data import eval_loader
from outgrow.classification.scores import evaluate
from outgrow.classification.teacher import class_columns
from outgrow.data import open_data
from outgrow.models import create_model, num_parameters
from outgrow.teacher import SelectedClasses, Teacher
from outgrow.training.acceleration import make_accelerator
from outgrow.training.config import TrainConfig
from outgrow.training.progress import Reporter


def evaluate_classifier(
    source: str,
    name: str,
    *,
    weights: str | Path | None,
    label: str | None,
    batch_size: int,
    workers: int,
    report: Reporter,
) -> dict[str, Any]:
    """Top-1, top-5 and likelihood on the test images of ``source``.

    The model keeps its own input size, crop and normalisation. Without ``weights`` its published ones
    are used. ``ValueError`` where its classes are not the data's.
    """
    data = open_data(source, label=label, whole=True)
    own = name.startswith(("py:", "hf/"))
    network = create_model(name, pretrained=weights is None and not own, weights=weights)
    columns = class_columns(network, data.classes)
    if columns is None:
        raise ValueError(
            f"evaluate {name}: needs the data's {data.num_classes} classes, got {network.num_classes} others; "
            "`outgrow distill --teacher` can map them."
        )
    train = TrainConfig(batch_size=batch_size)
    device = make_accelerator(train).device
    loader = eval_loader(data.test, network, train, device, workers)
    model = SelectedClasses(Teacher(network), columns).to(device)
    with report.bar(f"{name} on the test images", len(data.test)) as advance:
        scores = evaluate(model, loader, progress=advance)
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
    }
