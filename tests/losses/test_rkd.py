"""``rkd``: relational knowledge distillation."""

import pytest
import torch

from outgrow.losses.rkd import RKD, rkd_loss
from tests import contract
from tests.reference import features

ONES = torch.ones(6, dtype=torch.float64)


def rows(seed, number=6, width=4):
    return contract.of_features(a=(number, width), seed=seed).features["a"]


@pytest.mark.parametrize("constants", [{}, {"distance": 1.0, "angle": 0.0}, {"distance": 0.0, "angle": 2.0}])
def test_reference_with_other_widths(constants):
    own, other = rows(0).requires_grad_(), rows(5, width=7)
    ours, theirs = rkd_loss(own, other, ONES, **constants), features.rkd(own, other, **constants)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(value, own)[0] for value in (ours, theirs)))


def test_moving_turning_and_scaling_have_no_effect():
    own, other = rows(0), rows(5)
    turn, _ = torch.linalg.qr(rows(9, number=4))
    torch.testing.assert_close(rkd_loss(3 * own @ turn + 7, other, ONES), rkd_loss(own, other, ONES))
    assert rkd_loss(3 * own @ turn + 7, own, ONES) < 1e-12


def test_three_weighted_rows_by_hand():
    own, other = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.0], [2.0], [3.0]])
    weight = torch.tensor([2.0, 1.0, 1.0])  # shares 1/2, 1/4, 1/4; pairs 1/8, 1/8, 1/16
    mean = lambda a, b, c: (2 * a + 2 * b + c) / 5  # noqa: E731
    mu, nu = mean(1, 3, 2), mean(2, 3, 1)
    pairs = [(1 / 8, 1 / mu - 2 / nu), (1 / 8, 3 / mu - 3 / nu), (1 / 16, 2 / mu - 1 / nu)]
    expected = sum(2 * p * 0.5 * d**2 for p, d in pairs)  # each pair in both orders, all below 1
    value = rkd_loss(own, other, weight, distance=1.0, angle=0.0)
    torch.testing.assert_close(value, torch.tensor(4 / 3 * expected))


def test_rows_that_agree_up_to_rounding_have_no_direction():
    """The same image twice: convolutions may differ in their last bits."""
    own = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    own[1] = own[0] * (1 + 2e-7)
    own.requires_grad_()
    value = rkd_loss(own, torch.randn(4, 8, generator=torch.Generator().manual_seed(1)), torch.ones(4))
    assert torch.autograd.grad(value, own)[0].abs().max() < 1e3


def test_errors():
    with pytest.raises(ValueError, match="rkd: angle needs a weight of at least 0, got -1"):
        RKD(angle=-1.0)
