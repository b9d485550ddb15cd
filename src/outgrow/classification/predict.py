"""Predictions of a student for pictures: classes and probabilities, with the preprocessing of an evaluation."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor

from outgrow.classification.export import load_student
from outgrow.classification.view import EvalView, eval_view, stated_whole
from outgrow.models import InputSpec, Network, create_model
from outgrow.models.network import fit_size
from outgrow.models.portable import OnnxModel, read_program
from outgrow.models.weights import read_weights
from outgrow.training.acceleration import make_accelerator
from outgrow.training.config import TrainConfig
from outgrow.training.deployment import FinishedRun

TOP = 5
"""Default number of classes per picture."""


@dataclass(frozen=True)
class Classifier:
    """``logits`` takes a batch of images in [0, 1]; ``view`` prepares a picture for it."""

    logits: Callable[[Tensor], Tensor]
    classes: tuple[str, ...]
    view: EvalView
    side: tuple[int, int] | None = None
    """Height and width of the input of ``logits``, if it does not resize."""

    task = "classification"

    def predict(
        self, pictures: Iterable[tuple[str, Image]], *, top: int | None, batch_size: int, **_: Any
    ) -> Iterator[dict[str, Any]]:
        """One row per picture: ``file``, and its ``top`` classes with probabilities, the most likely first."""
        count = min(top or TOP, len(self.classes))
        waiting: list[tuple[str, Tensor]] = []
        for file, picture in pictures:
            image = self._fitted(self.view.of(picture))
            if waiting and (waiting[0][1].shape != image.shape or len(waiting) == batch_size):
                yield from self._rows(waiting, count)
                waiting = []
            waiting.append((file, image))
        if waiting:
            yield from self._rows(waiting, count)

    def _fitted(self, image: Float[Tensor, "3 height width"]) -> Float[Tensor, "3 _ _"]:
        if self.side is None or tuple(image.shape[1:]) == self.side:
            return image
        # networks with a fixed size are square
        spec = InputSpec(self.side[0], (0.0,) * 3, (1.0,) * 3, self.view.interpolation)  # type: ignore[arg-type]
        return fit_size(image[None], spec)[0]

    @torch.no_grad()
    def _rows(self, batch: Sequence[tuple[str, Tensor]], count: int) -> Iterator[dict[str, Any]]:
        logits = self.logits(torch.stack([image for _, image in batch])).float()
        # a tie goes to the class with the lower number, as in an evaluation; topk takes any
        place = logits.sort(dim=1, descending=True, stable=True).indices[:, :count]
        share = logits.softmax(dim=1).gather(1, place)
        for (file, _), shares, places in zip(batch, share.tolist(), place.tolist(), strict=True):
            yield {
                "file": file,
                "classes": [
                    {"class": self.classes[at], "probability": value}
                    for at, value in zip(places, shares, strict=True)
                ],
            }


def columns(rows: Iterable[dict[str, Any]], top: int | None, classes: int) -> Iterator[list[Any]]:
    """The lines of a table: a header, then one line per picture."""
    count = min(top or TOP, classes)
    numbered = [name for at in range(2, count + 1) for name in (f"class_{at}", f"probability_{at}")]
    yield ["file", "class", "probability", *numbered]
    for row in rows:
        yield [
            row["file"],
            *(v for one in row["classes"] for v in (one["class"], f"{one['probability']:.6f}")),
        ]


def of_run(run: FinishedRun) -> Classifier:
    """The student of a run, on the available device."""
    network = load_student(run, command="predict")
    return _classifier(network, eval_view(network.input_spec, run.record.data.image_size))


def of_weights(path: Path) -> Classifier:
    """A safetensors file of ``export`` or of a run. ``ValueError`` if its network cannot be built.

    Warns if the file does not state the preprocessing, as those of earlier versions. It is then a guess.
    """
    metadata = read_weights(path)[1]
    name, count = metadata.get("model"), metadata.get("num_classes")
    if not isinstance(name, str) or not count:
        raise ValueError(
            f"predict {path}: needs a file with the name of its network in its metadata (a run's student.safetensors, or an "
            "export), got one without; give the run's folder."
        )
    if name.startswith("hf/") and (path.parent / "config.json").is_file():
        name = f"hf/{path.parent}"
    network = create_model(name, int(count), weights=path).eval().requires_grad_(False)
    stated = metadata.get("view")
    if isinstance(stated, dict):
        return _classifier(network, _view(stated))
    view = eval_view(network.input_spec, None)
    warnings.warn(
        f"predict {path}: needs a file that states how pictures are prepared, got one without; a guess is used ({view}): give "
        "the folder of its run, if there is one.",
        stacklevel=2,
    )
    return _classifier(network, view)


def of_program(path: Path, facts: dict[str, Any]) -> Classifier:
    """A ``.pt2`` file."""
    module = read_program(path)[0]
    return Classifier(module, tuple(facts["classes"]), _view(facts["view"]), _side(facts))


def of_onnx(model: OnnxModel) -> Classifier:
    """An ONNX file."""
    facts = model.facts
    return Classifier(
        lambda images: model(images)[0], tuple(facts["classes"]), _view(facts["view"]), _side(facts)
    )


def _classifier(network: Network, view: EvalView) -> Classifier:
    device = make_accelerator(TrainConfig()).device
    network = network.to(device)
    classes = network.classes or tuple(map(str, range(network.num_classes)))
    return Classifier(lambda images: network(images.to(device)).cpu(), classes, view)


def _view(stated: dict[str, Any]) -> EvalView:
    return EvalView(**(stated | {"whole": stated_whole(stated.get("whole"))}))


def _side(facts: dict[str, Any]) -> tuple[int, int] | None:
    return stated_whole(facts["input"]["side"])
