"""Masked generative distillation: ``mgd``."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from outgrow.data.randomness import keyed_uniform
from outgrow.losses.adapters import MapLoss, Paths, match_channels, resize_to
from outgrow.outputs import Target, lift


def mgd_loss(
    generated: Float[Tensor, "images channels height width"],
    teacher: Float[Tensor, "images channels height width"],
) -> Float[Tensor, " images"]:
    r"""Squared error of a generated map, summed over its elements, one value per image.

    .. math:: \sum_{c,h,w} \big(t_{chw} - G(m \odot r(s))_{chw}\big)^2

    The mask :math:`m`, the connector :math:`r` and the generator :math:`G` belong to :class:`MGD`. The sum
    grows with the size of the map, so use a small loss weight. Zero where the generated map is the teacher's.

    Reference: Yang et al. (ECCV 2022), https://arxiv.org/abs/2205.01529, equation 4.

    >>> mgd_loss(torch.zeros(1, 1, 1, 2), torch.tensor([[[[1.0, 3.0]]]]))
    tensor([10.])
    """
    return (lift(generated) - lift(teacher)).square().flatten(1).sum(dim=1)


class MGD(MapLoss):
    """:func:`mgd_loss`, where two convolutions generate the teacher's map from the masked student's.

    Summed over pairs of stages; without paths, on the last tap of each network. On average a share
    ``mask_ratio`` of the student's map is set to zero: whole channels if rows are images, positions if they
    are not (``Target.image``). These are the authors' masks for classification and for detection. Like
    dropout, masking is off in eval mode. Where rows are images and have a ``Target.index`` the mask of an image depends only on
    its number and on how many batches came before; else it is drawn by torch's generator.
    """

    zero_at_match = False  # it compares a generated map
    draws = True
    default = "last"
    parts = "its generator"
    draw: Tensor

    def __init__(self, mask_ratio: float = 0.5, student: Paths = None, teacher: Paths = None) -> None:
        super().__init__(student, teacher)
        if not 0 <= mask_ratio < 1:
            raise ValueError(
                f"mgd: mask_ratio needs a number from 0 to below 1, got {mask_ratio}; 0.5 is the default."
            )
        self.mask_ratio = mask_ratio
        self.connectors, self.generators = nn.ModuleList(), nn.ModuleList()

    def build(self, stages: list[tuple[Tensor, Tensor]]) -> None:
        self.connectors = nn.ModuleList(match_channels(own.shape[1], other.shape[1]) for own, other in stages)
        self.generators = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(other.shape[1], other.shape[1], kernel_size=3, padding=1),
                nn.ReLU(),
                nn.Conv2d(other.shape[1], other.shape[1], kernel_size=3, padding=1),
            )
            for _, other in stages
        )
        # the seed of the masks, and how many maps have drawn one
        self.register_buffer("draw", torch.stack([torch.randint(2**62, ()), torch.tensor(0)]))

    def compare(self, stages: list[tuple[Tensor, Tensor]], target: Target) -> Float[Tensor, " images"]:
        value = []
        for connect, generate, (own, other) in zip(self.connectors, self.generators, stages, strict=True):
            own = self._masked(resize_to(connect(own), other), target)
            value.append(mgd_loss(generate(own), other))
        return torch.stack(value).sum(dim=0)

    def _masked(self, own: Tensor, target: Target) -> Tensor:
        if not self.training:
            return own
        images, channels, height, width = own.shape
        spatial = target.image is not None
        shape = (images, 1, height, width) if spatial else (images, channels, 1, 1)
        if spatial or target.index is None:
            random = torch.rand(shape, device=own.device)
        else:
            random = keyed_uniform(self.draw, target.index.long(), channels).view(shape)
            self.draw[1] += 1
        return own * (random >= self.mask_ratio)

    def extra_repr(self) -> str:
        return f"mask_ratio={self.mask_ratio}"
