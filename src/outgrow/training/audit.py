"""What ``outgrow audit`` says of a teacher before anybody trains: the record, and what rules would do to its rows.

    AuditRecord     audit.json: verdicts, the task's own numbers, the conditions
    rule_effects    for each rule, how many rows change, by how much, and whether the label then leads

Shares and accuracies are in percent, likelihoods in nats a row.
"""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from outgrow.knowledge import RULES, Rectifier, corrected_logits
from outgrow.knowledge.split import label_logit
from outgrow.machine.files import unsealed
from outgrow.outputs import Target, lift
from outgrow.teacher.counts import interval
from outgrow.training.config import Config, known_fields
from outgrow.training.record import AugmentedRecord, BinRecord, DataRecord, ErrorsRecord

VERSION = 1
"""Of the layout of ``audit.json``."""
TEMPERATURES = (1.0, 2.0, 4.0)
"""At which a loss may read a teacher: 4 is the default of ours."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Verdict(_Part):
    """What the numbers mean, why, and what to type next. ``kind`` is one word for machines."""

    kind: str
    text: str
    reason: str
    command: str | None = None


class Counted(_Part):
    """Right answers among some rows, with the 95 % interval of the accuracy."""

    right: int
    rows: int
    accuracy: float
    low: float
    high: float

    @classmethod
    def of(cls, right: int, rows: int) -> "Counted":
        low, high = interval(right, rows)
        return cls(right=right, rows=rows, accuracy=100 * right / rows, low=low, high=high)

    def __str__(self) -> str:
        return f"{self.accuracy:.1f} % of {self.rows:,} (95 %: {self.low:.1f} to {self.high:.1f})"


class ConfusionRecord(_Part):
    """``count`` rows of ``label`` were taken for ``predicted``; ``share`` is of the rows of ``label``."""

    label: str
    predicted: str
    count: int
    share: float


class AnswersRecord(_Part):
    """A classifier's answers on some rows. ``nll`` is None where a row's own class is ruled out.

    ``majority`` is what always naming the most frequent class would score.
    """

    top1: Counted
    majority: float
    balanced_accuracy: float
    nll: float | None
    ece: float
    per_class: tuple[float | None, ...]
    counts: tuple[int, ...]
    reliability: tuple[BinRecord, ...]
    confusions: tuple[ConfusionRecord, ...]


class BeforeAfter(_Part):
    """A teacher on the same rows as it is and with its bias corrected. ``raw`` is None where it has other classes,
    ``corrected`` where it is left as it is. ``gained`` and ``lost`` count rows that the correction made right and
    wrong; ``p`` is that of their difference."""

    raw: AnswersRecord | None
    corrected: AnswersRecord | None
    gained: int = 0
    lost: int = 0
    p: float = 1.0

    @property
    def best(self) -> AnswersRecord:
        """What a student would be taught by."""
        found = self.corrected or self.raw
        assert found is not None
        return found


class NormalisationRecord(_Part):
    """The teacher under one normalisation. ``gained`` and ``lost`` count the rows that it gets right and wrong other
    than under the one in use; ``p`` is corrected for the number of them (Holm)."""

    name: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    in_use: bool
    top1: Counted
    gained: int
    lost: int
    p: float
    better: bool
    """Whether it is the one to use."""


class RuleAt(_Part):
    """A rule at one temperature: the probability moved on the mean row (total variation), and how often the label
    then leads. None where no row is rewritten."""

    temperature: float
    moved: float | None
    on_top: float


class RuleRecord(_Part):
    """What a rule does: the share of rows that it rewrites, or (``removes``) leaves out of the loss."""

    name: str
    changed: float
    removes: bool
    depends_on_temperature: bool
    at: tuple[RuleAt, ...]


class BeliefRecord(_Part):
    """A class and its probability."""

    name: str
    probability: float


class WrongRecord(_Part):
    """An image that the teacher gets wrong, and what it believes: the first classes and the label's own."""

    position: int
    name: str
    label: str
    before: tuple[BeliefRecord, ...] | None
    after: tuple[BeliefRecord, ...] | None


class LabelErrorRecord(_Part):
    """A training image whose label may be wrong. ``name`` is what ``data.exclude`` takes."""

    position: int
    name: str
    label: str
    suggested: str
    confidence: float


class LabelErrorsRecord(_Part):
    """The candidates, worst first. ``found`` is None where nobody looked, and ``how`` says why, or what was done."""

    found: int | None
    rows: int
    column: str
    how: str
    candidates: tuple[LabelErrorRecord, ...] = ()


class ClassifierAudit(_Part):
    """A classifier: on training views, and on rows that are held out and seen as in an evaluation."""

    held_out_from: str
    """``validation`` (the source's own) or ``training`` (cut off)."""
    training: BeforeAfter
    held_out: BeforeAfter
    memorised: bool
    memory_p: float | None
    """That it is right more often on the training views than on the held-out rows; None where that cannot be asked."""
    augmented: AugmentedRecord | None = None
    """On augmented views of held-out images; None if nothing is augmented, or the teacher has other classes."""
    correction: str
    """What the correction chose, and why."""
    noise: float | None = None
    """The share of the training labels that are thought wrong (0 to 1), if the correction found noise. It then maps to the true
    classes, and is not what the given labels are likeliest under."""
    normalisations: tuple[NormalisationRecord, ...]
    rules: tuple[RuleRecord, ...]
    """On the corrected teacher, out of fold."""
    rules_raw: tuple[RuleRecord, ...] | None
    """On the teacher as it is; None where it has other classes or is not corrected."""
    wrong: tuple[WrongRecord, ...]
    label_errors: LabelErrorsRecord


