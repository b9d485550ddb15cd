"""``wttm``: the weight of a row is the power sum of the teacher's probabilities."""

import torch

from outgrow.losses.ttm import ttm_loss
from outgrow.losses.wttm import wttm_loss
from tests import contract


def test_the_weight_by_hand():
    student = contract.outputs(2, classes=16).logits
    teacher = torch.zeros(2, 16, dtype=torch.float64)
    teacher[0, 3] = 1e4  # certain: 1; knows nothing: C^(1 - exponent)
    weight = wttm_loss(student, teacher, exponent=0.25) / ttm_loss(student, teacher, exponent=0.25)
    torch.testing.assert_close(weight, torch.tensor([1.0, 16**0.75], dtype=torch.float64))


def test_the_weight_is_not_normalised_over_the_batch():
    student, teacher = contract.outputs(6).logits, contract.outputs(6, seed=5).logits
    weight = wttm_loss(student, teacher) / ttm_loss(student, teacher)
    assert (weight > 1).all()
    torch.testing.assert_close(weight, (teacher.softmax(1) ** 0.2).sum(1))


def test_finite_for_a_certain_teacher_in_single_precision():
    """0 to a power of 0.2 has an infinite derivative; in logarithms nothing is 0."""
    student = torch.tensor([[0.0, 1.0, 2.0]], requires_grad=True)
    teacher = torch.tensor([[300.0, 0.0, -300.0]], requires_grad=True)
    gradients = torch.autograd.grad(wttm_loss(student, teacher).sum(), (student, teacher))
    assert all(gradient.isfinite().all() for gradient in gradients)
