"""Label smoothing and class weights change the task alone, and by torch's definition."""

import math

import jaxtyping
import pytest
import torch

from outgrow import Objective, Target
from outgrow.knowledge import rectify
from outgrow.outputs import UNLABELLED

WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 0.0], dtype=torch.float64)


@pytest.fixture
def as_installed(monkeypatch):
    """Without the types that are checked in tests alone, which would refuse the arguments first."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def batch(rows=12, classes=4):
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, rows, classes, generator=generator, dtype=torch.float64).unbind()
    return student.requires_grad_(), teacher, torch.randint(classes, (rows,), generator=generator)


def literal_row(logits, label, smoothing, weights):
    """torch's documented formula for one row: (1 - e) w_y (-log p_y) + e / C sum_c w_c (-log p_c)."""
    log_p = logits - logits.exp().sum().log()
    spread = sum(weights[c] * -log_p[c] for c in range(len(logits))) / len(logits)
    return (1 - smoothing) * weights[label] * -log_p[label] + smoothing * spread


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("kind", ["plain", "blended", "unlabelled"])
def test_the_task_is_the_literal_sum_over_labelled_rows(smoothing, weights, kind):
    student, teacher, label = batch()
    if kind == "unlabelled":
        label[3:7] = UNLABELLED
    target = Target(label, may_ignore=kind == "unlabelled")
    if kind == "blended":
        mix = torch.linspace(0.1, 0.9, len(label), dtype=torch.float64)
        target = Target(label, partner=label.flip(0), mix=mix)
    objective = Objective("kd", label_smoothing=smoothing, class_weights=weights)
    result = objective(student, rectify(teacher, target), target, 0.0)
    each = torch.ones(4, dtype=torch.float64) if weights is None else weights
    expected = torch.zeros((), dtype=torch.float64)
    for row in range(len(label)):
        if label[row] == UNLABELLED:
            continue
        own = literal_row(student[row], label[row], smoothing, each)
        if kind == "blended":
            other = literal_row(student[row], target.partner[row], smoothing, each)
            own = mix[row] * own + (1 - mix[row]) * other
        expected = expected + own / (label >= 0).sum()
    torch.testing.assert_close(result.terms["task"], expected.detach())
    plain = Objective("kd")(student, rectify(teacher, target), target, 0.0)
    torch.testing.assert_close(result.terms["kd"], plain.terms["kd"])
    task_alone = Objective({})(student, rectify(teacher, target), target, 0.0)
    totals = (result.total, expected + plain.total - task_alone.total)
    gradients = [torch.autograd.grad(total, student, retain_graph=True)[0] for total in totals]
    torch.testing.assert_close(*gradients)


def test_the_closed_form_gives_way():
    student, teacher, label = batch()
    options = {"label_smoothing": 0.2, "class_weights": WEIGHTS}
    knowledge = rectify(teacher, label, rule="pair")
    fast, plain = (
        Objective("kd", fast=fast, **options)(student, knowledge, label, 0.0) for fast in (True, False)
    )
    torch.testing.assert_close(fast.total, plain.total, rtol=0, atol=0)


def test_weights_of_other_classes_are_refused():
    student, teacher, label = batch()
    objective = Objective("kd", class_weights=torch.ones(3))
    with pytest.raises(ValueError, match="needs one weight per class, 4, got 3; give"):
        objective(student, rectify(teacher, label), label, 0.0)
    with pytest.raises(ValueError, match=r"label_smoothing needs a share in \[0, 1\), got 1.5"):
        Objective("kd", label_smoothing=1.5)


def test_weights_follow_the_device_and_stay_out_of_the_state():
    objective = Objective("kd", class_weights=WEIGHTS)
    assert "class_weights" not in objective.state_dict()
    assert objective.to("meta").class_weights.device.type == "meta"


@pytest.mark.usefixtures("as_installed")
@pytest.mark.parametrize(
    "given, got",
    [
        (-torch.ones(4), "got -1 for class 0"),
        (torch.tensor([1.0, math.nan]), "got nan for class 1"),
        ([1.0, math.inf], "got inf for class 1"),
        (torch.ones(2, 2), r"got shape \(2, 2\)"),
        (2.0, r"got shape \(\)"),
        ("balanced", "got 'balanced'"),
    ],
)
def test_class_weights_are_finite_and_at_least_0(given, got):
    with pytest.raises(ValueError, match=rf"^Objective: class_weights needs .*{got}; "):
        Objective("kd", class_weights=given)


def test_class_weights_may_be_a_list():
    student, teacher, label = batch()
    one, other = (
        Objective("kd", class_weights=weights)(student, rectify(teacher, label), label, 0.0).total
        for weights in (WEIGHTS, WEIGHTS.tolist())
    )
    torch.testing.assert_close(one, other)
