"""Labels that are wrong at an unknown rate: the share of them, and which classes are mistaken for which.

A correction that is fitted on labels gives ``p(given | x)``. Where some are wrong, that is not what is true. Here the map to the
*true* classes and the noise are fitted together, by maximum likelihood of the given labels:

    p(given = k | x) = sum over c of p(true = c | x) Q[c, k]

``p(true | x)`` is a softmax of a linear map, which may be as certain as it likes, and ``Q`` does not depend on ``x``: it is a floor
under the probability of every label, however certain the teacher. That floor is what tells noise from doubt. It assumes that noise
does not depend on the image, that most labels of a class are right, and that the teacher is not certain where it is wrong: a
teacher that is looks as if labels were wrong.

one rate           (1 - r) of the labels are right, the others are any other class
between classes    a matrix, with pseudo-counts of the best single rate
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from outgrow.teacher.correction_fit import Data, LinearMap, Tried, apply_map, fit_map

PSEUDO_COUNTS = (100.0, 10.0)
"""Strengths of the prior of a matrix, in images of each class. Our choice; out-of-fold likelihood chooses among them."""
FIRST_RATE = 0.1
"""From which the fit of the rate starts. Our choice; the result does not depend on it."""
MAX_CLASSES = 200
"""With more classes a matrix has too many numbers, and one rate alone is tried."""
LEAST_GAIN = 2.0
"""In nats, of all images together: the least by which noise must make the labels likelier. A rate near zero gains less, in
every image alike, so that its standard error is near zero too. Our choice: what two standard errors are worth for one number."""

Wanted = Literal["none", "estimate"] | float
"""``"none"``: every label is right. A number: the share of wrong labels, where it is known."""
Kind = Literal["none", "one rate", "between classes"]


@dataclass(frozen=True)
class NoiseCandidate:
    """One kind of noise beside one kind of map. ``nll`` is that of the given labels, out of fold, in nats an image; ``rate`` the
    share of labels that it makes wrong, where all classes are equally frequent."""

    kind: Kind
    pseudo_counts: float | None
    nll: float
    rate: float
    map: str = ""


@dataclass(frozen=True)
class NoiseReport:
    """What was tried and chosen, and why. ``wrong`` is the share of labels that are thought wrong, given images and labels."""

    candidates: tuple[NoiseCandidate, ...]
    chosen: NoiseCandidate
    reason: str
    wrong: float

    def __str__(self) -> str:
        lines = [f"{'noise of the labels':<22}{'map':<26}{'prior':>9}{'rate':>10}{'nll':>9}   (out of fold)"]
        for c in self.candidates:
            prior = "" if c.pseudo_counts is None else f"{c.pseudo_counts:g}"
            mark = " <- chosen" if c == self.chosen else ""
            lines.append(f"{c.kind:<22}{c.map:<26}{prior:>9}{100 * c.rate:>9.2f}%{c.nll:>9.4f}{mark}")
        return "\n".join([*lines, f"{self.reason} {100 * self.wrong:.2f} % of the labels are thought wrong."])


class OneRate:
    """A label is wrong with one probability, and then any other class. ``fixed`` rates are not fitted."""

    def __init__(self, rate: float, classes: int, *, fixed: bool, device: torch.device) -> None:
        self.classes = classes
        self.logit = torch.tensor(rate, dtype=torch.float64, device=device).logit().requires_grad_(not fixed)

    @property
    def parameters(self) -> list[Tensor]:
        return [self.logit] if self.logit.requires_grad else []

    def given(self, true: Float[Tensor, "rows classes"]) -> Float[Tensor, "rows classes"]:
        rate = self.logit.sigmoid()
        return (1 - rate) * true + rate / max(self.classes - 1, 1) * (1 - true)

    def penalty(self) -> Tensor:
        return self.logit.new_zeros(())

    def matrix(self) -> Float[Tensor, "classes classes"]:
        return self.given(torch.eye(self.classes, dtype=torch.float64, device=self.logit.device)).detach()


class BetweenClasses:
    """A matrix ``Q[true, given]``. Its prior is Dirichlet with the mean ``prior`` and ``pseudo_counts`` images of each class."""

    def __init__(self, prior: Float[Tensor, "classes classes"], pseudo_counts: float) -> None:
        self.prior, self.pseudo_counts = prior, pseudo_counts
        self.logits = prior.log().clone().requires_grad_()

    @property
    def parameters(self) -> list[Tensor]:
        return [self.logits]

    def given(self, true: Float[Tensor, "rows classes"]) -> Float[Tensor, "rows classes"]:
        return true @ self.logits.softmax(dim=1)

    def penalty(self) -> Tensor:
        return -self.pseudo_counts * (self.prior * self.logits.log_softmax(dim=1)).sum()

    def matrix(self) -> Float[Tensor, "classes classes"]:
        return self.logits.softmax(dim=1).detach()


class Noisy(NamedTuple):
    """A kind of noise together with the maps to the true classes, fold by fold. ``logits`` are of the true class, out of fold."""

    candidate: NoiseCandidate
    nll: Float[Tensor, " images"]
    tried: Tried
    maps: list[LinearMap]
    matrices: list[Float[Tensor, "classes classes"]]
    logits: Float[Tensor, "rows classes"]


def find_noise(
    data: Data, chosen: Tried, starts: Sequence[Tried], wanted: Wanted
) -> tuple[Noisy | None, NoiseReport]:
    """The noise, and the maps to the true classes; None if no wrong labels are found.

    ``chosen`` is the best correction without noise, ``starts`` the kinds of maps to try with it. A rate that is given is
    not fitted, and taken without asking the likelihood.
    """
    rate = wanted if isinstance(wanted, float) else None
    clean = NoiseCandidate("none", None, float(chosen.nll.mean()), 0.0, chosen.candidate.name)
    found = [_fit(data, start, None, rate) for start in starts]
    one = min(found, key=lambda f: f.candidate.nll)
    matrix: Noisy | None = None
    if wanted == "estimate" and 2 < data.num_classes <= MAX_CLASSES:
        # of every map: a free map imitates a matrix, so the best one with a single rate is not the best one with a matrix
        matrices = [_fit(data, f.tried, (f, counts), None) for f in found for counts in PSEUDO_COUNTS]
        # one under which a label has no probability at all is no candidate
        matrices = [f for f in matrices if isfinite(f.candidate.nll)]
        matrix = min(matrices, key=lambda f: f.candidate.nll, default=None)
        found += matrices
    best: Noisy | None = None
    reason = "no noise makes the labels likelier by two standard errors."
    if rate is not None:
        best, reason = one, "the rate was given."
    else:
        nll = min(starts, key=lambda s: s.candidate.nll).nll
        if chosen.candidate.source != "probabilities":
            nll = chosen.nll  # "as it is" too
        for other in (one, matrix):
            # A map of the probabilities has bounded inputs, so a floor of its own, which imitates noise. It need not be
            # beaten by two standard errors, but it must not be better.
            if other is None or other.candidate.nll > chosen.candidate.nll:
                continue
            gain = nll - other.nll
            mean, error = float(gain.mean()), float(gain.std()) / data.num_images**0.5
            if mean > 2 * error and mean * data.num_images > LEAST_GAIN:
                best, nll = other, other.nll
                reason = (
                    f"noise ({other.candidate.kind}) makes the labels likelier by {mean:.4f} nats an image (standard error "
                    f"{error:.4f})."
                )
    return best, NoiseReport(
        candidates=(clean, *(f.candidate for f in found)),
        chosen=clean if best is None else best.candidate,
        reason=reason,
        wrong=0.0 if best is None else _share_wrong(data, best),
    )


def _fit(data: Data, start: Tried, prior: tuple[Noisy, float] | None, rate: float | None) -> Noisy:
    """One kind of noise for one kind of map: in each fold both are fitted on the other folds and scored on it."""
    logits = start.inputs.values.new_zeros(len(data.label), data.num_classes)
    nll = logits.new_zeros(len(data.label))
    maps, matrices = [], []
    for number in range(data.folds):
        noise: OneRate | BetweenClasses
        if prior is None:
            noise = OneRate(
                FIRST_RATE if rate is None else rate,
                data.num_classes,
                fixed=rate is not None,
                device=logits.device,
            )
            begin = start.maps[number] if start.maps else None
        else:
            noise, begin = BetweenClasses(prior[0].matrices[number], prior[1]), prior[0].maps[number]
        fitted = fit_map(
            data, start.inputs, start.base, start.candidate.ridge, data.fold != number, begin, noise
        )
        rows = data.fold == number
        base = None if start.base is None else start.base[rows]
        logits[rows] = apply_map(fitted, start.inputs.values[rows], base)
        nll[rows] = data.nll(logits[rows], rows, noise).detach()
        maps.append(fitted)
        matrices.append(noise.matrix())
    per_image = data.per_image(nll)
    mean = torch.stack(matrices).mean(dim=0)
    candidate = NoiseCandidate(
        "one rate" if prior is None else "between classes",
        None if prior is None else prior[1],
        float(per_image.mean()),
        1 - float(mean.diagonal().mean()),
        start.candidate.name,
    )
    return Noisy(candidate, per_image, start, maps, matrices, logits)


def _share_wrong(data: Data, found: Noisy) -> float:
    """The mean probability that a label is wrong, given its image and itself, out of fold. A blend counts both labels by
    their shares, as its likelihood does."""
    true, matrices = found.logits.softmax(dim=1), torch.stack(found.matrices)

    def wrong(label: Int[Tensor, " rows"]) -> Float[Tensor, " rows"]:
        joint = true * matrices[data.fold, :, label]
        return 1 - joint.gather(1, label[:, None])[:, 0] / joint.sum(dim=1)

    mix = data.mix
    return float(data.per_image(mix * wrong(data.label) + (1 - mix) * wrong(data.partner)).mean())
