"""Distillation by Pearson correlation of feature maps: ``pkd``."""

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from outgrow.losses.across import channel_mean
from outgrow.losses.adapters import MapLoss, Paths, match_channels, resize_to
from outgrow.outputs import Target, lift


def pkd_loss(
    student: Float[Tensor, "images channels height width"],
    teacher: Float[Tensor, "images channels height width"],
    *,
    process_group: dist.ProcessGroup | None = None,
) -> Float[Tensor, " images"]:
    r"""Half the mean squared difference of standardised maps, one value per image.

    .. math:: \tfrac{1}{2CHW} \sum_{c,h,w} (\hat s_{chw} - \hat t_{chw})^2

    Each channel is scaled to mean zero and variance one over all images and positions of the batch. The mean
    over the images is then one minus Pearson's correlation, averaged over channels. Zero where every student
    channel is the teacher's times a positive number, plus a constant. A channel that does not vary becomes
    zeros, with a zero gradient. With ``process_group`` the batch is that of all its processes.

    Reference: Cao et al. (NeurIPS 2022), https://arxiv.org/abs/2207.02039, section 3.2.

    >>> pkd_loss(torch.tensor([[[[0.0, 1.0]]]]), torch.tensor([[[[8.0, 4.0]]]]))
    tensor([2.])
    """
    difference = _standardized(lift(student), process_group) - _standardized(lift(teacher), process_group)
    return 0.5 * difference.square().flatten(1).mean(dim=1)


def _standardized(value: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    centred = value - channel_mean(value, group)
    variance = channel_mean(centred.square(), group)
    # A deviation within rounding error counts as zero, and so does one whose square underflows. The value is
    # replaced before the square root, so that no gradient is NaN.
    precision = torch.finfo(value.dtype)
    tolerance = (8 * precision.eps) ** 2 * channel_mean(value.detach().square(), group)
    varies = variance > tolerance.clamp_min(precision.tiny / precision.eps)
    root = torch.where(varies, variance, torch.ones_like(variance)).sqrt()
    return torch.where(varies, centred / root, torch.zeros_like(centred))


class PKD(MapLoss):
    """:func:`pkd_loss` summed over pairs of stages.

    Where channels differ, the student gets a 1x1 convolution. Where sizes differ, its map is resized
    bilinearly.
    """

    batch_statistics = True

    def __init__(self, student: Paths = None, teacher: Paths = None) -> None:
        super().__init__(student, teacher)
        self.connectors = nn.ModuleList()

    def build(self, stages: list[tuple[Tensor, Tensor]]) -> None:
        self.connectors = nn.ModuleList(match_channels(own.shape[1], other.shape[1]) for own, other in stages)

    def compare(self, stages: list[tuple[Tensor, Tensor]], target: Target) -> Float[Tensor, " images"]:
        value = [
            pkd_loss(resize_to(connect(own), other), other, process_group=self.process_group)
            for connect, (own, other) in zip(self.connectors, stages, strict=True)
        ]
        return torch.stack(value).sum(dim=0)
