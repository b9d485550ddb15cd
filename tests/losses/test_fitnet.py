"""``fitnet``: hints through a connector."""

import pytest
import torch

from outgrow.losses.fitnet import FitNet, fitnet_loss
from tests import contract
from tests.reference import features


def test_it_is_a_mean():
    ones = torch.ones(2, 3, 4, 5)
    torch.testing.assert_close(fitnet_loss(3 * ones, ones), torch.tensor([4.0, 4.0]))


@pytest.mark.parametrize("training", [True, False])
def test_reference_with_other_channels(training):
    student = contract.of_features(a=(3, 9, 2, 2), b=(3, 4, 6, 5), c=(3, 9, 1, 1))
    teacher = contract.of_features(x=(3, 9, 2, 2), y=(3, 7, 6, 5), seed=5)
    built = contract.set_up(FitNet(), student, teacher).train(training)
    assert [pair[:2] for pair in built.pairs] == [("b", "y")]  # the middle of each
    contract.check_reference(built, student, teacher, features.fitnet)


def test_the_student_is_brought_to_the_teachers_size_after_its_connector():
    student, teacher = contract.of_features(a=(3, 4, 3, 4)), contract.of_features(a=(3, 7, 6, 5), seed=5)
    built = contract.set_up(FitNet(), student, teacher)
    own = torch.nn.functional.interpolate(
        built.connectors[0](student.features["a"]), size=(6, 5), mode="bilinear"
    )
    expected = (own - teacher.features["a"]).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(contract.call(built, student, teacher, contract.target(3)), expected)


def test_several_hints_add_up():
    student, teacher = contract.outputs(4), contract.outputs(4, seed=5)
    both = contract.set_up(FitNet(["layer1", "layer2"], ["layer1", "layer2"]), student, teacher)
    parts = []
    for i, path in enumerate(("layer1", "layer2")):
        one = contract.set_up(FitNet(path, path), student, teacher)
        one.connectors[0].load_state_dict(both.connectors[i].state_dict())
        parts.append(contract.call(one, student, teacher, contract.target(4)))
    torch.testing.assert_close(contract.call(both, student, teacher, contract.target(4)), sum(parts))


def test_the_connector_is_trained_and_the_hint_is_not():
    student, teacher = contract.of_features(a=(3, 4, 3, 4)), contract.of_features(a=(3, 7, 3, 4), seed=5)
    built = contract.set_up(FitNet(), student, teacher)
    contract.call(built, student, teacher, contract.target(3)).sum().backward()
    assert [tuple(p.shape) for p in built.parameters()] == [(7, 4, 1, 1), (7,), (7,)]
    assert all(p.grad.any() for p in built.parameters())
