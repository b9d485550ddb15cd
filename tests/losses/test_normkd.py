"""``normkd``: each row has its own temperature."""

import pytest
import torch

import outgrow
from outgrow.losses import make_loss
from outgrow.losses.kd import kd_loss
from outgrow.losses.normkd import normkd_loss
from tests import contract


def batch():
    return contract.outputs(6).logits, contract.outputs(6, seed=5).logits


def test_is_kd_where_the_deviations_are_one():
    student, teacher = ((z - z.mean(1, keepdim=True)) / z.std(1, keepdim=True) for z in batch())
    torch.testing.assert_close(
        normkd_loss(student, teacher, temperature=3.0), kd_loss(student, teacher, temperature=3.0)
    )


def test_is_standardised_kd_times_the_teachers_variance():
    student, teacher = batch()
    label = contract.target(6).label
    standardised = make_loss("standardize(kd, temperature=2)")(student, teacher, label)
    torch.testing.assert_close(
        normkd_loss(student, teacher), teacher.var(dim=1) * standardised, rtol=1e-6, atol=0
    )


def test_scale():
    """The student's does not matter, the teacher's is the size of the loss."""
    student, teacher = batch()
    value = normkd_loss(student, teacher)
    torch.testing.assert_close(normkd_loss(7 * student, teacher), value)
    torch.testing.assert_close(normkd_loss(student, 3 * teacher), 9 * value)


@pytest.mark.parametrize("scale", [0.0, 0.1, 3e4])
def test_rows_of_equal_logits(scale):
    """Their computed deviation is zero, or a rounding: no gradient of 1e8 either way."""
    even = torch.full((1, 7), scale)
    other = torch.tensor([[4.0, 0, 1, 2, 0, 0, 1]])
    student = even.clone().requires_grad_()
    value = normkd_loss(student, other)
    (gradient,) = torch.autograd.grad(value.sum(), student)
    assert value > 0
    # as at the teacher's temperature, so that a student that starts at zeros does start
    expected = kd_loss(even, other, temperature=2 * float(other.std()))
    torch.testing.assert_close(value, expected)
    assert 0 < gradient.abs().max() < 10
    student = other.clone().requires_grad_()
    value = normkd_loss(student, even)
    assert value == 0
    assert (torch.autograd.grad(value.sum(), student)[0] == 0).all()


def test_declares_no_temperature():
    assert make_loss("normkd").temperature is None
    rectify, objective = outgrow.preset("paper", loss="normkd(temperature=2)")
    assert objective.temperature is None
    assert rectify.temperature == 4.0
