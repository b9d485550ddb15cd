"""ShuffleNet V1 and V2 for 32x32 images: a 1x1 stem of 24 channels and three stages, 16x16 to 4x4 maps.

Module names are those of the CRD protocol's nets.

References: Zhang et al. (2018), https://arxiv.org/abs/1707.01083, figure 2; Ma et al. (2018),
https://arxiv.org/abs/1807.11164, figure 3.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from outgrow.machine.norm_relu import norm_relu
from outgrow.models.layers import Scriptable, channel_shuffle, conv1x1, conv3x3, global_pool

STEM = 24


class GroupedUnit(nn.Module):
    """V1: grouped 1x1, shuffle, depthwise 3x3, grouped 1x1.

    At stride 1 the result is added to the input. At stride 2 it is concatenated with the input's 3x3 average
    pool, so the convolutions have only the remaining channels.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, groups: int) -> None:
        super().__init__()
        made = out_channels - in_channels if stride == 2 else out_channels
        hidden = made // 4
        self.stride = stride
        # the stem's 24 channels are too few for groups
        self.groups = 1 if in_channels == STEM else groups
        self.conv1 = conv1x1(in_channels, hidden, groups=self.groups)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = conv3x3(hidden, hidden, stride=stride, groups=hidden)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = conv1x1(hidden, made, groups=groups)
        self.bn3 = nn.BatchNorm2d(made)

    def forward(self, maps: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch _ _ _"]:
        hidden = channel_shuffle(norm_relu(self.bn1, self.conv1(maps)), self.groups)
        hidden = norm_relu(self.bn2, self.conv2(hidden))
        made = self.bn3(self.conv3(hidden))
        if self.stride == 2:
            return F.relu(torch.cat([made, F.avg_pool2d(maps, 3, stride=2, padding=1)], dim=1))
        return F.relu(made + maps)


class ShuffleNetV1(Scriptable):
    """Three groups; stages of 240, 480 and 960 channels with 4, 8 and 4 units."""

    feature_paths = ("layer1", "layer2", "layer3")

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = conv1x1(3, STEM)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.layer1 = self._stage(STEM, 240, units=4)
        self.layer2 = self._stage(240, 480, units=8)
        self.layer3 = self._stage(480, 960, units=4)
        self.linear = nn.Linear(960, num_classes)

    @staticmethod
    def _stage(in_channels: int, out_channels: int, *, units: int) -> nn.Sequential:
        first = GroupedUnit(in_channels, out_channels, stride=2, groups=3)
        rest = (GroupedUnit(out_channels, out_channels, stride=1, groups=3) for _ in range(units - 1))
        return nn.Sequential(first, *rest)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        maps = norm_relu(self.bn1, self.conv1(images))
        maps = self.layer3(self.layer2(self.layer1(maps)))
        return self.linear(global_pool(maps))


class SplitUnit(nn.Module):
    """V2, stride 1: half of the channels are unchanged, the other half goes through three convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = conv1x1(half, half)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = conv3x3(half, half, groups=half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv1x1(half, half)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, maps: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch _ _ _"]:
        kept, hidden = maps.chunk(2, dim=1)
        hidden = norm_relu(self.bn1, self.conv1(hidden))
        hidden = self.bn2(self.conv2(hidden))
        hidden = norm_relu(self.bn3, self.conv3(hidden))
        return channel_shuffle(torch.cat([kept, hidden], dim=1), 2)


class DownUnit(nn.Module):
    """V2, stride 2: two branches with all channels as input, each with half of the output channels.

    ``conv1`` and ``conv2`` are the short branch, ``conv3`` to ``conv5`` the long one.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.conv1 = conv3x3(in_channels, in_channels, stride=2, groups=in_channels)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = conv1x1(in_channels, half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv1x1(in_channels, half)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = conv3x3(half, half, stride=2, groups=half)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = conv1x1(half, half)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, maps: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch _ _ _"]:
        short = norm_relu(self.bn2, self.conv2(self.bn1(self.conv1(maps))))
        long = self.bn4(self.conv4(norm_relu(self.bn3, self.conv3(maps))))
        long = norm_relu(self.bn5, self.conv5(long))
        return channel_shuffle(torch.cat([short, long], dim=1), 2)


class ShuffleNetV2(Scriptable):
    """Width 1: stages of 116, 232 and 464 channels with 4, 8 and 4 units, then a 1x1 to 1024."""

    feature_paths = ("layer1", "layer2", "layer3")

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = conv1x1(3, STEM)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.layer1 = self._stage(STEM, 116, units=4)
        self.layer2 = self._stage(116, 232, units=8)
        self.layer3 = self._stage(232, 464, units=4)
        self.conv2 = conv1x1(464, 1024)
        self.bn2 = nn.BatchNorm2d(1024)
        self.linear = nn.Linear(1024, num_classes)

    @staticmethod
    def _stage(in_channels: int, out_channels: int, *, units: int) -> nn.Sequential:
        rest = (SplitUnit(out_channels) for _ in range(units - 1))
        return nn.Sequential(DownUnit(in_channels, out_channels), *rest)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        maps = norm_relu(self.bn1, self.conv1(images))
        maps = self.layer3(self.layer2(self.layer1(maps)))
        maps = norm_relu(self.bn2, self.conv2(maps))
        return self.linear(global_pool(maps))
