"""CIFAR ResNets of depth 6n + 2: three stages of n basic blocks, 32x32, 16x16 and 8x8 maps.

Module names are those of the CRD protocol's nets, so that published checkpoints load unchanged.

Reference: He, Zhang, Ren, Sun (2016), https://arxiv.org/abs/1512.03385, section 4.2; the wide ``x4``
variants are those of Tian, Krishnan, Isola (2020), https://arxiv.org/abs/1910.10699.
"""

from jaxtyping import Float
from torch import Tensor, nn

from outgrow.machine.norm_relu import norm_relu
from outgrow.models.layers import Scriptable, conv1x1, conv3x3, global_pool, init_convolutions


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a projection if the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels, stride=stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            projection = conv1x1(in_channels, out_channels, stride=stride)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(out_channels))

    def forward(self, maps: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch _ _ _"]:
        hidden = norm_relu(self.bn1, self.conv1(maps))
        return norm_relu(self.bn2, self.conv2(hidden), self.downsample(maps))


class ResNet(Scriptable):
    """A CIFAR ResNet. The first convolution has ``stem`` channels, the stages ``width`` times 1, 2 and 4."""

    feature_paths = ("layer1", "layer2", "layer3")

    def __init__(self, depth: int, stem: int, width: int, num_classes: int) -> None:
        super().__init__()
        assert depth % 6 == 2, f"a CIFAR ResNet has depth 6n + 2, not {depth}"
        blocks = (depth - 2) // 6
        self.conv1 = conv3x3(3, stem)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layer1 = _stage(stem, width, blocks, stride=1)
        self.layer2 = _stage(width, 2 * width, blocks, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, blocks, stride=2)
        self.fc = nn.Linear(4 * width, num_classes)
        init_convolutions(self)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        maps = norm_relu(self.bn1, self.conv1(images))
        maps = self.layer3(self.layer2(self.layer1(maps)))
        return self.fc(global_pool(maps))


def _stage(in_channels: int, out_channels: int, blocks: int, *, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)))
