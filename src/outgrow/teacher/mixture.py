"""Several teachers as one: the weighted mean of their probabilities, with weights that are fitted on the labels.

    mixture = Mixture(len(teachers)).fit([outputs_of_one, outputs_of_another], target, index)
    teacher = MixedTeacher(teachers, mixture)               # teacher(images, index=...)

The weights maximise the likelihood of the labels (stacking). Fit them on outputs that have not seen the labels of their
rows: those of corrected teachers, called with ``index``.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from outgrow.models.weight_file import read_safetensors, write_weights
from outgrow.outputs import Outputs, Target, as_outputs, as_target, lift
from outgrow.teacher.correction_fit import Data
from outgrow.teacher.folds import fold_at, with_mean
from outgrow.teacher.teacher import BaseTeacher

LEAST_WEIGHT = 1e-3
"""A teacher with less weight than this gets none, and is not computed. Our choice."""
MAX_STEPS = 1000
"""Most steps of the fit. It ends earlier once no weights can be better by more than :data:`TOLERANCE`."""
TOLERANCE = 1e-6
"""In nats an image."""


@dataclass(frozen=True)
class MixtureReport:
    """The weights (mean over the folds), and mean negative log-likelihoods of the given labels out of fold, in nats an image:
    under each teacher alone, and under the mixture. ``accuracy`` is how often the mixture agrees with the label."""

    weights: tuple[float, ...]
    alone: tuple[float, ...]
    nll: float
    accuracy: float
    num_images: int

    def __str__(self) -> str:
        lines = [f"{'teacher':<10}{'weight':>9}{'nll':>9}   (out of fold, {self.num_images} images)"]
        for number, (weight, nll) in enumerate(zip(self.weights, self.alone, strict=True), start=1):
            lines.append(f"{number:<10}{weight:>9.3f}{nll:>9.4f}")
        return "\n".join([*lines, f"{'together':<19}{self.nll:>9.4f}"])


class Mixture(nn.Module):
    """The weights of several teachers, fitted by maximum likelihood.

    Once fitted, ``mixture(outputs, index=index)`` gives each row weights that were fitted without its image. Rows that
    were not fitted, and all rows without ``index``, get the mean of the folds' weights. The mean is of probabilities (a
    product of experts would be a mean of logits), and is handed on as its logarithm, so that a loss softens it by its
    temperature: teachers are mixed first.
    """

    weights: Tensor
    fold_of: Tensor

    def __init__(self, num_teachers: int, folds: int = 5) -> None:
        super().__init__()
        if num_teachers < 1 or folds < 2:
            raise ValueError(
                f"Mixture: needs at least 1 teacher and 2 folds, got {num_teachers} and {folds}; 5 folds are usual."
            )
        self.num_teachers, self.folds = num_teachers, folds
        self.report: MixtureReport | None = None
        self._used: list[int] = []
        self.register_buffer("weights", torch.empty(0))
        self.register_buffer("fold_of", torch.empty(0, dtype=torch.int16))

    @classmethod
    def of(cls, weights: Sequence[float]) -> "Mixture":
        """Given weights, the same for all rows. They are divided by their sum.

        >>> Mixture.of([3.0, 1.0])([torch.tensor([[0.2, 0.8]]).log(), torch.tensor([[0.6, 0.4]]).log()]).logits.exp()
        tensor([[0.3000, 0.7000]])
        """
        values = torch.tensor([float(weight) for weight in weights])
        if (
            not len(values)
            or bool((values < 0).any())
            or not float(values.sum()) > 0
            or not values.isfinite().all()
        ):
            raise ValueError(
                f"Mixture: needs weights of 0 or more, not all 0, got {list(weights)}; [1, 1] is a plain mean."
            )
        made = cls(len(values))
        made.weights = (values / values.sum()).expand(made.folds + 1, -1).clone()
        return made

    @torch.no_grad()
    def fit(
        self,
        outputs: Sequence[Outputs | Tensor],
        target: Target | Tensor,
        index: Int[Tensor, " rows"] | None = None,
        *,
        noise: Tensor | None = None,
    ) -> "Mixture":
        """Fit on the outputs of all teachers, in the same classes, for the same rows.

        ``index`` (or ``target.index``) is the image of each row, as in :meth:`outgrow.BiasCorrection.fit`. Rows without a
        label are left out.

        ``noise``: where labels are wrong, ``p(given | true)`` of shape ``[true, given]``, such as
        ``BiasCorrection.noise_matrix``. The outputs are then beliefs in the true classes. The weights maximise the likelihood of
        the given labels, and the report states it.
        """
        given, target = [as_outputs(one, whose="teacher") for one in outputs], as_target(target)
        shapes = {tuple(one.logits.shape) for one in given}
        if len(given) != self.num_teachers or len(shapes) != 1:
            raise ValueError(
                f"Mixture.fit: needs logits of {self.num_teachers} teachers for the same rows and classes, got "
                f"{len(given)} of shapes {sorted(shapes)}; correct teachers with other classes first."
            )
        classes = given[0].num_classes
        data = Data.build(given[0], target, index, classes, self.folds, caller="Mixture.fit")
        if noise is not None:
            _check_noise(noise, classes)
        true = torch.stack([lift(one.logits[data.keep]).double().log_softmax(dim=1) for one in given])
        # of the given labels: noise is linear, so the mean of the teachers commutes with it
        log_p = true if noise is None else (true.exp() @ noise.to(true)).log()
        seen = torch.cat([_at(log_p, data.label), _at(log_p, data.partner)])
        weight = torch.cat([data.weight * data.mix, data.weight * (1 - data.mix)])
        fold = data.fold.repeat(2)
        fitted = [
            stacking_weights(seen[fold != number], weight[fold != number]) for number in range(self.folds)
        ]
        self.weights, self.fold_of, self._used = with_mean(fitted), data.fold_table, []
        mixed = log_mean(log_p, torch.stack(fitted)[data.fold])
        self.report = MixtureReport(
            weights=tuple(self.weights[-1].tolist()),
            alone=tuple(float(data.per_image(data.nll(one)).mean()) for one in log_p),
            nll=float(data.per_image(data.nll(mixed)).mean()),
            accuracy=data.accuracy(log_mean(true, torch.stack(fitted)[data.fold])),
            num_images=data.num_images,
        )
        return self

    @property
    def used(self) -> list[int]:
        """The numbers of the teachers that have any weight."""
        if not self._used:  # once: to look at the weights in every step would stall a device
            self._used = (self.weights > 0).any(dim=0).nonzero()[:, 0].tolist()
        return self._used

    def forward(
        self, outputs: Sequence[Outputs | Tensor], *, index: Int[Tensor, " rows"] | None = None
    ) -> Outputs:
        """The mixed logits: of all teachers, or of those that are :attr:`used`, in their order."""
        if not len(self.weights):
            raise ValueError("Mixture: needs weights, got none; call .fit(outputs, target, index) first.")
        used = self.used
        given = [as_outputs(one, whose="teacher").logits for one in outputs]
        if len(given) == self.num_teachers:
            given = [given[number] for number in used]
        if len(given) != len(used):
            raise ValueError(
                f"Mixture: needs the outputs of {self.num_teachers} teachers, got {len(given)}; pass one for each."
            )
        if len(given) == 1:  # its logits as they are: a mean of one would only shift them
            return Outputs(given[0])
        weights = self.weights[:, used]
        log_p = torch.stack([lift(one).log_softmax(dim=1) for one in given])
        at = (
            weights[-1:].expand(log_p.shape[1], -1)
            if index is None
            else weights[fold_at(self.fold_of, index, num_rows=log_p.shape[1])]
        )
        return Outputs(log_mean(log_p, at.to(log_p.dtype)))

    def save(self, path: str | Path) -> None:
        """Write weights, folds and report to one safetensors file, whole or not at all."""
        assert self.report is not None
        meta = {"folds": self.folds, "num_teachers": self.num_teachers, "mixture": asdict(self.report)}
        write_weights(self.state_dict(), path, {"outgrow": json.dumps(meta)})

    @classmethod
    def load(cls, path: str | Path) -> "Mixture":
        """Read what :meth:`save` wrote. ``ValueError`` for a file that is damaged, or is none of ours."""
        tensors, metadata = read_safetensors(path, caller="Mixture.load")
        try:
            meta = json.loads(metadata["outgrow"])
            loaded = cls(meta["num_teachers"], meta["folds"])
            report = meta["mixture"]
            loaded.report = MixtureReport(
                **{**report, "weights": tuple(report["weights"]), "alone": tuple(report["alone"])}
            )
            weights, fold_of = tensors["weights"], tensors["fold_of"]
            if weights.shape != (loaded.folds + 1, loaded.num_teachers) or not weights.isfinite().all():
                raise ValueError(f"weights of the shape {tuple(weights.shape)}")
            if fold_of.dim() != 1 or bool(((fold_of < -1) | (fold_of >= loaded.folds)).any()):
                raise ValueError("fold_of names folds that there are not")
            loaded.weights, loaded.fold_of = weights, fold_of
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"Mixture.load: needs a file that save() wrote, got {path}, in which something is missing or does not fit "
                f"({error}); fit the mixture again."
            ) from error
        return loaded


class MixedTeacher(BaseTeacher):
    """Several teachers as one, in the same classes: the weighted mean of their probabilities, as logits.

    ``weights`` are a fitted :class:`Mixture`, or one number for each teacher. Teachers without weight are not computed. The
    outputs have no features: those of several nets have no mean.

    >>> from outgrow.teacher import NoTeacher
    >>> plain = MixedTeacher([NoTeacher(2), NoTeacher(2)], [1.0, 1.0])
    >>> plain(torch.zeros(1, 3, 4, 4)).logits.softmax(dim=1)
    tensor([[0.5000, 0.5000]])
    """

    def __init__(self, teachers: Sequence[nn.Module], weights: Mixture | Sequence[float]) -> None:
        super().__init__()
        self.mixture = weights if isinstance(weights, Mixture) else Mixture.of(weights)
        if len(teachers) != self.mixture.num_teachers:
            raise ValueError(
                f"MixedTeacher: needs one weight for each teacher, got {self.mixture.num_teachers} for {len(teachers)}; "
                "pass as many."
            )
        self.teachers = nn.ModuleList(teachers)

    def at(self, epoch: int | None) -> None:
        for one in self.teachers:
            if isinstance(one, BaseTeacher):
                one.at(epoch)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "..."], *, index: Int[Tensor, " rows"] | None = None) -> Outputs:
        return self.mixture([self.teachers[k](images, index=index) for k in self.mixture.used], index=index)


def stacking_weights(
    log_p: Float[Tensor, "rows teachers"], weight: Float[Tensor, " rows"]
) -> Float[Tensor, " teachers"]:
    r"""The weights :math:`w` on the simplex that maximise :math:`\sum_i v_i \log \sum_k w_k p_{ik}`.

    ``log_p`` are the log-probabilities of the labels, ``weight`` the weight :math:`v` of each row. The problem is concave.
    Expectation-maximisation multiplies each weight by its gradient, which is at most 1 at the optimum, and the logarithm of the
    largest gradient bounds what is left to gain.

    A row on which all teachers rule the label out is as unlikely under any weights, so it has no say; nor has a row of weight 0.
    Without other rows all weights are equal. The only teacher that thinks some label possible keeps its weight, however small:
    without it that label would have probability 0.

    Reference: Wolpert (1992), Stacked generalization; Smyth and Wolpert (1999), Linearly combining density estimators via
    stacking, section 3.

    >>> stacking_weights(torch.tensor([[0.9, 0.2], [0.8, 0.3]]).log(), torch.ones(2))
    tensor([1., 0.], dtype=torch.float64)
    """
    teachers = log_p.shape[1]
    best = log_p.amax(dim=1, keepdim=True)
    known = best[:, 0].isfinite() & (weight > 0)
    p, share = (log_p - best)[known].double().exp(), weight[known].double()
    share = share / share.sum()
    found = p.new_full((teachers,), 1 / teachers)
    if len(p):
        for _ in range(MAX_STEPS):
            gradient = (share / (p @ found)) @ p
            if float(gradient.max()) <= 1 + TOLERANCE:
                break
            found = found * gradient
    kept = found >= LEAST_WEIGHT
    lost = ~(p[:, kept] > 0).any(dim=1)
    kept[p[lost].argmax(dim=1)] = True
    found = torch.where(kept, found, 0.0)
    return found / found.sum()


def log_mean(
    log_p: Float[Tensor, "teachers rows classes"], weights: Float[Tensor, "rows teachers"]
) -> Float[Tensor, "rows classes"]:
    """The logarithm of the weighted mean of probabilities, in log space."""
    return (log_p + weights.T.log()[:, :, None]).logsumexp(dim=0)


def _check_noise(noise: Tensor, classes: int) -> None:
    square = noise.shape == (classes, classes)
    if not (square and bool((noise >= 0).all()) and bool(((noise.sum(dim=1) - 1).abs() < 1e-3).all())):
        raise ValueError(
            f"Mixture.fit: needs noise[true, given] of {classes} x {classes} classes, each row a probability, got shape "
            f"{tuple(noise.shape)}{', whose rows are none' if square else ''}; take BiasCorrection(...).noise_matrix."
        )


def _at(
    log_p: Float[Tensor, "teachers rows classes"], label: Int[Tensor, " rows"]
) -> Float[Tensor, "rows teachers"]:
    return log_p.gather(2, label[None, :, None].expand(len(log_p), -1, 1))[:, :, 0].T
