"""Building blocks of the CIFAR nets: convolutions without bias, initialisation, the channel shuffle.

Nothing works in place, so that a tapped activation is still unchanged when the loss reads it.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, fx, nn


class Scriptable(nn.Module):
    """A net that works with ``torch.jit.script``, which gets the net's ``torch.fx`` graph.

    Scripting the source would fail at shape annotations and at functions that take modules. The graph is that of
    the net's current mode, so script it in eval mode.
    """

    def __prepare_scriptable__(self) -> fx.GraphModule:
        traced = fx.symbolic_trace(self)
        for node in traced.graph.nodes:
            node.type = None  # remove the shape annotations; without a type everything is a Tensor
        traced.recompile()
        return traced


def conv3x3(in_channels: int, out_channels: int, *, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size at stride 1; without bias, because a batch norm follows."""
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, groups=groups, bias=False)


def conv1x1(in_channels: int, out_channels: int, *, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A 1x1 convolution without bias."""
    return nn.Conv2d(in_channels, out_channels, 1, stride=stride, groups=groups, bias=False)


def init_convolutions(net: nn.Module) -> None:
    """He's normal initialisation by fan-out for every convolution of ``net`` (biases zero)."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def init_head(head: nn.Linear) -> None:
    """The initialisation of the protocol's VGG and MobileNetV2 heads: standard deviation 0.01, bias zero."""
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)


def global_pool(maps: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels"]:
    """The mean over all positions; on 32x32 images this equals the protocol's fixed-size pools."""
    return F.adaptive_avg_pool2d(maps, 1).flatten(1)


def channel_shuffle(
    maps: Float[Tensor, "batch channels height width"], groups: int
) -> Float[Tensor, "batch channels height width"]:
    """Interleave the channels of the groups, so that information flows between grouped convolutions.

    >>> import torch
    >>> channel_shuffle(torch.arange(6.0).view(1, 6, 1, 1), groups=3).flatten()
    tensor([0., 2., 4., 1., 3., 5.])
    """
    return maps.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)
