"""``pkt``: probabilistic knowledge transfer."""

import math

import torch

from outgrow.losses.pkt import pkt_loss
from tests import contract
from tests.reference import features


def rows(seed, width=4):
    return contract.of_features(a=(6, width), seed=seed).features["a"]


def test_reference_with_other_widths():
    own, other = rows(0).requires_grad_(), rows(5, width=7)
    ours, theirs = pkt_loss(own, other, torch.ones(6)), features.pkt(own, other)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(value, own)[0] for value in (ours, theirs)))


def test_two_rows_by_hand():
    own, other = torch.eye(2, dtype=torch.float64), torch.ones(2, 2, dtype=torch.float64)
    # similarities 1 and 1/2 against 1 and 1, each row: (2/3, 1/3) against (1/2, 1/2), over n = 2
    expected = 0.5 * (0.5 * math.log(0.5 / (2 / 3)) + 0.5 * math.log(0.5 / (1 / 3)))
    value = pkt_loss(own, other, torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(value, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=0)


def test_only_directions_count():
    own, other = rows(0), rows(5)
    scale = torch.linspace(0.1, 9.0, 6, dtype=own.dtype)[:, None]
    torch.testing.assert_close(
        pkt_loss(scale * own, other, torch.ones(6)), pkt_loss(own, other, torch.ones(6))
    )


def test_opposite_rows_are_finite():
    own = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], requires_grad=True)
    value = pkt_loss(own, torch.ones(2, 2), torch.ones(2))
    assert value.isfinite()
    assert torch.autograd.grad(value, own)[0].isfinite().all()
