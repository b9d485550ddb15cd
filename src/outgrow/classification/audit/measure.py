"""A teacher's answers on some rows, and what they are worth before and after the correction of its bias."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from outgrow.classification.metrics import classification_metrics, reliability_diagram
from outgrow.data import Loader
from outgrow.models.taps import PENULTIMATE
from outgrow.outputs import Outputs, Target, lift
from outgrow.teacher import BaseTeacher, BiasCorrection
from outgrow.teacher.counts import paired
from outgrow.training.audit import AnswersRecord, BeforeAfter, ConfusionRecord, Counted
from outgrow.training.record import BinRecord

NUM_CONFUSIONS = 12
FIT_SIZE = 5e8
"""Rows x features x classes up to which a head on the features is tried: beyond it the fit takes many minutes."""
LEAST_TO_FIT = 10
"""Images that a correction needs for its five folds."""


@dataclass(frozen=True)
class Seen:
    """A teacher's outputs for some rows, and what is true of them; all on the host. ``index`` numbers the images."""

    outputs: Outputs
    label: Int[Tensor, " rows"]
    index: Int[Tensor, " rows"]

    def __len__(self) -> int:
        return len(self.label)

    @property
    def logits(self) -> Float[Tensor, "rows classes"]:
        return self.outputs.logits

    @property
    def right(self) -> int:
        """Rows whose top class is the label's."""
        return int((self.logits.argmax(1) == self.label).sum())

    def corrected(self, correction: BiasCorrection, *, fitted: bool) -> "Seen":
        """By the maps that have not seen the rows' labels; ``fitted`` says whether the correction was fitted on them."""
        return Seen(correction(self.outputs, index=self.index if fitted else None), self.label, self.index)


@torch.no_grad()
def look(teacher: BaseTeacher, loader: Loader, advance: Callable[[int], None], classes: int) -> Seen:
    """The teacher's outputs for the views of a loader's first epoch. ``classes`` are the data's."""
    logits, features, labels, index = [], [], [], []
    done = 0
    for batch in loader.epoch(0):
        outputs = teacher(batch.images)
        logits.append(lift(outputs.logits).cpu())
        feature = outputs.features[PENULTIMATE].flatten(1)
        # a net without a classifier has nothing else
        if loader.num_samples * feature.shape[1] * classes <= FIT_SIZE or not outputs.num_classes:
            features.append(lift(feature).cpu())
        assert batch.target.index is not None
        labels.append(batch.target.label.cpu())
        index.append(batch.target.index.cpu())
        done += len(batch.target.label)
        advance(done)
    kept = {PENULTIMATE: torch.cat(features)} if features else {}
    return Seen(Outputs(torch.cat(logits), kept), torch.cat(labels), torch.cat(index))


def fit_correction(seen: Seen, num_classes: int) -> BiasCorrection:
    """The correction of bias, fitted on ``seen``. Whether its rows are memorised is asked by the caller."""
    correction = BiasCorrection(num_classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        correction.fit(seen.outputs, Target(seen.label, index=seen.index))
    return correction


def answers(seen: Seen, classes: Sequence[str]) -> AnswersRecord:
    """Accuracy, calibration and confusions. ``ValueError`` where logits are no numbers."""
    found = classification_metrics(seen.logits, seen.label, len(classes))
    nll = F.cross_entropy(seen.logits, seen.label).item()
    bins = reliability_diagram(seen.logits, seen.label)
    counts = torch.bincount(seen.label, minlength=len(classes))
    return AnswersRecord(
        top1=Counted.of(seen.right, len(seen)),
        majority=found.majority_share,
        balanced_accuracy=found.balanced_accuracy,
        nll=nll if nll < float("inf") else None,
        ece=found.ece,
        per_class=tuple(found.per_class),
        counts=tuple(counts.tolist()),
        reliability=tuple(
            BinRecord(confidence=b.confidence, accuracy=b.accuracy, count=b.count) for b in bins
        ),
        confusions=_confusions(torch.tensor(found.confusion), classes),
    )


def _confusions(
    matrix: Int[Tensor, "classes classes"], classes: Sequence[str]
) -> tuple[ConfusionRecord, ...]:
    """The most frequent ones first."""
    images = matrix.sum(1)
    wrong = matrix.clone().fill_diagonal_(0).flatten()
    order = wrong.argsort(descending=True, stable=True)[:NUM_CONFUSIONS]
    return tuple(
        ConfusionRecord(
            label=classes[at // len(classes)],
            predicted=classes[at % len(classes)],
            count=int(wrong[at]),
            share=100 * int(wrong[at]) / int(images[at // len(classes)]),
        )
        for at in order.tolist()
        if wrong[at] > 0
    )


def before_after(raw: Seen | None, corrected: Seen | None, classes: Sequence[str]) -> BeforeAfter:
    """Both on the same rows; either may be missing."""
    gained = lost = 0
    if raw is not None and corrected is not None:
        before, after = (one.logits.argmax(1) == one.label for one in (raw, corrected))
        gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    return BeforeAfter(
        raw=None if raw is None else answers(raw, classes),
        corrected=None if corrected is None else answers(corrected, classes),
        gained=gained,
        lost=lost,
        p=paired(gained, lost),
    )
