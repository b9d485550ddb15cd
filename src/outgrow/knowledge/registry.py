"""All rules by name. Your own rule needs no entry: pass the object."""

from collections.abc import Callable

from outgrow.knowledge.boost import Boost
from outgrow.knowledge.drop import Drop
from outgrow.knowledge.identity import Identity
from outgrow.knowledge.label_smooth import LabelSmooth
from outgrow.knowledge.lead import Lead
from outgrow.knowledge.pair import Pair
from outgrow.knowledge.posterior import Posterior
from outgrow.knowledge.project import Project
from outgrow.knowledge.sort import Sort
from outgrow.knowledge.swap import Swap
from outgrow.outputs import Rule

RULES: dict[str, Callable[..., Rule]] = {
    "identity": Identity,
    "drop": Drop,
    "pair": Pair,
    "swap": Swap,
    "label_smooth": LabelSmooth,
    "lead": Lead,
    "sort": Sort,
    "project": Project,
    "boost": Boost,
    "posterior": Posterior,
    # names of `lead` in papers
    "revise": Lead,
    "calibrate": Lead,
    "threshold": Lead,
}
