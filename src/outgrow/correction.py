"""The bias of a teacher, estimated from all labels at once, out of fold.

A rule for rows looks at one label and moves one row. What is systematic in a teacher's error (two
classes confused, a shifted prior, another domain, other classes altogether) is shared by rows, and
one map, fitted once, can take it out:

    correction = BiasCorrection(num_classes).fit(outputs, target, index)
    teacher = CorrectedTeacher(teacher, correction)        # teacher(images, index=...)

Each row is corrected by a map that has not seen its label (folds by image), so that what is left
looks as it would on new data. Right and wrong are decided afterwards, and every rule composes.
"""

import json
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from outgrow.features import PENULTIMATE
from outgrow.outputs import Outputs, Target, as_outputs, as_target, lift, with_logits

RIDGES = (3e4, 3e3, 300.0, 30.0, 3.0, 0.3)
"""Strengths tried, strongest first, as pseudo-counts of images on standardised inputs. Ours."""

Source = Literal["none", "scale", "logits", "probabilities", "features"]


@dataclass(frozen=True)
class Candidate:
    """A way to correct, and how it does on rows whose labels it has not seen.

    ``nll`` is the mean negative log-likelihood in nats per image, ``accuracy`` a share in [0, 1].
    """

    name: str
    source: Source
    ridge: float | None
    nll: float
    accuracy: float


@dataclass(frozen=True)
class CorrectionReport:
    """What was tried, what was chosen, and why. ``raw`` is None where the classes differ."""

    candidates: tuple[Candidate, ...]
    chosen: Candidate
    raw: Candidate | None
    reason: str
    num_images: int

    def __str__(self) -> str:
        lines = [
            f"{'correction':<22}{'ridge':>9}{'accuracy':>10}{'nll':>9}   (out of fold, {self.num_images} images)"
        ]
        for c in self.candidates:
            ridge = "" if c.ridge is None else f"{c.ridge:g}"
            mark = " <- chosen" if c == self.chosen else ""
            lines.append(f"{c.name:<22}{ridge:>9}{100 * c.accuracy:>9.2f}%{c.nll:>9.4f}{mark}")
        return "\n".join([*lines, self.reason])


class _Map(NamedTuple):
    """``scale * base + inputs @ weight + bias``, base being the teacher's centred logits."""

    scale: Float[Tensor, ""]
    weight: Float[Tensor, "inputs classes"]
    bias: Float[Tensor, " classes"]


