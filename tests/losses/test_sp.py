"""``sp``: similarity-preserving distillation."""

import torch

from outgrow.losses.sp import sp_loss
from tests import contract
from tests.reference import features


def rows(seed, width=4):
    return contract.of_features(a=(6, width), seed=seed).features["a"]


def test_reference_with_other_widths():
    own, other = rows(0).requires_grad_(), rows(5, width=7)
    ours, theirs = sp_loss(own, other, torch.ones(6)), features.sp(own, other)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(value, own)[0] for value in (ours, theirs)))


def test_two_rows_by_hand():
    # rows of G: (1, 0), (0, 1) against (1, 1), (1, 1) over sqrt(2)
    expected = 2 * ((1 - 0.5**0.5) ** 2 + 0.5) / 4
    value = sp_loss(torch.eye(2), torch.ones(2, 2), torch.ones(2))
    torch.testing.assert_close(value, torch.tensor(expected))


def test_turning_and_scaling_all_rows_have_no_effect():
    own, other = rows(0), rows(5)
    turn, _ = torch.linalg.qr(rows(9)[:4])
    torch.testing.assert_close(
        sp_loss(300 * own @ turn, other, torch.ones(6)), sp_loss(own, other, torch.ones(6))
    )


def test_large_half_precision_features():
    """Fourth powers of features enter: they must not leave the range of float32."""
    own = (1e12 * rows(0).float()).requires_grad_()
    value = sp_loss(own, rows(5).float(), torch.ones(6))
    torch.testing.assert_close(value.double(), sp_loss(rows(0), rows(5), torch.ones(6)), rtol=1e-4, atol=1e-7)


def test_a_row_of_zeros_moves_with_what_the_others_say_of_it():
    """Its own similarities have no direction and no gradient; those of the other rows to it have one."""
    own, other = rows(0), rows(5)
    own[2] = 0
    own.requires_grad_()
    (gradient,) = torch.autograd.grad(sp_loss(own, other, torch.ones(6)), own)

    def lengths(matrix):
        return torch.stack([row / row.norm() if row.any() else row.detach() for row in matrix])

    literal = (lengths(own @ own.T) - lengths(other @ other.T)).square().sum() / 36
    (expected,) = torch.autograd.grad(literal, own)
    torch.testing.assert_close(gradient, expected)
    assert (gradient[2] != 0).all()
    assert gradient[2].norm() < 10 * gradient[0].norm()
