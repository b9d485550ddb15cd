"""Probabilistic knowledge transfer: ``pkt``."""

import torch
from jaxtyping import Float
from torch import Tensor

from outgrow.losses.adapters import RelationLoss, product, shares, unit
from outgrow.outputs import lift

EPS = 1e-7
"""Added to both probabilities in the logarithm, as the authors do: opposite rows have probability 0."""


def pkt_loss(
    student: Float[Tensor, "rows features"],
    teacher: Float[Tensor, "rows features2"],
    weight: Float[Tensor, " rows"],
) -> Float[Tensor, ""]:
    r"""KL divergence of each row's distribution of similarities to all rows.

    .. math:: \frac{\bar w}{n} \sum_i p_i \sum_j t_{ij} \log \frac{t_{ij}}{s_{ij}},
              \quad s_{ij} = \frac{p_j K_{ij}}{\sum_k p_k K_{ik}}, \quad K_{ij} = \frac{\cos(s_i, s_j) + 1}{2}

    :math:`p` are the rows' shares of the weights, :math:`\bar w` their mean and :math:`n = 1 / \sum p_i^2`
    the number of rows (with equal weights). The sum over j includes i. Zero where all cosines agree. A row of
    zeros has a similarity of 1/2 to every row, with a zero gradient.

    Reference: Passalis, Tefas (ECCV 2018), https://arxiv.org/abs/1803.10837, equations 5 to 8. The division
    by n, the similarity to itself and the 1e-7 are from the authors' code.

    >>> together, apart = torch.ones(2, 2), torch.eye(2)
    >>> pkt_loss(together, apart, torch.ones(2)).round(decimals=4)
    tensor(0.0283)
    """
    if not len(student):
        return student.sum() * 0.0
    student, teacher = lift(student), lift(teacher)
    p = shares(weight.to(student.dtype))
    own, other = _conditional(student, p), _conditional(teacher, p)
    divergence = (other * ((other + EPS).log() - (own + EPS).log())).sum(dim=1)
    return weight.mean() * p.square().sum() * (p * divergence).sum()


def _conditional(rows: Tensor, p: Tensor) -> Float[Tensor, "rows rows"]:
    direction = unit(rows)
    kernel = p * (product(direction, direction.mT).clamp(-1, 1) + 1) / 2
    total = kernel.sum(dim=1, keepdim=True)
    return kernel / torch.where(total > 0, total, torch.ones_like(total))


class PKT(RelationLoss):
    """:func:`pkt_loss` of the penultimate features."""

    def relate(self, student: Tensor, teacher: Tensor, weight: Tensor) -> Float[Tensor, ""]:
        return pkt_loss(student, teacher, weight)
