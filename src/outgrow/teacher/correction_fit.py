"""Fit of a bias correction: one linear map, by penalised logistic regression, chosen by out-of-fold likelihood.

Data         labels, folds by image, equal weight for each image
try_all      all candidates with their out-of-fold likelihood, from strong ridges to weak ones
choose       the simplest candidate that no other beats by two standard errors
fit_map      the optimisation: one fit by L-BFGS
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from outgrow.models.taps import PENULTIMATE
from outgrow.outputs import UNLABELLED, Outputs, Target, lift

RIDGES = (3e5, 3e4, 3e3, 300.0, 30.0, 3.0, 0.3, 0.03, 0.003)
"""Ridge strengths to try, strongest first, in pseudo-counts of images on standardised inputs. Our choice. The search ends
after two that are worse than the best, so the weakest are rarely fitted."""
SCALE_RIDGE = 1.0
"""In images: how strongly the logarithm of a scale is drawn, beside noise, to where it was in a simpler fit. Noise is a floor under the
probability of every label, so nothing holds a scale back where the teacher separates all other labels: it would grow without end.
Our choice; on digits with wrong labels 0.5, 1 and 3 are each better out of fold than 0."""
LARGEST_LOG_SCALE = 50.0
"""Either way. Without it a long step of the line search could make the scale infinite, and the fit no number."""

Source = Literal["none", "scale", "logits", "probabilities", "features"]

NAMES: dict[Source, str] = {
    "none": "as it is",
    "scale": "temperature alone",
    "logits": "map of the logits",
    "probabilities": "map of the probabilities",
    "features": "head on the features",
}


@dataclass(frozen=True)
class Candidate:
    """One kind of correction, and its scores out of fold: on rows whose labels it was not fitted on.

    ``nll`` is the mean negative log-likelihood in nats per image, ``accuracy`` a share in [0, 1].
    """

    name: str
    source: Source
    ridge: float | None
    nll: float
    accuracy: float


class LinearMap(NamedTuple):
    """``scale * base + inputs @ weight + bias``, base being the teacher's centred logits."""

    scale: Float[Tensor, ""]
    weight: Float[Tensor, "inputs classes"]
    bias: Float[Tensor, " classes"]


class Inputs(NamedTuple):
    """Standardised inputs of a map, with the mean and deviation used (they do not depend on labels)."""

    values: Float[Tensor, "rows inputs"]
    mean: Float[Tensor, " inputs"]
    deviation: Float[Tensor, " inputs"]


