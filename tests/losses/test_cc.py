"""``cc``: correlation congruence."""

import math

import pytest
import torch

from outgrow.losses.cc import CC, cc_loss
from tests import contract
from tests.reference import features


def rows(seed, width=4):
    return contract.of_features(a=(6, width), seed=seed).features["a"]


@pytest.mark.parametrize("constants", [{}, {"gamma": 0.7, "order": 3}, {"order": 1}])
def test_reference_with_other_widths(constants):
    own, other = rows(0).requires_grad_(), rows(5, width=7)
    ours, theirs = cc_loss(own, other, torch.ones(6), **constants), features.cc(own, other, **constants)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(value, own)[0] for value in (ours, theirs)))


def test_the_series_is_the_gaussian_kernel_of_unit_rows():
    own = torch.nn.functional.normalize(rows(0))
    kernel = (-0.4 * (own[:, None] - own).square().sum(dim=2)).exp()
    other = torch.eye(6, dtype=own.dtype)  # its kernel: 1 with itself, exp(-2 gamma) with the others
    plain = torch.full_like(kernel, math.exp(-0.8)).fill_diagonal_(1.0)
    value = cc_loss(own, other, torch.ones(6), order=20)
    torch.testing.assert_close(value, (kernel - plain).square().mean())


def test_neighbours_in_the_batch_are_nothing_special():
    """The common re-implementation multiplies the differences of neighbouring rows."""
    own, other, order = rows(0), rows(5), torch.tensor([3, 1, 5, 0, 2, 4])
    value = cc_loss(own, other, torch.ones(6))
    torch.testing.assert_close(cc_loss(own[order], other[order], torch.ones(6)), value)
    assert cc_loss(own, 2 * own, torch.ones(6)) < 1e-12
    assert list(CC()(contract.outputs(3), contract.outputs(3), contract.target(3)).shape) == []
