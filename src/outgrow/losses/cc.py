"""Correlation congruence: ``cc``."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from outgrow.losses.adapters import RelationLoss, product, shares, unit
from outgrow.outputs import lift


def cc_loss(
    student: Float[Tensor, "rows features"],
    teacher: Float[Tensor, "rows features2"],
    weight: Float[Tensor, " rows"],
    *,
    gamma: float = 0.4,
    order: int = 2,
) -> Float[Tensor, ""]:
    r"""Squared difference of the rows' correlations under a Gaussian kernel, by its Taylor series.

    .. math:: \bar w \sum_{i,j} p_i p_j (C^s_{ij} - C^t_{ij})^2,
              \quad C_{ij} = e^{-2\gamma} \sum_{q=0}^{P} \frac{(2\gamma)^q}{q!} \cos(f_i, f_j)^q

    :math:`p` are the rows' shares of the weights, :math:`\bar w` their mean; with equal weights it is the
    paper's :math:`\|C^s - C^t\|^2 / n^2`. Zero where all cosines agree. A row of zeros has a cosine of 0 with
    every row, and a zero gradient.

    Reference: Peng et al. (ICCV 2019), https://arxiv.org/abs/1904.01802, equations 6 to 10.

    >>> together, apart = torch.ones(2, 2), torch.eye(2)
    >>> cc_loss(together, apart, torch.ones(2)).round(decimals=4)
    tensor(0.1266)
    """
    if not len(student):
        return student.sum() * 0.0
    student, teacher = lift(student), lift(teacher)
    p = shares(weight.to(student.dtype))
    difference = _correlation(student, gamma, order) - _correlation(teacher, gamma, order)
    return weight.mean() * (p[:, None] * p * difference.square()).sum()


def _correlation(rows: Tensor, gamma: float, order: int) -> Float[Tensor, "rows rows"]:
    direction = unit(rows)
    cosine = product(direction, direction.mT)
    terms = [(2 * gamma) ** q / math.factorial(q) * cosine**q for q in range(order + 1)]
    return math.exp(-2 * gamma) * torch.stack(terms).sum(dim=0)


class CC(RelationLoss):
    """:func:`cc_loss` of the penultimate features."""

    def relate(self, student: Tensor, teacher: Tensor, weight: Tensor) -> Float[Tensor, ""]:
        return cc_loss(student, teacher, weight)
