"""What the numbers of an audit mean, in words: pure functions of the record, the most urgent verdict first.

A verdict is only given where the numbers show it: a difference is tested, and large enough to matter.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from outgrow.classification.augmentation import cost_text, costs_much, weaker
from outgrow.teacher.counts import LEVEL, above
from outgrow.training.audit import (
    AnswersRecord,
    BeforeAfter,
    ClassifierAudit,
    NormalisationRecord,
    Options,
    Verdict,
)
from outgrow.training.config import Config, ModelConfig

NO_ERRORS = 99.0
"""Percent right on the training views from which on no rule has rows to work on."""
GAIN = 1.0
"""Points that a correction must gain before it is called one."""
GOOD = 0.5
"""Share of the way from the majority class to all right from which on a teacher is called good."""
FEW = 50
"""Labelled images of a class below which the student learns little from the answers that a teacher repeats."""


@dataclass(frozen=True)
class Case:
    """What verdicts are made of. ``order`` is the error where the outputs stand in another order than the data's."""

    numbers: ClassifierAudit
    teacher: str
    mapped: bool
    probed: bool
    """Whether the teacher has no classifier but a linear probe of its features."""
    train_rows: int
    num_classes: int
    order: str | None
    config: Config
    options: Options
    folder: str | None = None

    def distill(self, method: str, out: str = "runs/first") -> str:
        student = "" if self.config.student.name else " --student MODEL"
        return f"outgrow distill {self.options(self.config)}{student} {method} --out {out}"

    def compare(self, methods: str) -> str:
        student = "" if self.config.student.name else " --student MODEL"
        return f"outgrow compare {self.options(self.config)}{student} {methods} --seeds 3 --out runs/compare"


def verdicts(case: Case) -> tuple[Verdict, ...]:
    """All that hold. The first one is the one to act on: what makes the other numbers wrong comes before them."""
    first = _normalisation(case)
    if first is not None:  # what else would be said is of a teacher that nobody will use
        return (first,)
    order, augmentation = _order(case), _augmentation(case)
    if augmentation is not None:
        # all that is said of training views is of images that the teacher does not know
        return (augmentation,) if order is None else (order, augmentation)
    found = [
        order,
        _useless(case) or _memory(case) or _main(case),
        _few_labels(case),
        _label_errors(case),
    ]
    return tuple(one for one in found if one is not None)


def _normalisation(case: Case) -> Verdict | None:
    tried = case.numbers.normalisations
    better = next((one for one in tried if one.better), None)
    if better is None:
        return None
    used = next(one for one in tried if one.in_use)
    return Verdict(
        kind="normalisation",
        text=f"Wrong normalisation: with {_called(better)} the teacher is right on {better.top1.accuracy:.1f} % of the images, "
        f"with the one in use on {used.top1.accuracy:.1f} %.",
        reason=f"Same {used.top1.rows:,} images, {better.gained} gained and {better.lost} lost (paired test, p "
        f"{p_text(better.p)}). All other numbers here are of the teacher as it is in use now. A correction of bias would hide a "
        "part of the damage. Set the normalisation and run the audit again.",
        command=f"outgrow audit {case.options(_with(case.config, better))} --out runs/audit-again",
    )


def _called(one: NormalisationRecord) -> str:
    return {
        "none": "no normalisation",
        "0.5": "mean and deviation 0.5",
        "bytes": "pixels from 0 to 255",
    }.get(one.name, f"{one.name} normalisation")


def _with(config: Config, one: NormalisationRecord) -> Config:
    mean, std = (tuple(round(value, 6) for value in values) for values in (one.mean, one.std))
    teacher = config.teacher.model_copy(update={"mean": mean, "std": std})
    return config.model_copy(update={"teacher": teacher, "student": ModelConfig()})  # an audit has no student


def _order(case: Case) -> Verdict | None:
    if case.order is None:
        return None
    return Verdict(
        kind="order",
        text="The teacher's outputs stand in another order than the data's classes.",
        reason=case.order,
    )


