"""The paper's rectification: redistribute probability between the label and the top class."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from outgrow.knowledge.base import BaseRule
from outgrow.knowledge.split import label_logit, top_class


def pair(
    logits: Float[Tensor, "rows classes"],
    label: Int[Tensor, " rows"],
    *,
    temperature: float,
) -> Float[Tensor, "rows classes"]:
    r"""Move probability from the top class ``b`` to the label ``a``. The sum of the two does not change.

    With :math:`t = \sigma(z / T)` and :math:`m = t_a + t_b`,

    .. math:: t'_a = m (1 + t_a) / (1 + m), \quad t'_b = m t_b / (1 + m), \quad
              \text{others unchanged.}

    Always :math:`t'_a > t'_b`, but the label is *not* always the new top class: a third class can
    lead. The label leads if :math:`t_a (1 + t_a) \ge t_b^2`. Not idempotent. A row whose label is
    already the top class does not change. The result depends on the temperature, which must be that of
    the loss.

    Reference: Zhang et al. (AAAI 2025), https://arxiv.org/abs/2412.09874, "bias rectification".

    >>> t = torch.tensor([[0.01, 0.20, 0.19, 0.15, 0.15, 0.15, 0.15]])
    >>> pair(t.log(), torch.tensor([0]), temperature=1.0).softmax(dim=1)[0, :3]
    tensor([0.1753, 0.0347, 0.1900])
    """
    log_t = (logits / temperature).log_softmax(dim=1)
    top = top_class(logits, label)
    old_top = label_logit(logits, top)
    log_label, log_top = label_logit(log_t, label), label_logit(log_t, top)
    log_mass = torch.logaddexp(log_label, log_top)
    # back from log-probabilities to logits; the shift comes from the top class, as the label's logit may be -inf
    shift = temperature * (log_mass - torch.log1p(log_mass.exp()) - log_top) + old_top
    new_label = shift + temperature * torch.log1p(log_label.exp())
    new_top = shift + temperature * log_top
    new = torch.stack((new_label, new_top), dim=1)
    new = torch.where((top == label)[:, None], old_top[:, None], new)
    return logits.scatter(1, torch.stack((label, top), dim=1), new.to(logits.dtype))


@dataclass(frozen=True)
class Pair(BaseRule):
    """:func:`pair` as a rule."""

    name: ClassVar[str] = "pair"
    uses_temperature: ClassVar[bool] = True

    def __call__(
        self,
        logits: Float[Tensor, "rows classes"],
        label: Int[Tensor, " rows"],
        *,
        temperature: float,
    ) -> Float[Tensor, "rows classes"]:
        return pair(logits, label, temperature=temperature)
