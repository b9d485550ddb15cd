"""``jsd``: bounded, and between the two directions of KL."""

import math

import pytest
import torch

from outgrow.losses.jsd import JSD, jsd_loss
from outgrow.losses.kd import kd_loss
from outgrow.losses.reverse_kl import reverse_kl_loss
from tests import contract


def batch():
    return contract.outputs(6).logits, contract.outputs(6, seed=5).logits


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.8])
def test_bounded_by_the_entropy_of_the_mixture(beta):
    """Reached by two networks that are certain of different classes, in single precision."""
    opposite = torch.tensor([[400.0, 0.0]])
    bound = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
    value = jsd_loss(opposite, opposite.flip(1), beta=beta, temperature=2.0)
    assert value.item() == pytest.approx(4 * bound, rel=1e-5)


def test_a_quarter_of_kd_near_agreement():
    _, teacher = batch()
    near = teacher + 1e-3 * contract.outputs(6, seed=9).logits
    torch.testing.assert_close(4 * jsd_loss(near, teacher), kd_loss(near, teacher), rtol=1e-2, atol=0)
    torch.testing.assert_close(
        jsd_loss(near, teacher, beta=0.2), 0.16 * kd_loss(near, teacher), rtol=1e-2, atol=0
    )


def test_the_limits_are_the_two_directions():
    student, teacher = batch()
    torch.testing.assert_close(
        jsd_loss(student, teacher, beta=1e-6) / 1e-6, kd_loss(student, teacher), rtol=1e-3, atol=0
    )
    torch.testing.assert_close(
        jsd_loss(student, teacher, beta=1 - 1e-6) / 1e-6, reverse_kl_loss(student, teacher), rtol=1e-3, atol=0
    )


def test_symmetric_at_one_half_only():
    student, teacher = batch()
    torch.testing.assert_close(jsd_loss(student, teacher), jsd_loss(teacher, student))
    assert not torch.allclose(jsd_loss(student, teacher, beta=0.3), jsd_loss(teacher, student, beta=0.3))


@pytest.mark.parametrize("beta", [0.0, 1.0, -0.5, math.nan])
def test_the_ends_are_refused(beta):
    with pytest.raises(ValueError, match="between 0 and 1"):
        JSD(beta=beta)
