"""Which normalisation a net's weights seem to want: its accuracy under each of the usual ones, on the same images.

A net under the wrong one still answers, and a correction of bias hides a part of the damage as a gain.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from outgrow.models import Network
from outgrow.models.structure import has_head
from outgrow.outputs import lift
from outgrow.report.statistics import holm
from outgrow.teacher.counts import LEVEL, above, paired
from outgrow.training.audit import Counted, NormalisationRecord

Triple = tuple[float, float, float]

USUAL: dict[str, tuple[Triple, Triple]] = {
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "ImageNet's": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR's": ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
    "0.5": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "bytes": ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
}
"""Mean and deviation of RGB in [0, 1]; ``bytes`` is for nets that take 0 to 255."""
CLOSE = 0.03
"""Two that differ by no more than this everywhere are one: no net can tell."""
POINTS = 0.02
"""Another one is better where it is right on so many more of the images and the paired test is below the level."""
FOLDS = 5

Matched = Callable[[Float[Tensor, "rows own"]], Float[Tensor, "rows classes"]]


def candidates(mean: Triple, std: Triple) -> list[tuple[str, Triple, Triple]]:
    """The one in use first, then the usual ones that differ from it.

    >>> [name for name, _, _ in candidates((0.507, 0.487, 0.441), (0.267, 0.256, 0.276))]
    ['in use', 'none', "ImageNet's", '0.5', 'bytes']
    """
    others = [
        (name, *values)
        for name, values in USUAL.items()
        if max(
            abs(a - b)
            for one, two in zip(values, (mean, std), strict=True)
            for a, b in zip(one, two, strict=True)
        )
        > CLOSE
    ]
    return [("in use", mean, std), *others]


@torch.no_grad()
def try_normalisations(
    network: Network,
    images: Iterable[tuple[Float[Tensor, "batch 3 height width"], Int[Tensor, " batch"]]],
    matched: Matched | None,
    num_classes: int,
    advance: Callable[[int], None],
) -> tuple[NormalisationRecord, ...]:
    """The net under each candidate, the one in use first; the net is left as it was.

    ``matched`` picks the data's classes among the net's. None is for a net with other classes: then a map from its
    logits is fitted under each candidate, and its out-of-fold predictions count.
    """
    batches = list(images)
    label = torch.cat([one for _, one in batches]).cpu()
    spec, training = network.input_spec, network.training
    network.eval()
    right: list[Tensor] = []
    tried = candidates(spec.mean, spec.std)
    try:
        done = 0
        for _, mean, std in tried:
            network.set_input_spec(replace(spec, mean=mean, std=std))
            logits = []
            for pixels, _ in batches:
                # what a map is fitted on: of a net without a classifier its features
                answer = network(pixels) if has_head(network) else network.net(network.prepare(pixels))
                logits.append(lift(answer).cpu())
                done += len(pixels)
                advance(done)
            right.append(_right(torch.cat(logits), label, matched, num_classes))
    finally:
        network.set_input_spec(spec)
        network.train(training)
    changed = [(int((one & ~right[0]).sum()), int((right[0] & ~one).sum())) for one in right]
    p_values = [1.0, *holm([paired(*counts) for counts in changed[1:]])]
    gains = [(gained - lost) / len(label) for gained, lost in changed]
    chance = float(torch.bincount(label).max()) / len(label)
    real = [
        at
        for at, gain in enumerate(gains)
        if gain >= POINTS
        and p_values[at] < LEVEL
        and above(int(right[at].sum()), len(label), chance) < LEVEL  # one class for all is no better
    ]
    best = max(real, key=lambda at: gains[at], default=None)
    return tuple(
        NormalisationRecord(
            name=name,
            mean=mean,
            std=std,
            in_use=at == 0,
            top1=Counted.of(int(right[at].sum()), len(label)),
            gained=changed[at][0],
            lost=changed[at][1],
            p=p_values[at],
            better=at == best,
        )
        for at, (name, mean, std) in enumerate(tried)
    )


def _right(
    logits: Float[Tensor, "rows own"], label: Int[Tensor, " rows"], matched: Matched | None, num_classes: int
) -> Tensor:
    if matched is not None:
        # NaN, where a wrong scale overflows, is right nowhere
        return (matched(logits).argmax(1) == label) & logits.isfinite().all(1)
    if not bool(logits.isfinite().all()):
        return torch.zeros_like(label, dtype=torch.bool)
    return map_out_of_fold(logits, label, num_classes) == label


def map_out_of_fold(
    logits: Float[Tensor, "rows own"], label: Int[Tensor, " rows"], num_classes: int
) -> Int[Tensor, " rows"]:
    """The classes that a map from other classes' logits predicts, for each of five folds fitted on the other four.

    Ridge regression on the labels: it compares normalisations in milliseconds, where the correction's own fit takes
    seconds.
    """
    x = logits.double() - logits.double().mean(1, keepdim=True)
    x = (x - x.mean(0)) / x.std(0).clamp_min(1e-6)
    kernel = x @ x.T / x.shape[1]
    y = torch.nn.functional.one_hot(label, num_classes).double()
    fold = torch.randperm(len(label), generator=torch.Generator().manual_seed(0)) % FOLDS
    predicted = torch.zeros_like(label)
    for number in range(FOLDS):
        fit, rest = (fold != number).nonzero()[:, 0], (fold == number).nonzero()[:, 0]
        if len(fit) and len(rest):
            centre = y[fit].mean(0)
            weight = torch.linalg.solve(
                kernel[fit][:, fit] + torch.eye(len(fit), dtype=x.dtype), y[fit] - centre
            )
            predicted[rest] = (kernel[rest][:, fit] @ weight + centre).argmax(1)
    return predicted
