"""What a network costs is counted, not guessed."""

import torch
from torch import nn

from outgrow.classification.cost import measure_cost


def test_operations_and_bytes():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 10))
    cost = measure_cost(net, 4, torch.device("cpu"), batches=(1, 3))
    assert cost.flops == 2 * 48 * 10
    assert cost.bytes == 4 * (48 * 10 + 10)
    assert [one.batch for one in cost.latency] == [1, 3]
    assert all(0 < one.median <= one.p95 and one.repeats >= 5 for one in cost.latency)


def test_the_mode_is_as_it_was_and_statistics_do_not_move():
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(32, 2)).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    measure_cost(net, 4, torch.device("cpu"), batches=(1,))
    assert net.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
