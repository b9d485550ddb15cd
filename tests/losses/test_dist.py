"""``dist``: correlations of softened outputs, also where a class is as good as never believed in."""

import pytest
import torch

from outgrow.losses.dist import DIST, dist_loss
from tests import contract
from tests.reference import losses as reference


def value_and_gradient(student, teacher, weight=None, **constants):
    leaf = student.clone().requires_grad_()
    weight = leaf.new_ones(len(leaf)) if weight is None else weight.to(leaf.dtype)
    value = dist_loss(leaf, teacher, weight, **constants)
    return value, torch.autograd.grad(value, leaf)[0]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("behind", [10.0, 22.0, 26.0, 30.0])
def test_a_class_far_below_the_rest_in_every_row(behind, temperature):
    """Float32 against the literal reference in float64; the product of two variances would underflow."""
    student, teacher = contract.outputs(8).logits, contract.outputs(8, seed=5).logits
    for logits in (student, teacher):
        logits[:, 2] = logits[:, 2] / 3 - temperature * behind
    leaf = student.clone().requires_grad_()
    expected = reference.dist(leaf, teacher, None, temperature=temperature)
    theirs = torch.autograd.grad(expected, leaf)[0]
    value, ours = value_and_gradient(student.float(), teacher.float(), temperature=temperature)
    torch.testing.assert_close(value.double(), expected.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("behind", [50.0, 90.0, 1e3])
def test_a_class_that_nobody_can_see_is_one_that_does_not_vary(behind):
    """Its correlation is 0, without a gradient; the others are as without it."""
    student, teacher = contract.outputs(8).logits.float(), contract.outputs(8, seed=5).logits.float()
    far = torch.linspace(-1, 1, 8)[:, None] - behind
    constants = {"beta": 0.0, "temperature": 1.0}
    value, gradient = value_and_gradient(
        torch.cat([student, far], dim=1), torch.cat([teacher, far], dim=1), **constants
    )
    alone, of_alone = value_and_gradient(student, teacher, **constants)
    torch.testing.assert_close(value, (5 * alone + 1) / 6)
    torch.testing.assert_close(gradient[:, :5], of_alone * 5 / 6, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradient[:, 5], torch.zeros(8), rtol=0, atol=1e-6)


def test_a_row_without_weight_does_not_hide_the_others():
    """Its logits are zeros under the objective: its probabilities are 1 / C, far above those of a class far below."""
    student, teacher = contract.outputs(8).logits, contract.outputs(8, seed=5).logits
    for logits in (student, teacher):
        logits[:, 2] = logits[:, 2] / 3 - 30.0
        logits[6:] = 0.0
    weight = torch.tensor([1.0] * 6 + [0.0] * 2)
    value, gradient = value_and_gradient(student.float(), teacher.float(), weight, temperature=1.0)
    leaf = student[:6].clone().requires_grad_()
    expected = reference.dist(leaf, teacher[:6], None, temperature=1.0) * 6 / 8
    theirs = torch.autograd.grad(expected, leaf)[0]
    torch.testing.assert_close(value.double(), expected.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient[:6].double(), theirs, rtol=1e-3, atol=1e-4)
    assert (gradient[6:] == 0).all()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 300.0])
@pytest.mark.parametrize("seed", range(4))
def test_finite_at_any_scale(scale, seed):
    student = contract.outputs(16, 20, seed=seed, dtype=torch.float32, scale=scale).logits
    teacher = contract.outputs(16, 20, seed=seed + 50, dtype=torch.float32, scale=scale).logits
    for own, other in (
        (student, teacher),
        (student, student),
        (student, 0 * teacher),
        (0 * student, teacher),
    ):
        value, gradient = value_and_gradient(own, other)
        assert 0 - 1e-3 <= value <= 16 * 4
        assert gradient.isfinite().all()


def test_errors():
    with pytest.raises(ValueError, match="dist: temperature needs a positive number, got 0"):
        DIST(temperature=0.0)
