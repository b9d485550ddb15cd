"""Variational information distillation: ``vid``."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from outgrow.losses.adapters import MapLoss, Paths, pool_to_smaller
from outgrow.losses.base import positive
from outgrow.outputs import Target, lift


def vid_loss(
    mean: Float[Tensor, "images channels height width"],
    teacher: Float[Tensor, "images channels height width"],
    variance: Float[Tensor, " channels"],
) -> Float[Tensor, " images"]:
    r"""Negative log-likelihood of the teacher's map under a Gaussian around the student's prediction.

    .. math:: \tfrac{1}{CHW} \sum_{c,h,w} \tfrac12 \Big(\frac{(t_{chw} - \mu_{chw})^2}{\sigma_c^2}
              + \log \sigma_c^2\Big)

    One value per image. The variance of each channel is learnt, so channels that the student cannot predict
    get little weight. The constant of the Gaussian is left out. The loss may be negative and has no minimum
    at zero.

    Reference: Ahn et al. (CVPR 2019), https://arxiv.org/abs/1904.05835, equation 5.

    >>> vid_loss(torch.zeros(1, 1, 1, 2), torch.tensor([[[[1.0, 3.0]]]]), torch.ones(1))
    tensor([2.5000])
    """
    mean, teacher, variance = lift(mean), lift(teacher), lift(variance)[:, None, None]
    return 0.5 * ((teacher - mean).square() / variance + variance.log()).flatten(1).mean(dim=1)


class VID(MapLoss):
    """:func:`vid_loss`, summed over pairs of stages.

    Three 1x1 convolutions predict the mean. The variance is ``softplus(a) + eps``. Both are trained. The
    larger map is pooled to the size of the smaller.
    """

    zero_at_match = False
    parts = "its regressors"

    def __init__(
        self,
        initial_variance: float = 5.0,
        eps: float = 1e-5,
        student: Paths = None,
        teacher: Paths = None,
    ) -> None:
        super().__init__(student, teacher)
        self.eps = positive(eps, what="vid: eps")
        if not initial_variance > eps:
            raise ValueError(
                f"vid: initial_variance needs more than eps = {eps}, got {initial_variance}; 5 is the default."
            )
        self.initial_variance = initial_variance
        self.regressors = nn.ModuleList()
        self.log_scales = nn.ParameterList()

    def build(self, stages: list[tuple[Tensor, Tensor]]) -> None:
        softplus = self.initial_variance - self.eps
        start = softplus + math.log(-math.expm1(-softplus))  # inverse of softplus, without overflow
        self.regressors, self.log_scales = nn.ModuleList(), nn.ParameterList()
        for own, other in stages:
            width = other.shape[1]
            self.regressors.append(
                nn.Sequential(
                    nn.Conv2d(own.shape[1], width, kernel_size=1, bias=False),
                    nn.ReLU(),
                    nn.Conv2d(width, width, kernel_size=1, bias=False),
                    nn.ReLU(),
                    nn.Conv2d(width, width, kernel_size=1, bias=False),
                )
            )
            self.log_scales.append(nn.Parameter(torch.full((width,), start)))

    def compare(self, stages: list[tuple[Tensor, Tensor]], target: Target) -> Float[Tensor, " images"]:
        value = []
        for regress, scale, stage in zip(self.regressors, self.log_scales, stages, strict=True):
            own, other = pool_to_smaller(*stage)
            value.append(vid_loss(regress(own), other, F.softplus(scale) + self.eps))
        return torch.stack(value).sum(dim=0)

    def extra_repr(self) -> str:
        return f"initial_variance={self.initial_variance}, eps={self.eps}"