class BiasCorrection(nn.Module):
    """One linear map from a teacher's outputs to corrected logits in the student's classes.

    Tried are: the teacher as it is; a temperature alone; ``W z + b`` on centred logits, by logistic
    regression with a ridge towards the (scaled) identity; and, where the outputs hold penultimate
    features, a linear head on those with a ridge towards zero. Where the teacher's classes are not
    the student's only maps are possible, with a ridge towards zero, one of the probabilities too. The out-of-fold likelihood
    chooses; something more than the teacher as it is must beat it by two standard errors over images.

    It tells the truth only on rows that the teacher was not trained on. Give ``fit`` a ``held_out``
    part where that is in doubt: a teacher that is better on the fitted rows has memorised them, and
    is left alone with a warning.

    Once fitted, ``correction(outputs, index=index)`` gives each row the map of the folds without
    it; rows that were not fitted, and all rows without ``index``, get the map of all rows.
    """

    scale: Tensor
    weight: Tensor
    bias: Tensor
    fold_of: Tensor

    def __init__(self, num_classes: int, folds: int = 5) -> None:
        super().__init__()
        if num_classes < 1 or folds < 2:
            raise ValueError(
                f"BiasCorrection: needs at least 1 class and 2 folds, got {num_classes} and {folds}; 5 folds are usual."
            )
        self.num_classes, self.folds = num_classes, folds
        self.report: CorrectionReport | None = None
        self.source: Source = "none"
        for name in ("scale", "weight", "bias", "fold_of"):
            self.register_buffer(name, torch.empty(0))

    def fit(
        self,
        outputs: Outputs | Tensor,
        target: Target | Tensor,
        index: Int[Tensor, " rows"] | None = None,
        *,
        held_out: tuple[Outputs | Tensor, Target | Tensor] | None = None,
    ) -> "BiasCorrection":
        """Fit on the teacher's outputs for views of training images.

        ``index`` (or ``target.index``) is the image of each row; several views of one image share it,
        and a fold. Without it each row is an image of its own. ``held_out`` are outputs and labels of
        images like these that the teacher was certainly not trained on.
        """
        outputs, target = as_outputs(outputs, whose="teacher"), as_target(target)
        data = _Data.build(outputs, target, index, self.num_classes, self.folds)
        same_classes = outputs.num_classes == self.num_classes
        memorised = _memorised(outputs, target, held_out) if same_classes else None
        tried = list(_try_all(data, outputs, same_classes, only_raw=memorised is not None))
        chosen, reason = _choose(tried, data)
        if memorised is not None:
            reason = memorised
            warnings.warn(memorised, stacklevel=2)
        self.source = chosen.candidate.source
        self.report = CorrectionReport(
            candidates=tuple(t.candidate for t in tried),
            chosen=chosen.candidate,
            raw=next((t.candidate for t in tried if t.candidate.source == "none"), None),
            reason=reason,
            num_images=data.num_images,
        )
        if chosen.candidate.source != "none":
            whole = _fit_map(
                data, chosen.inputs, chosen.base, chosen.candidate.ridge, data.rows, chosen.maps[-1]
            )
            maps = [*chosen.maps, whole]
            mean, deviation = chosen.inputs.mean, chosen.inputs.deviation
            # the standardisation of the inputs goes into the map
            weights = [m.weight / deviation[:, None] for m in maps]
            biases = [m.bias - mean @ w for m, w in zip(maps, weights, strict=True)]
            self.scale = torch.stack([m.scale for m in maps]).float()
            self.weight = torch.stack(weights).float()
            self.bias = torch.stack(biases).float()
            self.fold_of = data.fold_table
        return self

    @property
    def is_identity(self) -> bool:
        """Whether the teacher is left as it is."""
        return self.source == "none"

    def forward(self, outputs: Outputs | Tensor, *, index: Int[Tensor, " rows"] | None = None) -> Outputs:
        outputs = as_outputs(outputs, whose="teacher")
        if self.report is None:
            raise ValueError(
                "BiasCorrection: needs to be fitted, got none; call .fit(outputs, target, index) first."
            )
        if self.is_identity:
            return outputs
        centred = _centred(outputs.logits)
        inputs = _inputs(outputs, self.source)
        base = (
            centred
            if outputs.num_classes == self.num_classes and self.source in ("scale", "logits")
            else None
        )
        result = self._mapped(self.folds, inputs, base)
        if index is not None:
            fold = self._fold(index)
            for number in range(self.folds):
                result = torch.where((fold == number)[:, None], self._mapped(number, inputs, base), result)
        return with_logits(outputs, result)

    def _mapped(self, number: int, inputs: Tensor, base: Tensor | None) -> Tensor:
        moved = torch.addmm(self.bias[number], inputs, self.weight[number])
        return moved if base is None else self.scale[number] * base + moved

    def _fold(self, index: Int[Tensor, " rows"]) -> Int[Tensor, " rows"]:
        known = (index >= 0) & (index < len(self.fold_of))
        return torch.where(known, self.fold_of[index.clamp(0, len(self.fold_of) - 1)].long(), -1)

    def save(self, path: str | Path) -> None:
        """Write maps, folds and report to one safetensors file."""
        from safetensors.torch import save_file

        assert self.report is not None
        meta = {
            "num_classes": self.num_classes,
            "folds": self.folds,
            "source": self.source,
            "report": asdict(self.report),
        }
        save_file(
            {k: v.contiguous() for k, v in self.state_dict().items()}, path, {"outgrow": json.dumps(meta)}
        )

    @classmethod
    def load(cls, path: str | Path) -> "BiasCorrection":
        """Read what :meth:`save` wrote."""
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            meta = json.loads(file.metadata()["outgrow"])
            loaded = cls(meta["num_classes"], meta["folds"])
            for name in file.keys():  # noqa: SIM118  (not a dictionary)
                setattr(loaded, name, file.get_tensor(name))
        report = meta["report"]
        loaded.source = meta["source"]
        loaded.report = CorrectionReport(
            candidates=tuple(Candidate(**c) for c in report["candidates"]),
            chosen=Candidate(**report["chosen"]),
            raw=Candidate(**report["raw"]) if report["raw"] else None,
            reason=report["reason"],
            num_images=report["num_images"],
        )
        return loaded


class CorrectedTeacher(nn.Module):
    """``teacher`` with its bias taken out: a teacher like any other, in the student's classes.

    Training calls it with the samples' ``index``; without, every row gets the map of all rows.
    """

    def __init__(self, teacher: nn.Module, correction: BiasCorrection) -> None:
        super().__init__()
        self.teacher, self.correction = teacher, correction

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "..."], *, index: Int[Tensor, " rows"] | None = None) -> Outputs:
        return self.correction(self.teacher(images), index=index)


