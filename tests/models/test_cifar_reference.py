"""The CIFAR nets against slow, literal versions that read the protocol's checkpoints by name.

Sizes and names alone do not notice a missing ReLU or a shortcut that starts at the wrong place; two of
the families have a published checkpoint that does, the others have this.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from outgrow.models.cifar import CIFAR_MODELS


class Literal:
    """The operations of a net in eval mode, by the names of its parameters."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state

    def conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = self.state[f"{name}.weight"]
        groups = x.shape[1] // weight.shape[1]
        bias = self.state.get(f"{name}.bias")
        return F.conv2d(x, weight, bias, stride=stride, padding=weight.shape[2] // 2, groups=groups)

    def bn(self, name: str, x: Tensor) -> Tensor:
        s = self.state
        mean, var = s[f"{name}.running_mean"], s[f"{name}.running_var"]
        scale = s[f"{name}.weight"] / (var + 1e-5).sqrt()
        shift = s[f"{name}.bias"] - mean * scale
        return x * scale[:, None, None] + shift[:, None, None]

    def head(self, name: str, x: Tensor) -> Tensor:
        return x.mean((2, 3)) @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]


def wrn_16_2(net: Literal, x: Tensor) -> Tensor:
    x = net.conv("conv1", x)
    for block in (1, 2, 3):
        for layer in (0, 1):
            name = f"block{block}.layer.{layer}"
            stride = 2 if block > 1 and layer == 0 else 1
            active = net.bn(f"{name}.bn1", x).relu()
            hidden = net.bn(f"{name}.bn2", net.conv(f"{name}.conv1", active, stride)).relu()
            hidden = net.conv(f"{name}.conv2", hidden)
            x = hidden + (net.conv(f"{name}.convShortcut", active, stride) if layer == 0 else x)
    return net.head("fc", net.bn("bn1", x).relu())


def vgg11(net: Literal, x: Tensor) -> Tensor:
    for block, convolutions in enumerate((1, 1, 2, 2, 2)):
        for number in range(convolutions):
            name = f"block{block}."
            x = net.bn(f"{name}{3 * number + 1}", net.conv(f"{name}{3 * number}", x)).relu()
        if block < 3:
            x = F.max_pool2d(x, 2)
    return net.head("classifier", x)


def mobilenetv2(net: Literal, x: Tensor) -> Tensor:
    x = net.bn("conv1.1", net.conv("conv1.0", x, 2)).relu()
    for stage, (blocks, stride) in enumerate(((1, 1), (2, 1), (3, 2), (4, 2), (3, 1), (3, 2), (1, 1))):
        for block in range(blocks):
            name = f"blocks.{stage}.{block}.conv."
            hidden = net.bn(f"{name}1", net.conv(f"{name}0", x)).relu()
            hidden = net.conv(f"{name}3", hidden, stride if block == 0 else 1)
            hidden = net.bn(f"{name}7", net.conv(f"{name}6", net.bn(f"{name}4", hidden).relu()))
            x = x + hidden if block > 0 else hidden
    return net.head("classifier.0", net.bn("conv2.1", net.conv("conv2.0", x)).relu())


def shuffled(x: Tensor, groups: int) -> Tensor:
    each = x.shape[1] // groups
    return x[:, [group * each + number for number in range(each) for group in range(groups)]]


def shufflenetv1(net: Literal, x: Tensor) -> Tensor:
    x = net.bn("bn1", net.conv("conv1", x)).relu()
    for layer, units in ((1, 4), (2, 8), (3, 4)):
        for unit in range(units):
            name = f"layer{layer}.{unit}"
            stride = 2 if unit == 0 else 1
            hidden = net.bn(f"{name}.bn1", net.conv(f"{name}.conv1", x)).relu()
            hidden = hidden if x.shape[1] == 24 else shuffled(hidden, 3)
            hidden = net.bn(f"{name}.bn2", net.conv(f"{name}.conv2", hidden, stride)).relu()
            hidden = net.bn(f"{name}.bn3", net.conv(f"{name}.conv3", hidden))
            pooled = F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 3, stride=2)  # the zeros of the border count
            x = (torch.cat([hidden, pooled], 1) if unit == 0 else hidden + x).relu()
    return net.head("linear", x)


