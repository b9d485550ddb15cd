"""Named pairs of rectifier and objective, each made for the other."""

from dataclasses import dataclass
from typing import Literal

from outgrow import spec
from outgrow.knowledge.rectifier import Rectifier
from outgrow.losses import DETECTOR_LOSSES, LOSSES, make_loss
from outgrow.objective.objective import Objective
from outgrow.objective.terms import Term
from outgrow.outputs import Rule


@dataclass(frozen=True)
class Preset:
    """What a preset chooses. ``correct_teacher`` is for whoever builds the teacher: the trainer."""

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
        "arXiv 2412.09874 as its formulas say: (1 - p) (CE + easy KL) + p hard KL, rectified in pairs",
        rule="pair",
        schedule="linear",
        normalize="subset",
    ),
    "released": Preset(
        "what the authors' first published code does: a swap, temperature 5, a cosine exchange",
        rule="swap",
        loss="kd(temperature=5.0)",
        schedule="cosine",
        normalize="subset",
        task_weight=0.5,
        weight=0.5,
    ),
    "kd": Preset(
        "plain distillation, CE 1 + KD 1 at temperature 4: the null of every comparison", rule="identity"
    ),
    "none": Preset("no teacher: the student alone, through the same loop", rule="identity", loss=""),
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
) -> tuple[Rectifier, Objective]:
    """The rectifier and the objective of a preset, with parts of one's own where given.

    ``temperature`` goes to the losses that soften logits; without it a loss that replaces the
    preset's keeps its own default. The rectifier works at the temperature of the losses.
    ``ValueError`` where several losses soften at different temperatures under a rule that depends
    on it.

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
    # losses of several temperatures in one, or none, leave the rule to work at the field's habit
    rectifier = Rectifier(chosen.rule if rule is None else rule, objective.temperature or 4.0)
    declared = sorted(objective.temperatures)
    if len(declared) > 1 and rectifier.rule.uses_temperature:
        raise ValueError(
            f"preset: the rule {rectifier.rule.name!r} works at one temperature, got losses that read at "
            f"{' and '.join(str(t) for t in declared)}; give both the same, or take a rule without one, such as swap."
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
