"""VGG with batch norm for 32x32 images: five blocks of 3x3 convolutions and one linear layer.

Module names are those of the CRD protocol's nets. A block ends in a batch norm. Its ReLU is a separate module
(``act0`` to ``act4``), so that a tap can be before or after the activation.

Reference: Simonyan, Zisserman (2015), https://arxiv.org/abs/1409.1556, table 1; ``vgg8`` has one
convolution a block.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, fx, nn

from outgrow.models.layers import Scriptable, global_pool, init_convolutions, init_head

WIDTHS = (64, 128, 256, 512, 512)


class VGG(Scriptable):
    """``convolutions`` is the number of convolutions in each of the five blocks."""

    feature_paths = ("act1", "act2", "act3", "act4")

    def __init__(self, convolutions: tuple[int, int, int, int, int], num_classes: int) -> None:
        super().__init__()
        self.block0 = _block(3, WIDTHS[0], convolutions[0])
        self.block1 = _block(WIDTHS[0], WIDTHS[1], convolutions[1])
        self.block2 = _block(WIDTHS[1], WIDTHS[2], convolutions[2])
        self.block3 = _block(WIDTHS[2], WIDTHS[3], convolutions[3])
        self.block4 = _block(WIDTHS[3], WIDTHS[4], convolutions[4])
        self.act0, self.act1, self.act2, self.act3, self.act4 = (nn.ReLU() for _ in WIDTHS)
        self.classifier = nn.Linear(WIDTHS[4], num_classes)
        init_convolutions(self)
        init_head(self.classifier)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        maps = self.act0(self.block0(images))
        maps = self.act1(self.block1(F.max_pool2d(maps, 2)))
        maps = self.act2(self.block2(F.max_pool2d(maps, 2)))
        maps = self.act3(self.block3(F.max_pool2d(maps, 2)))
        maps = self.act4(self.block4(pool_if_large(maps, images.shape[-2])))
        return self.classifier(global_pool(maps))


@fx.wrap
def pool_if_large(maps: Tensor, height: int) -> Tensor:
    """The fourth pool, which the protocol has only for images larger than CIFAR's (Tiny ImageNet's 64)."""
    return F.max_pool2d(maps, 2) if height >= 64 else maps


def _block(in_channels: int, out_channels: int, convolutions: int) -> nn.Sequential:
    """Convolution (with bias), batch norm and ReLU, repeated; without the last ReLU, which the net has."""
    layers: list[nn.Module] = []
    for number in range(convolutions):
        source = in_channels if number == 0 else out_channels
        layers += [nn.Conv2d(source, out_channels, 3, padding=1), nn.BatchNorm2d(out_channels), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
