"""Turn the teacher's outputs and the labels into knowledge, the student's soft targets."""

import math
import warnings
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from outgrow import spec
from outgrow.knowledge.registry import RULES
from outgrow.knowledge.split import all_labelled, label_logit, safe_label, wrong_rows
from outgrow.knowledge.trust import Trust, make_trust
from outgrow.outputs import (
    Knowledge,
    Outputs,
    Rule,
    Target,
    as_outputs,
    as_target,
    lift,
    warn_if_probabilities,
)

Transform = Callable[[Float[Tensor, "rows classes"]], Float[Tensor, "rows classes"]]


class Rectifier:
    """Split a teacher's rows into right and wrong, and choose the rule that corrects the wrong ones.

    ``rule`` is a name (``"pair"``, ``"lead(margin=0.3)"``) or your own rule
    (:class:`outgrow.outputs.Rule`). ``temperature`` is that of the loss. ``rows="all"`` applies the rule to
    right rows too; rules that only bring the label into the lead change few of those. Rows without a label
    (:data:`outgrow.UNLABELLED`) are neither right nor wrong. They are never rewritten, and the rule never drops them.
    ``trust`` weighs rows by how far the teacher is trusted there: a name (``"confidence(0.8)"``), an object of
    :mod:`outgrow.knowledge.trust`, or None to weigh all alike.

    Called as ``rectify(teacher, target) -> Knowledge``. The teacher's logits and features are detached here. A logit of
    minus infinity beside finite ones rules its class out. On the CPU, ``ValueError`` is raised for labels out
    of range and for rows with a NaN, with an infinite logit or without a finite one; of ignored rows nothing is read. On other devices that
    check would need a sync at every step. There labels are checked when data are loaded, and such a row
    makes the loss non-finite.

    >>> knowledge = Rectifier("swap")(torch.tensor([[1.0, 5.0]]), torch.tensor([0]))
    >>> knowledge.wrong, corrected_logits(knowledge)
    (tensor([True]), tensor([[5., 1.]]))
    """

    def __init__(
        self,
        rule: Rule | str = "pair",
        temperature: float | None = 4.0,
        rows: Literal["wrong", "all"] = "wrong",
        trust: Trust | str | None = None,
    ) -> None:
        self.rule: Rule = make_rule(rule) if isinstance(rule, str) else rule
        if not isinstance(self.rule, Rule):
            raise ValueError(
                f"Rectifier: rule needs a name such as 'pair', or an object with name, uses_temperature and effect, got "
                f"{type(rule).__name__}; `outgrow list rules` describes those that there are."
            )
        self.trust: Trust | None = make_trust(trust) if isinstance(trust, str) else trust
        self.temperature, self.rows = temperature, rows
        self._checked = False
        if temperature is not None and not temperature > 0:
            raise ValueError(f"Rectifier: needs a positive temperature, got {temperature}; 4 is usual.")
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
                "pass the temperature of the loss."
            )

    def __repr__(self) -> str:
        trust = "" if self.trust is None else f", trust={self.trust!r}"
        return f"Rectifier({self.rule!r}, temperature={self.temperature}, rows={self.rows!r}{trust})"

    def __call__(self, teacher: Outputs | Tensor, target: Target | Tensor) -> Knowledge:
        teacher, target = as_outputs(teacher, whose="teacher"), as_target(target)
        if any(value.requires_grad for value in (teacher.logits, *teacher.features.values())):
            features = {name: value.detach() for name, value in teacher.features.items()}
            teacher = Outputs(teacher.logits.detach(), features)
        logits = teacher.logits
        _check_rows(logits, target)
        if not self._checked and len(logits):  # once: what a network ends in does not change
            warn_if_probabilities(logits, whose="teacher")
            self._checked = True
        largest = logits.amax(dim=1) if logits.numel() else logits.new_zeros(len(logits))
        # only on a CPU: on other devices the check would sync at every step
        all_valid = logits.device.type == "cpu" and _check_values(largest, target, logits.shape[1])
        wrong = wrong_rows(logits, target, largest=largest, all_valid=all_valid)
        rule, precise = self.rule, lift(logits[:0]).dtype
        if rule.effect == "remove":
            weight = (target.takes_part & ~wrong).to(precise)
        else:
            # a scalar expanded to all rows, where all have a label
            ones = torch.ones((), dtype=precise, device=logits.device).expand(len(wrong))
            weight = ones if all_valid else target.takes_part.to(precise)
        if rule.effect != "rewrite":
            corrected = torch.zeros_like(wrong)
        else:
            corrected = target.valid if self.rows == "all" else wrong
        knowledge = Knowledge(
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
        return knowledge if self.trust is None else self.trust(knowledge)


def rectify(
    teacher: Outputs | Tensor,
    target: Target | Tensor,
    *,
    rule: Rule | str = "pair",
    temperature: float | None = 4.0,
    rows: Literal["wrong", "all"] = "wrong",
) -> Knowledge:
    """:class:`Rectifier`, built and called at once."""
    return Rectifier(rule, temperature, rows)(teacher, target)


def corrected_logits(
    knowledge: Knowledge, transform: Transform | None = None
) -> Float[Tensor, "rows classes"]:
    """The teacher's logits after the correction, in float32 at least.

    Logits that the rule does not change are the teacher's, bit for bit. ``transform`` (standardisation) is
    applied to the teacher's logits before the rule, so that the rule corrects the logits that the loss uses.
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
    """The rewritten rows in which another class still leads the label: failed corrections."""
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
            f"rule: needs one rule without a weight, got {text!r}; only losses can be added and weighted."
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
    """Whether every row has a label. ``ValueError`` for labels out of range and for rows that are not finite."""
    all_valid = all_labelled("label", target.label, target, num_classes, whose="teacher")
    if target.partner is not None:
        all_labelled("partner", target.partner, target, num_classes, whose="teacher")
    # a finite sum means that all are finite; large values can overflow it, so check each value then
    if not math.isfinite(largest.sum().item()) and (bad := ~largest.isfinite() & target.takes_part).any():
        row = int(bad.nonzero()[0])
        raise ValueError(
            f"teacher: needs finite logits (or minus infinity for a class that it rules out), got a largest logit of {float(largest[row])} in row {row}; "
            "run the teacher in float32 or check its input."
        )
    return all_valid
