"""Hints from a feature map: ``fitnet``."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from outgrow.losses.adapters import BatchNorm, MapLoss, Paths, resize_to
from outgrow.outputs import Target, lift


def fitnet_loss(
    student: Float[Tensor, "images channels height width"],
    teacher: Float[Tensor, "images channels height width"],
) -> Float[Tensor, " images"]:
    r"""Mean squared difference of two feature maps of one shape, one value per image.

    .. math:: \tfrac{1}{CHW} \sum (r(f^s) - f^t)^2

    The connector :math:`r` belongs to :class:`FitNet`. Zero where the maps agree.

    Reference: Romero et al. (ICLR 2015), https://arxiv.org/abs/1412.6550, equation 3.

    >>> import torch
    >>> fitnet_loss(torch.zeros(1, 1, 1, 2), torch.tensor([[[[1.0, 3.0]]]]))
    tensor([5.])
    """
    return (lift(student) - lift(teacher)).square().flatten(1).mean(dim=1)


class FitNet(MapLoss):
    """:func:`fitnet_loss` through a connector: 1x1 convolution, batch norm, ReLU.

    Without paths it reads the middle tap of each network. The connector is built by :meth:`setup`, trained with
    the student and never exported. The authors first train with this term alone; here it is one term of the
    objective.
    """

    zero_at_match = False  # it has a connector
    default = "middle"
    parts = "its connector"

    def __init__(self, student: Paths = None, teacher: Paths = None) -> None:
        super().__init__(student, teacher)
        self.connectors = nn.ModuleList()

    def build(self, stages: list[tuple[Tensor, Tensor]]) -> None:
        self.connectors = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(own.shape[1], other.shape[1], kernel_size=1, bias=False),
                BatchNorm(other.shape[1]),
                nn.ReLU(),
            )
            for own, other in stages
        )

    def compare(self, stages: list[tuple[Tensor, Tensor]], target: Target) -> Float[Tensor, " images"]:
        value = [
            fitnet_loss(resize_to(connect(own), other), other)
            for connect, (own, other) in zip(self.connectors, stages, strict=True)
        ]
        return torch.stack(value).sum(dim=0)
