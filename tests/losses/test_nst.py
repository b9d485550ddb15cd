"""``nst``: neuron selectivity transfer."""

import torch

from outgrow.losses.nst import NST, nst_loss
from tests import contract
from tests.reference import features


def test_two_channels_by_hand():
    student = torch.tensor([[[[2.0, 0.0]], [[0.0, 5.0]]]])  # kernel among its channels: 1, 0, 0, 1
    teacher = torch.tensor([[[[1.0, 1.0]]]])  # 1; with each of the student's (1 / sqrt(2))^2
    torch.testing.assert_close(nst_loss(student, teacher), torch.tensor([1.0 + 0.5 - 2 * 0.5]))


def test_reference_with_other_channels_and_sizes():
    student = contract.of_features(a=(3, 4, 8, 8), b=(3, 5, 2, 4))
    teacher = contract.of_features(a=(3, 6, 4, 4), b=(3, 2, 4, 4), seed=5)
    contract.check_reference(contract.set_up(NST(), student, teacher), student, teacher, features.nst)


def test_neither_order_nor_sign_nor_number_of_channels_counts():
    feature = contract.outputs(2).features["layer1"]
    for same in (feature.flip(1), -feature, torch.cat([feature, feature], dim=1)):
        assert (nst_loss(same, feature).abs() < 1e-12).all()
