"""Distillation from a stronger teacher, by correlation: ``dist``."""

import torch
from jaxtyping import Float
from torch import Tensor

from outgrow.losses.base import BatchLoss, positive
from outgrow.outputs import Outputs, Target, lift


def dist_loss(
    student: Float[Tensor, "rows classes"],
    teacher: Float[Tensor, "rows classes"],
    weight: Float[Tensor, " rows"],
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 4.0,
) -> Float[Tensor, ""]:
    r"""One minus Pearson's correlation, along the classes of a row and along the rows of a class.

    .. math:: T^2 \Big(\beta\, \tfrac1n \sum_i w_i (1 - \rho(t_{i\cdot}, p_{i\cdot}))
              + \gamma\, \bar w\, \tfrac1C \sum_c (1 - \rho_w(t_{\cdot c}, p_{\cdot c}))\Big)

    A row's weight multiplies its own correlation. It is also its weight in the mean, variance and covariance
    of :math:`\rho_w` for every column. :math:`\bar w` is the mean weight. Zero where the softened outputs
    are related linearly (rows with positive slope), not only where they agree. With a single row the columns
    have no correlation, and that term is the constant 1, without a gradient. So is the term of a class that is
    some 35 logits (divided by T) below the rest in every row, as its probability does not vary.

    Reference: Huang et al. (NeurIPS 2022), https://arxiv.org/abs/2205.10536, equations 9 to 11; the
    factor :math:`T^2` is from the authors' code.

    >>> import torch
    >>> z = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    >>> dist_loss(z, z, torch.ones(2)).abs() < 1e-5
    tensor(True)
    """
    if not len(student):
        return student.sum() * 0.0
    p = (lift(student) / temperature).softmax(dim=1)
    t = (lift(teacher) / temperature).softmax(dim=1)
    inter = (weight * (1 - _pearson(p, t, p.new_ones(p.shape[1]), dim=1))).mean()
    columns = 1 - _pearson(p, t, weight, dim=0)
    intra = weight.mean() * columns.mean()
    return temperature**2 * (beta * inter + gamma * intra)


def _pearson(a: Tensor, b: Tensor, weight: Tensor, *, dim: int) -> Tensor:
    """Weighted correlation along ``dim``; 0, with a zero gradient, where either input does not vary."""
    w = weight / weight.sum().clamp_min(torch.finfo(a.dtype).tiny)
    w = w[:, None] if dim == 0 else w
    size_a, size_b = (w * a.square()).sum(dim=dim), (w * b.square()).sum(dim=dim)
    a = a - (w * a).sum(dim=dim, keepdim=True)
    b = b - (w * b).sum(dim=dim, keepdim=True)
    variance_a, variance_b = (w * a.square()).sum(dim=dim), (w * b.square()).sum(dim=dim)
    # A deviation within rounding error counts as zero, and so does one whose square underflows.
    precision = torch.finfo(a.dtype)
    tolerance, least = (8 * precision.eps) ** 2, precision.tiny / precision.eps
    varies_a = variance_a > (tolerance * size_a).clamp_min(least)
    varies = varies_a & (variance_b > (tolerance * size_b).clamp_min(least))
    # replaced before the square roots; two divisions, as the product of two variances can underflow
    root_a, root_b = (torch.where(varies, v, torch.ones_like(v)).sqrt() for v in (variance_a, variance_b))
    a, b = a / root_a.unsqueeze(dim), b / root_b.unsqueeze(dim)
    return torch.where(varies, (w * a * b).sum(dim=dim), torch.zeros_like(root_a))


class DIST(BatchLoss):
    """:func:`dist_loss` with its constants fixed (temperature 1 on ImageNet)."""

    softens = True

    def __init__(self, beta: float = 1.0, gamma: float = 1.0, temperature: float = 4.0) -> None:
        super().__init__()
        self.beta, self.gamma = beta, gamma
        self.temperature: float = positive(temperature, what="dist: temperature")

    def batch(
        self, student: Outputs, teacher: Outputs, target: Target, weight: Float[Tensor, " rows"]
    ) -> Float[Tensor, ""]:
        return dist_loss(
            student.logits,
            teacher.logits,
            weight,
            beta=self.beta,
            gamma=self.gamma,
            temperature=self.temperature,
        )

    def extra_repr(self) -> str:
        return f"beta={self.beta}, gamma={self.gamma}, temperature={self.temperature}"
