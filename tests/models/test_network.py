"""Network: own normalisation and size, clear refusals; heads and feature paths of nets of any make."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outgrow.models import InputSpec, Network, create_model, feature_paths, head_of
from outgrow.models.network import _check_images, check_size
from outgrow.models.sources import PLAIN_SPEC
from outgrow.models.structure import replace_heads


class Sees(nn.Module):
    """Keeps what it was given; its logits are the means of the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = torch.empty(0)
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, images: Tensor) -> Tensor:
        self.seen = images
        return images.mean((2, 3)) * self.scale


class Returns(nn.Module):
    def __init__(self, value: object) -> None:
        super().__init__()
        self.value = value

    def forward(self, images: Tensor) -> object:
        return self.value


def network(
    net: nn.Module, size: int | None = None, interpolation: str = "bicubic", num_classes: int = 3
) -> Network:
    spec = InputSpec(size, (0.5, 0.4, 0.3), (0.5, 0.25, 0.2), interpolation)
    return Network(net, name="toy", num_classes=num_classes, input_spec=spec)


def test_every_net_normalises_for_itself() -> None:
    net = Sees()
    images = torch.rand(4, 3, 8, 8)
    network(net)(images)
    assert torch.equal(net.seen[:, 1], (images[:, 1] - 0.4) / 0.25)
    assert torch.equal(net.seen[:, 2], (images[:, 2] - 0.3) / 0.2)


def test_mean_and_std_are_not_learned_and_not_saved() -> None:
    whole = network(Sees())
    assert list(whole.state_dict()) == ["net.scale"]
    assert [name for name, _ in whole.named_parameters()] == ["net.scale"]
    assert whole.to(torch.float64).mean.dtype == torch.float64
    assert copy.deepcopy(whole).input_spec == whole.input_spec


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_images_are_resized_where_they_differ(interpolation: str) -> None:
    net = Sees()
    whole = network(net, size=16, interpolation=interpolation)
    images = (torch.rand(2, 3, 32, 24) > 0.5).float()  # edges, at which bicubic overshoots
    whole(images)
    expected = F.interpolate(images, size=(16, 16), mode=interpolation, antialias=True).clamp(0, 1)
    assert torch.allclose(net.seen, (expected - whole.mean) / whole.std)
    same = torch.rand(2, 3, 16, 16)
    whole(same)
    assert torch.equal(net.seen, (same - whole.mean) / whole.std)


def test_gradients_pass_through_the_normalisation() -> None:
    images = torch.rand(2, 3, 8, 8, requires_grad=True)
    network(Sees(), size=4)(images).sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


def test_outputs_with_logits_are_unwrapped() -> None:
    logits = torch.rand(2, 3)
    assert torch.equal(network(Returns(SimpleNamespace(logits=logits)))(torch.rand(2, 3, 4, 4)), logits)


@pytest.mark.parametrize(
    ("value", "got"),
    [
        ((torch.rand(2, 3), torch.rand(2, 3)), "tuple"),
        ({"logits": torch.rand(2, 3)}, "dict"),
        (torch.rand(2, 5), r"shape \(2, 5\)"),
        (torch.rand(2, 3, 4, 4), r"shape \(2, 3, 4, 4\)"),
    ],
)
def test_what_is_not_logits_is_refused(value: object, got: str) -> None:
    with pytest.raises(ValueError, match=rf"toy: needs logits .* 2 x 3, got {got}; check num_classes"):
        network(Returns(value))(torch.rand(2, 3, 4, 4))


@pytest.mark.parametrize(
    "images", [torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2, 4, 4, 3), torch.zeros(3, 4, 4)]
)
def test_what_is_not_images_is_refused(images: Tensor) -> None:
    with pytest.raises(
        ValueError, match=r"toy: needs floating-point RGB images .* got .*; divide uint8 by 255"
    ):
        _check_images(images, "toy")


