"""Correlation of stages by singular vectors: ``kdsvd``."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from outgrow.losses.adapters import MapLoss, Paths, match_channels, product
from outgrow.outputs import Target, lift

CANDIDATES = 3
"""How many more singular vectors of the student are candidates for a match (as in RepDistiller)."""


def kdsvd_loss(
    student: Sequence[Float[Tensor, "images ..."]],
    teacher: Sequence[Float[Tensor, "images ..."]],
    *,
    k: int = 1,
) -> Float[Tensor, " images"]:
    r"""Squared difference of the relations between singular vectors of consecutive stages, one value per image.

    .. math:: \sum_{l} \sum_{i, c, d} \Big(e^{-(v^s_{l,ic} - v^s_{l-1,id})^2 / 8}
              - e^{-(v^t_{l,ic} - v^t_{l-1,id})^2 / 8}\Big)^2

    Stage l is a matrix of positions by channels. :math:`v_{l,i}` is its i-th right singular vector, times
    the teacher's i-th singular value (scaled so that the first k of these have unit length). Each teacher
    vector is matched with the nearest of the student's first k + 3, up to the sign. Linear algebra libraries
    return arbitrary signs, so the largest entry of a teacher vector is made positive. Where two singular
    values (nearly) agree, their vectors are not determined, and that part of the gradient is left out. Zero
    where the vectors agree.

    Reference: Lee, Kim, Song (ECCV 2018), https://arxiv.org/abs/1807.06819, section 3.

    >>> own = [torch.tensor([[[[1.0]], [[0.0]]]]), torch.tensor([[[[1.0]], [[0.0]]]])]
    >>> other = [torch.tensor([[[[2.0]], [[0.0]]]]), torch.tensor([[[[0.0]], [[3.0]]]])]
    >>> kdsvd_loss(own, own), kdsvd_loss(own, other).round(decimals=4)
    (tensor([0.]), tensor([0.0552]))
    """
    value, before = [], None
    for own, other in zip(student, teacher, strict=True):
        now = _aligned(lift(own), lift(other), k)
        if before is not None:
            difference = _basis(now[0], before[0]) - _basis(now[1], before[1])
            value.append(difference.square().flatten(1).sum(dim=1))
        before = now
    return torch.stack(value).sum(dim=0)


def _basis(a: Tensor, b: Tensor) -> Float[Tensor, "images channels channels2 k"]:
    return (-(a[:, :, None] - b[:, None]).square() / 8).exp()


def _aligned(student: Tensor, teacher: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Both networks' singular vectors, matched and scaled: (images, channels, k)."""
    own, _ = _directions(student.flatten(2).mT, k + CANDIDATES)
    with torch.no_grad():
        other, size = _directions(teacher.flatten(2).mT, k)
        peak = other.gather(1, other.abs().argmax(dim=1, keepdim=True))
        other = torch.where(peak < 0, -other, other)
        size = size / torch.where(size > 0, size, torch.ones_like(size)).norm(dim=1, keepdim=True)
        cosine = product(own.mT, other)
        nearest = cosine.abs().argmax(dim=1, keepdim=True)
        sign = torch.where(cosine.gather(1, nearest) < 0, -1.0, 1.0).to(own.dtype)
    own = own.gather(2, nearest.expand(-1, own.shape[1], -1)) * sign
    return own * size[:, None], other * size[:, None]


def _directions(matrix: Float[Tensor, "images positions channels"], count: int) -> tuple[Tensor, Tensor]:
    """The first right singular vectors (images, channels, count) and singular values.

    The SVD is computed without a graph; the vectors' exact first-order derivative is added by hand. Autograd's
    formula would divide by differences of squared singular values, even where these are zero.
    """
    with torch.no_grad():
        _, size, rows = torch.linalg.svd(matrix.nan_to_num(), full_matrices=False)
        vectors, power = rows.mT, size.square()
        count = min(count, size.shape[1])
        chosen, own = vectors[..., :count], power[:, None, :count]
        floor = torch.finfo(matrix.dtype).eps ** 0.5 * power[:, None, :1]  # half of the significant digits
        alive = own > floor
        gap = own - power[:, :, None]
        apart = gap.abs() > floor
        gap = torch.where(apart, gap, torch.ones_like(gap))
    image = product(matrix.mT, product(matrix, chosen))
    change = image - image.detach()
    inside = product(vectors.mT, change)
    beyond = (change - product(vectors, inside)) / torch.where(alive, own, torch.ones_like(own))
    turned = product(vectors, torch.where(apart, inside / gap, torch.zeros_like(inside)))
    zero = torch.zeros_like(chosen)
    return torch.where(alive, chosen + turned + beyond, zero), size[:, :count] * alive[:, 0]


class KDSVD(MapLoss):
    """:func:`kdsvd_loss` over all pairs of stages.

    Where channels differ, the student gets a 1x1 convolution (in the paper they are equal).
    """

    parts = "its stages paired"

    def __init__(self, k: int = 1, student: Paths = None, teacher: Paths = None) -> None:
        super().__init__(student, teacher)
        if k < 1:
            raise ValueError(f"kdsvd: k needs a whole number of at least 1, got {k}; 1 is the default.")
        self.k = k
        self.connectors = nn.ModuleList()

    def build(self, stages: list[tuple[Tensor, Tensor]]) -> None:
        if len(stages) < 2:
            raise ValueError(
                "kdsvd: needs at least two stages to relate, got one; tap more modules, or name several: "
                "student=[...], teacher=[...]."
            )
        self.connectors = nn.ModuleList(match_channels(own.shape[1], other.shape[1]) for own, other in stages)

    def compare(self, stages: list[tuple[Tensor, Tensor]], target: Target) -> Float[Tensor, " images"]:
        own = [connect(map_) for connect, (map_, _) in zip(self.connectors, stages, strict=True)]
        return kdsvd_loss(own, [other for _, other in stages], k=self.k)

    def extra_repr(self) -> str:
        return f"k={self.k}"
