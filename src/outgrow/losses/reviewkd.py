"""Knowledge review: ``reviewkd``."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from outgrow.losses.adapters import BatchNorm, MapLoss, Paths
from outgrow.outputs import Target, lift

LEVELS = (4, 2, 1)
"""Sides of the pooled maps that are compared in addition to the map (as in the authors' code)."""


def reviewkd_loss(
    student: Float[Tensor, "images channels height width"],
    teacher: Float[Tensor, "images channels height width"],
) -> Float[Tensor, " images"]:
    r"""Hierarchical context loss of two maps of one shape, one value per image.

    .. math:: \frac{\sum_{l=0}^{L} 2^{-l} \, \overline{(P_l f^s - P_l f^t)^2}}{\sum_{l=0}^{L} 2^{-l}}

    :math:`P_0` is the identity. The other :math:`P_l` average the map to 4x4, 2x2 and 1x1; sizes not below
    the map's are left out. The bar is the mean over channels and positions. Zero where the maps agree.

    Reference: Chen et al. (CVPR 2021), https://arxiv.org/abs/2104.09044, section 3.3; the weights are from
    the authors' code.

    >>> reviewkd_loss(torch.zeros(1, 1, 2, 2), torch.tensor([[[[1.0, -1.0], [1.0, -1.0]]]]))
    tensor([0.6667])
    """
    difference = lift(student) - lift(teacher)  # pooling is linear
    value, weight, total = _mean_square(difference), 1.0, 1.0
    for side in LEVELS:
        if side < min(difference.shape[2:]):
            weight /= 2
            value = value + weight * _mean_square(F.adaptive_avg_pool2d(difference, side))
            total += weight
    return value / total


def _mean_square(difference: Tensor) -> Float[Tensor, " images"]:
    return difference.square().flatten(1).mean(dim=1)


class Fusion(nn.Module):
    """Attention-based fusion: blends a stage with the fused map of the deeper stages, position by position.

    Returns the student's map in the teacher's shape, and the fused map for the next stage.
    """

    def __init__(self, student: int, middle: int, teacher: int, *, deepest: bool) -> None:
        super().__init__()
        reduce = nn.Conv2d(student, middle, kernel_size=1, bias=False)
        expand = nn.Conv2d(middle, teacher, kernel_size=3, padding=1, bias=False)
        for layer in (reduce, expand):
            nn.init.kaiming_uniform_(layer.weight, a=1)  # as the authors
        self.reduce = nn.Sequential(reduce, BatchNorm(middle))
        self.expand = nn.Sequential(expand, BatchNorm(teacher))
        self.blend = None if deepest else nn.Conv2d(2 * middle, 2, kernel_size=1)

    def forward(self, own: Tensor, deeper: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        own = self.reduce(own)
        if self.blend is not None and deeper is not None:
            deeper = _resized(deeper, own.shape[2:])
            share = self.blend(torch.cat([own, deeper], dim=1)).sigmoid()
            own = own * share[:, :1] + deeper * share[:, 1:]
        own = _resized(own, size)
        return self.expand(own), own


def _resized(value: Tensor, size: tuple[int, ...]) -> Tensor:
    return value if value.shape[2:] == size else F.interpolate(value, size=size, mode="nearest")


class ReviewKD(MapLoss):
    """:func:`reviewkd_loss` of the teacher's stages and the student's, each fused with the deeper ones.

    The width of the fusion is ``mid_channels`` or that of the student's deepest stage, whichever is less.
    Without paths all taps are stages. The penultimate features are the deepest stage if both networks have
    them.
    """

    zero_at_match = False  # it compares fused maps
    default = "pyramid"
    parts = "its fusions"

    def __init__(self, mid_channels: int = 512, student: Paths = None, teacher: Paths = None) -> None:
        super().__init__(student, teacher)
        if mid_channels < 1:
            raise ValueError(
                f"reviewkd: mid_channels needs at least 1, got {mid_channels}; 512 is the default."
            )
        self.mid_channels = mid_channels
        self.fusions = nn.ModuleList()

    def build(self, stages: list[tuple[Tensor, Tensor]]) -> None:
        middle = min(self.mid_channels, stages[-1][0].shape[1])
        self.fusions = nn.ModuleList(
            Fusion(own.shape[1], middle, other.shape[1], deepest=i == len(stages) - 1)
            for i, (own, other) in enumerate(stages)
        )

    def compare(self, stages: list[tuple[Tensor, Tensor]], target: Target) -> Float[Tensor, " images"]:
        value, fused = [], None
        for fuse, (own, other) in reversed(list(zip(self.fusions, stages, strict=True))):
            made, fused = fuse(own, fused, other.shape[2:])
            value.append(reviewkd_loss(made, other))
        return torch.stack(value).sum(dim=0)

    def extra_repr(self) -> str:
        return f"mid_channels={self.mid_channels}"
