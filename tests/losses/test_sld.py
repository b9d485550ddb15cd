"""``sld``: two swapped teachers, the second of them the student, late in the training."""

import pytest
import torch

from outgrow import IGNORE, UNLABELLED, Objective, Rectifier
from outgrow.losses.kd import kd_loss
from outgrow.losses.sld import SLD, sld_loss
from tests import contract


def batch():
    return contract.outputs(6).logits, contract.outputs(6, seed=5).logits, contract.target(6).label


def test_is_a_sum_of_kd_where_the_teacher_is_right():
    student, teacher, _ = batch()
    label = teacher.argmax(dim=1)
    expected = sum(kd_loss(student, teacher, temperature=float(t)) for t in range(1, 7))
    torch.testing.assert_close(sld_loss(student, teacher, label), expected)


def test_swaps_a_wrong_teacher_by_itself():
    """So the rule ``swap`` changes nothing for it."""
    student, teacher, label = batch()
    swapped = Rectifier("swap")(teacher, label)
    assert swapped.wrong.any()
    totals = [
        Objective("sld", task_weight=0.0)(student, Rectifier(rule)(teacher, label), label, 1.0).total
        for rule in ("identity", "swap")
    ]
    torch.testing.assert_close(totals[0], totals[1])


def test_the_students_own_logits_are_not_held_constant():
    student, _, label = batch()
    label = student.argmin(dim=1)
    student.requires_grad_()
    (ours,) = torch.autograd.grad(sld_loss(student, student, label).sum(), student)
    (constant,) = torch.autograd.grad(sld_loss(student, student.detach(), label).sum(), student)
    assert not torch.allclose(ours, constant)
    # an exchange of two logits: what flows through the swapped side is the exchange of its gradient
    swapped = student.detach().clone().requires_grad_()
    top, rows = student.argmax(dim=1), torch.arange(6)
    with torch.no_grad():
        swapped[rows, label], swapped[rows, top] = student[rows, top].clone(), student[rows, label].clone()
    value = sum(kd_loss(student.detach(), swapped, temperature=float(t)) for t in range(1, 7))
    (through,) = torch.autograd.grad(value.sum(), swapped)
    back = through.clone()
    back[rows, label], back[rows, top] = through[rows, top], through[rows, label]
    torch.testing.assert_close(ours, constant + back)


def test_the_second_teacher_starts_at_five_eighths():
    student, teacher, label = batch()
    first, second = sld_loss(student, teacher, label), sld_loss(student, student, label)
    assert (second > 0).any()
    loss = SLD()
    torch.testing.assert_close(loss(student, teacher, label), first + second)  # never told: both
    for progress, expected in [(0.0, first), (0.624, first), (0.625, first + second), (1.0, first + second)]:
        loss.at(progress)
        torch.testing.assert_close(loss(student, teacher, label), expected)


@pytest.mark.parametrize("text", ["sld", "standardize(sld)"])
def test_the_objective_drives_it(text):
    student, teacher, label = batch()
    objective = Objective(text, task_weight=0.0)
    knowledge = Rectifier("identity")(teacher, label)
    early, late, early_again = (objective(student, knowledge, label, p).total for p in (0.1, 0.9, 0.1))
    assert late > early == early_again


@pytest.mark.parametrize("label", [UNLABELLED, IGNORE])
def test_a_row_without_a_label_is_not_swapped(label):
    """The teacher is believed as it is, and the student, which has nothing to be corrected by, is no teacher."""
    student, teacher, known = batch()
    student.requires_grad_()
    known[[1, 4]] = label
    value = SLD()(student, teacher, known)
    (gradient,) = torch.autograd.grad(value.sum(), student)
    expected = sum(kd_loss(student, teacher, temperature=float(t)) for t in range(1, 7))
    (theirs,) = torch.autograd.grad(expected.sum(), student)
    torch.testing.assert_close(value[[1, 4]], expected[[1, 4]])
    torch.testing.assert_close(gradient[[1, 4]], theirs[[1, 4]])
    others = [0, 2, 3, 5]
    alone = SLD()(student[others], teacher[others], known[others])
    torch.testing.assert_close(value[others], alone)


def test_no_temperatures_are_refused():
    with pytest.raises(ValueError, match="at least one number"):
        SLD(temperatures=())
    with pytest.raises(ValueError, match="positive"):
        SLD(temperatures=(1, 0))


def test_temperatures_are_summed_not_averaged():
    student, teacher, label = batch()
    parts = [sld_loss(student, teacher, label, temperatures=(float(t),)) for t in (2, 5)]
    torch.testing.assert_close(sld_loss(student, teacher, label, temperatures=(2, 5)), parts[0] + parts[1])
    assert SLD().temperature is None