class Data(NamedTuple):
    """The rows to fit: labels (two for mixed rows), folds by image, equal weight for each image."""

    label: Int[Tensor, " rows"]
    partner: Int[Tensor, " rows"]
    mix: Float[Tensor, " rows"]
    image: Int[Tensor, " rows"]
    weight: Float[Tensor, " rows"]
    fold: Int[Tensor, " rows"]
    keep: Int[Tensor, " rows"]
    fold_table: Tensor
    folds: int
    num_images: int
    num_classes: int

    @property
    def rows(self) -> Tensor:
        return torch.ones_like(self.fold, dtype=torch.bool)

    @classmethod
    def build(
        cls,
        outputs: Outputs,
        target: Target,
        index: Tensor | None,
        num_classes: int,
        folds: int,
        *,
        caller: str = "BiasCorrection.fit",
    ) -> "Data":
        if index is None:
            index = (
                target.index
                if target.index is not None
                else torch.arange(len(target.label), device=target.label.device)
            )
        if not len(outputs.logits) == len(target.label) == len(index):
            raise ValueError(
                f"{caller}: needs one label and one index a row, got {len(outputs.logits)} rows, "
                f"{len(target.label)} labels and {len(index)} indices; pass the three of the same rows."
            )
        strange = target.takes_part & ~target.valid & (target.label != UNLABELLED)
        strange = strange | (target.label >= num_classes)
        if strange.any():
            raise ValueError(
                f"{caller}: needs labels in 0..{num_classes - 1}, got {int(target.label[strange][0])}; "
                "num_classes is the number of the student's classes."
            )
        if outputs.num_classes and not outputs.logits.amax(dim=1).isfinite().all():
            row = int((~outputs.logits.amax(dim=1).isfinite()).nonzero()[0])
            raise ValueError(
                f"{caller}: needs finite logits, got NaN or infinity in row {row}; run the teacher in float32 or check its input."
            )
        keep = target.valid.nonzero()[:, 0]
        label, index = target.label[keep], index[keep]
        if len(index) and int(index.min()) < 0:
            raise ValueError(
                f"{caller}: needs indices from 0, got {int(index.min())}; number the training images from 0."
            )
        images, image = index.unique(return_inverse=True)
        if len(images) < 2 * folds:
            raise ValueError(
                f"{caller}: needs at least {2 * folds} images for {folds} folds, got {len(images)}; "
                "give it more labelled images, or fewer folds."
            )
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).to(image.device)
        if not outputs.num_classes:
            # A probe knows nothing of a class that is in no other fold. Elsewhere folds do not depend on labels, so
            # that a row's label reaches no map that corrects it, not even through the folds of others.
            order = _by_class(order, label, image)
        fold_of_image = order % folds
        table = torch.full((int(images.max()) + 1,), -1, dtype=torch.int16, device=image.device)
        table[images] = fold_of_image.to(torch.int16)
        views = torch.zeros(len(images), dtype=torch.float64, device=image.device).index_add_(
            0, image, torch.ones(len(image), dtype=torch.float64, device=image.device)
        )
        mixed = target.partner is not None and target.mix is not None
        return cls(
            label=label,
            partner=target.partner[keep] if mixed and target.partner is not None else label,
            mix=target.mix[keep].double()
            if mixed and target.mix is not None
            else torch.ones_like(views[image]),
            image=image,
            weight=1 / views[image],
            fold=fold_of_image[image],
            keep=keep,
            fold_table=table,
            folds=folds,
            num_images=len(images),
            num_classes=num_classes,
        )

    def nll(
        self, logits: Tensor, rows: Tensor | slice = slice(None), noise: "Noise | None" = None
    ) -> Float[Tensor, " rows"]:
        """Of the given labels; with ``noise``, ``logits`` are those of the true ones."""
        log_p = logits.log_softmax(dim=1)
        if noise is not None:
            log_p = noise.given(log_p.exp()).log()
        own = F.nll_loss(log_p, self.label[rows], reduction="none")
        partner = F.nll_loss(log_p, self.partner[rows], reduction="none")
        mix = self.mix[rows].to(log_p.dtype)
        # a label without a share says nothing, also one of probability 0
        return (mix * own).masked_fill(mix == 0, 0) + ((1 - mix) * partner).masked_fill(mix == 1, 0)

    def per_image(self, value: Tensor) -> Float[Tensor, " images"]:
        zeros = torch.zeros(self.num_images, dtype=torch.float64, device=value.device)
        return zeros.index_add_(0, self.image, self.weight * value.double())

    def accuracy(self, logits: Tensor) -> float:
        top = logits.argmax(dim=1)
        right = (top == self.label) | ((top == self.partner) & (self.mix < 1))
        return float(self.per_image(right).mean())


def _by_class(
    order: Int[Tensor, " images"], label: Int[Tensor, " rows"], image: Int[Tensor, " rows"]
) -> Int[Tensor, " images"]:
    """The places of images that are sorted by class, and by ``order`` within a class."""
    label_of = torch.zeros_like(order).index_copy_(0, image, label)
    place = torch.empty_like(order)
    place[torch.argsort(label_of * len(order) + order)] = torch.arange(len(order), device=order.device)
    return place


