"""Logit standardisation, a transform for any loss on logits: ``standardize``."""

import math
from collections.abc import Collection, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from outgrow.knowledge.trust import Reliability
from outgrow.losses.base import Fixture, Loss, positive
from outgrow.outputs import Outputs, Target, as_outputs, lift, with_logits


def standardize_logits(logits: Float[Tensor, "rows classes"]) -> Float[Tensor, "rows classes"]:
    r"""Each row minus its mean, divided by its (unbiased) standard deviation plus 1e-7.

    The order of a row's logits does not change, so right rows stay right and wrong rows wrong. A row of equal
    logits (up to rounding error) becomes zeros, with a zero gradient. A logit of minus infinity (a class that is
    ruled out) stays what it is and takes no part in mean and deviation.

    Reference: Sun et al. (CVPR 2024), https://arxiv.org/abs/2403.01427, section 4. The unbiased deviation
    and the 1e-7 are from the authors' code.

    >>> standardize_logits(torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]])).round(decimals=4)
    tensor([[-1.,  0.,  1.],
            [ 0.,  0.,  0.]])
    """
    logits = lift(logits)
    centred, ruled_out = _centre(logits)
    size, varies = deviation(logits)
    scaled = torch.where(varies, centred / (size + 1e-7), torch.zeros_like(centred))
    return scaled.masked_fill(ruled_out, -math.inf)


def deviation(
    logits: Float[Tensor, "rows classes"],
) -> tuple[Float[Tensor, "rows 1"], Bool[Tensor, "rows 1"]]:
    """Each row's (unbiased) standard deviation, and whether the row varies. It is 1, without a gradient, if not.

    Logits of minus infinity are left out.

    >>> deviation(torch.tensor([[1.0, 2.0, 3.0], [0.1, 0.1, 0.1]]))
    (tensor([[1.],
            [1.]]), tensor([[ True],
            [False]]))
    """
    centred, ruled_out = _centre(logits)
    count = (~ruled_out).sum(dim=1, keepdim=True)
    variance = centred.square().sum(dim=1, keepdim=True) / (count - 1).clamp_min(1)
    # A deviation within rounding error counts as zero: dividing by it would give gradients of 1e7. So does one
    # whose square underflows.
    precision = torch.finfo(logits.dtype)
    tolerance = (8 * precision.eps) ** 2 * (
        logits.masked_fill(ruled_out, 0.0).square().sum(dim=1, keepdim=True) / count.clamp_min(1)
    )
    varies = variance > tolerance.clamp_min(precision.tiny / precision.eps)
    return torch.where(varies, variance, torch.ones_like(variance)).sqrt(), varies


def _centre(
    logits: Float[Tensor, "rows classes"],
) -> tuple[Float[Tensor, "rows classes"], Bool[Tensor, "rows classes"]]:
    """Each finite logit minus their mean, 0 for minus infinity, and where the logits are minus infinity."""
    ruled_out = logits == -math.inf
    finite = logits.masked_fill(ruled_out, 0.0)
    mean = finite.sum(dim=1, keepdim=True) / (~ruled_out).sum(dim=1, keepdim=True).clamp_min(1)
    return (finite - mean).masked_fill(ruled_out, 0.0), ruled_out


class Standardize(Loss):
    """``base`` on standardised logits of both networks.

    ``base`` is a loss, or a name that is built with ``temperature`` (``standardize(base="dkd(beta=2)")``).
    In an objective the teacher is standardised *before* it is corrected, so that the rule corrects the logits
    that the loss reads. A direct call standardises both inputs.
    """

    softens = True

    def __init__(self, base: str | Loss = "kd", temperature: float = 2.0) -> None:
        super().__init__()
        positive(temperature, what="standardize: temperature")
        if isinstance(base, str):
            from outgrow.losses import make_loss  # avoids a circular import: the registry has this class

            base = make_loss(base, temperature=temperature)
        if "logits" not in base.reads:
            raise ValueError(
                f"standardize: needs a loss that reads logits, got {type(base).__name__}; "
                "use the loss on features without standardize."
            )
        self.base = base
        self.axis = base.axis
        self.temperature = base.temperature
        self.zero_at_match = base.zero_at_match
        self.detaches = base.detaches
        self.draws = base.draws
        self.needs_label = base.needs_label
        self.needs_unlabelled = base.needs_unlabelled
        self.needs_index = base.needs_index
        self.batch_statistics = base.batch_statistics
        self.inert = base.inert
        self.reads = base.reads
        self.transform = standardize_logits

    @property
    def wrapped(self) -> Loss:
        return self.base

    @property
    def reliability(self) -> Reliability:  # type: ignore[override]  # of base: a second module would be saved twice
        """That of ``base``. Fit it on standardised logits, as ``base`` reads no others."""
        return self.base.reliability

    def student_taps(self, features: Collection[str]) -> frozenset[str]:
        return self.base.student_taps(features)

    def teacher_taps(self, features: Collection[str]) -> frozenset[str]:
        return self.base.teacher_taps(features)

    def prefer_taps(self, names: Sequence[str]) -> None:
        self.base.prefer_taps(names)

    def setup(self, fixture: Fixture) -> None:
        self.base.setup(fixture)

    def at(self, progress: float) -> None:
        self.base.at(progress)

    def forward(
        self,
        student: Outputs | Tensor,
        teacher: Outputs | Tensor,
        target: Target | Tensor,
        *,
        weight: Float[Tensor, " rows"] | None = None,
    ) -> Float[Tensor, "*rows"]:
        student, teacher = as_outputs(student, whose="student"), as_outputs(teacher, whose="teacher")
        student = with_logits(student, standardize_logits(student.logits))
        teacher = with_logits(teacher, standardize_logits(teacher.logits))
        if self.axis == "batch":
            return self.base(student, teacher, target, weight=weight)
        return self.base(student, teacher, target)
