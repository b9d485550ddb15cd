"""Focal and global distillation of a detector's maps: ``fgd``."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from outgrow.losses.adapters import MapLoss, Paths, match_channels, resize_to
from outgrow.losses.base import positive
from outgrow.models.taps import OBJECTS
from outgrow.outputs import Outputs, Target, lift


class Attention(NamedTuple):
    """Where a map is large: one number per position and one per channel, each with mean 1."""

    spatial: Float[Tensor, "images height width"]
    channel: Float[Tensor, "images channels"]


def attention(value: Float[Tensor, "images channels height width"], *, temperature: float) -> Attention:
    r""":math:`A^S = HW \operatorname{softmax}(\overline{|F|}_{ij} / T)` and :math:`A^C` alike, over channels."""
    size = lift(value).abs()
    spatial = (size.mean(dim=1).flatten(1) / temperature).softmax(dim=1) * (size.shape[2] * size.shape[3])
    channel = (size.mean(dim=(2, 3)) / temperature).softmax(dim=1) * size.shape[1]
    return Attention(spatial.view(len(size), *size.shape[2:]), channel)


def shares_of_objects(
    objects: Float[Tensor, "images objects 4"], height: int, width: int
) -> tuple[Float[Tensor, "images height width"], Float[Tensor, "images height width"]]:
    """Weights of the positions inside and outside of objects, for a map of this size: M S and (1 - M) S.

    ``objects`` are left, top, right and bottom as shares of the map. A position that a box touches is inside. The positions
    of a box sum to 1, and so do those outside. Where boxes overlap, the smallest counts. Empty boxes count nowhere.

    >>> inside, outside = shares_of_objects(torch.tensor([[[0.0, 0.0, 0.5, 1.0]]]), 1, 4)
    >>> inside, outside
    (tensor([[[0.5000, 0.5000, 0.0000, 0.0000]]]), tensor([[[0.0000, 0.0000, 0.5000, 0.5000]]]))
    """
    low, high = (objects[..., :2], objects[..., 2:])
    size = objects.new_tensor([width, height])
    first, last = (low * size).floor(), (high * size).ceil()
    count = torch.where((high > low).all(dim=-1), (last - first).prod(dim=-1), torch.zeros_like(low[..., 0]))
    share = torch.where(count > 0, 1 / count.clamp_min(1), torch.zeros_like(count))
    x, y = (torch.arange(side, device=objects.device) for side in (width, height))
    in_x = (x >= first[..., :1]) & (x < last[..., :1])
    in_y = (y >= first[..., 1:]) & (y < last[..., 1:])
    inside = objects.new_zeros(len(objects), height, width)
    for number in range(objects.shape[1]):  # a sum over objects at once would hold a map of each
        box = in_y[:, number, :, None] & in_x[:, number, None, :]
        inside = torch.maximum(inside, share[:, number, None, None] * box)
    outside = (inside == 0).to(inside.dtype)
    return inside, outside / outside.sum(dim=(1, 2), keepdim=True).clamp_min(1)


def fgd_loss(
    student: Float[Tensor, "images channels height width"],
    teacher: Float[Tensor, "images channels height width"],
    objects: Float[Tensor, "images objects 4"],
    *,
    alpha: float = 5e-5,
    beta: float = 2.5e-5,
    gamma: float = 5e-5,
    temperature: float = 0.5,
) -> Float[Tensor, " images"]:
    r"""The focal part of FGD, one value per image.

    .. math:: \sum_{c,i,j} \big(\alpha M_{ij} S_{ij} + \beta (1 - M_{ij}) S_{ij}\big) A^S_{ij} A^C_c (t_{cij} - s_{cij})^2
              + \gamma \big(\|A^S - A^S_s\|_1 + \|A^C - A^C_s\|_1\big)

    :math:`M` is 1 inside of objects. :math:`S` gives each object, and the background, a total of 1. :math:`A` are the
    teacher's attention masks and :math:`A_s` the student's, see :func:`attention`. Zero where the maps are equal.

    Reference: Yang et al. (CVPR 2022), https://arxiv.org/abs/2111.11837, section 3.1.

    >>> inside = torch.tensor([[[0.0, 0.0, 1.0, 1.0]]])
    >>> fgd_loss(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2), inside, alpha=1.0, beta=1.0, gamma=1.0)
    tensor([1.])
    """
    student, teacher = lift(student), lift(teacher)
    theirs, own = (attention(value, temperature=temperature) for value in (teacher, student))
    inside, outside = shares_of_objects(objects.detach().to(student.dtype), *student.shape[2:])
    weight = (alpha * inside + beta * outside) * theirs.spatial
    error = ((student - teacher).square() * theirs.channel[:, :, None, None]).sum(dim=1)
    apart = (own.spatial - theirs.spatial).abs().flatten(1).sum(dim=1)
    apart = apart + (own.channel - theirs.channel).abs().sum(dim=1)
    return (weight * error).flatten(1).sum(dim=1) + gamma * apart


class Context(nn.Module):
    """A map with its global context added: the GcBlock of Cao et al. (2019), https://arxiv.org/abs/1904.11492.

    The last layer starts at zero, so the map is returned as it is until it is trained.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        middle = max(channels // 2, 1)
        self.attend = nn.Conv2d(channels, 1, kernel_size=1)
        self.transform = nn.Sequential(
            nn.Conv2d(channels, middle, kernel_size=1),
            nn.LayerNorm([middle, 1, 1]),
            nn.ReLU(),
            nn.Conv2d(middle, channels, kernel_size=1),
        )
        nn.init.kaiming_normal_(self.attend.weight)
        for parameter in (self.attend.get_parameter("bias"), *self.transform[-1].parameters()):
            nn.init.zeros_(parameter)

    def forward(
        self, value: Float[Tensor, "images channels height width"]
    ) -> Float[Tensor, "images channels height width"]:
        share = self.attend(value).flatten(2).softmax(dim=2)
        context = (value.flatten(2) * share).sum(dim=2)[:, :, None, None]
        return value + self.transform(context)


class FGD(MapLoss):
    """:func:`fgd_loss`, and ``relation`` times the squared distance of the maps with their global context.

    Summed over pairs of maps; without paths, on the last tap of each network. Reads the feature ``objects`` of the
    student: the boxes of each image (images x objects x 4) as shares of the map, empty ones where an image has fewer.
    Where channels differ, the student gets a 1x1 convolution. Where sizes differ, its map is resized bilinearly.
    ``temperature`` softens maps, not logits, so the loss declares none. The defaults are the authors' for two-stage
    detectors.
    """

    zero_at_match = False  # the two contexts are trained apart
    default = "last"
    parts = "its contexts"

    def __init__(
        self,
        alpha: float = 5e-5,
        beta: float = 2.5e-5,
        gamma: float = 5e-5,
        relation: float = 5e-7,
        temperature: float = 0.5,
        student: Paths = None,
        teacher: Paths = None,
    ) -> None:
        super().__init__(student, teacher)
        for name, value in (("alpha", alpha), ("beta", beta), ("gamma", gamma), ("relation", relation)):
            if not value >= 0:
                raise ValueError(
                    f"fgd: {name} needs a number of at least 0, got {value}; 0 leaves its part out."
                )
        self.alpha, self.beta, self.gamma, self.relation = alpha, beta, gamma, relation
        self.map_temperature = positive(temperature, what="fgd: temperature")
        self.connectors, self.own, self.other = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()

    def build(self, stages: list[tuple[Tensor, Tensor]]) -> None:
        self.connectors = nn.ModuleList(match_channels(own.shape[1], other.shape[1]) for own, other in stages)
        self.own, self.other = (
            nn.ModuleList(Context(other.shape[1]) for _, other in stages) for _ in range(2)
        )

    def images(self, student: Outputs, teacher: Outputs, target: Target) -> Float[Tensor, " images"]:
        stages = self.stages(student, teacher)
        objects = student.features.get(OBJECTS)
        if objects is None:
            raise ValueError(
                f"fgd: needs the boxes of each image (feature {OBJECTS!r} of the student), got "
                f"{', '.join(student.features) or 'no features'}; it is for detectors (--data coco:...)."
            )
        value = []
        layers = zip(self.connectors, self.own, self.other, stages, strict=True)
        for connect, own_context, other_context, (own, other) in layers:
            own = resize_to(connect(own), other)
            focal = fgd_loss(
                own,
                other,
                objects,
                alpha=self.alpha,
                beta=self.beta,
                gamma=self.gamma,
                temperature=self.map_temperature,
            )
            apart = (own_context(own) - other_context(other)).square().flatten(1).sum(dim=1)
            value.append(focal + self.relation * apart)
        return torch.stack(value).sum(dim=0)

    def extra_repr(self) -> str:
        return (
            f"alpha={self.alpha:g}, beta={self.beta:g}, gamma={self.gamma:g}, relation={self.relation:g}, "
            f"temperature={self.map_temperature:g}"
        )
