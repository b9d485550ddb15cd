"""Scores of a classifier on a split, computed on the device and read once."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from outgrow.classification.metrics import in_top5
from outgrow.data import Loader
from outgrow.outputs import as_outputs, lift, warn_if_probabilities
from outgrow.training.guard import NonFiniteScores


class Scores(NamedTuple):
    """``top1`` and ``top5`` in percent, ``nll`` in nats per row. The tensors are by position in the split, on the host.

    ``nll`` is None if the logit of an image's class is -inf: it would be infinite. A tie goes to the class with the lower number.
    """

    top1: float
    top5: float
    nll: float | None
    predicted: Int[Tensor, " n"]
    right: Bool[Tensor, " n"]
    logits: Float[Tensor, "n classes"]
    label: Int[Tensor, " n"]

    @property
    def score(self) -> float:
        """The metric of a run."""
        return self.top1


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: Loader,
    *,
    autocast: Callable[[], torch.autocast] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Scores:
    """Score ``model`` (images to logits or Outputs) on every sample of an unshuffled loader.

    The model is in eval mode during the pass; its mode is restored afterwards. ``progress`` is called with the number
    of finished images.
    """
    was_training = model.training
    model.eval()
    try:
        right5, nll, predicted, labels, outputs_of = [], [], [], [], []
        done = 0
        for batch in loader.epoch(0):
            if autocast is None:
                outputs = as_outputs(model(batch.images))
            else:
                with autocast():
                    outputs = as_outputs(model(batch.images))
            logits, label = lift(outputs.logits), batch.target.label
            _check_logits(logits, label, done, type(model).__name__)
            if not done:
                warn_if_probabilities(logits, whose=type(model).__name__)
            predicted.append(logits.argmax(dim=1))
            right5.append(in_top5(logits, label))
            nll.append(F.cross_entropy(logits, label, reduction="none"))
            labels.append(label)
            outputs_of.append(logits.cpu())
            done += len(label)
            if progress is not None:
                progress(done)
    finally:
        model.train(was_training)
    guess, truth = torch.cat(predicted), torch.cat(labels)
    right = guess == truth
    return Scores(
        top1=100 * int(right.sum()) / len(right),
        top5=100 * int(torch.cat(right5).sum()) / len(right),
        nll=finite(torch.cat(nll).mean().item()),
        predicted=guess.cpu(),
        right=right.cpu(),
        logits=torch.cat(outputs_of),
        label=truth.cpu(),
    )


def _check_logits(
    logits: Float[Tensor, "rows classes"], label: Int[Tensor, " images"], first: int, name: str
) -> None:
    """:class:`NonFiniteScores` for rows without a top class: those with NaN, +inf, or -inf for every class.

    ``ValueError`` if there is not one row for each label, or a label is not among the classes.
    """
    largest = int(label.max()) if len(label) else 0
    if len(logits) != len(label) or largest >= logits.shape[1]:
        raise ValueError(
            f"scores: needs one row of logits for each of {len(label)} images, with all classes up to label {largest}, "
            f"got shape {tuple(logits.shape)} from {name}; check its number of classes."
        )
    bad = logits.isnan().any(dim=1) | ~logits.amax(dim=1).isfinite()
    if bool(bad.any()):
        where = (bad.nonzero()[:4, 0] + first).tolist()
        raise NonFiniteScores(
            f"scores: needs finite logits, got NaN or infinity from {name} for {int(bad.sum())} of {len(bad)} images, the "
            f"first at positions {', '.join(map(str, where))}; if its weights are not finite, lower the learning rate of its "
            "training, or check its file."
        )


def finite(value: float) -> float | None:
    """None for infinity and NaN, which a record cannot have."""
    return value if math.isfinite(value) else None
