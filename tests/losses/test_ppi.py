"""``ppi`` on batches of both kinds of rows, and beside the cross-entropy."""

import pytest
import torch
from torch.nn import functional as F

from outgrow import UNLABELLED, Objective, Target, rectify
from outgrow.losses.ppi import PPI
from tests import contract
from tests.reference import losses as reference


def batch(rows=8, lacking=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(rows, 4, generator=generator, dtype=torch.float64).requires_grad_()
    teacher = 2 * torch.randn(rows, 4, generator=generator, dtype=torch.float64)
    label = torch.randint(4, (rows,), generator=generator)
    label[rows - lacking :] = UNLABELLED
    return student, teacher, label


def test_with_cross_entropy_it_is_the_prediction_powered_loss():
    """The gradient of mean CE(label) on L + 0.7 (mean CE(teacher) on U - mean CE(teacher) on L)."""
    student, teacher, label = batch()
    objective = Objective("0.7*ppi")
    total = objective(student, rectify(teacher, label, rule="identity"), label, 0.0).total
    has, t = label >= 0, teacher.softmax(dim=1)
    soft = F.cross_entropy(student, t, reduction="none")
    literal = F.cross_entropy(student[has], label[has])
    literal = literal + 0.7 * (soft[~has].mean() - soft[has].mean())
    (ours,), (theirs,) = (torch.autograd.grad(value, student) for value in (total, literal))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_value_and_gradient_at_a_temperature(temperature):
    """T squared and both networks softened, by the literal reference; at 1, the default, neither would be seen."""
    student, teacher, label = batch()
    ours = PPI(temperature)(student, teacher, label)
    theirs = reference.ppi(student, teacher, label, temperature)
    torch.testing.assert_close(ours, theirs)
    a, b = (torch.autograd.grad(value, student)[0] for value in (ours, theirs))
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("lacking", [0, 8])
def test_a_batch_of_one_kind_says_nothing(lacking):
    student, teacher, label = batch(lacking=lacking)
    value = PPI()(student, teacher, label)
    assert value == 0
    assert (torch.autograd.grad(value, student)[0] == 0).all()


def test_the_teachers_errors_cancel_on_average():
    """Over many draws of who has a label, the mean gradient is that of the labels alone, however wrong the teacher."""
    generator = torch.Generator().manual_seed(0)
    student, teacher, label = batch(12, 0)
    mean = torch.zeros_like(student)
    draws = 4000
    for _ in range(draws):
        target = label.clone()
        target[torch.randperm(12, generator=generator)[:8]] = UNLABELLED
        (gradient,) = torch.autograd.grad(PPI()(student, teacher, target), student)
        mean += gradient / draws
    (kd,) = torch.autograd.grad(PPI()(student, teacher, batch(12, 6)[2]), student)
    assert mean.norm() < 0.05 * kd.norm()


def test_weights_are_those_of_two_weighted_means():
    student, teacher, label = batch()
    weight = torch.linspace(0.2, 1.5, 8, dtype=torch.float64)
    soft = contract.LOSSES["kd"](temperature=1.0)(student, teacher, label)
    has = label >= 0
    mean = lambda rows: (weight[rows] * soft[rows]).sum() / weight[rows].sum()  # noqa: E731
    expected = weight.mean() * (mean(~has) - mean(has))
    torch.testing.assert_close(PPI()(student, teacher, label, weight=weight), expected)


def test_which_label_a_row_has_makes_no_difference():
    student, teacher, label = batch()
    other = torch.where(label >= 0, (label + 1) % 4, label)
    assert torch.equal(PPI()(student, teacher, Target(label)), PPI()(student, teacher, Target(other)))
