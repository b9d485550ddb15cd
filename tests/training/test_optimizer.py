"""Learning rates by layer, and the average of the weights."""

import pytest
import torch
from torch import nn

from outgrow.models import create_model
from outgrow.models.structure import heads_of, layer_depths
from outgrow.models.taps import Taps
from outgrow.training.average import WeightAverage
from outgrow.training.config import TrainConfig
from outgrow.training.optimizer import make_optimizer, parameter_groups

NETS = [
    "cifar/resnet8",
    "cifar/wrn_16_1",
    "timm/resnet18",
    "timm/vit_tiny_patch16_224",
    "timm/convnext_atto",
    "timm/mobilenetv3_small_050",
    "timm/swin_tiny_patch4_window7_224",
    "torchvision/mobilenet_v3_small",
    "torchvision/vgg11",
]


@pytest.mark.parametrize("name", NETS)
def test_depth_rises_from_the_stem_to_the_head(name):
    network = create_model(name, num_classes=10)
    depths = layer_depths(network)
    assert depths.keys() == set(network.parameters())
    in_order = [depths[parameter] for parameter in network.net.parameters()]
    heads = {parameter for _, head in heads_of(network) for parameter in head.parameters()}
    assert in_order == sorted(in_order)
    top = max(in_order)
    assert {p for p, depth in depths.items() if depth == top} == heads
    assert in_order[0] <= 1
    assert top >= 4


def rates(config, student, objective=None):
    groups = parameter_groups(config, student, objective or nn.Identity())
    return {parameter: group["lr"] for group in groups for parameter in group["params"]}


def test_each_stage_has_its_rate():
    network = create_model("cifar/resnet8")
    net, extra = network.net, nn.Linear(3, 3)
    found = rates(TrainConfig(lr=0.1, layer_decay=0.5, head_lr=1.0), Taps(network, ["layer1"]), extra)
    assert len(found) == len(list(network.parameters())) + 2
    assert found[net.fc.weight] == 1.0
    assert found[extra.weight] == 0.1
    assert [found[net.get_submodule(f"layer{n}")[0].conv1.weight] for n in (3, 2, 1)] == [0.05, 0.025, 0.0125]
    assert found[net.conv1.weight] == 0.00625
    alone = rates(TrainConfig(lr=0.1, head_lr=0.3), network)
    assert set(alone.values()) == {0.1, 0.3}


@pytest.mark.parametrize("name", ["timm/mobilenetv3_small_050", "cifar/resnet8"])
def test_a_student_of_a_run_has_the_rates_of_its_net(name):
    """It is in taps, behind which other stages than those of ``feature_paths`` were found."""
    network, config = create_model(name, num_classes=10), TrainConfig(lr=0.1, layer_decay=0.5)
    assert rates(config, Taps(network)) == rates(config, network)


def test_the_first_group_has_the_learning_rate_even_without_losses_to_train():
    network = create_model("cifar/resnet8")
    optimizer = make_optimizer(TrainConfig(lr=0.1, layer_decay=0.5), network, nn.Identity())
    assert optimizer.param_groups[0]["lr"] == 0.1
    network(torch.rand(2, 3, 8, 8)).sum().backward()
    optimizer.step()


def test_one_rate_is_one_group():
    network = create_model("cifar/resnet8")
    (group,) = parameter_groups(TrainConfig(), network, nn.Linear(2, 2))
    assert [*map(id, group["params"])][: len(list(network.parameters()))] == [*map(id, network.parameters())]


def test_the_average_is_the_literal_one():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    average, decay = WeightAverage(net, 0.4), 0.4
    expected = {name: value.clone() for name, value in net.state_dict().items()}
    for step in range(1, 9):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(torch.randn_like(parameter))
        net(torch.randn(5, 3))
        average.update(step)
        d = min(decay, (1 + step) / (10 + step))
        for name, value in net.state_dict().items():
            expected[name] = (
                d * expected[name] + (1 - d) * value if value.is_floating_point() else value.clone()
            )
    for name, value in average.state_dict().items():
        torch.testing.assert_close(value, expected[name])
    own = {name: value.clone() for name, value in net.state_dict().items()}
    with average.applied():
        torch.testing.assert_close(net.state_dict(), expected)
    for name, value in net.state_dict().items():
        assert torch.equal(value, own[name])
    restored = WeightAverage(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), 0.4)
    restored.load_state_dict(average.state_dict())
    torch.testing.assert_close(restored.state_dict(), average.state_dict(), rtol=0, atol=0)
