"""``objectness`` against a literal reference, and what it promises."""

import math

import pytest
import torch

from outgrow import Objective, Outputs, Target, rectify
from outgrow.losses import make_loss
from outgrow.losses.base import Fixture
from outgrow.losses.objectness import Objectness, objectness_loss
from outgrow.models.taps import OBJECTNESS

GOAL = Target(torch.tensor([1, 0, 2]), image=torch.tensor([0, 0, 1]))


def literal(student, teacher):
    """The divergence of two coins, anchor by anchor."""
    values = []
    for own, other in zip(student, teacher, strict=True):
        total, expected = own.sum() * 0, 0.0
        for s, t in zip(own, other.tolist(), strict=True):
            p, q = 1 / (1 + math.exp(-t)), 1 / (1 + torch.exp(-s))
            total = total + p * (math.log(p) - q.log()) + (1 - p) * (math.log(1 - p) - (1 - q).log())
            expected += p
        values.append(total / max(1.0, expected))
    return torch.stack(values)


def scores(seed, images=2, anchors=30, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(images, anchors, generator=generator, dtype=torch.float64) - 1


def outputs(values):
    return Outputs(torch.zeros(3, 4), {OBJECTNESS: values})


@pytest.mark.parametrize("shift", [0.0, -8.0])
def test_value_and_gradient_of_the_literal_reference(shift):
    """With many objects, and with less than one."""
    student, teacher = scores(0).requires_grad_(), scores(1) + shift
    value = make_loss("objectness")(outputs(student), outputs(teacher), GOAL)
    expected = literal(student, teacher)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)
    upstream = torch.tensor([0.3, 2.0], dtype=torch.float64)
    ours, theirs = (
        torch.autograd.grad(v, student, upstream, retain_graph=True)[0] for v in (value, expected)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    assert (teacher.sigmoid().sum(1) > 1).all() == (shift == 0)


def test_gradcheck():
    assert torch.autograd.gradcheck(objectness_loss, (scores(0, 2, 4).requires_grad_(), scores(1, 2, 4)))


def test_zero_at_a_match_and_each_image_on_its_own():
    same = scores(0).requires_grad_()
    value = objectness_loss(same, same.detach())
    assert value.abs().max() < 1e-12
    assert torch.autograd.grad(value.sum(), same)[0].abs().max() < 1e-12
    whole = objectness_loss(scores(0), scores(1))
    alone = torch.cat([objectness_loss(scores(0)[i : i + 1], scores(1)[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(whole, alone)
    turned = torch.randperm(30, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(objectness_loss(scores(0)[:, turned], scores(1)[:, turned]), whole)


@pytest.mark.parametrize("size", [1e3, -1e3])
def test_large_scores_are_finite(size):
    student = torch.full((1, 3), size, requires_grad=True)
    value = objectness_loss(student, torch.full((1, 3), -size))
    value.sum().backward()
    assert value.isfinite().all()
    assert student.grad.isfinite().all()


def test_half_precision_is_lifted_and_no_images_are_no_values():
    assert objectness_loss(torch.ones(1, 4).bfloat16(), torch.zeros(1, 4).bfloat16()).dtype == torch.float32
    assert objectness_loss(torch.zeros(0, 5), torch.zeros(0, 5)).shape == (0,)


def test_rules_do_not_reach_it_and_dropping_does():
    teacher = Outputs(torch.eye(4)[[1, 0, 0]], {OBJECTNESS: scores(1)})
    objective = Objective("objectness", task_weight=0.0)
    values = {
        rule: float(
            objective(outputs(scores(0)), rectify(teacher, GOAL, rule=rule), GOAL, 0.0).terms["objectness"]
        )
        for rule in ("identity", "pair", "drop")
    }
    assert values["identity"] == pytest.approx(values["pair"])
    each = objectness_loss(scores(0), scores(1)).tolist()
    # the only row of the second image is wrong
    assert values["drop"] / values["identity"] == pytest.approx(each[0] / (each[0] + each[1]))


def test_errors():
    loss = Objectness()
    with pytest.raises(
        ValueError, match=r"the teacher's score of each anchor .* got no features; it is for Faster"
    ):
        loss(outputs(scores(0)), Outputs(torch.zeros(3, 4)), GOAL)
    with pytest.raises(
        ValueError, match="same anchors in both networks, got 30 of an image in the student and 20"
    ):
        loss.setup(Fixture(outputs(scores(0)), outputs(scores(1, anchors=20)), 3))
    assert loss.teacher_taps(["p3", OBJECTNESS]) == {OBJECTNESS}
    assert loss.student_taps(["p3", OBJECTNESS]) == {OBJECTNESS}
