"""MobileNetV2 for 32x32 images at half width, as in the CRD protocol (there: ``mobile_half``).

It differs from the paper's net: the second stage keeps its resolution, the first block has an expansion
convolution although its factor is 1, and the activations are ReLU, not ReLU6.

Reference: Sandler et al. (2018), https://arxiv.org/abs/1801.04381, table 2.
"""

from jaxtyping import Float
from torch import Tensor, nn

from outgrow.models.layers import Scriptable, conv1x1, conv3x3, global_pool, init_convolutions, init_head

# (expansion, channels at width 1, blocks, stride of the first block)
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
LAST_CHANNELS = 1280


class InvertedResidual(nn.Module):
    """1x1 up, depthwise 3x3, 1x1 down without activation; added to its input if the shapes are equal."""

    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.residual = stride == 1 and in_channels == out_channels
        self.conv = nn.Sequential(
            conv1x1(in_channels, hidden),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            conv3x3(hidden, hidden, stride=stride, groups=hidden),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            conv1x1(hidden, out_channels),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, maps: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch _ _ _"]:
        return maps + self.conv(maps) if self.residual else self.conv(maps)


class MobileNetV2(Scriptable):
    """Seven stages; taps are the last stage of each resolution. ``width`` scales all channels but the last."""

    feature_paths = ("blocks.1", "blocks.2", "blocks.4", "blocks.6")

    def __init__(self, width: float, num_classes: int) -> None:
        super().__init__()
        channels = int(32 * width)
        self.conv1 = nn.Sequential(conv3x3(3, channels, stride=2), nn.BatchNorm2d(channels), nn.ReLU())
        self.blocks = nn.ModuleList()
        for expansion, full, blocks, stride in STAGES:
            scaled = int(full * width)
            first = InvertedResidual(channels, scaled, expansion, stride)
            rest = (InvertedResidual(scaled, scaled, expansion, 1) for _ in range(blocks - 1))
            self.blocks.append(nn.Sequential(first, *rest))
            channels = scaled
        self.conv2 = nn.Sequential(conv1x1(channels, LAST_CHANNELS), nn.BatchNorm2d(LAST_CHANNELS), nn.ReLU())
        head = nn.Linear(LAST_CHANNELS, num_classes)
        self.classifier = nn.Sequential(head)
        init_convolutions(self)
        init_head(head)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        maps = self.conv1(images)
        for stage in self.blocks:
            maps = stage(maps)
        return self.classifier(global_pool(self.conv2(maps)))
