"""``at``: attention transfer."""

import pytest
import torch

from outgrow.losses.at import AT, at_loss
from tests import contract
from tests.reference import features


def test_two_positions_by_hand():
    student = torch.tensor([[[[1.0, 0.0]], [[1.0, 2.0]]]])  # mean squares 1 and 2, so (1, 2) / sqrt(5)
    teacher = torch.tensor([[[[3.0, 0.0]]]])
    expected = ((1 / 5**0.5 - 1) ** 2 + (2 / 5**0.5) ** 2) / 2
    torch.testing.assert_close(at_loss(student, teacher), torch.tensor([expected]))


@pytest.mark.parametrize("power", [1, 2, 3, 4])
def test_reference_with_other_channels_and_sizes(power):
    student = contract.of_features(a=(3, 4, 8, 8), b=(3, 5, 4, 4))
    teacher = contract.of_features(a=(3, 6, 4, 4), b=(3, 7, 4, 4), seed=5)

    def expected(own, other, *_):
        return sum(features.at_pair(s, t, power) for s, t in zip(own, other, strict=True))

    contract.check_reference(contract.set_up(AT(power=power), student, teacher), student, teacher, expected)


def test_the_sign_is_kept_at_odd_powers_only():
    feature = contract.outputs(2).features["layer1"]
    assert (at_loss(feature, -feature, power=2) < 1e-12).all()
    assert (at_loss(feature, -feature, power=3) > 0.01).all()


def test_the_level_of_a_map_does_not_count():
    own, other = contract.outputs(2).features["layer1"], contract.outputs(2, seed=5).features["layer1"]
    torch.testing.assert_close(at_loss(7 * own, other), at_loss(own, 0.01 * other))


@pytest.mark.parametrize("power", [0, -2])
def test_power_must_be_positive(power):
    with pytest.raises(ValueError, match=f"at: power needs a whole number of at least 1, got {power}"):
        AT(power=power)
