"""What a run's method believes of wrong labels: the rule and the task ``posterior``."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from outgrow import spec
from outgrow.knowledge import Rectifier
from outgrow.knowledge.posterior import Posterior
from outgrow.knowledge.registry import RULES
from outgrow.objective import Objective
from outgrow.training.config import MethodConfig


def wanted_noise(method: MethodConfig) -> Literal["none", "estimate"] | float:
    """Whether the share of wrong labels is to be estimated, or is given, or plays no part.

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


def with_noise(
    method: MethodConfig,
    rectify: Rectifier,
    objective: Objective,
    noise: Float[Tensor, "classes classes"] | None,
) -> Rectifier:
    """``rectify`` with the estimated ``noise``; that of the task is set in ``objective``.

    Without noise, where labels look clean, the teacher's logits are not changed, and the task has the labels.
    """
    wanted = wanted_noise(method)
    if wanted == "none":
        return rectify
    rule = Posterior(wanted) if isinstance(wanted, float) else None if noise is None else Posterior(noise)
    if method.task == "posterior":
        objective.task_rule = rule
    if not isinstance(rectify.rule, Posterior):
        return rectify
    if rule is None:
        return Rectifier("identity", rectify.temperature, trust=rectify.trust)
    return Rectifier(rule, rectify.temperature, rows="all", trust=rectify.trust)
