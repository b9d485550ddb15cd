"""``vid``: variational information distillation."""

import math

import pytest
import torch

from outgrow.losses.vid import VID, vid_loss
from tests import contract
from tests.reference import features


def test_two_channels_by_hand():
    mean, teacher = torch.zeros(1, 2, 1, 1), torch.tensor([2.0, 3.0]).view(1, 2, 1, 1)
    value = vid_loss(mean, teacher, torch.tensor([1.0, math.e]))
    expected = ((4 / 2 + 0) + (9 / (2 * math.e) + 0.5)) / 2
    torch.testing.assert_close(value, torch.tensor([expected]))


def test_reference_with_other_channels_and_sizes():
    student = contract.of_features(a=(3, 4, 8, 8), b=(3, 5, 2, 2))
    teacher = contract.of_features(a=(3, 6, 4, 4), b=(3, 7, 4, 4), seed=5)
    contract.check_reference(contract.set_up(VID(), student, teacher), student, teacher, features.vid)


@pytest.mark.parametrize("start", [0.5, 5.0, 2000.0])
def test_the_variance_starts_where_asked_and_is_trained(start):
    """One re-implementation leaves it out of its optimiser."""
    outputs = contract.of_features(a=(2, 3, 4, 4))
    built = contract.set_up(VID(initial_variance=start), outputs, outputs)
    (scale,) = built.log_scales
    variance = torch.nn.functional.softplus(scale) + built.eps
    torch.testing.assert_close(variance, torch.full_like(variance, start), rtol=1e-6, atol=1e-6)
    assert any(parameter is scale for parameter in built.parameters())
    contract.call(built, outputs, outputs, contract.target(2)).sum().backward()
    assert (scale.grad != 0).all()


def test_eps_is_the_least_variance():
    outputs = contract.of_features(a=(2, 3, 4, 4))
    built = contract.set_up(VID(eps=0.25), outputs, outputs)
    with torch.no_grad():
        built.log_scales[0].fill_(-1e3)
        for layer in built.regressors[0][::2]:
            layer.weight.zero_()
    value = contract.call(built, outputs, outputs, contract.target(2))
    expected = 0.5 * (outputs.features["a"].square() / 0.25 + math.log(0.25)).flatten(1).mean(1)
    torch.testing.assert_close(value, expected)


def test_errors():
    with pytest.raises(ValueError, match=r"vid: initial_variance needs more than eps = 0.1, got 0.1"):
        VID(initial_variance=0.1, eps=0.1)
    with pytest.raises(ValueError, match="vid: eps needs a positive number"):
        VID(eps=0.0)
