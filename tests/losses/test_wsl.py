"""``wsl``: the weight of a row is how far the student is behind the teacher on the label."""

import math

import pytest
import torch

from outgrow import Target
from outgrow.losses.kd import kd_loss
from outgrow.losses.wsl import WSL, wsl_loss
from tests import contract


def batch():
    return contract.outputs(6).logits, contract.outputs(6, seed=5).logits, contract.target(6).label


def test_by_hand():
    """Both even between two classes: log 2 of surprise each, and a cross-entropy of log 2."""
    even = torch.zeros(1, 2, dtype=torch.float64)
    value = wsl_loss(even, even, torch.tensor([0]), temperature=3.0)
    assert value.item() == pytest.approx(9 * (1 - math.exp(-1)) * math.log(2), rel=1e-6)


def test_the_gradient_is_kds_times_a_constant_weight():
    student, teacher, label = batch()
    student.requires_grad_()
    own, theirs = (-z.detach().log_softmax(1).gather(1, label[:, None])[:, 0] for z in (student, teacher))
    weight = 1 - (-own / theirs).exp()
    (ours,) = torch.autograd.grad(wsl_loss(student, teacher, label).sum(), student)
    (plain,) = torch.autograd.grad((weight * kd_loss(student, teacher, temperature=2.0)).sum(), student)
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-8)


def test_the_weight_between_its_ends():
    """A student certain of the label learns nothing; one that has no idea learns all."""
    teacher = torch.tensor([[2.0, 1.0, 0.0]] * 2)
    student = torch.tensor([[60.0, 0.0, 0.0], [-60.0, 0.0, 0.0]])
    label = torch.tensor([0, 0])
    value = wsl_loss(student, teacher, label)
    plain = -4 * ((teacher / 2).softmax(1) * (student / 2).log_softmax(1)).sum(1)
    torch.testing.assert_close(value, torch.tensor([0.0, plain[1].item()]))


def test_two_certain_networks_are_finite():
    """0 over 0 in single precision: the weight is 0, as in the authors' code."""
    certain = torch.tensor([[500.0, 0.0]], requires_grad=True)
    value = wsl_loss(certain, certain.detach(), torch.tensor([0]))
    assert value == 0
    assert (torch.autograd.grad(value.sum(), certain)[0] == 0).all()


def test_a_mixed_row_is_weighed_by_its_larger_label():
    student, teacher, label = batch()
    other = (label + 1) % 5
    mixed = Target(label, partner=other, mix=torch.full((6,), 0.3, dtype=torch.float64))
    torch.testing.assert_close(WSL()(student, teacher, mixed), wsl_loss(student, teacher, other))
