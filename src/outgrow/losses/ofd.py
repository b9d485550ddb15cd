"""A comprehensive overhaul of feature distillation: ``ofd``."""

import math

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from outgrow.losses.across import summed
from outgrow.losses.adapters import BatchNorm, MapLoss, Paths, pool_to_smaller
from outgrow.outputs import Target, lift


def ofd_loss(
    student: Float[Tensor, "images channels height width"],
    teacher: Float[Tensor, "images channels height width"],
    margin: Float[Tensor, " channels"],
) -> Float[Tensor, " images"]:
    r"""Partial squared distance to the teacher's map before its ReLU, summed, one value per image.

    .. math:: \sum_i \mathbb 1[s_i > u_i \text{ or } t_i > 0] \, (s_i - u_i)^2,
              \quad u_i = \max(t_i, m_c), \quad m_c \le 0

    A negative teacher response is only an upper bound: the student is pulled down to it, never up. Zero where
    the student equals positive responses and is at most :math:`u` on the others.

    Reference: Heo et al. (ICCV 2019), https://arxiv.org/abs/1904.01866, equations 3 and 6.

    >>> s, t = torch.tensor([[[[3.0, -9.0, 0.0]]]]), torch.tensor([[[[1.0, -1.0, -4.0]]]])
    >>> ofd_loss(s, t, torch.tensor([-2.0]))
    tensor([8.])
    """
    student, teacher = lift(student), lift(teacher)
    aim = torch.maximum(teacher, margin.to(teacher.dtype)[:, None, None])
    counts = (student > aim) | (teacher > 0)
    return torch.where(counts, student - aim, torch.zeros_like(aim)).square().flatten(1).sum(dim=1)


class OFD(MapLoss):
    """:func:`ofd_loss` through connectors (1x1 convolution, batch norm).

    The last stage has weight 1, the one before it 1/2, and so on. Tap both networks *before* their ReLU (at a
    batch norm). A channel's margin is its mean negative response, estimated from the dry run and all
    training steps since. (The authors compute it from the teacher's batch norm.) The larger of two maps is
    pooled to the size of the smaller, also if it is the student's. (One re-implementation upsamples the
    teacher's instead.) A teacher tapped after its ReLU has no negative responses: its margins are 0.
    """

    zero_at_match = False  # it has a connector
    parts = "its connectors"

    def __init__(self, student: Paths = None, teacher: Paths = None) -> None:
        super().__init__(student, teacher)
        self.connectors = nn.ModuleList()

    def build(self, stages: list[tuple[Tensor, Tensor]]) -> None:
        self.connectors = nn.ModuleList()
        for i, (own, other) in enumerate(stages):
            convolution = nn.Conv2d(own.shape[1], other.shape[1], kernel_size=1, bias=False)
            nn.init.normal_(convolution.weight, 0.0, math.sqrt(2.0 / other.shape[1]))  # as the authors
            self.connectors.append(nn.Sequential(convolution, BatchNorm(other.shape[1])))
            for name in ("sum", "count"):
                self.register_buffer(f"negative_{name}_{i}", other.new_zeros(other.shape[1]))
            self._observe(i, other, None)  # the dry run is one on all processes

    def compare(self, stages: list[tuple[Tensor, Tensor]], target: Target) -> Float[Tensor, " images"]:
        value = []
        for i, (connect, (own, other)) in enumerate(zip(self.connectors, stages, strict=True)):
            if self.training:
                self._observe(i, other, self.process_group)
            pooled = pool_to_smaller(connect(own), other)
            value.append(ofd_loss(*pooled, self.margin(i)) / 2 ** (len(stages) - 1 - i))
        return torch.stack(value).sum(dim=0)

    def margin(self, stage: int) -> Float[Tensor, " channels"]:
        """The mean negative response of each teacher channel so far; 0 for a channel without any."""
        total = self.get_buffer(f"negative_sum_{stage}")
        return total / self.get_buffer(f"negative_count_{stage}").clamp_min(1)

    @torch.no_grad()
    def _observe(self, stage: int, teacher: Tensor, group: dist.ProcessGroup | None) -> None:
        negative = teacher.clamp(max=0)
        total, count = negative.sum(dim=(0, 2, 3)), (negative < 0).sum(dim=(0, 2, 3))
        self.get_buffer(f"negative_sum_{stage}").add_(summed(total, group))
        self.get_buffer(f"negative_count_{stage}").add_(summed(count, group))
