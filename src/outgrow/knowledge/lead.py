"""Mix in the label until it leads by a margin (Label Revision, LoCa, MFT)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from outgrow.knowledge.base import BaseRule, replace_logit
from outgrow.knowledge.split import label_logit


def lead(
    logits: Float[Tensor, "rows classes"],
    label: Int[Tensor, " rows"],
    *,
    temperature: float,
    margin: float = 0.2,
) -> Float[Tensor, "rows classes"]:
    r"""Mix the label into the teacher's distribution until the label leads by exactly ``margin``.

    .. math:: q = c\,t + (1 - c)\,e_y, \quad c = \frac{1 - \text{margin}}{1 - t_y + t_\text{max}}

    with :math:`t_\text{max}` the largest probability among the other classes. A row whose label
    already leads by the margin does not change (:math:`c \ge 1`). All other classes shrink by the same
    factor, so only the label's *logit* changes, to
    :math:`T (\log\sum e^{z/T} + \log((\text{margin} (1 - t_y) + t_\text{max}) / (1 - \text{margin})))`.

    References: Label Revision, https://arxiv.org/abs/2404.03693 (``eta = 1 - margin``); LoCa,
    https://arxiv.org/abs/2409.04778; MFT, https://arxiv.org/abs/2506.15702. They differ in
    temperature and rows. MFT also corrects right rows whose lead is too small (``rows="all"``). A
    re-implementation of LoCa sets the lead of every row to the margin, also where it was larger.

    >>> t = torch.tensor([[0.2, 0.7, 0.1]])
    >>> q = lead(t.log(), torch.tensor([0]), temperature=1.0, margin=0.2).softmax(dim=1)
    >>> round((q[0, 0] - q[0, 1]).item(), 4)
    0.2
    """
    if logits.shape[1] < 2:
        return logits
    soft = logits / temperature
    total = soft.logsumexp(dim=1)
    log_label = label_logit(soft, label) - total
    others = soft.scatter(1, label[:, None], -math.inf)
    log_rest = others.logsumexp(dim=1) - total  # log(1 - t_y), without subtracting
    log_max = others.amax(dim=1) - total
    needed = torch.logaddexp(math.log(margin) + log_rest if margin > 0 else log_max - math.inf, log_max)
    needed = needed - math.log1p(-margin)
    value = temperature * (torch.maximum(needed, log_label) + total)
    enough = log_label >= needed
    return torch.where(enough[:, None], logits, replace_logit(logits, label, value))


@dataclass(frozen=True)
class Lead(BaseRule):
    """:func:`lead` as a rule. ``margin`` is a probability in [0, 1)."""

    name: ClassVar[str] = "lead"
    uses_temperature: ClassVar[bool] = True
    margin: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.margin < 1:
            raise ValueError(
                f"lead: needs a margin in [0, 1), got {self.margin}; "
                "it is the label's lead as a probability, 0.2 in Label Revision."
            )

    def __call__(
        self,
        logits: Float[Tensor, "rows classes"],
        label: Int[Tensor, " rows"],
        *,
        temperature: float,
    ) -> Float[Tensor, "rows classes"]:
        return lead(logits, label, temperature=temperature, margin=self.margin)
