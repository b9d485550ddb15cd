"""``reverse_kl``: the other direction, and what it is for."""

import torch

from outgrow.losses.kd import kd_loss
from outgrow.losses.reverse_kl import reverse_kl_loss
from tests import contract


def test_is_kd_with_its_arguments_exchanged():
    student, teacher = contract.outputs(6).logits, contract.outputs(6, seed=5).logits
    torch.testing.assert_close(
        reverse_kl_loss(student, teacher, temperature=3.0), kd_loss(teacher, student, temperature=3.0)
    )


def test_the_gradient_by_hand():
    """T p (log p/t - KL): weighed by the student, where kd's is T (p - t)."""
    student, teacher = contract.outputs(6).logits.requires_grad_(), contract.outputs(6, seed=5).logits
    (gradient,) = torch.autograd.grad(reverse_kl_loss(student, teacher).sum(), student)
    p, t = (student / 4).softmax(1), (teacher / 4).softmax(1)
    difference = p.log() - t.log()
    expected = 4 * p * (difference - (p * difference).sum(1, keepdim=True))
    torch.testing.assert_close(gradient, expected)


def test_prefers_one_mode_where_kd_prefers_both():
    teacher = torch.tensor([[4.0, 4.0, -4.0]])
    one, spread = torch.tensor([[4.0, 0.0, -4.0]]), torch.tensor([[2.0, 2.0, 1.0]])
    reverse = [reverse_kl_loss(student, teacher, temperature=1.0) for student in (one, spread)]
    forward = [kd_loss(student, teacher, temperature=1.0) for student in (one, spread)]
    assert reverse[0] < reverse[1]
    assert forward[0] > forward[1]