class _Inputs(NamedTuple):
    """Standardised inputs of a map, and how they were standardised (from inputs alone: no labels)."""

    values: Float[Tensor, "rows inputs"]
    mean: Float[Tensor, " inputs"]
    deviation: Float[Tensor, " inputs"]


class _Data(NamedTuple):
    """The rows to fit: labels (two for mixed rows), folds by image, each image weighing the same."""

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
        cls, outputs: Outputs, target: Target, index: Tensor | None, num_classes: int, folds: int
    ) -> "_Data":
        if index is None:
            index = (
                target.index
                if target.index is not None
                else torch.arange(len(target.label), device=target.label.device)
            )
        if not len(outputs.logits) == len(target.label) == len(index):
            raise ValueError(
                f"BiasCorrection.fit: needs one label and one index a row, got {len(outputs.logits)} rows, "
                f"{len(target.label)} labels and {len(index)} indices."
            )
        keep = target.valid.nonzero()[:, 0]
        label, index = target.label[keep], index[keep]
        if len(label) and (int(label.min()) < 0 or int(label.max()) >= num_classes):
            raise ValueError(
                f"BiasCorrection.fit: needs labels in 0..{num_classes - 1}, got up to {int(label.max())}; "
                "num_classes is the number of the student's classes."
            )
        images, image = index.unique(return_inverse=True)
        if len(images) < 2 * folds:
            raise ValueError(
                f"BiasCorrection.fit: needs at least {2 * folds} images for {folds} folds, got {len(images)}; "
                "give it more labelled images, or fewer folds."
            )
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).to(image.device)
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

    def nll(self, logits: Tensor, rows: Tensor | slice = slice(None)) -> Float[Tensor, " rows"]:
        log_p = logits.log_softmax(dim=1)
        own = F.nll_loss(log_p, self.label[rows], reduction="none")
        partner = F.nll_loss(log_p, self.partner[rows], reduction="none")
        mix = self.mix[rows].to(log_p.dtype)
        return mix * own + (1 - mix) * partner

    def per_image(self, value: Tensor) -> Float[Tensor, " images"]:
        zeros = torch.zeros(self.num_images, dtype=torch.float64, device=value.device)
        return zeros.index_add_(0, self.image, self.weight * value.double())

    def accuracy(self, logits: Tensor) -> float:
        top = logits.argmax(dim=1)
        right = (top == self.label) | ((top == self.partner) & (self.mix < 1))
        return float(self.per_image(right).mean())


class _Tried(NamedTuple):
    candidate: Candidate
    nll: Float[Tensor, " images"]
    maps: list[_Map]
    inputs: _Inputs
    base: Tensor | None


def _try_all(data: _Data, outputs: Outputs, same_classes: bool, *, only_raw: bool) -> "list[_Tried]":
    kept = Outputs(outputs.logits[data.keep], {k: v[data.keep] for k, v in outputs.features.items()})
    base = _centred(kept.logits).double() if same_classes else None
    nothing = _standardised(kept.logits.new_zeros(len(kept.logits), 0).double())
    tried: list[_Tried] = []
    if base is not None:
        raw = lift(kept.logits).double()
        nll = data.per_image(data.nll(raw))
        tried.append(
            _Tried(
                Candidate("as it is", "none", None, float(nll.mean()), data.accuracy(raw)),
                nll,
                [],
                nothing,
                None,
            )
        )
        if only_raw:
            return tried
        tried.append(_out_of_fold(data, "temperature alone", "scale", nothing, base, None, []))
    sources: list[tuple[str, Source]] = [("map of the logits", "logits")]
    if not same_classes:
        # several of the teacher's classes make one of the student's: their probabilities add up
        sources.append(("map of the probabilities", "probabilities"))
    if PENULTIMATE in kept.features:
        sources.append(("head on the features", "features"))
    for name, source in sources:
        inputs = _standardised(_inputs(kept, source).double())
        best, worse = float("inf"), 0
        maps: list[_Map] = []
        for ridge in RIDGES:  # from strong to weak, each starting where the last one ended
            attempt = _out_of_fold(
                data, name, source, inputs, base if source == "logits" else None, ridge, maps
            )
            tried.append(attempt)
            maps = attempt.maps
            worse = 0 if attempt.candidate.nll < best else worse + 1
            best = min(best, attempt.candidate.nll)
            if worse == 2:
                break
    return tried


