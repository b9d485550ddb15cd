"""What to believe of a label that may be wrong: the teacher and the label together."""

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from jaxtyping import Float, Int
from torch import Tensor

from outgrow.knowledge.base import BaseRule, replace_logit
from outgrow.knowledge.split import label_logit


def posterior(
    logits: Float[Tensor, "rows classes"],
    label: Int[Tensor, " rows"],
    *,
    noise: float | Float[Tensor, "classes classes"],
) -> Float[Tensor, "rows classes"]:
    r"""The true class, given the image and a label that may be wrong.

    .. math:: p(c \mid x, y) \propto p(c \mid x)\, Q_{cy}, \qquad z'_c = z_c + \log Q_{cy}

    :math:`Q_{cy}` (``noise[c, y]``) is the probability of the label :math:`y` where :math:`c` is true: rows sum to 1. ``logits``
    are the teacher's belief in the *true* classes, before it has seen the label. A number is a share :math:`r` of labels that are
    wrong, any other class being as likely as any. The rule is then :func:`outgrow.knowledge.boost.boost` by
    :math:`\log((1 - r)(C - 1) / r)`: only the label's logit changes. The posterior is that at temperature 1; a loss that softens
    the logits softens the label's evidence too. Not idempotent: the label is evidence once.

    Reference: Bayes' rule. Noise that does not depend on the image: Patrini et al. (2017),
    https://arxiv.org/abs/1609.03683, section 3.

    >>> import torch
    >>> belief, label = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([1])
    >>> posterior(belief.log(), label, noise=0.2).softmax(dim=1)
    tensor([[0.1613, 0.7742, 0.0645]])
    """
    classes = logits.shape[1]
    if isinstance(noise, Tensor):
        return logits + noise.to(logits).log().T[label]
    if classes < 2:
        return logits
    delta = math.log((1 - noise) * (classes - 1) / noise)
    return replace_logit(logits, label, label_logit(logits, label) + delta)


@dataclass(frozen=True, eq=False)
class Posterior(BaseRule):
    """:func:`posterior` as a rule. It is for all rows with a label: a label that the teacher agrees with is evidence too. Presets and
    runs apply it so; in your own code, ``Rectifier(Posterior(noise), rows="all")``.

    ``noise`` is a share of wrong labels in (0, 1), or a matrix ``[true, given]`` such as
    ``BiasCorrection(num_classes).fit(...).noise_matrix``. The default is for tests and for want of
    anything better; ``--rule posterior`` estimates the matrix.
    """

    name: ClassVar[str] = "posterior"
    rows: ClassVar[Literal["wrong", "all"]] = "all"
    noise: float | Tensor = field(default=0.1)

    def __post_init__(self) -> None:
        noise = self.noise
        if isinstance(noise, Tensor):
            square = noise.dim() == 2 and noise.shape[0] == noise.shape[1]
            sums = square and bool(((noise.sum(dim=1) - 1).abs() < 1e-3).all())
            if not (sums and bool((noise >= 0).all()) and bool((noise.amax(dim=0) > 0).all())):
                raise ValueError(
                    f"posterior: needs a matrix of probabilities [true, given] whose rows sum to 1, and no label that nothing "
                    f"gives, got shape {tuple(noise.shape)}; take BiasCorrection(...).noise_matrix."
                )
        elif not 0 < noise < 1:
            raise ValueError(
                f"posterior: needs a share of wrong labels between 0 and 1, got {noise}; where labels are never wrong, the labels "
                "are the posterior."
            )

    def __call__(
        self,
        logits: Float[Tensor, "rows classes"],
        label: Int[Tensor, " rows"],
        *,
        temperature: float,
    ) -> Float[Tensor, "rows classes"]:
        if isinstance(self.noise, Tensor) and len(self.noise) != logits.shape[1]:
            raise ValueError(
                f"posterior: needs a matrix for {logits.shape[1]} classes, got one for {len(self.noise)}; estimate it from this "
                "teacher's outputs."
            )
        return posterior(logits, label, noise=self.noise)
