"""The nouns of the library: what networks say, what is true, and what to believe.

    Outputs          what a network said about some rows
    Target           what is true of them
    Knowledge        what the student should believe of what the teacher said
    ObjectiveResult  how far the student is from it

A *row* is whatever one line of logits stands for: an image, a proposal, a pixel, a token. The
nouns are frozen and hold tensors of one device; conversions are functions beside them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

IGNORE = -100
"""The label of a row that takes part in nothing (PyTorch's own convention)."""

UNLABELLED = -1
"""The label of a row that has none: the teacher alone speaks of it (scikit-learn's convention)."""


@dataclass(frozen=True)
class Outputs:
    """Logits of some rows and, by name, the features they were computed from."""

    logits: Float[Tensor, "rows classes"]
    features: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        return self.logits.shape[1]


@dataclass(frozen=True)
class Target:
    """What is true of each row.

    ``label`` is the class, :data:`UNLABELLED` or :data:`IGNORE`. A row without a label is out of the task and
    neither right nor wrong: no rule rewrites or drops it, and the student is told what the teacher says. A
    row to ignore is out of everything. ``index`` is the sample's number in the training set
    (memories and corrections need it). For a sample blended by mixup or CutMix, ``partner`` is the
    class blended in and ``mix`` the share, in [0, 1], that ``label`` keeps. ``image`` says which
    image a row belongs to, where rows are not images (proposals, pixels); without it row i is image i.
    """

    label: Int[Tensor, " rows"]
    index: Int[Tensor, " rows"] | None = None
    partner: Int[Tensor, " rows"] | None = None
    mix: Float[Tensor, " rows"] | None = None
    image: Int[Tensor, " rows"] | None = None
    may_ignore: bool = False
    """Whether labels may be IGNORE or UNLABELLED, known without looking at the device. False is safe for
    finite logits; with True, what ignored rows hold (infinities, NaN) cannot reach a gradient either."""

    def __post_init__(self) -> None:
        if (self.partner is None) != (self.mix is None):
            raise ValueError(
                "Target: partner and mix belong together, got only one of them; "
                "give the blended label and the share that label keeps."
            )
        if self.partner is not None and self.label.device.type == "cpu":
            alone = (self.label == UNLABELLED) | (self.partner == UNLABELLED)
            if alone.any():
                raise ValueError(
                    f"Target: needs two labels for a blended row, got UNLABELLED in row {int(alone.nonzero()[0])}; "
                    "leave rows without a label out of mixup and CutMix."
                )

    @cached_property
    def dominant(self) -> Int[Tensor, " rows"]:
        """The class with the larger share: the label, unless a partner was blended in with more."""
        if self.partner is None or self.mix is None:
            return self.label
        return torch.where(self.mix >= 0.5, self.label, self.partner)

    @cached_property
    def valid(self) -> Bool[Tensor, " rows"]:
        """True on the rows that have a label: it is neither :data:`UNLABELLED` nor :data:`IGNORE`."""
        return self.label >= 0

    @cached_property
    def takes_part(self) -> Bool[Tensor, " rows"]:
        """False on the rows whose label is :data:`IGNORE`."""
        return self.label != IGNORE


@runtime_checkable
class Rule(Protocol):
    """A pure function of logits, label and temperature that rewrites every row it is given.

    It is written for wrong rows and never asks which those are: :class:`outgrow.Rectifier` decides
    which rows to rewrite. It returns logits, whose softmax at ``temperature`` is what to believe.
    """

    @property
    def name(self) -> str: ...

    @property
    def uses_temperature(self) -> bool:
        """Whether the corrected logits depend on the temperature."""
        ...

    @property
    def effect(self) -> Literal["none", "rewrite", "remove"]:
        """What happens to a wrong row: nothing, other logits, or weight zero."""
        ...

    def __call__(
        self,
        logits: Float[Tensor, "rows classes"],
        label: Int[Tensor, " rows"],
        *,
        temperature: float,
    ) -> Float[Tensor, "rows classes"]: ...


@dataclass(frozen=True)
class Knowledge:
    """What the student should believe: the teacher's outputs and how they are to be corrected.

    *Corrected* and *removed* are different facts: ``wrong`` says on which rows the teacher errs,
    ``corrected`` which rows the rule rewrites, ``weight`` how much each row counts (zero: removed). A row
    without a label is not wrong, not corrected, and counts.
    The correction itself is lazy (``rule``), so that a loss can standardise the logits before it, or
    work on the three numbers a row that most corrections are; :func:`outgrow.corrected_logits`
    carries it out.
    ``temperature`` is the one at which the rule was asked to work, None where the rule has none.
    """

    teacher: Outputs
    rule: Rule
    target: Target
    wrong: Bool[Tensor, " rows"]
    corrected: Bool[Tensor, " rows"]
    weight: Float[Tensor, " rows"]
    temperature: float | None
    partial: bool
    """Whether any weight may be zero. Known without looking at the device."""


@dataclass(frozen=True)
class ObjectiveResult:
    """A training loss: ``total`` has the graph; ``terms`` (weighted; they sum to the total) and
    ``stats`` are detached scalars that stay on the device until somebody reads them."""

    total: Float[Tensor, ""]
    terms: dict[str, Float[Tensor, ""]]
    stats: dict[str, Float[Tensor, ""]]


def as_outputs(value: object, *, whose: str = "network") -> Outputs:
    """``value`` as :class:`Outputs`; a plain ``rows x classes`` tensor is its logits."""
    if isinstance(value, Outputs):
        return value
    value = getattr(value, "logits", value)  # what Hugging Face models return
    if not isinstance(value, Tensor):
        raise ValueError(
            f"{whose}: needs logits (a tensor, rows x classes) or Outputs, got {type(value).__name__}; "
            "if the model returns a dictionary or a tuple, pass the logits in it."
        )
    if value.dim() != 2 or not value.is_floating_point():
        raise ValueError(
            f"{whose}: needs floating-point logits of shape rows x classes, got {value.dtype} of shape "
            f"{tuple(value.shape)}; flatten maps of logits with outgrow.flatten_rows first."
        )
    return Outputs(value)


def as_target(value: Target | Tensor) -> Target:
    """``value`` as :class:`Target`; a plain integer tensor is its labels."""
    if isinstance(value, Target):
        return value
    if not isinstance(value, Tensor) or value.dim() != 1 or value.is_floating_point():
        got = (
            f"{value.dtype} of shape {tuple(value.shape)}"
            if isinstance(value, Tensor)
            else type(value).__name__
        )
        raise ValueError(
            f"target: needs one integer class per row (shape rows), got {got}; for labels blended by "
            "mixup or CutMix pass Target(label=..., partner=..., mix=...)."
        )
    return Target(value)


def flatten_rows(
    logits: Float[Tensor, "batch classes *positions"],
    label: Int[Tensor, "batch *positions"],
    *,
    ignore_index: int = IGNORE,
) -> tuple[Outputs, Target]:
    """Logits with positions (pixels, tokens) as rows, for losses and rules that know only rows.

    Rows whose label is ``ignore_index`` get the label :data:`IGNORE`: they take part in nothing. Those
    labelled :data:`UNLABELLED` keep it.
    Shapes do not depend on the labels. ``Target.image`` remembers where each row came from.

    >>> outputs, target = flatten_rows(torch.zeros(2, 5, 4, 4), torch.zeros(2, 4, 4, dtype=torch.long))
    >>> outputs.logits.shape, target.label.shape
    (torch.Size([32, 5]), torch.Size([32]))
    """
    rows = logits.movedim(1, -1).reshape(-1, logits.shape[1])
    flat = label.reshape(-1)
    batch = torch.arange(logits.shape[0], device=logits.device)
    image = batch.view(-1, *[1] * (label.dim() - 1)).expand(label.shape).reshape(-1)
    return Outputs(rows), Target(
        torch.where(flat == ignore_index, IGNORE, flat), image=image, may_ignore=True
    )


def with_logits(outputs: Outputs, logits: Shaped[Tensor, "rows classes"]) -> Outputs:
    """``outputs`` with other logits and the same features."""
    return replace(outputs, logits=logits)


def lift(logits: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Half-precision logits as float32, before any maths; others as they are."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
