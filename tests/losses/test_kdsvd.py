"""``kdsvd``: how the main directions of consecutive stages relate."""

import pytest
import torch

from outgrow.losses.kdsvd import KDSVD, kdsvd_loss
from tests import contract
from tests.reference import features


@pytest.mark.parametrize("k", [1, 2])
def test_reference(k):
    student = contract.of_features(a=(3, 4, 8, 8), b=(3, 5, 4, 4), c=(3, 6, 3, 3))
    teacher = contract.of_features(a=(3, 4, 4, 4), b=(3, 5, 4, 4), c=(3, 6, 4, 4), seed=5)  # sizes may differ
    built = contract.set_up(KDSVD(k=k), student, teacher)
    contract.check_reference(built, student, teacher, lambda *given: features.kdsvd(*given, k=k))


@pytest.mark.parametrize("side", [2, 5])
def test_gradient_by_differences(side):
    """Also with fewer positions than channels, where an eigenvector's change leaves those there are."""
    own = [contract.of_features(a=(2, c, side, side), seed=c).features["a"].requires_grad_() for c in (6, 7)]
    other = [contract.of_features(a=(2, c, 3, 3), seed=30 + c).features["a"] for c in (6, 7)]
    assert torch.autograd.gradcheck(lambda *maps: kdsvd_loss(maps, other, k=2), own, eps=1e-6, atol=1e-6)


def test_signs_of_the_linear_algebra_library_have_no_effect():
    """A map and its negative have the same directions, and libraries return either."""
    own, other = ([contract.outputs(3, seed=s).features[n] for n in ("layer1", "layer2")] for s in (0, 5))
    value = kdsvd_loss(own, other)
    for signs in [(1, -1), (-1, 1), (-1, -1)]:
        flip = [sign * value for sign, value in zip(signs, other, strict=True)]
        torch.testing.assert_close(kdsvd_loss(own, flip), value)
        torch.testing.assert_close(kdsvd_loss([s * m for s, m in zip(signs, own, strict=True)], other), value)


def test_directions_that_are_not_determined_get_no_infinite_gradient():
    """Equal singular values: autograd's formula divides by their difference."""
    square = torch.eye(4).reshape(1, 4, 2, 2).repeat(2, 1, 1, 1).requires_grad_()
    rank_one = torch.ones(2, 3, 2, 2, requires_grad=True)
    other = [contract.outputs(2, dtype=torch.float32).features["layer2"][:, :c] for c in (4, 3)]
    value = kdsvd_loss([square, rank_one], other)
    grads = torch.autograd.grad(value.sum(), [square, rank_one])
    assert all(grad.isfinite().all() and grad.abs().max() < 100 for grad in grads)


def test_a_map_that_is_not_finite_is_seen():
    own = [contract.outputs(2).features[n] for n in ("layer1", "layer2")]
    other = [value.clone() for value in own]
    own[1][0, 0, 0, 0] = float("nan")
    assert kdsvd_loss(own, other).isnan().tolist() == [True, False]


def test_connectors_only_where_channels_differ():
    student = contract.of_features(a=(2, 4, 4, 4), b=(2, 5, 4, 4))
    teacher = contract.of_features(a=(2, 4, 4, 4), b=(2, 9, 4, 4))
    built = contract.set_up(KDSVD(), student, teacher)
    assert [p.shape for p in built.parameters()] == [(9, 5, 1, 1), (9,)]


def test_errors():
    one = contract.of_features(a=(2, 4, 4, 4))
    with pytest.raises(ValueError, match="kdsvd: needs at least two stages to relate, got one; tap more"):
        contract.set_up(KDSVD(), one, one)
    with pytest.raises(ValueError, match="kdsvd: k needs a whole number of at least 1, got 0"):
        KDSVD(k=0)
