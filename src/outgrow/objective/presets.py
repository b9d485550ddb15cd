"""Named pairs of a rectifier and an objective."""

import warnings
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
    """The choices of a preset. The trainer reads ``correct_teacher`` when it builds the teacher, and ``task`` when it knows
    whether labels look wrong: ``posterior`` applies only then."""

    about: str
    rule: str
    loss: str = "kd(temperature=4.0)"
    schedule: str = "constant"
    normalize: Literal["rows", "subset"] = "rows"
    task_weight: float = 1.0
    weight: float = 1.0
    correct_teacher: bool = False
    task: Literal["label", "posterior"] = "label"


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
        "ours: plain distillation from a teacher whose bias is corrected where that is measured to help; labels that look wrong "
        "are not learnt",
        rule="identity",
        correct_teacher=True,
        task="posterior",
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
    The rectifier has the temperature of the losses, or where they have none that which is given. A warning says so if nothing
    depends on a given one. ``ValueError`` if the losses have different
    temperatures and the rule depends on the temperature. ``trust`` is that of the rectifier, by default None.

    >>> rectify, objective = preset("paper", temperature=2.0)
    >>> rectify.rule.name, rectify.temperature, objective.temperature
    ('pair', 2.0, 2.0)
    """
    chosen = spec.lookup(PRESETS, name, kind="preset")
    if not isinstance(loss, str | None):
        raise ValueError(
            f"preset: loss needs a text such as 'kd + 100*fitnet', got {type(loss).__name__}; give a loss of your own to "
            "outgrow.Objective, and build the rectifier with outgrow.Rectifier."
        )
    calls = _at_temperature(chosen.loss if loss is None else loss, temperature)
    objective = Objective(
        [Term(make_loss(call._replace(weight=1.0)), call.weight) for call in calls],
        schedule=chosen.schedule if schedule is None else schedule,
        normalize=chosen.normalize if normalize is None else normalize,
        weight=chosen.weight if weight is None else weight,
        task_weight=chosen.task_weight if task_weight is None else task_weight,
    )
    rule = chosen.rule if rule is None else rule
    rule = make_rule(rule) if isinstance(rule, str) else rule
    # losses without one common temperature: the rule then works at the given one, or the usual 4
    rectifier = Rectifier(
        rule, objective.temperature or temperature or 4.0, rows=getattr(rule, "rows", "wrong"), trust=trust
    )
    of_rule = rule.uses_temperature and rectifier.temperature == temperature
    if temperature is not None and calls and not objective.takes_temperature and not of_rule:
        warnings.warn(
            f"preset: the temperature {temperature:g} has no effect, since neither {' nor '.join(call.name for call in calls)} "
            f"nor the rule {rule.name!r} takes it.",
            stacklevel=2,
        )
    declared = sorted(objective.temperatures)
    if len(declared) > 1 and rectifier.rule.uses_temperature:
        raise ValueError(
            f"preset: the rule {rectifier.rule.name!r} needs one temperature for all losses, got "
            f"{' and '.join(str(t) for t in declared)}; give all the same one, or use a rule without one, such as swap."
        )
    return rectifier, objective


def _at_temperature(loss: str, temperature: float | None) -> list[spec.Call]:
    """The losses in ``loss``, with ``temperature`` where they soften logits."""
    calls = spec.parse(loss) if loss else []
    if temperature is None:
        return calls
    found = []
    for call in calls:
        loss_type = spec.lookup({**LOSSES, **DETECTOR_LOSSES}, call.name, kind="loss")
        call = spec.bind(loss_type, call, kind="loss")
        if getattr(loss_type, "softens", False):
            own = call.arguments.get("temperature", temperature)
            if own not in (None, temperature) and loss not in {one.loss for one in PRESETS.values()}:
                warnings.warn(
                    f"preset: the temperature {temperature:g} replaces the {own} that the loss {call.name!r} has; give one of the two.",
                    stacklevel=3,
                )
            call = call._replace(arguments={**call.arguments, "temperature": temperature})
        found.append(call)
    return found