def shufflenetv2(net: Literal, x: Tensor) -> Tensor:
    x = net.bn("bn1", net.conv("conv1", x)).relu()
    for layer, units in ((1, 4), (2, 8), (3, 4)):
        name = f"layer{layer}.0"
        short = net.bn(f"{name}.bn1", net.conv(f"{name}.conv1", x, 2))
        short = net.bn(f"{name}.bn2", net.conv(f"{name}.conv2", short)).relu()
        long = net.bn(f"{name}.bn3", net.conv(f"{name}.conv3", x)).relu()
        long = net.bn(f"{name}.bn4", net.conv(f"{name}.conv4", long, 2))
        long = net.bn(f"{name}.bn5", net.conv(f"{name}.conv5", long)).relu()
        x = shuffled(torch.cat([short, long], 1), 2)
        for unit in range(1, units):
            name = f"layer{layer}.{unit}"
            half = x.shape[1] // 2
            hidden = net.bn(f"{name}.bn1", net.conv(f"{name}.conv1", x[:, half:])).relu()
            hidden = net.bn(f"{name}.bn2", net.conv(f"{name}.conv2", hidden))
            hidden = net.bn(f"{name}.bn3", net.conv(f"{name}.conv3", hidden)).relu()
            x = shuffled(torch.cat([x[:, :half], hidden], 1), 2)
    return net.head("linear", net.bn("bn2", net.conv("conv2", x)).relu())


def stem_resnet(net: Literal, x: Tensor, blocks: tuple[int, ...], strided: int, last: int) -> Tensor:
    x = net.bn("bn1", net.conv("conv1", x)).relu()
    for layer, count in enumerate(blocks, start=1):
        for block in range(count):
            name = f"layer{layer}.{block}"
            stride = 2 if layer > 1 and block == 0 else 1
            hidden = x
            for number in range(1, last + 1):
                hidden = net.conv(f"{name}.conv{number}", hidden, stride if number == strided else 1)
                hidden = net.bn(f"{name}.bn{number}", hidden)
                hidden = hidden if number == last else hidden.relu()
            if f"{name}.shortcut.0.weight" in net.state:
                x = net.bn(f"{name}.shortcut.1", net.conv(f"{name}.shortcut.0", x, stride))
            x = (hidden + x).relu()
    return net.head("linear", x)


REFERENCES = {
    "wrn_16_2": wrn_16_2,
    "vgg11": vgg11,
    "mobilenetv2": mobilenetv2,
    "shufflenetv1": shufflenetv1,
    "shufflenetv2": shufflenetv2,
    "resnet18": lambda net, x: stem_resnet(net, x, (2, 2, 2, 2), strided=1, last=2),
    "resnet50": lambda net, x: stem_resnet(net, x, (3, 4, 6, 3), strided=2, last=3),
}
CHECKED_BY_CHECKPOINT = {"resnet8", "densenet_bc_100_12"}


def test_every_kind_of_net_is_checked() -> None:
    checked = {type(CIFAR_MODELS[name](2)) for name in REFERENCES.keys() | CHECKED_BY_CHECKPOINT}
    assert checked == {type(build(2)) for build in CIFAR_MODELS.values()}


@pytest.mark.parametrize("name", REFERENCES)
def test_against_the_literal_version(name: str) -> None:
    torch.manual_seed(0)
    net = CIFAR_MODELS[name](10).double().eval()
    with torch.no_grad():
        for key, value in net.state_dict().items():  # no norm may pass for the identity
            if key.endswith("running_mean"):
                value.normal_(std=0.2)
            elif key.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif value.dim() == 1:
                value.uniform_(-0.2, 0.2) if key.endswith("bias") else value.uniform_(0.5, 1.5)
        images = torch.rand(2, 3, 32, 32, dtype=torch.double)
        literal = REFERENCES[name](Literal(dict(net.state_dict())), images)
        torch.testing.assert_close(net(images), literal, rtol=1e-9, atol=1e-9 * literal.abs().max().item())
    assert literal.std() > 0
