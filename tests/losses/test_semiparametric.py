"""``semiparametric``: what the correction by the label is worth."""

import pytest
import torch
from torch.nn import functional as F

from outgrow import UNLABELLED, Target
from outgrow.losses.kd import kd_loss
from outgrow.losses.semiparametric import Semiparametric, semiparametric_loss


def logits(rows=6, classes=5, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(rows, classes, generator=generator, dtype=torch.float64)


def test_rows_without_a_label_are_plain_distillation():
    student, teacher = logits().requires_grad_(), logits(seed=1)
    label = torch.tensor([0, UNLABELLED, 2, UNLABELLED, 1, 3])
    value = Semiparametric()(student, teacher, label)
    plain = kd_loss(student, teacher, temperature=2.0)
    without = label == UNLABELLED
    assert torch.equal(value[without], plain[without])
    assert not torch.isclose(value[~without], plain[~without]).any()
    a, b = (torch.autograd.grad(v.sum(), student, retain_graph=True)[0] for v in (value, plain))
    torch.testing.assert_close(a[without], b[without], rtol=0, atol=0)


def test_at_temperature_one_it_is_the_cross_entropy_on_the_label():
    student, teacher = logits().requires_grad_(), logits(seed=1)
    label = torch.tensor([0, 1, 2, 3, 4, 0])
    value = Semiparametric(temperature=1.0, floor=1e-9)(student, teacher, label)
    task = F.cross_entropy(student, label, reduction="none")
    a, b = (torch.autograd.grad(v.sum(), student)[0] for v in (value, task))
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("temperature", [2.0, 4.0])
def test_an_error_of_the_teacher_enters_squared(temperature):
    """In expectation over labels: a tenth of the teacher's error moves the gradient by a hundredth, that of kd by a tenth."""
    truth, direction = logits(1, 4), logits(1, 4, seed=2)
    student = logits(1, 4, seed=3).requires_grad_()

    def gradient(teacher, corrected):
        if not corrected:
            value = kd_loss(student, teacher, temperature=temperature).sum()
        else:
            own = torch.eye(4, dtype=torch.float64)
            rows = semiparametric_loss(
                student.expand(4, -1), teacher.expand(4, -1), own, temperature=temperature, floor=1e-9
            )
            value = (truth.softmax(dim=1)[0] * rows).sum()
        return torch.autograd.grad(value, student)[0]

    ideal = gradient(truth, False)
    errors = {
        corrected: [(gradient(truth + step * direction, corrected) - ideal).norm() for step in (0.1, 0.01)]
        for corrected in (False, True)
    }
    assert 8 < errors[False][0] / errors[False][1] < 12
    assert 60 < errors[True][0] / errors[True][1] < 140
    assert errors[True][0] < 0.5 * errors[False][0]


def test_a_blend_is_the_blend_of_both_labels():
    student, teacher = logits(), logits(seed=1)
    label, partner = torch.tensor([0, 1, 2, 3, 4, 0]), torch.tensor([1, 1, 0, 2, 3, 4])
    mix = torch.linspace(0, 1, 6, dtype=torch.float64)
    loss = Semiparametric()
    blended = loss(student, teacher, Target(label, partner=partner, mix=mix))
    expected = mix * loss(student, teacher, label) + (1 - mix) * loss(student, teacher, partner)
    torch.testing.assert_close(blended, expected)


def test_the_floor_bounds_the_gradient():
    """A label that the teacher all but rules out: without a floor its row would move everything."""
    teacher = torch.tensor([[12.0, 0.0, 0.0]], dtype=torch.float64)
    norms = []
    for floor in (0.01, 1e-9):
        student = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
        value = Semiparametric(floor=floor)(student, teacher, torch.tensor([2]))
        norms.append(torch.autograd.grad(value.sum(), student)[0].norm())
    assert 10 * norms[0] < norms[1]
