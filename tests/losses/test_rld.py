"""``rld``: DKD where the teacher is right, something else where it is wrong."""

import pytest
import torch

from outgrow import Objective, Rectifier, Target, Term
from outgrow.losses.dkd import DKD, dkd_loss
from outgrow.losses.rld import RLD, rld_loss
from tests import contract
from tests.reference import losses as reference


def batch(rows=9):
    return contract.outputs(rows).logits, contract.outputs(rows, seed=5).logits, contract.target(rows).label


def test_is_dkd_where_the_label_leads_everywhere():
    student, teacher, _ = batch()
    student.requires_grad_()
    label = teacher.argmax(dim=1)
    ours = rld_loss(student, teacher, label, alpha=0.7, beta=3.0, temperature=2.0)
    theirs = dkd_loss(student, teacher, label, alpha=0.7, beta=3.0, temperature=2.0)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        torch.autograd.grad(ours.sum(), student)[0], torch.autograd.grad(theirs.sum(), student)[0]
    )
    same = rld_loss(teacher, teacher, label)
    torch.testing.assert_close(same, torch.zeros_like(same), atol=1e-12, rtol=0)


@pytest.mark.parametrize("rule", ["swap", "project(margin=0.5)"])
def test_is_dkd_under_a_rule_that_brings_the_label_to_the_lead(rule):
    """So RLD and a teacher corrected for DKD are rivals, not partners."""
    student, teacher, label = batch()
    knowledge = Rectifier(rule)(teacher, label)
    assert knowledge.wrong.any()
    ours, theirs = (Objective(loss)(student, knowledge, label, 0.0).total for loss in (RLD(), DKD()))
    torch.testing.assert_close(ours, theirs)


def test_a_wrong_row_by_its_two_parts():
    student, teacher, label = batch()
    label = teacher.argsort(dim=1)[:, 1]  # three classes lead it, one is behind
    first = rld_loss(student, teacher, label, beta=0.0)
    p, t = (student / 4).softmax(1), (teacher / 4).softmax(1)
    own, best = p.gather(1, label[:, None])[:, 0], t.amax(1)
    expected = 16 * (best * (best / own).log() + (1 - best) * ((1 - best) / (1 - own)).log())
    torch.testing.assert_close(first, expected)
    # one class alone has nothing to be compared with
    second = rld_loss(student, teacher, label, alpha=0.0)
    torch.testing.assert_close(second, torch.zeros_like(second))


def test_a_label_ranked_last_leaves_no_second_term():
    student, teacher, _ = batch()
    student.requires_grad_()
    with torch.autograd.set_detect_anomaly(True):  # no NaN on the way either
        value = rld_loss(student, teacher, teacher.argmin(dim=1), alpha=0.0)
        assert (value == 0).all()
        assert (torch.autograd.grad(value.sum(), student)[0] == 0).all()


def test_a_class_at_the_labels_logit_is_left_out():
    """As in the authors' code: with a tie at the top the row is right, yet not quite DKD's."""
    student = torch.tensor([[1.0, 0.0, 2.0, -1.0]], dtype=torch.float64)
    teacher = torch.tensor([[3.0, 3.0, 1.0, 0.0]], dtype=torch.float64)
    moved = student.clone()
    moved[0, 1] += 5.0
    label = torch.tensor([0])
    torch.testing.assert_close(
        rld_loss(moved, teacher, label, alpha=0.0), rld_loss(student, teacher, label, alpha=0.0)
    )
    assert not torch.allclose(dkd_loss(moved, teacher, label), dkd_loss(student, teacher, label))


def test_the_authors_code_as_two_terms():
    """It reads the first term at temperature 1 and the second at 4 (stated on the card)."""
    student, teacher, label = batch()
    objective = Objective(
        [Term("rld(alpha=1, beta=0, temperature=1)"), Term("rld(alpha=0, beta=8, temperature=4)")],
        task_weight=0.0,
    )
    total = objective(student, Rectifier("identity")(teacher, label), label, 1.0).total
    expected = reference.rld(student, teacher, label, alpha=1.0, beta=0.0, temperature=1.0)
    expected = expected + reference.rld(student, teacher, label, alpha=0.0, beta=8.0, temperature=4.0)
    torch.testing.assert_close(total, expected.mean())


def test_a_mixed_row_looks_at_its_larger_label():
    student, teacher, label = batch()
    other = (label + 1) % 5
    mixed = Target(label, partner=other, mix=torch.full((9,), 0.2, dtype=torch.float64))
    torch.testing.assert_close(RLD()(student, teacher, mixed), rld_loss(student, teacher, other))
