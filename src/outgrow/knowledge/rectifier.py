"""From what the teacher said to what the student should believe."""

import math
import warnings
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from outgrow import spec
from outgrow.knowledge.registry import RULES
from outgrow.knowledge.split import label_logit, safe_label, wrong_rows
from outgrow.outputs import (
    UNLABELLED,
    Knowledge,
    Outputs,
    Rule,
    Target,
    as_outputs,
    as_target,
    lift,
    with_logits,
)

Transform = Callable[[Float[Tensor, "rows classes"]], Float[Tensor, "rows classes"]]


class Rectifier:
    """Splits a teacher's rows into right and wrong and says how the wrong ones are corrected.

    ``rule`` is a name (``"pair"``, ``"lead(margin=0.3)"``) or a rule of one's own
    (:class:`outgrow.outputs.Rule`). ``temperature`` is that of the loss that will read the result.
    ``rows="all"`` lets the rule rewrite right rows too; rules that only bring the label to the lead
    leave most of those alone by themselves. Rows without a label (:data:`outgrow.UNLABELLED`) are neither
    right nor wrong: they are never rewritten and never dropped.

    Called as ``rectify(teacher, target) -> Knowledge``. It is the one place where knowledge leaves
    the graph of whatever computed it. On the CPU, labels out of range and rows with a NaN,
    an infinite logit or none that is finite raise ``ValueError``; on other devices, where looking would
    stall every step, labels are checked when data are loaded and such a row makes the loss non-finite.
    A logit of minus infinity beside finite ones rules its class out.

    >>> knowledge = Rectifier("swap")(torch.tensor([[1.0, 5.0]]), torch.tensor([0]))
    >>> knowledge.wrong, corrected_logits(knowledge)
    (tensor([True]), tensor([[5., 1.]]))
    """

    def __init__(
        self,
        rule: Rule | str = "pair",
        temperature: float | None = 4.0,
        rows: Literal["wrong", "all"] = "wrong",
    ) -> None:
        self.rule: Rule = make_rule(rule) if isinstance(rule, str) else rule
        self.temperature, self.rows = temperature, rows
        if temperature is not None and not temperature > 0:
            raise ValueError(
                f"Rectifier: needs a positive temperature, got {temperature}; 4 is the field's habit."
            )
        if rows not in ("wrong", "all"):
            raise ValueError(f"Rectifier: rows needs 'wrong' or 'all', got {rows!r}; 'wrong' is the default.")
        if rows == "all" and self.rule.effect != "rewrite":
            warnings.warn(
                f"Rectifier: rows='all' is ignored, since the rule {self.rule.name!r} rewrites no rows.",
                stacklevel=2,
            )
        if temperature is None and self.rule.uses_temperature:
            raise ValueError(
                f"Rectifier: the rule {self.rule.name!r} depends on a temperature, got None; "
                "pass the temperature of the loss that will read the result."
            )

    def __repr__(self) -> str:
        return f"Rectifier({self.rule!r}, temperature={self.temperature}, rows={self.rows!r})"

    def __call__(self, teacher: Outputs | Tensor, target: Target | Tensor) -> Knowledge:
        teacher, target = as_outputs(teacher, whose="teacher"), as_target(target)
        if teacher.logits.requires_grad:
            teacher = with_logits(teacher, teacher.logits.detach())
        logits = teacher.logits
        _check_rows(logits, target)
        largest = logits.amax(dim=1) if logits.numel() else logits.new_zeros(len(logits))
        # known on a CPU alone: looking would stall every step elsewhere
        all_valid = logits.device.type == "cpu" and _check_values(largest, target, logits.shape[1])
        wrong = wrong_rows(logits, target, largest=largest, all_valid=all_valid)
        rule, precise = self.rule, lift(logits[:0]).dtype
        if rule.effect == "remove":
            weight = (target.takes_part & ~wrong).to(precise)
        else:
            # one number for all rows, where all have a label
            ones = torch.ones((), dtype=precise, device=logits.device).expand(len(wrong))
            weight = ones if all_valid else target.takes_part.to(precise)
        if rule.effect != "rewrite":
            corrected = torch.zeros_like(wrong)
        else:
            corrected = target.valid if self.rows == "all" else wrong
        return Knowledge(
            teacher=teacher,
            rule=rule,
            target=target,
            wrong=wrong,
            corrected=corrected,
            weight=weight,
            temperature=self.temperature if rule.uses_temperature else None,
            partial=rule.effect == "remove"
            or target.may_ignore
            or (logits.device.type == "cpu" and not all_valid),
        )


