"""Named pairs of a rectifier and an objective."""

from dataclasses import dataclass
from typing import Literal

from outgrow import spec
from outgrow.knowledge.rectifier import Rectifier, make_rule
from outgrow.knowledge.trust import Trust
from outgrow.losses import DETECTOR_LOSSES, LOSSES, make_loss
from outgrow.objective.objective import Objective
from outgrow.objective.terms import Term
from outgrow.outputs import Rule


@dataclass(frozen=True)
class Preset:
    """The choices of a preset. The trainer reads ``correct_teacher`` when it builds the teacher."""

    about: str
    rule: str
    loss: str = "kd(temperature=4.0)"
    schedule: str = "constant"
    normalize: Literal["rows", "subset"] = "rows"
    task_weight: float = 1.0
    weight: float = 1.0
    correct_teacher: bool = False


PRESETS: dict[str, Preset] = {
    "paper": Preset(
        "the formulas of arXiv 2412.09874: (1 - p) (CE + easy KL) + p hard KL, wrong rows corrected by pair",
        rule="pair",
        schedule="linear",
        normalize="subset",
    ),
    "released": Preset(
        "the authors' first published code: wrong rows corrected by swap, temperature 5, a cosine schedule",
        rule="swap",
        loss="kd(temperature=5.0)",
        schedule="cosine",
        normalize="subset",
        task_weight=0.5,
        weight=0.5,
    ),
    "kd": Preset(
        "plain distillation, CE 1 + KD 1 at temperature 4: the baseline of every comparison", rule="identity"
    ),
    "none": Preset("no teacher: the student trained alone, in the same loop", rule="identity", loss=""),
    "drop": Preset("plain distillation without the rows that the teacher gets wrong", rule="drop"),
    "outgrow": Preset(
        "ours: plain distillation from a teacher whose bias is corrected where that is measured to help",
        rule="identity",
        correct_teacher=True,
    ),
}


def preset(
    name: str,
    *,
    temperature: float | None = None,
    loss: str | None = None,
    rule: str | Rule | None = None,
    schedule: str | None = None,
    weight: float | None = None,
    task_weight: float | None = None,
    normalize: Literal["rows", "subset"] | None = None,
    trust: str | Trust | None = None,
) -> tuple[Rectifier, Objective]:
    """The rectifier and the objective of a preset. Each argument that is given replaces a part of it.

    ``temperature`` is passed to the losses that soften logits. Without it a ``loss`` keeps its own default.
    The rectifier has the temperature of the losses. ``ValueError`` if the losses have different
    temperatures and the rule depends on the temperature. ``trust`` is that of the rectifier, by default None.

    >>> rectify, objective = preset("paper", temperature=2.0)
    >>> rectify.rule.name, rectify.temperature, objective.temperature
    ('pair', 2.0, 2.0)
    """
    chosen = spec.lookup(PRESETS, name, kind="preset")
    loss_text = _at_temperature(chosen.loss if loss is None else loss, temperature)
    objective = Objective(
        [Term(make_loss(call._replace(weight=1.0)), call.weight) for call in _calls(loss_text)],
        schedule=chosen.schedule if schedule is None else schedule,
        normalize=chosen.normalize if normalize is None else normalize,
        weight=chosen.weight if weight is None else weight,
        task_weight=chosen.task_weight if task_weight is None else task_weight,
    )
    # losses without one common temperature: the rule then works at the usual 4
    rule = chosen.rule if rule is None else rule
    rule = make_rule(rule) if isinstance(rule, str) else rule
    rectifier = Rectifier(
        rule, objective.temperature or 4.0, rows=getattr(rule, "rows", "wrong"), trust=trust
    )
    declared = sorted(objective.temperatures)
    if len(declared) > 1 and rectifier.rule.uses_temperature:
        raise ValueError(
            f"preset: the rule {rectifier.rule.name!r} needs one temperature for all losses, got "
            f"{' and '.join(str(t) for t in declared)}; give all the same one, or use a rule without one, such as swap."
        )
    return rectifier, objective


def _at_temperature(loss: str, temperature: float | None) -> str:
    if temperature is None:
        return loss
    calls = []
    for call in _calls(loss):
        loss_type = spec.lookup({**LOSSES, **DETECTOR_LOSSES}, call.name, kind="loss")
        call = spec.bind(loss_type, call, kind="loss")
        if getattr(loss_type, "softens", False):
            call = call._replace(arguments={**call.arguments, "temperature": temperature})
        calls.append(call)
    return " + ".join(str(call) for call in calls)


def _calls(loss: str) -> list[spec.Call]:
    return spec.parse(loss) if loss else []
