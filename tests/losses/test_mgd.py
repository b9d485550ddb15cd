"""``mgd``: masked generative distillation."""

import pytest
import torch

from outgrow import Target
from outgrow.data.randomness import uniform_at
from outgrow.losses.mgd import MGD, mgd_loss
from tests import contract
from tests.reference import features


def test_it_is_a_sum():
    ones = torch.ones(2, 3, 4, 5)
    torch.testing.assert_close(mgd_loss(2 * ones, ones), torch.tensor([60.0, 60.0]))


def with_mask(mask, goal, built, student, teacher):
    contract.check_reference(
        built, student, teacher, lambda *given: features.mgd(*given, mask=mask), target=goal
    )


def setting():
    student, teacher = contract.of_features(a=(3, 4, 6, 6)), contract.of_features(a=(3, 5, 6, 6), seed=5)
    return contract.set_up(MGD(mask_ratio=0.4), student, teacher), student, teacher


@pytest.mark.parametrize("spatial", [False, True])
def test_reference_with_its_mask(spatial):
    """Channels where rows are images, positions where they are not."""
    torch.manual_seed(7)  # as contract.call
    mask = torch.rand((3, 1, 6, 6) if spatial else (3, 5, 1, 1)) >= 0.4
    assert 0 < mask.sum() < mask.numel()
    goal = Target(torch.zeros(3, dtype=torch.long), image=torch.arange(3) if spatial else None)
    with_mask(mask, goal, *setting())


def test_a_numbered_image_has_its_own_mask_at_every_step():
    """Draws from plain Python integers: the key, the image's number and the channel; then the next draw."""
    built, student, teacher = setting()
    goal = Target(torch.zeros(3, dtype=torch.long), index=torch.tensor([31, 4, 17]))
    for step in range(2):
        seed, drawn = built.draw.tolist()
        assert drawn == step
        uniform = [[uniform_at(seed, step, number, c) for c in range(5)] for number in (31, 4, 17)]
        with_mask(torch.tensor(uniform)[:, :, None, None] >= 0.4, goal, built, student, teacher)


def test_the_share_that_is_masked():
    built, *_ = setting()
    torch.manual_seed(0)
    label = torch.zeros(64, dtype=torch.long)
    for place in ({}, {"index": torch.arange(64)}, {"image": torch.arange(64)}):
        kept = built._masked(torch.ones(64, 64, 8, 8), Target(label, **place))
        assert kept.mean().item() == pytest.approx(0.6, abs=0.03)
        assert set(kept.unique().tolist()) == {0.0, 1.0}


def test_masking_is_off_in_eval_mode():
    student, teacher = contract.of_features(a=(3, 4, 6, 6)), contract.of_features(a=(3, 4, 6, 6), seed=5)
    built = contract.set_up(MGD(), student, teacher).eval()
    assert not list(built.connectors.parameters())  # the channels agree
    contract.check_reference(built, student, teacher, features.mgd)


def test_the_student_is_brought_to_the_teachers_size():
    student, teacher = contract.of_features(a=(3, 4, 3, 5)), contract.of_features(a=(3, 4, 6, 6), seed=5)
    built = contract.set_up(MGD(), student, teacher).eval()
    own = torch.nn.functional.interpolate(student.features["a"], size=(6, 6), mode="bilinear")
    expected = mgd_loss(built.generators[0](own), teacher.features["a"])
    torch.testing.assert_close(contract.call(built, student, teacher, contract.target(3)), expected)


@pytest.mark.parametrize("ratio", [-0.1, 1.0, float("nan")])
def test_the_ratio_is_checked(ratio):
    with pytest.raises(ValueError, match="mgd: mask_ratio needs a number from 0 to below 1, got"):
        MGD(mask_ratio=ratio)
