"""``nkd``: two cross-entropies, and the label never among the rest."""

import math

import pytest
import torch

from outgrow.losses.dkd import dkd_loss
from outgrow.losses.nkd import NKD, nkd_loss
from tests import contract


def batch():
    return contract.outputs(7).logits, contract.outputs(7, seed=5).logits, contract.target(7).label


def test_by_hand():
    """The teacher is even between two classes, the student knows nothing of three."""
    value = nkd_loss(
        torch.zeros(1, 3, dtype=torch.float64),
        torch.log(torch.tensor([[0.25, 0.25, 0.5]], dtype=torch.float64)),
        torch.tensor([2]),
        gamma=1.5,
    )
    assert value.item() == pytest.approx(0.5 * math.log(3) + 1.5 * math.log(2))


def test_the_rest_has_the_gradient_of_dkd():
    """A cross-entropy and a KL against the same constant differ by a constant."""
    student, teacher, label = batch()
    student.requires_grad_()
    others = nkd_loss(student, teacher, label, gamma=1.0, temperature=3.0) - nkd_loss(
        student, teacher, label, gamma=0.0, temperature=3.0
    )
    divergence = dkd_loss(student, teacher, label, alpha=0.0, beta=1.0, temperature=3.0)
    assert (others > divergence).all()
    torch.testing.assert_close(
        torch.autograd.grad(others.sum(), student)[0], torch.autograd.grad(divergence.sum(), student)[0]
    )


def test_the_label_is_not_among_the_rest():
    """A re-implementation puts it there by a mistake in its mask (METHODS.md 2b)."""
    student, teacher, label = batch()
    rest = nkd_loss(student, teacher, label, gamma=1.0) - nkd_loss(student, teacher, label, gamma=0.0)
    rows = torch.arange(len(label))
    student[rows, label] += 2.0
    teacher[rows, label] -= 3.0
    moved = nkd_loss(student, teacher, label, gamma=1.0) - nkd_loss(student, teacher, label, gamma=0.0)
    torch.testing.assert_close(moved, rest)


def test_the_temperature_is_that_of_the_rest():
    student, teacher, label = batch()
    warm = nkd_loss(student, teacher, label, gamma=0.0, temperature=5.0)
    torch.testing.assert_close(warm, nkd_loss(student, teacher, label, gamma=0.0, temperature=1.0))
    assert NKD().temperature == 1.0
