"""``ctkd``: the temperature is learnt, against the student, and slowly at first."""

import copy
import math

import pytest
import torch

import outgrow
from outgrow import Objective
from outgrow.losses.ctkd import CTKD, RAMP, ctkd_loss
from outgrow.losses.kd import kd_loss
from tests import contract


def batch():
    return contract.outputs(6).logits, contract.outputs(6, seed=5).logits


def temperature(loss):
    return loss.start + loss.range * loss.logit.sigmoid().item()


def test_the_first_temperature_is_the_authors():
    assert temperature(CTKD()) == pytest.approx(1 + 20 / (1 + math.exp(-1)))
    assert temperature(CTKD()) == pytest.approx(15.62, abs=0.005)


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_only_the_temperatures_gradient_is_reversed(strength):
    student, teacher = batch()
    student.requires_grad_()
    logit = torch.tensor(-0.5, dtype=torch.float64, requires_grad=True)
    value = ctkd_loss(student, teacher, logit, strength=strength)
    plain = 1.0 + 20.0 * logit.sigmoid()
    p, t = (student / plain).log_softmax(1), (teacher / plain).softmax(1)
    expected = plain**2 * (t * (t.log() - p)).sum(1)
    torch.testing.assert_close(value, expected)
    ours = torch.autograd.grad(value.sum(), (student, logit))
    theirs = torch.autograd.grad(expected.sum(), (student, logit))
    torch.testing.assert_close(ours[0], theirs[0])
    torch.testing.assert_close(ours[1], -strength * theirs[1])


def test_an_optimiser_step_on_the_temperature_raises_the_loss():
    student, teacher = batch()
    loss = CTKD().double()
    before = loss(student, teacher, contract.target(6)).sum()
    before.backward()
    torch.optim.SGD(loss.parameters(), lr=0.01).step()
    assert loss(student, teacher, contract.target(6)).sum() > before


def test_the_ramp():
    loss = CTKD()
    assert loss.strength == 1.0  # never told: in full
    expected = {0.0: 0.0, RAMP / 4: 0.5 - math.sqrt(0.125), RAMP / 2: 0.5, RAMP: 1.0, 0.5: 1.0, 1.0: 1.0}
    for progress, strength in expected.items():
        loss.at(progress)
        assert loss.strength == pytest.approx(strength)
    assert math.isclose(240 * RAMP, 10)


def test_the_objective_drives_it_and_learns_it():
    student, teacher = batch()
    goal = contract.target(6)
    objective = Objective("standardize(ctkd) + ctkd", task_weight=0.0).double()
    assert [name for name, _ in objective.named_parameters()] == ["standardize.base.logit", "ctkd.logit"]
    knowledge = outgrow.rectify(teacher, goal, rule="identity")
    gradients = []
    for progress in (0.0, RAMP / 2, 1.0):
        objective.zero_grad()
        objective(student, knowledge, goal, progress).total.backward()
        gradients.append([parameter.grad.item() for parameter in objective.parameters()])
    for first, half, full in zip(*gradients, strict=True):
        assert first == 0
        assert half == pytest.approx(full / 2)
        assert full != 0


def test_what_was_learnt_is_in_the_state():
    loss = CTKD()
    with torch.no_grad():
        loss.logit.fill_(-2.0)
    fresh = CTKD()
    fresh.load_state_dict(copy.deepcopy(loss.state_dict()))
    assert temperature(fresh) == temperature(loss)
    student, teacher = batch()
    torch.testing.assert_close(
        fresh(student, teacher, contract.target(6)),
        kd_loss(student, teacher, temperature=temperature(loss)),
        rtol=1e-6,
        atol=0,
    )


def test_declares_no_temperature():
    assert CTKD().temperature is None
    assert Objective("ctkd").temperature is None