def _out_of_fold(
    data: _Data,
    name: str,
    source: Source,
    inputs: _Inputs,
    base: Tensor | None,
    ridge: float | None,
    start: list[_Map],
) -> _Tried:
    logits = inputs.values.new_zeros(len(data.label), data.num_classes)
    maps = []
    for number in range(data.folds):
        fitted = _fit_map(data, inputs, base, ridge, data.fold != number, start[number] if start else None)
        rows = data.fold == number
        logits[rows] = _evaluate(fitted, inputs.values[rows], None if base is None else base[rows])
        maps.append(fitted)
    nll = data.per_image(data.nll(logits))
    return _Tried(
        Candidate(name, source, ridge, float(nll.mean()), data.accuracy(logits)), nll, maps, inputs, base
    )


def _evaluate(fitted: _Map, inputs: Tensor, base: Tensor | None) -> Tensor:
    moved = inputs @ fitted.weight + fitted.bias
    return moved if base is None else fitted.scale * base + moved


def _fit_map(
    data: _Data, inputs: _Inputs, base: Tensor | None, ridge: float | None, rows: Tensor, start: _Map | None
) -> _Map:
    """Penalised multinomial logistic regression; convex for a fixed scale, smooth in all."""
    x = inputs.values[rows]
    b = None if base is None else base[rows]
    weight = data.weight[rows]
    images = float(weight.sum())
    if start is None:
        start = _Map(x.new_ones(()), x.new_zeros(x.shape[1], data.num_classes), x.new_zeros(data.num_classes))
    scale = start.scale.clone().requires_grad_(b is not None)
    map_, bias = start.weight.clone(), start.bias.clone()
    parameters = [scale] if b is not None else []
    if ridge is not None:
        parameters += [map_.requires_grad_(), bias.requires_grad_()]
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
        loss = (weight * data.nll(_evaluate(_Map(scale, map_, bias), x, b), rows)).sum() / images
        if ridge is not None:
            loss = loss + 0.5 * ridge / images * (map_.square().sum() + bias.square().sum())
        loss.backward()
        return loss

    optimizer.step(closure)
    return _Map(scale.detach(), map_.detach(), bias.detach())


def _choose(tried: list[_Tried], data: _Data) -> tuple[_Tried, str]:
    """The simplest that nothing beats by two standard errors over images."""
    best_map = min(
        (t for t in tried if t.candidate.ridge is not None), key=lambda t: t.candidate.nll, default=None
    )
    ladder = [t for t in tried if t.candidate.source in ("none", "scale")]
    if best_map is not None:
        ladder.append(best_map)
    chosen = ladder[0]
    reason = (
        "the only way to the student's classes"
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


def _memorised(
    outputs: Outputs, target: Target, held_out: tuple[Outputs | Tensor, Target | Tensor] | None
) -> str | None:
    """Why the teacher must be left alone, if it is much better on the fitted rows than on others."""
    if held_out is None:
        return None
    other, other_target = as_outputs(held_out[0], whose="teacher"), as_target(held_out[1])
    fitted = _right(outputs, target)
    held = _right(other, other_target)
    gap = float(fitted.mean() - held.mean())
    error = float((fitted.var() / len(fitted) + held.var() / len(held)).sqrt())
    # 2 points: below that a correction is worth more than the optimism costs; 3 errors: not by chance
    if gap <= max(0.02, 3 * error):
        return None
    return (
        f"the teacher is right on {float(fitted.mean()):.1%} of the rows to fit but on {float(held.mean()):.1%} of held-out "
        "rows: it has memorised the former, which say nothing about its bias, so it is left as it is; fit the correction "
        "on rows that the teacher was not trained on, or use cross-fitted teachers."
    )


def _right(outputs: Outputs, target: Target) -> Float[Tensor, " rows"]:
    top = outputs.logits.argmax(dim=1)
    right = top == target.label
    if target.partner is not None:
        right = right | (top == target.partner)
    return right[target.valid].float()


def _centred(logits: Float[Tensor, "rows classes"]) -> Float[Tensor, "rows classes"]:
    logits = lift(logits)
    return logits - logits.mean(dim=1, keepdim=True)


def _inputs(outputs: Outputs, source: Source) -> Float[Tensor, "rows inputs"]:
    if source == "logits":
        return _centred(outputs.logits)
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


def _standardised(values: Float[Tensor, "rows inputs"]) -> _Inputs:
    mean = values.mean(dim=0)
    deviation = (values - mean).square().mean(dim=0).sqrt()
    deviation = torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation))
    return _Inputs((values - mean) / deviation, mean, deviation)