def test_specifications_are_checked() -> None:
    half = (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="positive number of pixels, got 0; use None"):
        InputSpec(0, half, half)
    with pytest.raises(ValueError, match=r"std in \(0, 1\], got .*; use mean 0 and"):
        InputSpec(8, half, (0.5, 0.0, 0.5))
    with pytest.raises(ValueError, match=r"mean in \[0, 1\], .*; divide both by 255 if they are for 0..255"):
        InputSpec(8, (125.3, 123.0, 113.9), (63.0, 62.1, 66.7))
    with pytest.raises(ValueError, match=r"share in \(0, 1\], got 1.5; use 1"):
        InputSpec(8, half, half, "bilinear", 1.5)
    with pytest.raises(ValueError, match=r"one name per class, 3, got 2; pass classes=None"):
        Network(Sees(), name="toy", num_classes=3, input_spec=InputSpec(8, half, half), classes=("a", "b"))


class WithAuxiliary(nn.Module):
    """A head in the middle of the registration order."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(8, 6)
        self.auxiliary = nn.Linear(8, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.trunk(images))


def test_head_of_nets_of_any_make() -> None:
    whole = network(WithAuxiliary(), num_classes=6)
    assert head_of(whole)[0] == "head"
    assert head_of(torch.compile(whole.net, backend="eager"))[0] == "auxiliary"  # no count to go by
    convolutional = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    assert head_of(convolutional)[0] == "2"
    with pytest.raises(
        ValueError, match="ends in a linear layer or a convolution, got ReLU with neither; make"
    ):
        head_of(nn.ReLU())


def test_another_head_is_like_the_old_one() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4, bias=False)).to(torch.float64)
    replace_heads(net, 9)
    _, head = head_of(net)
    assert isinstance(head, nn.Linear)
    assert (head.in_features, head.out_features, head.bias) == (12, 9, None)
    assert head.weight.dtype == torch.float64
    whole = network(nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()), num_classes=4)
    replace_heads(whole, 2)
    assert whole.num_classes == 2
    assert whole(torch.rand(1, 3, 4, 4)).shape == (1, 2)


def test_feature_paths_of_a_stranger() -> None:
    def block(channels: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(channels, 2 * channels, 3), nn.ReLU())

    trunk = nn.Sequential(block(3), block(6), block(12))
    net = nn.ModuleDict({"body": trunk, "fc": nn.Linear(24, 5)})
    assert feature_paths(net) == ("body.0", "body.1", "body.2")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("torchvision/resnet18", ("layer1", "layer2", "layer3", "layer4")),
        ("torchvision/squeezenet1_1", ("features.2", "features.5", "features.8")),
        ("torchvision/shufflenet_v2_x0_5", ("conv1", "stage2", "stage3", "stage4", "conv5")),
        ("timm/resnet10t", ("act1", "layer1", "layer2", "layer3", "layer4")),
        ("timm/mobilenetv3_small_050", ("bn1", "blocks.0", "blocks.1", "blocks.3", "blocks.5")),
    ],
)
def test_feature_paths_of_known_makes(name: str, expected: tuple[str, ...]) -> None:
    assert feature_paths(create_model(name, 3)) == expected


class Eventful(nn.Module):
    """Statistics of the batch at hand, a head that is built at the first image, a number drawn and a count kept."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(12, track_running_stats=False)
        self.head: nn.Module | None = None
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        rows = self.norm(images.flatten(1))
        self.seen = self.seen + 1
        if self.head is None:
            self.head = nn.Linear(12, 5)
        return self.head(F.dropout(rows))


def test_a_trial_changes_nothing() -> None:
    network = Network(Eventful().train(), name="own", num_classes=5, input_spec=PLAIN_SPEC)
    state, seen = torch.get_rng_state(), network.net.seen
    check_size(network, 2, 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert network.net.seen is seen
    assert int(seen) == 0
    assert all(module.training for module in network.modules())
    assert isinstance(network.net.head, nn.Linear)


def test_the_normalisation_is_where_the_net_is() -> None:
    network = Network(
        nn.Sequential(nn.Flatten(), nn.Linear(12, 5)).to("meta"),
        name="own",
        num_classes=5,
        input_spec=PLAIN_SPEC,
    )
    assert network.mean.device.type == network.std.device.type == "meta"
    check_size(network, 2, 2)
