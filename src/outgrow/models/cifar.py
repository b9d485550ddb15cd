"""The registry of CIFAR nets: name -> builder, which takes the number of classes."""

from collections.abc import Callable
from functools import partial

from torch import nn

from outgrow.models.densenet import DenseNetBC
from outgrow.models.mobilenet import MobileNetV2
from outgrow.models.resnet import ResNet
from outgrow.models.resnet_stem import BasicBlock, Bottleneck, StemResNet
from outgrow.models.shufflenet import ShuffleNetV1, ShuffleNetV2
from outgrow.models.vgg import VGG
from outgrow.models.wrn import WideResNet

CIFAR_MODELS: dict[str, Callable[[int], nn.Module]] = {
    "resnet8": partial(ResNet, 8, 16, 16),
    "resnet14": partial(ResNet, 14, 16, 16),
    "resnet20": partial(ResNet, 20, 16, 16),
    "resnet32": partial(ResNet, 32, 16, 16),
    "resnet44": partial(ResNet, 44, 16, 16),
    "resnet56": partial(ResNet, 56, 16, 16),
    "resnet110": partial(ResNet, 110, 16, 16),
    "resnet8x4": partial(ResNet, 8, 32, 64),
    "resnet32x4": partial(ResNet, 32, 32, 64),
    "wrn_16_1": partial(WideResNet, 16, 1),
    "wrn_16_2": partial(WideResNet, 16, 2),
    "wrn_40_1": partial(WideResNet, 40, 1),
    "wrn_40_2": partial(WideResNet, 40, 2),
    "vgg8": partial(VGG, (1, 1, 1, 1, 1)),
    "vgg11": partial(VGG, (1, 1, 2, 2, 2)),
    "vgg13": partial(VGG, (2, 2, 2, 2, 2)),
    "vgg16": partial(VGG, (2, 2, 3, 3, 3)),
    "vgg19": partial(VGG, (2, 2, 4, 4, 4)),
    "mobilenetv2": partial(MobileNetV2, 0.5),
    "shufflenetv1": ShuffleNetV1,
    "shufflenetv2": ShuffleNetV2,
    "resnet18": partial(StemResNet, BasicBlock, (2, 2, 2, 2)),
    "resnet34": partial(StemResNet, BasicBlock, (3, 4, 6, 3)),
    "resnet50": partial(StemResNet, Bottleneck, (3, 4, 6, 3)),
    "densenet_bc_100_12": partial(DenseNetBC, 100, 12),
}
"""CIFAR nets by name. Names of nets and modules are those of the CRD protocol."""
