"""The data types that pass between the parts of the library.

    Outputs          logits and features of a network for a batch of rows
    Target           labels of the rows
    Knowledge        the teacher's outputs and how to correct them: the student's soft targets
    ObjectiveResult  the training loss, its terms and statistics

A *row* is one line of logits: an image, a proposal, a pixel or a token. The types are frozen dataclasses
whose tensors share one device. Functions that convert to them are in this file too.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Integer, Shaped
from torch import Tensor

IGNORE = -100
"""The label of a row that is ignored: no loss and no statistic counts it (PyTorch's convention)."""

UNLABELLED = -1
"""The label of a row without a label: it is distilled but has no task loss (scikit-learn's convention)."""


@dataclass(frozen=True)
class Outputs:
    """Logits of a batch of rows, and intermediate features by name."""

    logits: Float[Tensor, "rows classes"]
    features: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        return self.logits.shape[1]


@dataclass(frozen=True)
class Target:
    """Labels of the rows.

    ``label`` is the class, :data:`UNLABELLED` or :data:`IGNORE`. A row without a label has no task loss and
    counts as neither right nor wrong. No rule rewrites or drops it, so the student is trained on the
    teacher's own logits there. An ignored row counts nowhere. ``index`` is the sample's number in the
    training set; memory banks and corrections need it. For a sample blended by mixup or CutMix, ``partner``
    is the class blended in and ``mix`` is the share of ``label``, in [0, 1]. Both labels of a row may be
    :data:`UNLABELLED`, but not one alone. ``image`` is the number of the
    image that a row belongs to, for rows that are not images (proposals, pixels). Without it row i is image i.
    """

    label: Int[Tensor, " rows"]
    index: Int[Tensor, " rows"] | None = None
    partner: Int[Tensor, " rows"] | None = None
    mix: Float[Tensor, " rows"] | None = None
    image: Int[Tensor, " rows"] | None = None
    may_ignore: bool = False
    """Whether labels may be IGNORE or UNLABELLED, known without a device sync. False is safe if all logits
    are finite. With True, infinities or NaN in ignored rows do not reach a gradient either."""

    def __post_init__(self) -> None:
        for name in ("label", "partner", "index", "image"):
            value = getattr(self, name)
            if value is not None or name == "label":
                # uint8 from NumPy, int32: no gather takes them
                object.__setattr__(self, name, _whole_numbers(value, what=f"Target: {name}"))
        if self.label.dim() != 1:
            raise ValueError(
                f"Target: label needs one class per row (shape rows), got shape {tuple(self.label.shape)}; flatten "
                "maps of labels with outgrow.flatten_rows."
            )
        if (self.partner is None) != (self.mix is None):
            raise ValueError(
                "Target: partner and mix belong together, got only one of them; "
                "give the blended label and the share that label keeps."
            )
        if self.mix is not None:
            object.__setattr__(self, "mix", _shares(self.mix, self.label))
        for name in ("partner", "mix", "index", "image"):
            value = getattr(self, name)
            if value is not None and value.shape != self.label.shape:
                raise ValueError(
                    f"Target: {name} needs one value for each of {len(self.label)} rows, got shape "
                    f"{tuple(value.shape)}; give it as many as label has."
                )
        if self.partner is not None and self.label.device.type == "cpu":
            alone = (self.label == UNLABELLED) != (self.partner == UNLABELLED)
            if alone.any():
                raise ValueError(
                    f"Target: needs two labels for a blended row, got UNLABELLED in row {int(alone.nonzero()[0])}; "
                    "leave rows without a label out of mixup and CutMix."
                )

    def rows(self, which: slice) -> "Target":
        """The target of some of the rows."""
        names = ("index", "partner", "mix", "image")
        columns = {name: None if (held := getattr(self, name)) is None else held[which] for name in names}
        return Target(self.label[which], may_ignore=self.may_ignore, **columns)

    @cached_property
    def in_range_of(self) -> set[int]:
        """The numbers of classes within which the labels were found, so that nobody looks again."""
        return set()

    @cached_property
    def dominant(self) -> Int[Tensor, " rows"]:
        """The class with the larger share: the label, or the partner where its share is larger."""
        if self.partner is None or self.mix is None:
            return self.label
        return torch.where(self.mix >= 0.5, self.label, self.partner)

    @cached_property
    def valid(self) -> Bool[Tensor, " rows"]:
        """True on the rows with a label, neither :data:`UNLABELLED` nor :data:`IGNORE`."""
        return self.label >= 0

    @cached_property
    def takes_part(self) -> Bool[Tensor, " rows"]:
        """False on the rows whose label is :data:`IGNORE`."""
        return self.label != IGNORE


@runtime_checkable
class Rule(Protocol):
    """A pure function of logits, label and temperature that corrects every row of its input.

    It is meant for wrong rows but does not select them: :class:`outgrow.Rectifier` decides which rows are
    rewritten. It returns logits. Their softmax at ``temperature`` is the corrected distribution.
    """

    @property
    def name(self) -> str: ...

    @property
    def uses_temperature(self) -> bool:
        """Whether the corrected logits depend on the temperature."""
        ...

    @property
    def effect(self) -> Literal["none", "rewrite", "remove"]:
        """What happens to a wrong row: nothing, new logits, or weight zero."""
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
    """The student's soft targets: the teacher's outputs and how to correct them.

    ``wrong`` marks the rows that the teacher gets wrong. ``corrected`` marks the rows that the rule rewrites.
    ``weight`` is the weight of each row; a row with weight zero is removed, which is not the same as
    corrected. A row without a label is neither wrong nor corrected, and it counts.

    ``rule`` is applied late, by :func:`outgrow.corrected_logits`. A loss can so standardise the logits first,
    or compute most corrections from three numbers a row. ``temperature`` is that of the rule, None where
    the rule does not depend on one.
    """

    teacher: Outputs
    rule: Rule
    target: Target
    wrong: Bool[Tensor, " rows"]
    corrected: Bool[Tensor, " rows"]
    weight: Float[Tensor, " rows"]
    temperature: float | None
    partial: bool
    """Whether any weight may be zero, known without a device sync."""
    trust: Float[Tensor, " rows"] | None = None
    """What :mod:`outgrow.knowledge.trust` has multiplied into the weights; None where nothing has."""


@dataclass(frozen=True)
class ObjectiveResult:
    """A training loss. ``total`` has the graph. ``terms`` are weighted and sum to the total. ``terms`` and
    ``stats`` are detached scalars on the device; reading one synchronises. ``rows`` says of how many rows a statistic is
    a share, by its name, so that shares of several steps can be joined; over processes it is their mean."""

    total: Float[Tensor, ""]
    terms: dict[str, Float[Tensor, ""]]
    stats: dict[str, Float[Tensor, ""]]
    rows: dict[str, Tensor | float] = field(default_factory=dict)


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


def kind_of(value: object) -> str:
    """What ``value`` is, for messages: dtype and shape of a tensor, else the name of its class.

    >>> kind_of(torch.zeros(2, 3)), kind_of([1])
    ('torch.float32 of shape (2, 3)', 'list')
    """
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    return type(value).__name__


def as_target(value: Target | Tensor) -> Target:
    """``value`` as :class:`Target`; a plain integer tensor is its labels."""
    if isinstance(value, Target):
        return value
    if not isinstance(value, Tensor) or value.dim() != 1 or value.is_floating_point():
        raise ValueError(
            f"target: needs one integer class per row (shape rows), got {kind_of(value)}; {_as_classes(value)}."
        )
    return Target(value.long())  # bool too: two classes


def _as_classes(value: object) -> str:
    """What to do with labels that are not one integer a row."""
    if not isinstance(value, Tensor):
        return "pass torch.as_tensor(...) of it"
    one_a_row = value.dim() == 0 or value.numel() == len(value)
    if value.dim() != 1 and one_a_row:
        return "pass label.flatten()"
    if value.dim() > 2:
        return "flatten maps of labels with outgrow.flatten_rows"
    if value.dim() == 2 and not value.is_floating_point():
        return "if they are one-hot pass label.argmax(dim=1); several classes for one row are not supported"
    return (
        "give classes as integers; for labels blended by mixup or CutMix pass Target(label=..., partner=..., mix=...); "
        "other soft labels are not supported"
    )


def warn_if_probabilities(logits: Float[Tensor, "rows classes"], *, whose: str) -> None:
    """Warn if ``logits`` look like what a softmax (rows sum to 1) or a sigmoid (all in 0..1) has made of them. CPU only."""
    if logits.device.type != "cpu" or logits.numel() == 0 or logits.shape[1] < 2:
        return
    rows = logits.detach().float()
    low, high = rows.amin(), rows.amax()
    if low < 0 or high > 1 + 1e-3 or ((rows == 0) | (rows == 1)).all():
        return
    if ((rows.sum(dim=1) - 1).abs() < 1e-3).all():
        made = "rows that are at least 0 and sum to 1, which are probabilities"
        advice = "remove the softmax at the end of the network, or take the logarithm"
    elif high > 0.5:  # below, they are small rather than squeezed
        made = "values that all lie between 0 and 1, as after a sigmoid"
        advice = "remove the sigmoid at the end of the network"
    else:
        return
    warnings.warn(f"{whose}: needs logits, got {made}; {advice}.", stacklevel=4)


def warn_if_other_labels(known: Int[Tensor, " rows"], label: Int[Tensor, " rows"]) -> None:
    """Warn if the knowledge was rectified with other labels than those of the task. CPU only."""
    if label.device.type == "cpu" and known is not label and not torch.equal(known, label):
        warnings.warn(
            "objective: got other labels than rectify had, so a row is right or wrong by those and the task learns these; "
            "unless that is meant, pass the same target to both.",
            stacklevel=4,
        )


def flatten_rows(
    logits: Float[Tensor, "batch classes *positions"],
    label: Integer[Tensor, "batch *positions"],
    *,
    ignore_index: int = IGNORE,
) -> tuple[Outputs, Target]:
    """Flatten maps of logits: every position (pixel, token) becomes a row, as losses and rules expect.

    The classes stand second, as in ``torch.nn.functional.cross_entropy``: for logits of (batch, tokens, classes) pass
    ``logits.movedim(-1, 1)``. Rows whose label is ``ignore_index`` get the label :data:`IGNORE`. Rows labelled :data:`UNLABELLED` keep
    that label. Shapes do not depend on the labels. ``Target.image`` has the image of each row.

    >>> outputs, target = flatten_rows(torch.zeros(2, 5, 4, 4), torch.zeros(2, 4, 4, dtype=torch.long))
    >>> outputs.logits.shape, target.label.shape
    (torch.Size([32, 5]), torch.Size([32]))
    """
    label = _whole_numbers(label, what="flatten_rows: label")  # bytes, as masks have them, cannot be IGNORE
    if logits.dim() < 2 or label.shape != (wanted := logits.shape[:1] + logits.shape[2:]):
        raise ValueError(
            f"flatten_rows: needs logits of shape batch x classes x positions and a label for each position, got "
            f"logits of shape {tuple(logits.shape)} and labels of shape {tuple(label.shape)}; "
            + (
                "add the missing axes."
                if logits.dim() < 2
                else "the classes stand last there: pass logits.movedim(-1, 1)."
                if label.shape == logits.shape[:-1]
                else f"give labels of shape {tuple(wanted)}."
            )
        )
    rows = logits.movedim(1, -1).reshape(-1, logits.shape[1])
    flat = label.reshape(-1)
    batch = torch.arange(logits.shape[0], device=logits.device)
    image = batch.view(-1, *[1] * (label.dim() - 1)).expand(label.shape).reshape(-1)
    return Outputs(rows), Target(
        torch.where(flat == ignore_index, IGNORE, flat), image=image, may_ignore=True
    )


def _whole_numbers(value: object, *, what: str) -> Int[Tensor, "*shape"]:
    """``value`` as int64; ``ValueError`` if it is no tensor of whole numbers."""
    if not isinstance(value, Tensor):
        raise ValueError(
            f"{what} needs a tensor of whole numbers, got {type(value).__name__}; pass torch.as_tensor(...) of it."
        )
    if value.is_floating_point() or value.is_complex():
        raise ValueError(
            f"{what} needs whole numbers, got {kind_of(value)}; give classes and numbers "
            "as integers (.long() cuts fractions off). Of soft labels only two per row can be given, as label, partner and mix."
        )
    return value.long()


def _shares(mix: object, label: Int[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """``mix`` as one share for each row; ``ValueError`` for shares outside [0, 1], of tensors on the CPU only."""
    if not isinstance(mix, Tensor):
        if isinstance(mix, bool) or not isinstance(mix, int | float):
            raise ValueError(
                f"Target: mix needs a tensor of shares, got {type(mix).__name__}; pass torch.as_tensor(...) of it."
            )
        mix = torch.tensor(float(mix))
    if not mix.is_floating_point():
        mix = mix.to(torch.get_default_dtype())
    if mix.device.type == "cpu" and mix.numel():
        for share in torch.stack(mix.detach().aminmax()).tolist():
            if not 0 <= share <= 1:  # NaN too
                raise ValueError(
                    f"Target: mix needs shares in [0, 1], got {share:g}; give the share that label keeps, not a percentage."
                )
    return mix.to(label.device).expand(label.shape) if mix.dim() == 0 else mix


def with_logits(outputs: Outputs, logits: Shaped[Tensor, "rows classes"]) -> Outputs:
    """``outputs`` with other logits and the same features."""
    return replace(outputs, logits=logits)


def lift(logits: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Half-precision logits as float32, for computing with them; others unchanged."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
