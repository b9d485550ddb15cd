"""How far a teacher is trusted on a row: a factor of the row's weight.

    Confidence     1 if the teacher is confident enough, else 0
    Reliability    how often the teacher is right at that confidence, fitted on labelled rows

Both map :class:`outgrow.Knowledge` to knowledge with other weights. By default they act on rows without a label,
since the teacher's answer cannot be checked there. They read the teacher's logits as they are before a rule for wrong
rows corrects them, at temperature 1.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from outgrow import spec
from outgrow.knowledge.split import safe_label, top_class, wrong_rows
from outgrow.outputs import Knowledge, Outputs, Target, as_outputs, as_target, lift
from outgrow.teacher.folds import as_index, fold_at

Judged = Literal["unlabelled", "all"]
LEAST_INFORMED = 0.05
"""Least ``Q[j, j] - q`` of a class by which agreement with noisy labels is divided. Our choice: it bounds the weight of a row."""


@runtime_checkable
class Trust(Protocol):
    """Knowledge to knowledge with other row weights; see :func:`weighted`."""

    def __call__(self, knowledge: Knowledge) -> Knowledge: ...


def confidence(logits: Float[Tensor, "rows classes"]) -> Float[Tensor, " rows"]:
    """The largest probability of each row, at temperature 1.

    >>> confidence(torch.tensor([[0.0, 0.0], [0.0, 4.0]]))
    tensor([0.5000, 0.9820])
    """
    if not logits.numel():
        return lift(logits.new_zeros(len(logits)))
    return lift(logits).log_softmax(dim=1).amax(dim=1).exp()


def weighted(knowledge: Knowledge, factor: Float[Tensor, " rows"], rows: Judged = "unlabelled") -> Knowledge:
    """``knowledge`` with the weights of ``rows`` multiplied by ``factor``; the others keep theirs.

    A row whose factor is 0 is left out, as by the rule ``drop``: it still counts in the divisor of a loss under
    ``normalize="rows"``, and not under ``"subset"``.
    """
    target = knowledge.target
    judged = target.takes_part if rows == "all" else target.takes_part & ~target.valid
    trust = torch.where(judged, factor.to(knowledge.weight.dtype), 1.0)
    return replace(knowledge, weight=knowledge.weight * trust, trust=trust, partial=True)


@dataclass(frozen=True)
class Confidence:
    """Leaves out rows on which the teacher's largest probability is below ``threshold``.

    >>> from outgrow.knowledge import rectify
    >>> knowledge = rectify(torch.tensor([[0.0, 0.0], [0.0, 4.0]]), torch.tensor([-1, -1]))
    >>> Confidence(0.8)(knowledge).weight
    tensor([0., 1.])
    """

    threshold: float = 0.8
    rows: Judged = "unlabelled"

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ValueError(
                f"confidence: needs a threshold in (0, 1], got {self.threshold}; 0.8 is the default."
            )
        _check_rows("confidence", self.rows)

    def __call__(self, knowledge: Knowledge) -> Knowledge:
        below = confidence(knowledge.teacher.logits) < self.threshold  # a NaN stays, and shows in the loss
        return weighted(knowledge, 1.0 - below.float(), self.rows)


class Reliability(nn.Module):
    """Weighs rows by ``P(right | confidence)``: how often the teacher is right when it is this confident.

    The curve is an isotonic regression (scikit-learn) on labelled rows, where right and wrong are known. Fit it on
    beliefs that have not seen those labels: a corrected teacher called with ``index``. With ``rows="all"`` a labelled
    row gets the curve of the folds without its image, so that no weight has seen its own label. All other rows get the
    curve of all labelled rows. No label is read when weights are computed.

    >>> logits = torch.tensor([[0.0, 1.0]] * 20 + [[0.0, 4.0]] * 20)
    >>> label = torch.tensor([0, 1] * 10 + [1] * 20)
    >>> Reliability().fit(logits, label).probability(torch.tensor([[0.0, 0.5], [9.0, 0.0]]))
    tensor([0.5000, 1.0000])
    """

    at: Tensor
    value: Tensor
    fold_of: Tensor

    def __init__(self, rows: Judged = "unlabelled", folds: int = 5) -> None:
        super().__init__()
        _check_rows("reliability", rows)
        if folds < 2:
            raise ValueError(f"reliability: needs at least 2 folds, got {folds}; 5 are usual.")
        self.rows: Judged = rows
        self.folds = folds
        for name in ("at", "value", "fold_of"):
            self.register_buffer(name, torch.empty(0))

    def fit(
        self,
        outputs: Outputs | Tensor,
        target: Target | Tensor,
        index: Int[Tensor, " rows"] | None = None,
        *,
        noise: Float[Tensor, "classes classes"] | None = None,
    ) -> "Reliability":
        """Fit the curves on labelled rows of ``outputs``.

        ``index`` (or ``target.index``) is the image of each row. Views of one image share a fold and the weight of one.
        ``noise``: where labels are wrong, ``p(given | true)``, such as ``BiasCorrection.noise_matrix``; the curve is then how
        often the teacher is right, not how often it agrees with the label. Rows that are blended of two are counted as they are.
        """
        logits, target = as_outputs(outputs, whose="teacher").logits, as_target(target)
        if index is None:
            index = torch.arange(len(logits), device=logits.device) if target.index is None else target.index
        if (target.label >= logits.shape[1]).any():
            raise ValueError(
                f"reliability: needs labels in 0..{logits.shape[1] - 1}, got {int(target.label.max())}; check the labels."
            )
        right = (~wrong_rows(logits, target)).double()
        if noise is not None and noise.shape != (logits.shape[1],) * 2:
            raise ValueError(
                f"reliability: needs noise of {logits.shape[1]} x {logits.shape[1]} classes, got {tuple(noise.shape)}; give it "
                "p(given | true) for the teacher's classes."
            )
        if noise is not None and target.partner is None:
            top = top_class(logits, safe_label(target.label, logits.shape[1]))
            right = _rid_of_noise(right, top, noise)
        right = right[target.valid]
        at = confidence(logits)[target.valid]
        index = as_index(index, len(logits))[target.valid]
        images, image, views = index.unique(return_inverse=True, return_counts=True)
        if len(images) < 2 * self.folds:
            raise ValueError(
                f"reliability: needs at least {2 * self.folds} labelled images for {self.folds} folds, got {len(images)}; "
                "give it more, or fewer folds."
            )
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).to(image.device)
        fold = (order % self.folds)[image]
        weight = 1 / views[image].double()
        curves = [
            _isotonic(at[rows], right[rows], weight[rows])
            for rows in (*(fold != number for number in range(self.folds)), fold >= 0)
        ]
        width = max(2, *(len(at) for at, _ in curves))
        self.at, self.value = (
            torch.stack([_padded(curve[side], width) for curve in curves]).to(logits.device)
            for side in (0, 1)
        )
        table = torch.full((int(images.max()) + 1,), -1, dtype=torch.int32, device=image.device)
        table[images] = (order % self.folds).to(torch.int32)
        self.fold_of = table
        return self

    @property
    def is_fitted(self) -> bool:
        return self.at.numel() > 0

    def probability(
        self, logits: Float[Tensor, "rows classes"], index: Int[Tensor, " rows"] | None = None
    ) -> Float[Tensor, " rows"]:
        """``P(right)`` of each row. A row whose ``index`` was fitted gets the curve of the folds without it."""
        if not self.is_fitted:
            raise ValueError(
                "reliability: needs to be fitted, got none; call .fit(outputs, target) with labelled rows first."
            )
        at, value = self.at.to(logits.device), self.value.to(logits.device)
        x = confidence(logits).to(at.dtype)
        found = _interpolated(x, at[-1], value[-1])
        if index is not None:
            fold = fold_at(self.fold_of.to(logits.device), index, num_rows=len(logits))
            for number in range(self.folds):
                found = torch.where(fold == number, _interpolated(x, at[number], value[number]), found)
        return found

    def forward(self, knowledge: Knowledge) -> Knowledge:
        # unlabelled rows have indices of their own, which are beyond those that were fitted
        index = knowledge.target.index if self.rows == "all" else None
        return weighted(knowledge, self.probability(knowledge.teacher.logits, index), self.rows)

    def extra_repr(self) -> str:
        return f"rows={self.rows!r}, folds={self.folds}"

    def __str__(self) -> str:
        if not self.is_fitted:
            return repr(self)
        shown = torch.tensor([0.2, 0.4, 0.6, 0.8, 0.9, 0.99])
        found = _interpolated(shown, self.at[-1].cpu(), self.value[-1].cpu())
        steps = ", ".join(
            f"{c:g}: {100 * p:.0f} %" for c, p in zip(shown.tolist(), found.tolist(), strict=True)
        )
        return f"how often the teacher is right, by its confidence: {steps}"


TRUSTS: dict[str, Callable[..., Trust]] = {"confidence": Confidence, "reliability": Reliability}
"""All by name. Your own needs no entry: pass the object."""


def make_trust(text: str) -> Trust:
    """The trust that ``text`` names, such as ``"confidence(0.9)"`` or ``"reliability(rows=all)"``."""
    calls = spec.parse(text)
    if len(calls) != 1 or calls[0].weight != 1:
        raise ValueError(f"trust: needs one name without a weight, got {text!r}; such as confidence(0.8).")
    return spec.build(TRUSTS, calls[0], kind="trust")


def _check_rows(name: str, rows: str) -> None:
    if rows not in ("unlabelled", "all"):
        raise ValueError(
            f"{name}: rows needs 'unlabelled' or 'all', got {rows!r}; 'unlabelled' is the default."
        )


def _rid_of_noise(
    agrees: Float[Tensor, " rows"],
    top: Int[Tensor, " rows"],
    noise: Float[Tensor, "classes classes"],
) -> Float[Tensor, " rows"]:
    """Numbers whose mean is the share of rows on which the teacher is right, from agreement with labels that may be wrong.

    A teacher that says ``j`` and is right with probability ``r`` agrees with the label in a share ``r Q[j, j] + (1 - r) q`` of
    rows, ``q`` the mean of ``Q[c, j]`` over the other classes ``c``: solved for ``r``.
    """
    noise = noise.double().to(agrees.device)
    if noise.shape[0] < 2:
        return agrees
    kept = noise.diagonal()
    chance = (noise.sum(dim=0) - kept) / (len(noise) - 1)
    # where a label is as often given to other classes as to its own, agreement says nothing
    informed = (kept - chance).clamp_min(LEAST_INFORMED)
    return (agrees - chance[top]) / informed[top]


def _isotonic(
    at: Float[Tensor, " rows"], right: Float[Tensor, " rows"], weight: Float[Tensor, " rows"]
) -> tuple[Float[Tensor, " steps"], Float[Tensor, " steps"]]:
    """The corners of the monotone curve through ``right``, by scikit-learn."""
    from sklearn.isotonic import IsotonicRegression

    curve = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip")
    curve.fit(at.double().cpu().numpy(), right.double().cpu().numpy(), sample_weight=weight.cpu().numpy())
    return torch.from_numpy(curve.X_thresholds_).float(), torch.from_numpy(curve.y_thresholds_).float()


def _padded(values: Float[Tensor, " steps"], width: int) -> Float[Tensor, " width"]:
    return torch.cat([values, values[-1:].expand(width - len(values))])


def _interpolated(
    x: Float[Tensor, " rows"], at: Float[Tensor, " steps"], value: Float[Tensor, " steps"]
) -> Float[Tensor, " rows"]:
    """Linear between the corners, constant beyond them."""
    right = torch.searchsorted(at, x).clamp(1, len(at) - 1)
    left = right - 1
    span = at[right] - at[left]
    share = torch.where(span > 0, (x - at[left]) / span.clamp_min(torch.finfo(at.dtype).tiny), 1.0)
    return value[left] + share.clamp(0, 1) * (value[right] - value[left])