def _augmentation(case: Case) -> Verdict | None:
    """Views that are beyond the teacher: a rule and a correction would be fitted on them."""
    found = case.numbers.augmented
    if found is None or not costs_much(found):
        return None
    augment = case.config.data.augment
    settings = weaker(found, augment)
    cure, command = "Set data.size to the size that the teacher was trained on.", None
    if settings:
        data = case.config.data.model_copy(update={"augment": augment.model_copy(update=settings)})
        changed = case.config.model_copy(update={"data": data, "student": ModelConfig()})
        cure = "Weaken the augmentation and run the audit again."
        command = f"outgrow audit {case.options(changed)} --out runs/audit-again"
    return Verdict(
        kind="augmentation",
        text="The augmentation makes of the images what the teacher does not know.",
        reason=f"{cost_text(found)} A correction fitted on them does not fit the images. {cure}",
        command=command,
    )


def _useless(case: Case) -> Verdict | None:
    """No better than one answer for all, before and after correction, on either kind of rows."""
    sides = [case.numbers.held_out, case.numbers.training]
    known = [one for side in sides for one in (side.raw, side.corrected) if one is not None]
    if any(_beats_majority(one) for one in known):
        return None
    best = case.numbers.held_out.best
    return Verdict(
        kind="below_majority",
        text=f"The teacher knows nothing of these classes: it is right on {best.top1.accuracy:.1f} % of the held-out images, "
        f"and always naming the most frequent class on {best.majority:.1f} %.",
        reason="A correction of its bias does not change that. Check its weights, its classes and its input size first. "
        "A student is better off without it.",
        command=case.distill("--preset none", "runs/alone"),
    )


def _beats_majority(one: AnswersRecord) -> bool:
    return above(one.top1.right, one.top1.rows, one.majority / 100) < LEVEL


def _memory(case: Case) -> Verdict | None:
    numbers = case.numbers
    if not numbers.memorised:
        return None
    training, held = numbers.training.raw, numbers.held_out.raw
    assert training is not None
    assert held is not None
    return Verdict(
        kind="memorised",
        text=f"The teacher has memorised the training rows: right on {training.top1.accuracy:.1f} % of the training views and "
        f"on {held.top1.accuracy:.1f} % of held-out images.",
        reason=f"The difference is no chance (Fisher's test, p {p_text(numbers.memory_p or 0.0)}). Its answers on the training "
        "rows do not show its errors, so there is little for a rule to correct and nothing true to fit a correction on. Its "
        "soft answers still help: plain distillation. Try a few weights of it (method.weight).",
        command=case.distill("--preset kd"),
    )


def _main(case: Case) -> Verdict:
    """Of a teacher that knows something and has not memorised: one verdict, the strongest that holds."""
    training, held = case.numbers.training, case.numbers.held_out
    if case.mapped:
        return _mapped(case, training)
    assert training.raw is not None
    lifted = _lifted(training)
    if lifted is not None and training.corrected is not None:
        return Verdict(
            kind="biased",
            text=f"Biased: a correction lifts its accuracy, out of fold, from {training.raw.top1.accuracy:.1f} to "
            f"{training.corrected.top1.accuracy:.1f} %.",
            reason=f"Of {training.raw.top1.rows:,} training views {training.gained} became right and {training.lost} wrong "
            f"(paired test, p {p_text(training.p)}), each by a map that has not seen its label. A part of its errors is "
            "systematic.",
            command=case.distill("--preset outgrow"),
        )
    share = training.raw.top1.accuracy
    if share >= NO_ERRORS:
        caution = (
            " The held-out rows were cut from the training images here: whether it knows or remembers them, only images that "
            "it has certainly not seen can tell."
            if case.numbers.held_out_from == "training"
            else ""
        )
        return Verdict(
            kind="nothing_to_correct",
            text=f"Right on {share:.1f} % of the training views: no rule for rows can matter here.",
            reason="A rule changes only rows that the teacher gets wrong, and there are next to none. What can matter is the "
            f"weight of the distillation term (method.weight).{caution}",
            command=case.distill("--preset kd"),
        )
    if case.numbers.noise is not None:
        return Verdict(
            kind="noisy_labels",
            text=f"Honest, but {100 * case.numbers.noise:.1f} % of the training labels are thought wrong.",
            reason=f"On the labels as they are it is right on {share:.1f} % of the training views, and looks worse than it is. Nothing "
            "else that is systematic was found in its errors. The preset outgrow corrects it towards the true classes.",
            command=case.compare("--methods kd,outgrow"),
        )
    if training.corrected is not None:
        after = training.corrected
        return Verdict(
            kind="miscalibrated",
            text=f"Honest, but its confidence is off: a correction leaves its accuracy ({share:.1f} and "
            f"{after.top1.accuracy:.1f} % of the training views) and improves its likelihood.",
            reason=f"Negative log-likelihood {_nats(training.raw)} before and {_nats(after)} after, out of fold; calibration error "
            f"{training.raw.ece:.1f} and {after.ece:.1f} points. No class is systematically confused, so expect little of a "
            "correction or a rule.",
            command=case.compare("--methods kd,outgrow"),
        )
    good = _skill(held.best) >= GOOD
    found = "Nothing systematic was found in its errors, so a correction leaves it as it is."
    if good:
        return Verdict(
            kind="good",
            text=f"Honest and good: right on {held.best.top1.accuracy:.1f} % of held-out images.",
            reason=f"{found} Plain distillation is hard to beat here. Try a few weights of it (method.weight).",
            command=case.distill("--preset kd"),
        )
    return Verdict(
        kind="weak",
        text=f"Honest but weak: right on {held.best.top1.accuracy:.1f} % of held-out images, wrong on "
        f"{100 - share:.1f} % of the training views.",
        reason=f"{found} Whether a student needs it, only the student alone can tell.",
        command=case.compare("--methods none,kd --rules pair"),
    )


