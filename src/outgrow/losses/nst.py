"""Neuron selectivity transfer: ``nst``."""

import torch
from jaxtyping import Float
from torch import Tensor

from outgrow.losses.adapters import MapLoss, pool_to_smaller, product, unit
from outgrow.outputs import Target, lift


def nst_loss(
    student: Float[Tensor, "images channels height width"],
    teacher: Float[Tensor, "images channels2 height2 width2"],
) -> Float[Tensor, " images"]:
    r"""Squared maximum mean discrepancy of two sets of channels, with kernel (x . y)^2, one value per image.

    .. math:: \tfrac{1}{C_t^2} \sum_{c,d} k(t_c, t_d) + \tfrac{1}{C_s^2} \sum_{c,d} k(s_c, s_d)
              - \tfrac{2}{C_s C_t} \sum_{c,d} k(s_c, t_d), \quad k(x, y) = (x \cdot y)^2

    A channel is a vector over positions, scaled to unit length. The numbers of channels may differ. The
    larger map is pooled to the size of the smaller. Zero where the mean outer products of the channels
    agree; the order of the channels does not count. A channel of zeros stays zero.

    Reference: Huang, Wang (2017), https://arxiv.org/abs/1707.01219, section 4.2.

    >>> nst_loss(torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 2.0]]]]))
    tensor([2.])
    """
    student, teacher = pool_to_smaller(lift(student), lift(teacher))
    own, other = unit(student.flatten(2)), unit(teacher.flatten(2))
    return _kernel(own, own) + _kernel(other, other) - 2 * _kernel(own, other)


def _kernel(a: Tensor, b: Tensor) -> Float[Tensor, " images"]:
    """The mean of (x . y)^2 over the channels x of ``a`` and y of ``b``."""
    return product(a, b.mT).square().mean(dim=(1, 2))


class NST(MapLoss):
    """:func:`nst_loss`, summed over pairs of stages."""

    positions = 2

    def compare(self, stages: list[tuple[Tensor, Tensor]], target: Target) -> Float[Tensor, " images"]:
        return torch.stack([nst_loss(own, other) for own, other in stages]).sum(dim=0)
