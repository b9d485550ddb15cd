"""The base class of rules: a frozen dataclass with a name, called with logits and labels."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class BaseRule:
    """See :class:`outgrow.outputs.Rule`. Parameters of a rule are fields of its dataclass."""

    name: ClassVar[str]
    uses_temperature: ClassVar[bool] = False
    effect: ClassVar[Literal["none", "rewrite", "remove"]] = "rewrite"
    rows: ClassVar[Literal["wrong", "all"]] = "wrong"
    """The rows for which the rule is meant. Presets apply it to these."""

    def __call__(
        self,
        logits: Float[Tensor, "rows classes"],
        label: Int[Tensor, " rows"],
        *,
        temperature: float,
    ) -> Float[Tensor, "rows classes"]:
        raise NotImplementedError


def replace_logit(
    logits: Float[Tensor, "rows classes"], label: Int[Tensor, " rows"], value: Float[Tensor, " rows"]
) -> Float[Tensor, "rows classes"]:
    """``logits`` with one class of each row set to ``value``; the others stay bit for bit the same."""
    return logits.scatter(1, label[:, None], value[:, None].to(logits.dtype))
