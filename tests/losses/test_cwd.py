"""``cwd``: channel-wise distillation."""

import math

import pytest
import torch

from outgrow import Objective, Rectifier
from outgrow.losses.cwd import CWD, cwd_loss
from tests import contract
from tests.reference import features


def test_one_channel_by_hand():
    student, teacher = torch.zeros(1, 1, 1, 2), torch.tensor([[[[math.log(3.0), 0.0]]]])
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    torch.testing.assert_close(cwd_loss(student, teacher), torch.tensor([expected]))
    half = cwd_loss(student, 2 * teacher, temperature=2.0)
    torch.testing.assert_close(half, torch.tensor([4 * expected]))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_reference_through_a_connector(temperature):
    student, teacher = contract.of_features(a=(3, 4, 4, 6)), contract.of_features(a=(3, 5, 4, 6), seed=5)

    def expected(own, other, state, *_):
        own = features.conv1x1(own[0], state["connectors.0.weight"], state["connectors.0.bias"])
        return features.cwd_pair(own, other[0], temperature)

    built = contract.set_up(CWD(temperature=temperature), student, teacher)
    contract.check_reference(built, student, teacher, expected)


def test_the_level_of_a_channel_does_not_count():
    own, other = contract.outputs(2).features["layer1"], contract.outputs(2, seed=5).features["layer1"]
    shifted = own + torch.randn(2, 3, 1, 1, dtype=own.dtype)
    torch.testing.assert_close(cwd_loss(shifted, other - 4.0), cwd_loss(own, other))


def test_finite_at_saturation():
    own = torch.tensor([[[[1e4, -1e4, 0.0]]]], dtype=torch.float16, requires_grad=True)
    value = cwd_loss(own, -own.detach())
    assert value.isfinite().all()
    assert torch.autograd.grad(value.sum(), own)[0].isfinite().all()


def test_its_temperature_is_not_that_of_logits():
    student, teacher, goal = contract.outputs(4), contract.outputs(4, seed=5), contract.target(4)
    objective = Objective(contract.set_up(CWD(temperature=2.0), student, teacher))
    assert objective.temperature is None
    objective(student, Rectifier("pair", temperature=4.0)(teacher, goal), goal, 0.0)
    with pytest.raises(ValueError, match="cwd: temperature needs a positive number, got 0"):
        CWD(temperature=0.0)
