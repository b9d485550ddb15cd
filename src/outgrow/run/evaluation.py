"""What ``outgrow evaluate`` does."""

from pathlib import Path
from typing import Any

from outgrow.classification.prepare import eval_loader
from outgrow.classification.scores import evaluate, num_parameters
from outgrow.classification.teaching import class_columns
from outgrow.data import open_data
from outgrow.models import create_model
from outgrow.teacher import SelectedClasses, Teacher
from outgrow.training.config import TrainConfig
from outgrow.training.progress import Reporter
from outgrow.training.trainer import make_accelerator


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
    """Top-1, top-5 and likelihood of a model on the test images of ``source``; COCO's numbers of a detector
    on ``coco:`` data.

    The model keeps its own input size, crop and normalisation. Without ``weights`` its published ones
    are asked for. ``ValueError`` where its classes are not the data's.
    """
    report = reporter or Reporter()
    if source.startswith("coco:"):
        from outgrow.detection.run import evaluate_detection

        return evaluate_detection(source, name, weights=weights, workers=workers, reporter=report)
    data = open_data(source, label=label)
    own = name.startswith(("py:", "hf/"))
    network = create_model(name, pretrained=weights is None and not own, weights=weights)
    columns = class_columns(network, data)
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
    result = {
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
    report.event("result", **result)
    return result