class DetectorAudit(_Part):
    """A detector on held-out pictures: COCO's numbers in percent, errors by class, and its proposals on the training
    pictures: how many of the rows on objects and on background it gets wrong."""

    held_out_from: str
    pictures: int
    numbers: dict[str, float | None]
    errors: tuple[ErrorsRecord, ...]
    objects: Counted | None
    background: Counted | None
    rules: tuple[RuleRecord, ...]
    """On the rows on objects."""


class AuditedTeacher(_Part):
    """The teacher: how its classes are found, and what it sees."""

    name: str
    parameters: int
    weights: str
    classes: int
    matched: str
    sees: str


class AuditRecord(_Part):
    """One audit. The first verdict is the one to act on."""

    version: int = VERSION
    verdicts: tuple[Verdict, ...] = Field(min_length=1)
    teacher: AuditedTeacher
    data: DataRecord
    rows: int
    """At most so many rows of each kind were looked at."""
    classification: ClassifierAudit | None = None
    detection: DetectorAudit | None = None
    notes: tuple[str, ...] = ()
    """What a reader must know before she believes a number."""
    config: Config
    versions: dict[str, str] = Field(default_factory=dict)
    commit: str | None = None
    command: str = ""
    hardware: str = ""
    started: str = ""
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """The record as ``audit.json`` has it."""
        return self.model_dump(mode="json")


def read_audit(path: str | Path) -> AuditRecord:
    """The record in ``audit.json``. ``ValueError`` where it is none, was changed, or is of a later version."""
    path = Path(path)
    try:
        content = unsealed(path.read_text(encoding="utf-8"), where=str(path))
    except (OSError, UnicodeError) as error:
        raise ValueError(
            f"audit: needs an audit.json, got {path}, which cannot be read ({error}); run `outgrow audit` again."
        ) from None
    except ValueError as error:
        raise ValueError(f"audit: {error}") from None
    if content.get("version") != VERSION:
        raise ValueError(
            f"audit: needs an audit.json of layout {VERSION}, got {content.get('version')!r} in {path}; run `outgrow "
            "audit` again."
        )
    try:
        return AuditRecord.model_validate({**content, "config": known_fields(content.get("config") or {})})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(
            f"audit: needs a whole audit.json, got {error.error_count()} faults in {path}, the first at {place} "
            f"({first['msg']}); run `outgrow audit` again."
        ) from None


class Audited(BaseModel):
    """What a task's ``audit`` gives back: the parts of the record, its section of the page (a
    :class:`outgrow.report.parts.Section`), lines for the terminal."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    verdicts: tuple[Verdict, ...]
    teacher: AuditedTeacher
    data: DataRecord
    notes: tuple[str, ...]
    numbers: ClassifierAudit | DetectorAudit
    section: Any
    summary: tuple[str, ...]


Options = Callable[[Config], str]
"""A configuration as the options of a command line."""


@torch.no_grad()
def rule_effects(
    logits: Float[Tensor, "rows classes"],
    label: Int[Tensor, " rows"],
    temperatures: Sequence[float] = TEMPERATURES,
) -> tuple[RuleRecord, ...]:
    """What each rule for wrong rows, with its default parameters, would do to these rows.

    >>> drop = next(r for r in rule_effects(torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1])) if r.removes)
    >>> drop.name, drop.changed, drop.at[0].moved
    ('drop', 50.0, None)
    """
    logits = lift(logits)
    return tuple(
        _effect(name, logits, label, temperatures)
        for name in dict.fromkeys(r().name for r in RULES.values() if getattr(r, "rows", "wrong") == "wrong")
    )


def _effect(name: str, logits: Tensor, label: Tensor, temperatures: Sequence[float]) -> RuleRecord:
    changed, removes, at, depends = 0.0, False, [], False
    for temperature in temperatures:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that logits look like probabilities is said elsewhere, once
            rectify = Rectifier(name, temperature)
            knowledge = rectify(logits, Target(label))
        after = corrected_logits(knowledge)
        kept = knowledge.weight > 0
        removes, depends = rectify.rule.effect == "remove", rectify.rule.uses_temperature
        rewritten = (after != logits).any(1)
        changed = max(changed, 100 * float((rewritten | ~kept).double().mean()))
        moved = 0.5 * ((after / temperature).softmax(1) - (logits / temperature).softmax(1)).abs().sum(1)
        leads = after.amax(1) <= label_logit(after, label)
        at.append(
            RuleAt(
                temperature=temperature,
                moved=None if removes else 100 * float(moved.double().mean()),
                on_top=100 * float(leads[kept].double().mean()) if bool(kept.any()) else 100.0,
            )
        )
    return RuleRecord(
        name=name, changed=changed, removes=removes, depends_on_temperature=depends, at=tuple(at)
    )
