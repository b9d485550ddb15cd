"""``ofd``: the overhaul of feature distillation."""

import copy

import torch

from outgrow.losses.ofd import OFD, ofd_loss
from tests import contract
from tests.reference import features


def test_the_four_cases_by_hand():
    teacher = torch.tensor([2.0, 2.0, -1.0, -1.0, -9.0, -9.0, -9.0]).view(1, 1, 1, 7)
    student = torch.tensor([5.0, 0.0, 0.5, -2.0, -2.0, -4.0, -8.0]).view(1, 1, 1, 7)
    # towards a positive response; down to a negative one, not up; down to the margin, not below
    expected = 3**2 + 2**2 + 1.5**2 + 0 + 1**2 + 0 + 0
    torch.testing.assert_close(ofd_loss(student, teacher, torch.tensor([-3.0])), torch.tensor([expected]))


def test_reference_with_other_channels_and_sizes():
    student = contract.of_features(a=(3, 4, 8, 8), b=(3, 5, 4, 4))
    teacher = contract.of_features(a=(3, 6, 8, 8), b=(3, 7, 4, 4), seed=5)
    seen = [[teacher.features[path], teacher.features[path]] for path in "ab"]  # dry run and this step
    built = contract.set_up(OFD(), student, teacher)
    contract.check_reference(built, student, teacher, features.ofd, seen=seen)


def test_the_larger_map_is_pooled_after_the_connector():
    student, teacher = contract.of_features(a=(3, 4, 4, 4)), contract.of_features(a=(3, 6, 8, 8), seed=5)
    built = contract.set_up(OFD(), student, teacher).eval()
    seen = [[teacher.features["a"]]]

    def expected(own, other, *rest):
        return features.ofd(own, [features.pooled(other[0], 4, 4)], *rest)

    contract.check_reference(built, student, teacher, expected, seen=seen)


def test_a_students_larger_map_is_pooled_too():
    """Not the teacher's enlarged: the sum runs over the elements of the smaller map."""
    student, teacher = contract.of_features(a=(3, 4, 8, 8)), contract.of_features(a=(3, 6, 4, 4), seed=5)
    built = contract.set_up(OFD(), student, teacher).eval()
    seen = [[teacher.features["a"]]]

    def expected(own, other, state, training, seen):
        connected = features.conv1x1(own[0], state["connectors.0.0.weight"])
        connected = features.batch_norm(connected, state, "connectors.0.1", training)
        margin = features.negative_mean(seen[0])
        return features.ofd_pair(features.pooled(connected, 4, 4), other[0], margin)

    contract.check_reference(built, student, teacher, expected, seen=seen)


def test_margins_are_the_mean_negative_response_so_far():
    student, dry = contract.of_features(a=(2, 3, 4, 4)), contract.of_features(a=(2, 5, 4, 4), seed=1)
    built = contract.set_up(OFD(), student, dry)
    maps = [dry.features["a"]]
    for seed in (2, 3):
        step = contract.of_features(a=(2, 5, 4, 4), seed=seed)
        step.features["a"][:, 4] = step.features["a"][:, 4].abs()
        contract.call(built, student, step, contract.target(2))
        maps.append(step.features["a"])
    torch.testing.assert_close(built.margin(0), torch.stack(features.negative_mean(maps)))
    before = copy.deepcopy(built.state_dict())
    contract.call(built.eval(), student, dry, contract.target(2))
    assert all((value == before[name]).all() for name, value in built.state_dict().items())


def test_a_teacher_after_its_relu_has_margins_of_zero():
    student, teacher = contract.of_features(a=(2, 3, 4, 4)), contract.of_features(a=(2, 5, 4, 4), seed=1)
    teacher.features["a"].relu_()
    assert (contract.set_up(OFD(), student, teacher).margin(0) == 0).all()


def test_deeper_stages_weigh_more():
    shape = {"a": (2, 3, 4, 4), "b": (2, 3, 4, 4), "c": (2, 3, 4, 4)}
    student, teacher = contract.of_features(**shape), contract.of_features(**shape, seed=1)
    built = contract.set_up(OFD(), student, teacher).eval()
    parts = []
    for i, path in enumerate("abc"):
        own = built.connectors[i](student.features[path])
        parts.append(ofd_loss(own, teacher.features[path], built.margin(i)))
    value = contract.call(built, student, teacher, contract.target(2))
    torch.testing.assert_close(value, parts[0] / 4 + parts[1] / 2 + parts[2])
