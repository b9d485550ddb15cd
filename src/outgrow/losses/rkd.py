"""Relational knowledge distillation: ``rkd``."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from outgrow.losses.adapters import RelationLoss, product, shares
from outgrow.outputs import lift


def rkd_loss(
    student: Float[Tensor, "rows features"],
    teacher: Float[Tensor, "rows features2"],
    weight: Float[Tensor, " rows"],
    *,
    distance: float = 25.0,
    angle: float = 50.0,
) -> Float[Tensor, ""]:
    r"""Huber loss of the distances between pairs of rows and of the angles in triples of rows.

    .. math:: \bar w \Big(\lambda_D \sum_{i,j} p_i p_j\, h\Big(\frac{d^s_{ij}}{\mu^s}
              - \frac{d^t_{ij}}{\mu^t}\Big) + \lambda_A \sum_{i,j,k} p_i p_j p_k\,
              h(\cos \angle^s_{jik} - \cos \angle^t_{jik})\Big)

    :math:`p` are the rows' shares of the weights, :math:`\bar w` their mean, :math:`\mu` the weighted mean
    distance of two different rows, h Huber's function. Sums include pairs of a row with itself. Zero where
    the student's rows are the teacher's, shifted, rotated or scaled. Two equal rows have no direction between
    them, so their part has a zero gradient.

    Reference: Park et al. (CVPR 2019), https://arxiv.org/abs/1904.05068, equations 6 to 11.

    >>> corner, line = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0], [1.0], [2.0]])
    >>> rkd_loss(corner, line, torch.ones(3), angle=0.0).round(decimals=4)
    tensor(1.7925)
    """
    if not len(student):
        return student.sum() * 0.0
    own, own_length = _edges(lift(student))
    with torch.no_grad():
        other, other_length = _edges(lift(teacher))
    p = shares(weight.to(own.dtype))
    pair = p[:, None] * p
    distances = _huber(_relative(own_length, pair) - _relative(other_length, pair))
    cosine, aim = product(own, own.mT), product(other, other.mT)  # (rows, rows, rows), the first the vertex
    angles = _huber(cosine - aim)
    value = distance * (pair * distances).sum() + angle * (p[:, None, None] * pair * angles).sum()
    return weight.mean() * value


def _edges(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors between all pairs of rows, and their distances; zeros for two equal rows."""
    edge = rows - rows[:, None]
    square = edge.square().sum(dim=2)
    # A distance within rounding error counts as zero. It is replaced before the square root.
    size = rows.detach().square().sum(dim=1).amax()
    apart = square > (8 * torch.finfo(rows.dtype).eps) ** 2 * size
    length = torch.where(apart, torch.where(apart, square, torch.ones_like(square)).sqrt(), 0.0)
    return edge / torch.where(apart, length, 1.0)[..., None] * apart[..., None], length


def _relative(length: Tensor, pair: Tensor) -> Tensor:
    """Distances divided by their weighted mean over pairs of different rows."""
    different = pair - pair.diagonal().diag()
    total = different.sum()
    mean = (different * length).sum() / torch.where(total > 0, total, 1.0)
    return length / torch.where(mean > 0, mean, 1.0)


def _huber(difference: Tensor) -> Tensor:
    return F.smooth_l1_loss(difference, torch.zeros_like(difference), reduction="none")


class RKD(RelationLoss):
    """:func:`rkd_loss` of the penultimate features. Memory grows with rows x rows x (rows + features)."""

    def __init__(
        self,
        distance: float = 25.0,
        angle: float = 50.0,
        student: str | None = None,
        teacher: str | None = None,
    ) -> None:
        super().__init__(student, teacher)
        for name, value in (("distance", distance), ("angle", angle)):
            if not value >= 0:
                raise ValueError(
                    f"rkd: {name} needs a weight of at least 0, got {value}; 0 leaves that part out."
                )
        self.distance, self.angle = distance, angle

    def relate(self, student: Tensor, teacher: Tensor, weight: Tensor) -> Float[Tensor, ""]:
        return rkd_loss(student, teacher, weight, distance=self.distance, angle=self.angle)

    def extra_repr(self) -> str:
        return f"distance={self.distance}, angle={self.angle}"
