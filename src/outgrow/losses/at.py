"""Attention transfer: ``at``."""

import torch
from jaxtyping import Float
from torch import Tensor

from outgrow.losses.adapters import MapLoss, Paths, pool_to_smaller, unit
from outgrow.outputs import Target, lift


def at_loss(
    student: Float[Tensor, "images channels height width"],
    teacher: Float[Tensor, "images channels2 height2 width2"],
    *,
    power: int = 2,
) -> Float[Tensor, " images"]:
    r"""Mean squared difference of two attention maps, one value per image.

    .. math:: \tfrac{1}{HW} \Big\| \frac{a^s}{\|a^s\|_2} - \frac{a^t}{\|a^t\|_2} \Big\|_2^2,
              \quad a = \tfrac1C \sum_c f_c^{\,p}

    The numbers of channels may differ. The larger map is pooled to the size of the smaller. Odd powers keep
    the sign of an activation. Zero where the two attention maps are proportional. A map of zeros has an
    attention of zero and gets no gradient.

    Reference: Zagoruyko, Komodakis (ICLR 2017), https://arxiv.org/abs/1612.03928, section 3.1; the mean
    over positions is from the authors' code.

    >>> at_loss(torch.tensor([[[[3.0, 0.0]]]]), torch.tensor([[[[0.0, 1.0]]]]))
    tensor([1.])
    """
    student, teacher = pool_to_smaller(lift(student), lift(teacher))
    difference = unit(_attention(student, power)) - unit(_attention(teacher, power))
    return difference.square().mean(dim=1)


def _attention(feature: Tensor, power: int) -> Float[Tensor, "images positions"]:
    return feature.pow(power).mean(dim=1).flatten(1)


class AT(MapLoss):
    """:func:`at_loss`, summed over pairs of stages."""

    positions = 2

    def __init__(self, power: int = 2, student: Paths = None, teacher: Paths = None) -> None:
        super().__init__(student, teacher)
        if power < 1:
            raise ValueError(f"at: power needs a whole number of at least 1, got {power}; 2 is the paper's.")
        self.power = power

    def compare(self, stages: list[tuple[Tensor, Tensor]], target: Target) -> Float[Tensor, " images"]:
        return torch.stack([at_loss(own, other, power=self.power) for own, other in stages]).sum(dim=0)

    def extra_repr(self) -> str:
        return f"power={self.power}"
