"""ImageNet's ResNet-18, 34 and 50 for 32x32 images: a 3x3 stem of stride 1 and no max-pool.

Module names are those of the CRD protocol (``shortcut``, ``linear``), which differ from torchvision's
(``downsample``, ``fc``); :func:`outgrow.models.load_weights` translates them.

Reference: He, Zhang, Ren, Sun (2016), https://arxiv.org/abs/1512.03385, table 1.
"""

from jaxtyping import Float
from torch import Tensor, nn

from outgrow.machine.norm_relu import norm_relu
from outgrow.models.layers import Scriptable, conv1x1, conv3x3, global_pool, init_convolutions


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    if stride == 1 and in_channels == out_channels:
        return nn.Sequential()
    return nn.Sequential(conv1x1(in_channels, out_channels, stride=stride), nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, width, stride=stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = _shortcut(in_channels, width, stride)

    def forward(self, maps: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch _ _ _"]:
        hidden = norm_relu(self.bn1, self.conv1(maps))
        return norm_relu(self.bn2, self.conv2(hidden), self.shortcut(maps))


class Bottleneck(nn.Module):
    """1x1 down, 3x3 (which carries the stride), 1x1 up to four times ``width``, and a shortcut."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv1x1(in_channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride=stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv1x1(width, 4 * width)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.shortcut = _shortcut(in_channels, 4 * width, stride)

    def forward(self, maps: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch _ _ _"]:
        hidden = norm_relu(self.bn1, self.conv1(maps))
        hidden = norm_relu(self.bn2, self.conv2(hidden))
        return norm_relu(self.bn3, self.conv3(hidden), self.shortcut(maps))


class StemResNet(Scriptable):
    """Four stages of 64, 128, 256 and 512 channels (times the block's expansion), ``blocks`` in each."""

    feature_paths = ("layer1", "layer2", "layer3", "layer4")

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: tuple[int, int, int, int],
        num_classes: int,
    ) -> None:
        super().__init__()
        grown = block.expansion
        self.conv1 = conv3x3(3, 64)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(block, 64, 64, blocks[0], stride=1)
        self.layer2 = _stage(block, 64 * grown, 128, blocks[1], stride=2)
        self.layer3 = _stage(block, 128 * grown, 256, blocks[2], stride=2)
        self.layer4 = _stage(block, 256 * grown, 512, blocks[3], stride=2)
        self.linear = nn.Linear(512 * grown, num_classes)
        init_convolutions(self)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        maps = norm_relu(self.bn1, self.conv1(images))
        maps = self.layer4(self.layer3(self.layer2(self.layer1(maps))))
        return self.linear(global_pool(maps))


def _stage(
    block: type[BasicBlock] | type[Bottleneck], in_channels: int, width: int, blocks: int, *, stride: int
) -> nn.Sequential:
    rest = (block(width * block.expansion, width, 1) for _ in range(blocks - 1))
    return nn.Sequential(block(in_channels, width, stride), *rest)
