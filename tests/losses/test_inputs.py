"""What a loss is called with, outside an objective: one shape, a label for each row, and labels that are classes."""

import subprocess
import sys

import pytest
import torch

from outgrow import IGNORE, UNLABELLED, Objective, Outputs, Target, preset, rectify
from outgrow.knowledge import split
from outgrow.losses import LOSSES
from tests import contract

ON_LOGITS = [name for name in LOSSES if "logits" in LOSSES[name]().reads]


def batch(rows=8, classes=10):
    generator = torch.Generator().manual_seed(0)
    draw = lambda: torch.randn(rows, classes, generator=generator)  # noqa: E731
    return draw(), draw(), torch.randint(classes, (rows,), generator=generator)


@pytest.mark.parametrize("name", ON_LOGITS)
@pytest.mark.parametrize("shape", [(1, 10), (8, 1), (8, 9), (7, 10)])
def test_a_teacher_of_another_shape_is_not_broadcast(name, shape):
    student, _, label = batch()
    with pytest.raises(ValueError, match=r"needs student and teacher logits of one shape .*, got \(8, 10\)"):
        LOSSES[name]()(student, torch.randn(shape), label)


@pytest.mark.parametrize("name", ON_LOGITS)
def test_there_is_a_label_for_each_row(name):
    student, teacher, label = batch()
    with pytest.raises(ValueError, match=r"a label for each row, .* and 1 labels"):
        LOSSES[name]()(student, teacher, label[:1])


@pytest.mark.parametrize("name", ON_LOGITS)
@pytest.mark.parametrize("wrong", [14, 10, -2])
def test_a_label_that_is_no_class_is_not_another_one(name, wrong):
    student, teacher, label = batch()
    label[3] = wrong
    with pytest.raises(ValueError, match=rf"needs every label in 0\.\.9 .*, got {wrong} in row 3"):
        LOSSES[name]()(student, teacher, label)
    partner, label[3] = label.clone(), 0
    blended = Target(label, partner=partner, mix=torch.full((8,), 0.5))
    with pytest.raises(ValueError, match=rf"needs every partner in 0\.\.9 .*, got {wrong} in row 3"):
        LOSSES[name]()(student, teacher, blended)


@pytest.mark.parametrize("name", ON_LOGITS)
def test_rows_without_a_label_and_ignored_ones_are_taken(name):
    student, teacher, label = batch()
    label[2], label[5] = UNLABELLED, IGNORE
    assert LOSSES[name]()(student, teacher, label).isfinite().all()


# dist relates classes, also those without any row; slam is fitted first
@pytest.mark.parametrize("name", sorted({*ON_LOGITS} - {"dist", "slam"}))
def test_a_class_that_both_networks_rule_out_is_as_if_it_were_not_there(name):
    student, teacher, label = batch(classes=4)
    fewer = student.clone().requires_grad_()
    known = Objective(name)(fewer, rectify(teacher, label, rule="identity"), label, 0.0).total
    ruled_out = torch.full((8, 1), -torch.inf)
    more = torch.cat([student, ruled_out], dim=1).requires_grad_()
    knowledge = rectify(torch.cat([teacher, ruled_out], dim=1), label, rule="identity")
    total = Objective(name)(more, knowledge, label, 0.0).total
    torch.testing.assert_close(total, known)
    if known.requires_grad:
        expected, gradient = torch.autograd.grad(known, fewer)[0], torch.autograd.grad(total, more)[0]
        torch.testing.assert_close(gradient, torch.cat([expected, torch.zeros(8, 1)], dim=1))


@pytest.mark.parametrize(
    "options", [{"rule": "drop"}, {"schedule": "grow"}, {"normalize": "subset"}, {}], ids=str
)
def test_a_teacher_of_other_classes_has_no_right_and_wrong_rows(options):
    """Its logits rank other classes than the labels name, also where the loss reads features alone."""
    student, teacher = contract.outputs(4), contract.outputs(4, seed=5)
    more = Outputs(torch.randn(4, 40), teacher.features)
    label = torch.arange(4) % student.num_classes
    rectify_, objective = preset("kd", loss="at", **options)
    objective.setup(student, more, num_samples=4)
    if not options:
        assert objective(student, rectify_(more, label), label, 0.5).total.isfinite()
        return
    with pytest.raises(ValueError, match=rf"the student's {student.num_classes} classes .* got one of 40"):
        objective(student, rectify_(more, label), label, 0.5)


def test_losses_on_features_read_no_logits():
    """Teacher and student may have other classes there."""
    student, teacher = contract.outputs(4), contract.outputs(4, seed=5)
    other = Outputs(torch.zeros(4, 3, dtype=torch.float64), teacher.features)
    for name in set(LOSSES) - set(ON_LOGITS):
        assert contract.call(contract.loss(name), student, other, contract.target(4)).isfinite().all()


@pytest.mark.parametrize("loss", ["kd", "dkd", "dkd + nkd + standardize(rld)"])
def test_in_an_objective_labels_are_looked_at_by_rectify_alone(loss, monkeypatch):
    student, teacher, label = batch()
    knowledge, looked = rectify(teacher, label, temperature=None, rule="swap"), []
    whole = torch.Tensor.aminmax
    monkeypatch.setattr(torch.Tensor, "aminmax", lambda *a, **k: looked.append(1) or whole(*a, **k))
    Objective(loss, fast=False)(student, knowledge, label, 0.5)
    assert not looked
    LOSSES["dkd"]()(student, teacher, label)
    assert looked


def test_a_target_is_looked_at_once_for_each_number_of_classes():
    target = Target(torch.tensor([0, 4]))
    split.check_label(target, 5, whose="student")
    with pytest.raises(ValueError, match=r"needs every label in 0\.\.2 \(the student's classes\)"):
        split.check_label(target, 3, whose="student")
    assert target.in_range_of == {5}


def test_the_check_breaks_no_graph():
    code = (
        "import torch\n"
        "from outgrow.losses import LOSSES\n"
        "student, teacher, label = torch.randn(4, 5), torch.randn(4, 5), torch.tensor([0, 1, 2, 3])\n"
        "loss = LOSSES['kd']()\n"
        "compiled = torch.compile(loss, fullgraph=True, backend='eager')\n"
        "torch.testing.assert_close(compiled(student, teacher, label), loss(student, teacher, label))\n"
    )
    # a process of its own: the types that are checked in tests cannot be compiled
    subprocess.run([sys.executable, "-c", code], check=True)
