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
from typing import get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from outgrow.models.weight_file import read_safetensors, write_weights
from outgrow.outputs import Outputs, Target, as_outputs, as_target, warn_if_probabilities, with_logits
from outgrow.teacher.correction_fit import (
    Candidate,
    Data,
    Source,
    Tried,
    centred,
    choose,
    inputs_of,
    try_all,
)
from outgrow.teacher.counts import has_memorised
from outgrow.teacher.folds import fold_at, with_mean
from outgrow.teacher.noise import NoiseCandidate, NoiseReport, Wanted, find_noise
from outgrow.teacher.teacher import BaseTeacher


@dataclass(frozen=True)
class CorrectionReport:
    """What was tried, what was chosen, and why. ``raw`` is None where the classes differ. A map to the true classes, where labels
    are noisy, is the last candidate; its ``nll`` is that of the given labels, by map and noise together.

    ``memory`` holds the shares of fitted and of held-out rows on which the teacher is right, if it has memorised the fitted
    ones; else None.
    """

    candidates: tuple[Candidate, ...]
    chosen: Candidate
    raw: Candidate | None
    reason: str
    num_images: int
    memory: tuple[float, float] | None = None

    def __str__(self) -> str:
        width = max([22, *(len(c.name) + 1 for c in self.candidates)])
        lines = [
            f"{'correction':<{width}}{'ridge':>9}{'accuracy':>10}{'nll':>9}   (out of fold, {self.num_images} images)"
        ]
        for c in self.candidates:
            ridge = "" if c.ridge is None else f"{c.ridge:g}"
            mark = " <- chosen" if c == self.chosen else ""
            lines.append(f"{c.name:<{width}}{ridge:>9}{100 * c.accuracy:>9.2f}%{c.nll:>9.4f}{mark}")
        return "\n".join([*lines, self.reason])


