"""Wide ResNets for CIFAR, ``wrn_DEPTH_WIDTH``: pre-activation blocks in three stages, no dropout.

The stages end in sums without an activation; the last batch norm and ReLU come after the last stage.
Module names are those of the CRD protocol's nets.

Reference: Zagoruyko, Komodakis (2016), https://arxiv.org/abs/1605.07146.
"""

from jaxtyping import Float
from torch import Tensor, nn

from outgrow.machine.norm_relu import norm_relu
from outgrow.models.layers import Scriptable, conv1x1, conv3x3, global_pool, init_convolutions


class PreActivationBlock(nn.Module):
    """BN, ReLU, 3x3, BN, ReLU, 3x3, and a shortcut.

    If the width changes, the shortcut is a projection of the *activated* input. Otherwise it is the input itself.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, out_channels, stride=stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.convShortcut: nn.Conv2d | None = None
        if in_channels != out_channels:
            self.convShortcut = conv1x1(in_channels, out_channels, stride=stride)

    def forward(self, maps: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch _ _ _"]:
        active = norm_relu(self.bn1, maps)
        shortcut = maps if self.convShortcut is None else self.convShortcut(active)
        return shortcut + self.conv2(norm_relu(self.bn2, self.conv1(active)))


class WideStage(nn.Module):
    """``blocks`` blocks under the name ``layer``, as in the protocol's checkpoints."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, stride: int) -> None:
        super().__init__()
        first = PreActivationBlock(in_channels, out_channels, stride)
        rest = (PreActivationBlock(out_channels, out_channels, 1) for _ in range(blocks - 1))
        self.layer = nn.Sequential(first, *rest)

    def forward(self, maps: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch _ _ _"]:
        return self.layer(maps)


class WideResNet(Scriptable):
    """Depth 6n + 4, stages of 16, 32 and 64 channels times ``widen``."""

    feature_paths = ("block1", "block2", "block3")

    def __init__(self, depth: int, widen: int, num_classes: int) -> None:
        super().__init__()
        assert depth % 6 == 4, f"a wide ResNet has depth 6n + 4, not {depth}"
        blocks = (depth - 4) // 6
        self.conv1 = conv3x3(3, 16)
        self.block1 = WideStage(16, 16 * widen, blocks, stride=1)
        self.block2 = WideStage(16 * widen, 32 * widen, blocks, stride=2)
        self.block3 = WideStage(32 * widen, 64 * widen, blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(64 * widen)
        self.fc = nn.Linear(64 * widen, num_classes)
        init_convolutions(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        maps = self.block3(self.block2(self.block1(self.conv1(images))))
        return self.fc(global_pool(norm_relu(self.bn1, maps)))
