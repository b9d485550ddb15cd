"""``slam``: the teacher's label as the student expects this teacher to give it."""

import pytest
import torch
from torch.nn import functional as F

from outgrow import Target
from outgrow.losses.slam import SLaM, slam_loss
from tests.reference import losses as reference


def logits(rows=6, classes=5, seed=0):
    return 2 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("top", [2, 3, 5, 9, None])
@pytest.mark.parametrize("accuracy", [0.05, 0.3, 0.8, 1.0])
def test_values_of_the_literal_reference(top, accuracy):
    student, teacher = logits().requires_grad_(), logits(seed=1)
    ours = slam_loss(student, teacher, torch.full((6,), accuracy), top=top)
    theirs = reference.slam(student, teacher, None, torch.tensor(accuracy).item(), None if top == 9 else top)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    a, b = (torch.autograd.grad(value.sum(), student)[0] for value in (ours, theirs))
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_a_teacher_that_is_always_right_is_cross_entropy():
    student, teacher = logits(), logits(seed=1)
    expected = F.cross_entropy(student, teacher.softmax(dim=1), reduction="none")
    torch.testing.assert_close(slam_loss(student, teacher, torch.ones(6)), expected)


def test_a_teacher_at_chance_says_nothing():
    student = logits().requires_grad_()
    value = slam_loss(student, logits(seed=1), torch.zeros(6))
    assert (torch.autograd.grad(value.sum(), student)[0].abs() < 1e-12).all()


def test_at_chance_only_classes_beyond_the_best_have_a_gradient():
    student, teacher = logits().requires_grad_(), logits(seed=1)
    value = slam_loss(student, teacher, torch.zeros(6), top=3)
    t, log_p = teacher.softmax(dim=1), student.log_softmax(dim=1)
    beyond = torch.ones_like(t).scatter(1, teacher.topk(3, dim=1).indices, 0.0)
    a, b = (torch.autograd.grad(v.sum(), student)[0] for v in (value, -(beyond * t * log_p).sum(dim=1)))
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    assert a.any()


def test_the_mixture_is_a_distribution():
    """Cross-entropy with each class in turn is minus the log of what the student expects; they sum to 1."""
    student = logits(1, 4)
    says = [
        slam_loss(
            student,
            torch.full((1, 4), -1e4).double().index_fill(1, torch.tensor([c]), 1e4),
            torch.tensor([0.6]),
        )
        for c in range(4)
    ]
    torch.testing.assert_close(torch.cat(says).neg().exp().sum(), torch.tensor(1.0, dtype=torch.float64))


def test_a_student_that_knows_the_labels_is_at_the_minimum():
    """Labels flipped evenly with the accuracy that the loss is told: the minimum is at the true class, not at the noisy one."""
    classes, accuracy = 4, 0.55
    noisy = torch.full((classes, classes), (1 - accuracy) / (classes - 1), dtype=torch.float64)
    noisy.fill_diagonal_(accuracy)
    student = torch.zeros(1, classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([student], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        hard = torch.full((classes, classes), -1e3, dtype=torch.float64).fill_diagonal_(1e3)
        value = slam_loss(student.expand(classes, -1), hard, torch.full((classes,), accuracy))
        loss = (noisy[2] * value).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert student.softmax(dim=1)[0, 2] > 0.95


def test_the_accuracy_of_a_row_comes_from_the_fitted_reliability():
    student, teacher = logits(40), logits(40, seed=1)
    label = teacher.argmax(dim=1)
    label[::3] = (label[::3] + 1) % 5
    loss = SLaM(accuracy=0.9)
    constant = loss(student, teacher, label)
    loss.reliability.fit(teacher, label)
    accuracy = loss.reliability.probability(teacher)
    torch.testing.assert_close(loss(student, teacher, label), slam_loss(student, teacher, accuracy))
    assert not torch.allclose(loss(student, teacher, label), constant)


def test_a_rows_accuracy_has_not_seen_its_own_label():
    """A fitted row gets the curve without its image; that of all rows would move with its label."""
    student, teacher = logits(40), logits(40, seed=1)
    label = teacher.argmax(dim=1)
    label[::3] = (label[::3] + 1) % 5
    before, after = SLaM(), SLaM()
    before.reliability.fit(teacher, label)
    seen = 0
    for row in (0, 7, 20, 33):
        flipped = label.clone()
        flipped[row] = teacher[row].argmin() if label[row] == teacher[row].argmax() else teacher[row].argmax()
        after.reliability.fit(teacher, flipped)
        target = Target(label, index=torch.arange(40))
        assert after(student, teacher, target)[row] == before(student, teacher, target)[row]
        seen += after(student, teacher, label)[row] != before(student, teacher, label)[row]
    assert seen  # without the index it would be


def test_what_it_refuses():
    with pytest.raises(ValueError, match=r"slam: needs an accuracy in \(0, 1\], got 0"):
        SLaM(accuracy=0.0)
    with pytest.raises(ValueError, match="slam: top needs at least 2 classes, got 1"):
        SLaM(top=1)