def rectify(
    teacher: Outputs | Tensor,
    target: Target | Tensor,
    *,
    rule: Rule | str = "pair",
    temperature: float | None = 4.0,
    rows: Literal["wrong", "all"] = "wrong",
) -> Knowledge:
    """:class:`Rectifier` in one call."""
    return Rectifier(rule, temperature, rows)(teacher, target)


def corrected_logits(
    knowledge: Knowledge, transform: Transform | None = None
) -> Float[Tensor, "rows classes"]:
    """The teacher's logits after the correction, in float32 at least.

    Rows that the rule does not rewrite, and within a rewritten row the logits that it does not
    touch, are the teacher's own, bit for bit. ``transform`` (standardisation) is applied to the
    teacher's logits first, so that the rule corrects what the loss will read.
    """
    logits = lift(knowledge.teacher.logits)
    if transform is not None:
        logits = transform(logits)
    if knowledge.rule.effect != "rewrite" or not len(logits):
        return logits
    label = safe_label(knowledge.target.dominant, logits.shape[1])
    temperature = 1.0 if knowledge.temperature is None else knowledge.temperature
    rewritten = knowledge.rule(logits, label, temperature=temperature)
    return torch.where(knowledge.corrected[:, None], rewritten, logits)


def label_trails(knowledge: Knowledge) -> Bool[Tensor, " rows"]:
    """The rewritten rows in which another class still leads the label: a correction that failed."""
    logits = corrected_logits(knowledge)
    if not logits.numel():
        return knowledge.corrected
    label = safe_label(knowledge.target.dominant, logits.shape[1])
    return knowledge.corrected & (logits.amax(dim=1) > label_logit(logits, label))


def make_rule(text: str) -> Rule:
    """The rule that ``text`` names, such as ``"pair"`` or ``"lead(margin=0.3)"``."""
    calls = spec.parse(text)
    if len(calls) != 1 or calls[0].weight != 1:
        raise ValueError(
            f"rule: needs one rule without a weight, got {text!r}; rules do not add up, losses do."
        )
    return spec.build(RULES, calls[0], kind="rule")


def _check_rows(logits: Tensor, target: Target) -> None:
    if len(logits) != len(target.label):
        raise ValueError(
            f"rectify: needs one label for each row of teacher logits, got {len(target.label)} labels for "
            f"{len(logits)} rows; flatten maps of logits with outgrow.flatten_rows."
        )
    if logits.device != target.label.device:
        raise ValueError(
            f"rectify: needs logits and labels on one device, got {logits.device} and {target.label.device}; "
            "move the labels with .to(logits.device)."
        )


def _check_values(largest: Tensor, target: Target, num_classes: int) -> bool:
    """Refuses labels out of range and rows that are not finite; whether every row has a label."""
    all_valid = _check_label("label", target.label, target, num_classes)
    if target.partner is not None:
        _check_label("partner", target.partner, target, num_classes)
    # one number says that all are finite; a sum of large ones may also overflow, so look again then
    if not math.isfinite(largest.sum().item()) and not largest.isfinite().all():
        row = int((~largest.isfinite()).nonzero()[0])
        raise ValueError(
            f"teacher: needs finite logits (or minus infinity for a class that it rules out), got a largest logit of {float(largest[row])} in row {row}; "
            "run the teacher in a wider precision or look at its input."
        )
    return all_valid


def _check_label(name: str, label: Tensor, target: Target, num_classes: int) -> bool:
    """Refuses labels out of range; whether every row has one."""
    if not len(label):
        return True
    low, high = label.aminmax()
    if low.item() >= 0 and high.item() < num_classes:
        return True
    bad = ((label < 0) & (label != UNLABELLED) | (label >= num_classes)) & target.takes_part
    if bad.any():
        row = int(bad.nonzero()[0])
        raise ValueError(
            f"target: needs every {name} in 0..{num_classes - 1} (the teacher's classes), got "
            f"{int(label[row])} in row {row}; check the label column, or mark rows to leave out with -100 and rows without a label with -1."
        )
    return False