class BiasCorrection(nn.Module):
    """One linear map from a teacher's outputs to corrected logits in the student's classes.

    Tried are: the teacher as it is; a temperature alone; ``W z + b`` on centred logits, by logistic
    regression with a ridge towards the (scaled) identity; and, where the outputs hold penultimate
    features, a linear head on those with a ridge towards zero. A teacher without logits (a backbone without a
    classifier) gets such a head: a linear probe, with folds that have the same share of every class. If the teacher has other classes than the student,
    only maps with a ridge towards zero are tried, from logits, probabilities and features. The candidate with the best
    out-of-fold likelihood is chosen. It must beat the unchanged teacher by two standard errors over images.

    It tells the truth only on rows that the teacher was not trained on. Give ``fit`` a ``held_out``
    part where that is in doubt: a teacher that is better on the fitted rows has memorised them, and
    is left alone with a warning.

    Where labels are wrong, a map that explains them is less sure of the true class than it should be. So the map to the true
    classes and the share of wrong labels are fitted together (``outgrow.teacher.noise``), if that makes the labels likelier by
    two standard errors. ``noise`` may be a share of wrong labels that is known, or ``"none"`` to take every label as right.
    :attr:`noise_matrix` is what :class:`outgrow.knowledge.posterior.Posterior` takes.

    Once fitted, ``correction(outputs, index=index)`` gives each row the map of the folds without
    it; rows that were not fitted, and all rows without ``index``, get the mean of the folds' maps.
    """

    scale: Tensor
    weight: Tensor
    bias: Tensor
    fold_of: Tensor
    noise_matrix: Tensor
    """``Q[true, given]``, mean over the folds; empty if no wrong labels are found, or noise was not asked for."""

    def __init__(self, num_classes: int, folds: int = 5, *, noise: Wanted = "estimate") -> None:
        super().__init__()
        if num_classes < 1 or folds < 2:
            raise ValueError(
                f"BiasCorrection: needs at least 1 class and 2 folds, got {num_classes} and {folds}; 5 folds are usual."
            )
        if noise not in ("none", "estimate") and not (isinstance(noise, float) and 0 < noise < 1):
            raise ValueError(
                f"BiasCorrection: noise needs 'estimate', 'none' or a share between 0 and 1, got {noise!r}; 'estimate' finds it."
            )
        self.num_classes, self.folds, self.noise = num_classes, folds, noise
        self.report: CorrectionReport | None = None
        self.noise_report: NoiseReport | None = None
        self.source: Source = "none"
        for name in ("scale", "weight", "bias", "fold_of"):
            self.register_buffer(name, torch.empty(0))
        # not in the state: a correction without it is the same as one of earlier versions
        self.register_buffer("noise_matrix", torch.empty(0), persistent=False)

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
        and a fold. Without it each row is an image of its own. Rows without a label are left out. ``held_out`` are outputs and labels of
        images like these that the teacher was certainly not trained on.
        """
        outputs, target = as_outputs(outputs, whose="teacher"), as_target(target)
        data = Data.build(outputs, target, index, self.num_classes, self.folds)
        for name in ("scale", "weight", "bias", "fold_of", "noise_matrix"):  # nothing of an earlier fit stays
            setattr(self, name, torch.empty(0))
        self.noise_report = None
        warn_if_probabilities(outputs.logits, whose="teacher")
        same_classes = outputs.num_classes == self.num_classes
        known = memorised(outputs, target, held_out) if same_classes else None
        tried = list(try_all(data, outputs, same_classes, only_raw=known is not None))
        chosen, reason = choose(tried, data)
        if known is not None:
            reason = (
                f"the teacher is right on {known[0]:.1%} of the rows to fit but on {known[1]:.1%} of held-out rows: it has "
                "memorised the former, which say nothing about its bias, so it is left as it is; fit the correction on rows "
                "that the teacher was not trained on, or use cross-fitted teachers."
            )
            warnings.warn(reason, stacklevel=2)
        elif self.noise != "none":
            chosen = self._with_noise(data, chosen, tried)
            if len(self.noise_matrix) and self.noise_report is not None:
                tried.append(chosen)
                reason = f"{chosen.candidate.name} is used: {self.noise_report.reason}"
        self.source = chosen.candidate.source
        self.report = CorrectionReport(
            candidates=tuple(t.candidate for t in tried),
            chosen=chosen.candidate,
            raw=next((t.candidate for t in tried if t.candidate.source == "none"), None),
            reason=reason,
            num_images=data.num_images,
            memory=known,
        )
        if chosen.candidate.source != "none":
            maps = chosen.maps
            mean, deviation = chosen.inputs.mean, chosen.inputs.deviation
            # the standardisation of the inputs goes into the map
            weights = [m.weight / deviation[:, None] for m in maps]
            biases = [m.bias - mean @ w for m, w in zip(maps, weights, strict=True)]
            self.scale = with_mean([m.scale for m in maps])
            self.weight = with_mean(weights)
            self.bias = with_mean(biases)
            self.fold_of = data.fold_table
        return self

    def _with_noise(self, data: Data, chosen: Tried, tried: list[Tried]) -> Tried:
        """``chosen`` with maps to the true classes, if labels are noisy."""
        # A temperature too: without noise in the model, the map that was best had to explain the noise.
        starts = [t for t in tried if t.candidate.source == "scale"]
        for source in ("logits", "features"):
            of_source = [t for t in tried if t.candidate.source == source]
            starts += [min(of_source, key=lambda t: t.candidate.nll)] if of_source else []
        found, self.noise_report = find_noise(data, chosen, starts, self.noise)
        if found is None:
            return chosen
        self.noise_matrix = torch.stack(found.matrices).mean(dim=0).float().to(data.label.device)
        start = found.tried.candidate
        candidate = Candidate(
            f"{start.name} + noise",
            start.source,
            start.ridge,
            found.candidate.nll,
            data.accuracy(found.logits),
        )
        return found.tried._replace(candidate=candidate, maps=found.maps)

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
        inputs = inputs_of(outputs, self.source)
        fitted, got = self.weight.shape[1], inputs.shape[1]
        if self.source == "scale":
            fitted, got = self.num_classes, outputs.num_classes
        if got != fitted:
            raise ValueError(
                f"BiasCorrection: needs outputs of the teacher that it was fitted to, {fitted} a row, got {got}; fit one for "
                "this teacher."
            )
        moves = outputs.num_classes == self.num_classes and self.source in ("scale", "logits")
        base = centred(outputs.logits) if moves else None
        with torch.autocast(inputs.device.type, enabled=False):  # it would round what has just been lifted
            result = self._mapped(self.folds, inputs, base)
            if index is not None:
                fold = fold_at(self.fold_of, index, num_rows=len(inputs))
                for number in range(self.folds):
                    result = torch.where(
                        (fold == number)[:, None], self._mapped(number, inputs, base), result
                    )
        return with_logits(outputs, result)

    def _mapped(self, number: int, inputs: Tensor, base: Tensor | None) -> Tensor:
        weight, bias = self.weight[number].to(inputs.dtype), self.bias[number].to(inputs.dtype)
        moved = torch.addmm(bias, inputs, weight)
        return moved if base is None else self.scale[number] * base + moved

    def save(self, path: str | Path) -> None:
        """Write maps, folds and report to one safetensors file, whole or not at all."""
        assert self.report is not None
        meta = {
            "num_classes": self.num_classes,
            "folds": self.folds,
            "source": self.source,
            "report": asdict(self.report),
        }
        tensors = self.state_dict()
        if self.noise_report is not None:
            meta["noise_report"] = asdict(self.noise_report)
            tensors["noise_matrix"] = self.noise_matrix
        write_weights(tensors, path, {"outgrow": json.dumps(meta)})

    @classmethod
    def load(cls, path: str | Path) -> "BiasCorrection":
        """Read what :meth:`save` wrote. ``ValueError`` for a file that is damaged, or is none of ours."""
        tensors, metadata = read_safetensors(path, caller="BiasCorrection.load")
        try:
            meta = json.loads(metadata["outgrow"])
            loaded = cls(meta["num_classes"], meta["folds"])
            report = meta["report"]
            loaded.source = meta["source"]
            loaded.report = CorrectionReport(
                candidates=tuple(Candidate(**c) for c in report["candidates"]),
                chosen=Candidate(**report["chosen"]),
                raw=Candidate(**report["raw"]) if report["raw"] else None,
                reason=report["reason"],
                num_images=report["num_images"],
                memory=tuple(report["memory"]) if report.get("memory") else None,
            )
            if noise := meta.get("noise_report"):
                loaded.noise_report = NoiseReport(
                    candidates=tuple(NoiseCandidate(**c) for c in noise["candidates"]),
                    chosen=NoiseCandidate(**noise["chosen"]),
                    reason=noise["reason"],
                    wrong=noise["wrong"],
                )
                loaded.noise_matrix = _noise_matrix(tensors.pop("noise_matrix"), loaded.num_classes)
            loaded._take(tensors)
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"BiasCorrection.load: needs a file that save() wrote, got {path}, in which something is missing or does "
                f"not fit ({error}); fit the correction again."
            ) from error
        return loaded

    def _take(self, tensors: dict[str, Tensor]) -> None:
        if tensors.keys() != self.state_dict().keys() or self.source not in get_args(Source):
            raise ValueError(f"tensors {', '.join(sorted(tensors))} for {self.source}")
        maps = self.folds + 1
        width = tensors["weight"].shape[1] if tensors["weight"].dim() == 3 else 0
        shapes = {
            "scale": (maps,),
            "weight": (maps, width, self.num_classes),
            "bias": (maps, self.num_classes),
        }
        for name, value in tensors.items():
            if self.source != "none" and name in shapes and value.shape != shapes[name]:
                raise ValueError(f"{name} has the shape {tuple(value.shape)}")
            if name == "fold_of" and (value.dim() != 1 or bool(((value < -1) | (value > self.folds)).any())):
                raise ValueError("fold_of names folds that there are not")
            if not value.isfinite().all():
                raise ValueError(f"{name} is not finite")
            setattr(self, name, value)


def _noise_matrix(value: Tensor, classes: int) -> Tensor:
    if len(value) and (value.shape != (classes, classes) or not bool(((value >= 0) & (value <= 1)).all())):
        raise ValueError(f"noise_matrix has the shape {tuple(value.shape)}, or is no probability")
    return value


class CorrectedTeacher(BaseTeacher):
    """``teacher`` with its bias taken out: a teacher like any other, in the student's classes.

    Training calls it with the samples' ``index``; without, every row gets the mean of the folds' maps.
    """

    def __init__(self, teacher: nn.Module, correction: BiasCorrection) -> None:
        super().__init__()
        self.teacher, self.correction = teacher, correction

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "..."], *, index: Int[Tensor, " rows"] | None = None) -> Outputs:
        return self.before_and_after(images, index=index)[1]

    @torch.no_grad()
    def before_and_after(
        self, images: Float[Tensor, "..."], *, index: Int[Tensor, " rows"] | None = None
    ) -> tuple[Outputs, Outputs]:
        """The outputs of the teacher as it is, and those after the correction, from one forward pass."""
        before = self.teacher(images, index=index)
        return before, self.correction(before, index=index)


def memorised(
    outputs: Outputs, target: Target, held_out: tuple[Outputs | Tensor, Target | Tensor] | None
) -> tuple[float, float] | None:
    """The share of fitted and of held-out rows on which the teacher is right, if it has memorised the former."""
    if held_out is None:
        return None
    other, other_target = as_outputs(held_out[0], whose="teacher"), as_target(held_out[1])
    largest = int(other_target.label.max()) if len(other_target.label) else 0
    if other.num_classes != outputs.num_classes or largest >= outputs.num_classes:
        raise ValueError(
            f"BiasCorrection.fit: needs held-out outputs and labels of the teacher's {outputs.num_classes} classes, got "
            f"{other.num_classes} classes and labels up to {largest}; pass those of images like the fitted ones."
        )
    fitted, held = _right(outputs, target), _right(other, other_target)
    label = target.label[target.valid]
    chance = float(label.bincount().max()) / len(label)
    if not has_memorised(int(fitted.sum()), len(fitted), int(held.sum()), len(held), chance):
        return None
    return float(fitted.mean()), float(held.mean())


def _right(outputs: Outputs, target: Target) -> Float[Tensor, " rows"]:
    top = outputs.logits.argmax(dim=1)
    right = top == target.label
    if target.partner is not None:
        right = right | (top == target.partner)
    return right[target.valid].float()
