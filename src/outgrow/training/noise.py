"""What a run makes of wrong labels: what its correction fits, and what the rule and the task ``posterior`` believe."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from outgrow import spec
from outgrow.knowledge import Rectifier
from outgrow.knowledge.posterior import Posterior
from outgrow.knowledge.registry import RULES
from outgrow.objective import PRESETS, Objective
from outgrow.teacher.noise import Wanted
from outgrow.training.config import MethodConfig


def fitted_noise(method: MethodConfig) -> Wanted:
    """What the correction of a teacher assumes of the labels: noise is looked for even where nobody asks for it."""
    wanted = wanted_noise(method)
    return "estimate" if wanted == "none" else wanted


def wanted_noise(method: MethodConfig) -> Wanted:
    """Whether the rule or the task needs the share of wrong labels: to be estimated, or given.

    >>> [wanted_noise(MethodConfig(rule=rule)) for rule in ("pair", "posterior", "posterior(noise=0.2)")]
    ['none', 'estimate', 0.2]
    """
    method = method.effective
    calls = spec.parse(method.rule) if method.rule else []
    if len(calls) == 1 and calls[0].name == "posterior":
        rule = spec.build(RULES, calls[0], kind="rule")
        given = spec.bind(Posterior, calls[0], kind="rule").arguments
        assert isinstance(rule, Posterior)
        return float(rule.noise) if given else "estimate"
    return "estimate" if method.task == "posterior" else "none"


def task_of(method: MethodConfig, *, noisy: bool) -> Literal["label", "posterior"]:
    """What the task compares the student with, where labels look wrong (``noisy``) or do not.

    >>> [task_of(MethodConfig(preset=preset), noisy=True) for preset in ("kd", "outgrow")]
    ['label', 'posterior']
    """
    wanted = PRESETS[method.preset].task if method.task is None else method.task
    return wanted if noisy else "label"


def with_noise(
    method: MethodConfig,
    rectify: Rectifier,
    objective: Objective,
    noise: Float[Tensor, "classes classes"] | None,
) -> Rectifier:
    """``rectify`` with the estimated ``noise``; that of the task is set in ``objective``.

    Where no wrong labels are found, the teacher's logits are not changed, and the task has the labels.
    """
    wanted = wanted_noise(method)
    rule = Posterior(wanted) if isinstance(wanted, float) else None if noise is None else Posterior(noise)
    if task_of(method, noisy=rule is not None) == "posterior":
        objective.task_rule = rule
    if not isinstance(rectify.rule, Posterior):
        return rectify
    if rule is None:
        return Rectifier("identity", rectify.temperature, trust=rectify.trust)
    return Rectifier(rule, rectify.temperature, rows="all", trust=rectify.trust)
