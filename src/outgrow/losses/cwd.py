"""Channel-wise distillation: ``cwd``."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from outgrow.losses.adapters import MapLoss, Paths, match_channels, resize_to
from outgrow.losses.base import positive
from outgrow.outputs import Target, lift


def cwd_loss(
    student: Float[Tensor, "images channels height width"],
    teacher: Float[Tensor, "images channels height width"],
    *,
    temperature: float = 1.0,
) -> Float[Tensor, " images"]:
    r"""KL divergence of each channel's distribution over positions, mean over channels, one value per image.

    .. math:: \frac{T^2}{C} \sum_c \sum_i t_{ci} (\log t_{ci} - \log s_{ci}),
              \quad t_c = \sigma(f^t_c / T),\ s_c = \sigma(f^s_c / T)

    The softmax runs over the positions of one channel, so a constant added to a channel changes nothing.
    Zero where the channels agree up to such constants. Always zero on maps of one position.

    Reference: Shu et al. (ICCV 2021), https://arxiv.org/abs/2011.13256, equations 4 and 5.

    >>> cwd_loss(torch.zeros(1, 1, 1, 2), torch.tensor([[[[0.0, 4.0]]]]))
    tensor([0.6031])
    """
    log_s = (lift(student).flatten(2) / temperature).log_softmax(dim=2)
    log_t = (lift(teacher).flatten(2) / temperature).log_softmax(dim=2)
    divergence = F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(dim=2)
    return temperature**2 * divergence.mean(dim=1)


class CWD(MapLoss):
    """:func:`cwd_loss` summed over pairs of stages; without paths, on the last tap of each network.

    Where channels differ, the student gets a 1x1 convolution. Where sizes differ, its map is resized
    bilinearly. ``temperature`` softens maps, not logits, so the loss declares none.
    """

    default = "last"
    positions = 2

    def __init__(self, temperature: float = 1.0, student: Paths = None, teacher: Paths = None) -> None:
        super().__init__(student, teacher)
        self.map_temperature = positive(temperature, what="cwd: temperature")
        self.connectors = nn.ModuleList()

    def build(self, stages: list[tuple[Tensor, Tensor]]) -> None:
        self.connectors = nn.ModuleList(match_channels(own.shape[1], other.shape[1]) for own, other in stages)

    def compare(self, stages: list[tuple[Tensor, Tensor]], target: Target) -> Float[Tensor, " images"]:
        value = [
            cwd_loss(resize_to(connect(own), other), other, temperature=self.map_temperature)
            for connect, (own, other) in zip(self.connectors, stages, strict=True)
        ]
        return torch.stack(value).sum(dim=0)

    def extra_repr(self) -> str:
        return f"temperature={self.map_temperature}"
