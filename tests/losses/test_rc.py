"""``rc``: the student teaches itself, corrected; no teacher is read."""

import pytest
import torch

from outgrow import Objective, Rectifier
from outgrow.losses import make_loss
from outgrow.losses.kd import kd_loss
from outgrow.losses.rc import RC, rc_loss
from tests import contract


def batch():
    return contract.outputs(6).logits, contract.outputs(6, seed=5).logits, contract.target(6)


def test_the_correction_is_held_constant():
    """The gradient is T (p - q): what would flow through q is not there."""
    student, _, goal = batch()
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(rc_loss(student, goal.label).sum(), student)
    with torch.no_grad():
        corrected = student.clone()
        corrected[torch.arange(6), goal.label] += student.amax(dim=1)
        expected = 4 * ((student / 4).softmax(1) - (corrected / 4).softmax(1))
    torch.testing.assert_close(gradient, expected)


def test_the_teacher_and_its_correction_are_inert():
    student, teacher, _ = batch()
    label = teacher.argmin(dim=1)
    values = [
        Objective("rc", task_weight=0.0)(student, Rectifier(rule)(belief, label), label, 0.5).total
        for rule in ("identity", "pair", "swap")
        for belief in (teacher, 2 - teacher)
    ]
    torch.testing.assert_close(torch.stack(values), values[0].expand(6))


def test_dropped_rows_do_not_count():
    """The one thing that a wrong teacher changes: rule and schedule still weigh the row."""
    student, teacher, _ = batch()
    label = teacher.argmin(dim=1)
    assert Objective("rc", task_weight=0.0)(student, Rectifier("drop")(teacher, label), label, 0.5).total == 0


def test_the_origin_of_the_logits_matters_unless_standardised():
    student, teacher, goal = batch()
    assert not torch.allclose(rc_loss(student + 3.0, goal.label), rc_loss(student, goal.label))
    standardised = make_loss("standardize(rc)")
    torch.testing.assert_close(
        standardised(student + 3.0, teacher, goal), standardised(student, teacher, goal)
    )


def test_negative_logits_lower_the_label():
    student = torch.tensor([[-1.0, -2.0, -3.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(rc_loss(student, torch.tensor([0])).sum(), student)
    assert gradient[0, 0] > 0  # a step down the gradient lowers the label's logit


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_its_temperature_is_nobody_elses(temperature):
    """It softens no teacher, so a rule at another temperature beside it is no contradiction."""
    student, teacher, goal = batch()
    assert RC(temperature).temperature is None
    objective = Objective(f"kd(temperature=2) + 0.1*rc(temperature={temperature})", task_weight=0.0)
    assert objective.temperature == 2.0
    total = objective(student, Rectifier("pair", 2.0)(teacher, goal), goal, 0.0).total
    assert total.isfinite()
    # and make_loss hands a transform's temperature on, as the code of its comparison does
    assert make_loss("rc", temperature=3.0).own_temperature == 3.0
    plain = Objective(f"rc(temperature={temperature})", task_weight=0.0)
    knowledge = Rectifier("identity")(teacher, goal)
    corrected = student.clone()
    corrected[torch.arange(6), goal.label] += student.amax(dim=1)
    torch.testing.assert_close(
        plain(student, knowledge, goal, 0.0).total,
        kd_loss(student, corrected, temperature=temperature).mean(),
    )