def _mapped(case: Case, training: BeforeAfter) -> Verdict:
    after = training.best
    found = "no classifier; with a linear probe" if case.probed else "other classes; mapped to yours"
    return Verdict(
        kind="mapped",
        text=f"The teacher has {found} it is right on {after.top1.accuracy:.1f} % of the training views, "
        "out of fold.",
        reason=f"Always naming the most frequent class would be right on {after.majority:.1f} %. The map is fitted on your "
        "labels and needs no training of the teacher. Compare with the student alone.",
        command=case.distill("--preset outgrow"),
    )


def _lifted(side: BeforeAfter) -> float | None:
    """Points of accuracy that the correction is shown to gain."""
    if side.raw is None or side.corrected is None:
        return None
    gain = side.corrected.top1.accuracy - side.raw.top1.accuracy
    return gain if gain >= GAIN and side.p < LEVEL else None


def _skill(one: AnswersRecord) -> float:
    """Of the way from the majority class to all right; 1 where there is no such way."""
    rest = 100 - one.majority
    return (one.top1.accuracy - one.majority) / rest if rest > 0 else 1.0


def _few_labels(case: Case) -> Verdict | None:
    if case.train_rows >= FEW * case.num_classes or case.config.data.unlabelled is not None:
        return None
    return Verdict(
        kind="few_labels",
        text="All images are labelled and few: the teacher can only tell you about images whose answer you gave.",
        reason=f"{case.train_rows:,} images to train on, for {case.num_classes} classes. More images of the same kind, even "
        "without labels, let the teacher say something new.",
        command=case.distill("--preset kd --unlabelled SRC"),
    )


def _label_errors(case: Case) -> Verdict | None:
    found = case.numbers.label_errors
    if not found.found:
        return None
    listed = "label_errors.csv" if case.folder is None else f"{case.folder}/label_errors.csv"
    data = case.config.data.model_copy(update={"exclude": listed})
    after = replace(case, config=case.config.model_copy(update={"data": data}))
    return Verdict(
        kind="label_errors",
        text=f"{found.found:,} of {found.rows:,} labels look wrong. Look at the images before you leave any out.",
        reason="The teacher finds another class far more likely than the label, judged without the label's influence. Correct the "
        "labels, or leave the images out.",
        command=after.distill("--preset kd"),
    )


def _nats(one: AnswersRecord) -> str:
    return "infinite" if one.nll is None else f"{one.nll:.3f}"


def p_text(value: float) -> str:
    """
    >>> p_text(0.0000001), p_text(0.0321)
    ('below 0.001', '0.032')
    """
    return "below 0.001" if value < 0.001 else f"{value:.3f}"


def headline(found: Sequence[Verdict]) -> str:
    """The first verdict's text: what a page is called."""
    return found[0].text
