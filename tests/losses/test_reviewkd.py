"""``reviewkd``: knowledge review."""

import pytest
import torch

from outgrow.losses.reviewkd import ReviewKD, reviewkd_loss
from tests import contract
from tests.reference import features


def test_levels_by_hand():
    difference = torch.tensor([[4.0, 0.0], [0.0, 0.0]]).view(1, 1, 2, 2)
    # the map: 16 / 4; its mean 1, at half the weight
    expected = (4.0 + 0.5 * 1.0) / 1.5
    torch.testing.assert_close(
        reviewkd_loss(difference, torch.zeros_like(difference)), torch.tensor([expected])
    )
    point = torch.full((1, 1, 1, 1), 3.0)
    torch.testing.assert_close(reviewkd_loss(point, torch.zeros_like(point)), torch.tensor([9.0]))
    large = torch.ones(1, 1, 8, 8)  # four levels, all equal
    torch.testing.assert_close(reviewkd_loss(large, 0 * large), torch.tensor([1.0]))


@pytest.mark.parametrize("training", [True, False])
def test_reference_with_other_channels_and_sizes(training):
    student = contract.of_features(a=(3, 4, 8, 8), b=(3, 5, 4, 4), penultimate=(3, 7))
    teacher = contract.of_features(a=(3, 6, 16, 16), b=(3, 2, 4, 4), penultimate=(3, 9), seed=5)
    built = contract.set_up(ReviewKD(), student, teacher).train(training)
    contract.check_reference(built, student, teacher, features.reviewkd)


@pytest.mark.parametrize("bound, width", [(512, 7), (3, 3)])
def test_the_width_of_the_fusion(bound, width):
    """At most ``mid_channels``, and at most what the student's deepest stage has."""
    outputs = contract.of_features(a=(3, 4, 8, 8), b=(3, 7, 4, 4))
    built = contract.set_up(ReviewKD(mid_channels=bound), outputs, outputs)
    assert [fusion.reduce[0].out_channels for fusion in built.fusions] == [width, width]
    assert [fusion.blend is None for fusion in built.fusions] == [False, True]


def test_deep_stages_of_the_student_teach_early_ones():
    """The error of the teacher's first stage alone reaches the student's deepest."""
    outputs, teacher = (
        contract.of_features(a=(3, 4, 8, 8), b=(3, 5, 4, 4)),
        contract.of_features(a=(3, 4, 8, 8), b=(3, 5, 4, 4), seed=5),
    )
    built = contract.set_up(ReviewKD(), outputs, teacher)
    student, (_, first, last) = contract.leaves(outputs)
    stages = [pair.maps(student, teacher) for pair in built.pairs]
    _, fused = built.fusions[1](stages[1][0], None, (4, 4))
    made, _ = built.fusions[0](stages[0][0], fused, (8, 8))
    grads = torch.autograd.grad(reviewkd_loss(made, stages[0][1]).sum(), [first, last])
    assert all(grad.any() for grad in grads)


def test_one_image_at_the_end_of_an_epoch():
    one, four = (contract.of_features(a=(n, 4, 8, 8), penultimate=(n, 7)) for n in (1, 4))
    built = contract.set_up(ReviewKD(), four, four)
    assert contract.call(built, one, one, contract.target(1)).isfinite().all()


def test_mid_channels_must_be_positive():
    with pytest.raises(ValueError, match="reviewkd: mid_channels needs at least 1, got 0"):
        ReviewKD(mid_channels=0)
