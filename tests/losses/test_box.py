"""``box`` against a literal reference, and its promises: worse boxes teach nothing."""

import pytest
import torch

from outgrow import PENULTIMATE, Objective, Outputs, Target, rectify
from outgrow.losses import DETECTOR_LOSSES, make_loss
from outgrow.losses.box import box_loss
from outgrow.models.taps import BOX, BOX_IOU


def literal(student, teacher, own, other, label, beta):
    """Smooth L1, number by number, on rows of objects where the teacher overlaps more."""
    values = []
    for s, t, a, b, y in zip(student, teacher, own, other, label, strict=True):
        total = s.sum() * 0
        if y > 0 and b > a:
            for x in s - t:
                size = x.abs()
                total = total + (size**2 / (2 * beta) if size < beta else size - beta / 2)
        values.append(total)
    return torch.stack(values)


def said(seed, rows=40):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    overlap = torch.rand(rows, generator=generator, dtype=torch.float64)
    return Outputs(draw(rows, 3), {BOX: draw(rows, 4) / 3, BOX_IOU: overlap})


LABEL = torch.arange(40) % 3


@pytest.mark.parametrize("beta", [1 / 9, 1.0])
def test_value_and_gradient_of_the_literal_reference(beta):
    student, teacher, goal = said(0), said(1), Target(LABEL)
    boxes = student.features[BOX].requires_grad_()
    value = make_loss(f"box(beta={beta})")(student, teacher, goal)
    expected = literal(
        boxes,
        teacher.features[BOX],
        student.features[BOX_IOU],
        teacher.features[BOX_IOU],
        LABEL.tolist(),
        beta,
    )
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)
    upstream = torch.linspace(0.3, 2.0, len(value), dtype=torch.float64)
    ours, theirs = (torch.autograd.grad(v, boxes, upstream, retain_graph=True)[0] for v in (value, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    assert 5 < (value > 0).sum() < 35


def test_only_better_boxes_of_objects_teach():
    student, teacher = said(0), said(1)
    value = make_loss("box")(student, teacher, Target(LABEL))
    better = teacher.features[BOX_IOU] > student.features[BOX_IOU]
    assert ((value > 0) == (better & (LABEL > 0))).all()
    same = make_loss("box")(student, Outputs(student.logits, {**student.features}), Target(LABEL))
    assert not same.any()  # a tie is not better


def test_a_worse_teacher_with_broken_boxes_cannot_poison_the_gradient():
    boxes = torch.zeros(2, 4, requires_grad=True)
    broken = torch.full((2, 4), float("nan"))
    box_loss(boxes, broken, torch.tensor([False, False])).sum().backward()
    assert not boxes.grad.any()


def test_half_precision_is_lifted():
    value = box_loss(torch.ones(1, 4).bfloat16(), torch.zeros(1, 4).bfloat16(), torch.tensor([True]))
    assert value.dtype == torch.float32


def test_rules_that_rewrite_logits_do_not_reach_it_and_dropping_does():
    student, teacher = said(0), said(1)
    objective = Objective("box", task_weight=0.0)
    values = {}
    for rule in ("identity", "pair", "drop"):
        knowledge = rectify(teacher, LABEL, rule=rule)
        values[rule] = float(objective(student, knowledge, LABEL, 0.0).total)
    assert values["pair"] == values["identity"] > values["drop"] > 0
    assert objective.inert_under(rectify(teacher, LABEL).rule) == {"box": "reads features alone"}


def test_errors():
    with pytest.raises(ValueError, match=r"the student's boxes .* got penultimate; it is for detectors"):
        make_loss("box")(
            Outputs(torch.zeros(1, 2), {PENULTIMATE: torch.zeros(1, 2)}), said(1, 1), Target(LABEL[:1])
        )
    with pytest.raises(ValueError, match="beta needs a positive number"):
        make_loss("box(beta=0)")
    assert set(DETECTOR_LOSSES) == {"box", "fgd", "objectness"}