@runtime_checkable
class Noise(Protocol):
    """How wrong labels come about, with parameters to fit; see :mod:`outgrow.teacher.noise`."""

    @property
    def parameters(self) -> list[Tensor]: ...

    def given(self, true: Float[Tensor, "rows classes"]) -> Float[Tensor, "rows classes"]:
        """The probabilities of the given labels from those of the true ones."""
        ...

    def penalty(self) -> Tensor: ...


class Tried(NamedTuple):
    candidate: Candidate
    nll: Float[Tensor, " images"]
    maps: list[LinearMap]
    inputs: Inputs
    base: Tensor | None


def try_all(data: Data, outputs: Outputs, same_classes: bool, *, only_raw: bool) -> "list[Tried]":
    kept = Outputs(outputs.logits[data.keep], {k: v[data.keep] for k, v in outputs.features.items()})
    base = centred(kept.logits).double() if same_classes else None
    nothing = standardised(kept.logits.new_zeros(len(kept.logits), 0).double())
    tried: list[Tried] = []
    if base is not None:
        raw = lift(kept.logits).double()
        nll = data.per_image(data.nll(raw))
        tried.append(
            Tried(
                Candidate(NAMES["none"], "none", None, float(nll.mean()), data.accuracy(raw)),
                nll,
                [],
                nothing,
                None,
            )
        )
        if only_raw:
            return tried
        tried.append(_out_of_fold(data, "scale", nothing, base, None, []))
    sources: list[Source] = ["logits"] if outputs.num_classes else []
    if not outputs.num_classes and PENULTIMATE not in kept.features:
        raise ValueError(
            f"BiasCorrection.fit: needs logits or features[{PENULTIMATE!r}], got neither; build the teacher with "
            f"Teacher(model, taps=[{PENULTIMATE!r}])."
        )
    if sources and not same_classes:
        # where several teacher classes form one student class, their probabilities add
        sources.append("probabilities")
    if PENULTIMATE in kept.features:
        sources.append("features")
    for source in sources:
        inputs = standardised(inputs_of(kept, source).double())
        best, worse = float("inf"), 0
        maps: list[LinearMap] = []
        for ridge in RIDGES:  # from strong to weak, each warm-started from the one before
            attempt = _out_of_fold(data, source, inputs, base if source == "logits" else None, ridge, maps)
            tried.append(attempt)
            maps = attempt.maps
            worse = 0 if attempt.candidate.nll < best else worse + 1
            best = min(best, attempt.candidate.nll)
            if worse == 2:
                break
    return tried


def _out_of_fold(
    data: Data,
    source: Source,
    inputs: Inputs,
    base: Tensor | None,
    ridge: float | None,
    start: list[LinearMap],
) -> Tried:
    logits = inputs.values.new_zeros(len(data.label), data.num_classes)
    maps = []
    for number in range(data.folds):
        fitted = fit_map(data, inputs, base, ridge, data.fold != number, start[number] if start else None)
        rows = data.fold == number
        logits[rows] = apply_map(fitted, inputs.values[rows], None if base is None else base[rows])
        maps.append(fitted)
    nll = data.per_image(data.nll(logits))
    return Tried(
        Candidate(NAMES[source], source, ridge, float(nll.mean()), data.accuracy(logits)),
        nll,
        maps,
        inputs,
        base,
    )


def apply_map(fitted: LinearMap, inputs: Tensor, base: Tensor | None) -> Tensor:
    moved = inputs @ fitted.weight + fitted.bias
    return moved if base is None else fitted.scale * base + moved


