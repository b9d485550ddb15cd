"""``ttm``: a power of the teacher's probabilities is a temperature on the teacher alone."""

import pytest
import torch

import outgrow
from outgrow.losses.kd import kd_loss
from outgrow.losses.ttm import TTM, ttm_loss
from tests import contract


def test_exponent_one_is_kd_at_temperature_one():
    student, teacher = contract.outputs(6).logits, contract.outputs(6, seed=5).logits
    torch.testing.assert_close(
        ttm_loss(student, teacher, exponent=1.0), kd_loss(student, teacher, temperature=1.0)
    )


def test_zero_where_the_student_is_the_power_of_the_teacher():
    teacher = contract.outputs(6).logits
    student = (0.2 * teacher + 7.0).requires_grad_()
    value = ttm_loss(student, teacher)
    assert value.abs().max() < 1e-12
    assert torch.autograd.grad(value.sum(), student)[0].abs().max() < 1e-12
    assert (ttm_loss(teacher, teacher) > 0.01).all()


def test_the_gradient_is_of_size_one_without_a_factor():
    """No T^2: the gradient is p - q, at temperature 1."""
    student, teacher = contract.outputs(6).logits.requires_grad_(), contract.outputs(6, seed=5).logits
    (gradient,) = torch.autograd.grad(ttm_loss(student, teacher).sum(), student)
    torch.testing.assert_close(gradient, student.softmax(1) - (0.2 * teacher).softmax(1))


@pytest.mark.parametrize("name", ["ttm", "wttm"])
def test_rules_work_at_the_temperature_that_the_exponent_means(name):
    assert TTM(exponent=0.25).temperature == 4.0
    rectify, objective = outgrow.preset("paper", loss=f"{name}(exponent=0.25)")
    assert rectify.temperature == objective.temperature == 4.0
    # and no temperature is handed to it: it has no such argument
    with pytest.warns(UserWarning, match=f"the temperature 2 has no effect, since neither {name} nor"):
        rectify, _ = outgrow.preset("paper", loss=name, temperature=2.0)
    assert rectify.temperature == 5.0
