"""Similarity-preserving distillation: ``sp``."""

import torch
from jaxtyping import Float
from torch import Tensor

from outgrow.losses.adapters import RelationLoss, product, shares
from outgrow.outputs import lift


def sp_loss(
    student: Float[Tensor, "rows features"],
    teacher: Float[Tensor, "rows features2"],
    weight: Float[Tensor, " rows"],
) -> Float[Tensor, ""]:
    r"""Squared difference of the matrices of similarities between rows, with their rows normalised.

    .. math:: \frac{\bar w}{n} \sum_{i,j} p_i p_j \Big(\frac{G^s_{ij}}{\|G^s_i\|} - \frac{G^t_{ij}}{\|G^t_i\|}
              \Big)^2, \quad G = F F^\top, \quad \|G_i\|^2 = \sum_j p_j G_{ij}^2

    :math:`p` are the rows' shares of the weights, :math:`\bar w` their mean and :math:`n = 1 / \sum p_i^2`
    the number of rows; with equal weights it is the paper's :math:`\|\tilde G^s - \tilde G^t\|_F^2 / b^2`.
    Similarities are inner products, so a row with a large norm counts more. Zero where they agree up to a
    factor per row. The similarities of a row of zeros are zero and have no gradient. Those of the other rows
    to it have one, so that the row can leave zero.

    Reference: Tung, Mori (ICCV 2019), https://arxiv.org/abs/1907.09682, equations 1 to 4.

    >>> together, apart = torch.ones(2, 2), torch.eye(2)
    >>> sp_loss(together, apart, torch.ones(2)).round(decimals=4)
    tensor(0.2929)
    """
    if not len(student):
        return student.sum() * 0.0
    student, teacher = lift(student), lift(teacher)
    p = shares(weight.to(student.dtype))
    difference = _similarity(student, p) - _similarity(teacher, p)
    return weight.mean() * p.square().sum() * (p[:, None] * p * difference.square()).sum()


def _similarity(rows: Tensor, p: Tensor) -> Float[Tensor, "rows rows"]:
    largest = rows.detach().abs().amax()
    rows = rows / torch.where(largest > 0, largest, torch.ones_like(largest))  # fourth powers follow
    gram = product(rows, rows.mT)
    square = (p * gram.square()).sum(dim=1, keepdim=True)
    alive = square > torch.finfo(rows.dtype).tiny ** 0.5  # replaced before the square root
    root = torch.where(alive, square, torch.ones_like(square)).sqrt()
    return torch.where(alive, gram / root, torch.zeros_like(gram))


class SP(RelationLoss):
    """:func:`sp_loss` of the penultimate features; the paper reads the last stage's map (name its path)."""

    def relate(self, student: Tensor, teacher: Tensor, weight: Tensor) -> Float[Tensor, ""]:
        return sp_loss(student, teacher, weight)
