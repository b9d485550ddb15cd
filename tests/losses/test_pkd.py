"""``pkd``: Pearson correlation of feature maps."""

import pytest
import torch

from outgrow.losses.pkd import PKD, pkd_loss
from tests import contract
from tests.reference import features
from tests.reference.losses import pearson


def test_the_mean_is_one_minus_pearsons_correlation():
    own, other = (contract.outputs(5, seed=seed).features["layer1"] for seed in (0, 5))
    correlations = [pearson(own[:, c].flatten(), other[:, c].flatten()) for c in range(3)]
    torch.testing.assert_close(pkd_loss(own, other).mean(), 1 - sum(correlations) / 3)


def test_reference_through_a_connector_and_at_another_size():
    student = contract.of_features(a=(3, 4, 3, 3), b=(3, 5, 4, 4))
    teacher = contract.of_features(a=(3, 4, 6, 6), b=(3, 2, 4, 4), seed=5)

    def expected(own, other, state, *_):
        first = torch.nn.functional.interpolate(own[0], size=(6, 6), mode="bilinear")
        second = features.conv1x1(own[1], state["connectors.1.weight"], state["connectors.1.bias"])
        return features.pkd_pair(first, other[0]) + features.pkd_pair(second, other[1])

    contract.check_reference(contract.set_up(PKD(), student, teacher), student, teacher, expected)


def test_magnitudes_do_not_count():
    own, other = (contract.outputs(2, seed=seed).features["layer1"] for seed in (0, 5))
    scale = torch.tensor([0.01, 1.0, 300.0], dtype=own.dtype)[:, None, None]
    torch.testing.assert_close(pkd_loss(scale * own + 7 * scale, other), pkd_loss(own, other))
    assert (pkd_loss(own, 2 * own + 1) < 1e-12).all()


def test_a_constant_channel_has_no_gradient():
    own = torch.full((2, 1, 3, 3), 0.1, requires_grad=True)
    value = pkd_loss(own, contract.outputs(2).features["layer1"][:, :1, :3, :3].float())
    torch.testing.assert_close(value.mean(), torch.tensor(0.5))
    assert (torch.autograd.grad(value.sum(), own)[0] == 0).all()


@pytest.mark.parametrize("size", [10.0**-k for k in range(0, 46)])
def test_tiny_channels_count_in_full_or_not_at_all(size):
    """As a batch norm's may become under weight decay; squares of such numbers lose their digits first."""
    own, other = (contract.outputs(4, seed=seed).features["layer1"].float() for seed in (0, 5))
    scale = torch.tensor([1.0, size, 1.0])[:, None, None]
    leaf = (scale * own).requires_grad_()
    value = pkd_loss(leaf, other)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    if size > 1e-14:
        torch.testing.assert_close(value, pkd_loss(own, other), rtol=1e-4, atol=1e-5)
        assert (gradient[:, 1] != 0).all()
    if size < 1e-17:
        without = pkd_loss(torch.where(scale == 1.0, own, torch.zeros(())), other)
        torch.testing.assert_close(value, without, rtol=1e-4, atol=1e-5)
        assert (gradient[:, 1] == 0).all()
    assert gradient.isfinite().all()