def fit_map(
    data: Data,
    inputs: Inputs,
    base: Tensor | None,
    ridge: float | None,
    rows: Tensor,
    start: LinearMap | None,
    noise: "Noise | None" = None,
) -> LinearMap:
    """Penalised multinomial logistic regression: smooth, and convex for a fixed scale. With ``noise`` the map is that to the
    true labels, and the parameters of the noise are fitted too, in place, and the scale is drawn to that of ``start``."""
    x = inputs.values[rows]
    b = None if base is None else base[rows]
    weight = data.weight[rows]
    images = float(weight.sum())
    if start is None:
        start = LinearMap(
            x.new_ones(()), x.new_zeros(x.shape[1], data.num_classes), x.new_zeros(data.num_classes)
        )
    # fitting the logarithm keeps the scale positive; the floor keeps the logarithm finite
    usual = start.scale.clamp_min(1e-6).log()
    log_scale = usual.clone().requires_grad_(b is not None)
    map_, bias = start.weight.clone(), start.bias.clone()
    parameters = [log_scale] if b is not None else []
    if ridge is not None:
        parameters += [map_.requires_grad_(), bias.requires_grad_()]
    if noise is not None:
        parameters += noise.parameters
    if not parameters:
        return LinearMap(log_scale.exp(), map_, bias)

    def scale() -> Tensor:
        return log_scale.clamp(-LARGEST_LOG_SCALE, LARGEST_LOG_SCALE).exp()

    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=100,
        history_size=10,
        tolerance_grad=1e-5,
        tolerance_change=1e-7,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (
            weight * data.nll(apply_map(LinearMap(scale(), map_, bias), x, b), rows, noise)
        ).sum() / images
        if noise is not None:
            moved = (log_scale - usual).square()
            loss = loss + (noise.penalty() + 0.5 * SCALE_RIDGE * moved) / images
        if ridge is not None:
            loss = loss + 0.5 * ridge / images * (map_.square().sum() + bias.square().sum())
        loss.backward()
        return loss

    optimizer.step(closure)
    return LinearMap(scale().detach(), map_.detach(), bias.detach())


def choose(tried: list[Tried], data: Data) -> tuple[Tried, str]:
    """The simplest candidate that no other beats by two standard errors over images, and the reason."""
    best_map = min(
        (t for t in tried if t.candidate.ridge is not None), key=lambda t: t.candidate.nll, default=None
    )
    ladder = [t for t in tried if t.candidate.source in ("none", "scale")]
    if best_map is not None:
        ladder.append(best_map)
    chosen = ladder[0]
    reason = (
        "among the maps to the student's classes it has the best out-of-fold likelihood"
        if len(ladder) == 1
        else "nothing beats it by two standard errors"
    )
    for other in ladder[1:]:
        gain = chosen.nll - other.nll
        mean, error = float(gain.mean()), float(gain.std()) / data.num_images**0.5
        if mean > 2 * error:
            reason = (
                f"{other.candidate.name} instead of {chosen.candidate.name}: out of fold it is better by "
                f"{mean:.4f} nats an image (standard error {error:.4f})"
            )
            chosen = other
    return chosen, f"{chosen.candidate.name} is used: {reason}."


def centred(logits: Float[Tensor, "rows classes"]) -> Float[Tensor, "rows classes"]:
    logits = lift(logits)
    return logits - logits.mean(dim=1, keepdim=True)


def inputs_of(outputs: Outputs, source: Source) -> Float[Tensor, "rows inputs"]:
    if source == "logits":
        return centred(outputs.logits)
    if source == "features":
        if PENULTIMATE not in outputs.features:
            raise ValueError(
                f"BiasCorrection: was fitted on features[{PENULTIMATE!r}], got {sorted(outputs.features) or 'none'}; "
                f"build the teacher with Teacher(model, taps=[{PENULTIMATE!r}])."
            )
        return lift(outputs.features[PENULTIMATE]).flatten(1)
    if source == "probabilities":
        return lift(outputs.logits).softmax(dim=1)
    return lift(outputs.logits)[:, :0]


def standardised(values: Float[Tensor, "rows inputs"]) -> Inputs:
    mean = values.mean(dim=0)
    deviation = (values - mean).square().mean(dim=0).sqrt()
    deviation = torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation))
    return Inputs((values - mean) / deviation, mean, deviation)
