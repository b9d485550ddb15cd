"""DenseNet-BC for CIFAR: three dense blocks of bottleneck layers, transitions that halve the channels.

Reference: Huang et al. (2017), https://arxiv.org/abs/1608.06993, sections 3 and 4.2.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from outgrow.machine.norm_relu import norm_relu
from outgrow.models.layers import Scriptable, conv1x1, conv3x3, global_pool, init_convolutions


class DenseLayer(nn.Module):
    """BN, ReLU, 1x1 to four times ``growth``, BN, ReLU, 3x3 to ``growth``; appended to the input."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv1x1(in_channels, 4 * growth)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = conv3x3(4 * growth, growth)

    def forward(self, maps: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch _ _ _"]:
        hidden = self.conv1(norm_relu(self.bn1, maps))
        return torch.cat([maps, self.conv2(norm_relu(self.bn2, hidden))], dim=1)


class DenseBlock(nn.Module):
    """``layers`` dense layers under the name ``layer``; adds ``layers * growth`` channels."""

    def __init__(self, in_channels: int, layers: int, growth: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(*(DenseLayer(in_channels + i * growth, growth) for i in range(layers)))

    def forward(self, maps: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch _ _ _"]:
        return self.layer(maps)


class Transition(nn.Module):
    """BN, ReLU, 1x1, average over 2x2."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv1x1(in_channels, out_channels)

    def forward(self, maps: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch _ _ _"]:
        return F.avg_pool2d(self.conv1(norm_relu(self.bn1, maps)), 2)


class DenseNetBC(Scriptable):
    """Depth 6n + 4, ``n`` layers a block, twice ``growth`` channels in the stem, reduction one half."""

    feature_paths = ("block1", "block2", "block3")

    def __init__(self, depth: int, growth: int, num_classes: int) -> None:
        super().__init__()
        assert depth % 6 == 4, f"a DenseNet-BC has depth 6n + 4, not {depth}"
        layers = (depth - 4) // 6
        channels = 2 * growth
        self.conv1 = conv3x3(3, channels)
        self.block1 = DenseBlock(channels, layers, growth)
        channels += layers * growth
        self.trans1 = Transition(channels, channels // 2)
        channels //= 2
        self.block2 = DenseBlock(channels, layers, growth)
        channels += layers * growth
        self.trans2 = Transition(channels, channels // 2)
        channels //= 2
        self.block3 = DenseBlock(channels, layers, growth)
        channels += layers * growth
        self.bn1 = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, num_classes)
        init_convolutions(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        maps = self.trans1(self.block1(self.conv1(images)))
        maps = self.block3(self.trans2(self.block2(maps)))
        return self.fc(global_pool(norm_relu(self.bn1, maps)))
