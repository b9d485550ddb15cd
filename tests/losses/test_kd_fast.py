"""The fast path of kd against the plain one: value, gradient, every rule, temperature, shape and dtype."""

import pytest
import torch

from outgrow import Objective, Outputs, Rectifier, Target
from outgrow.knowledge import RULES
from outgrow.losses import LOSSES, kd_fast

COMPACT = ["identity", "drop", "pair", "swap", "lead", "boost"]


def batch(rows, classes, *, dtype=torch.float64, seed=0, kind="mixed", scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    student = (2 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)).to(dtype)
    teacher = (scale * torch.randn(rows, classes, generator=generator, dtype=torch.float64)).to(dtype)
    label = torch.randint(classes, (rows,), generator=generator)
    if kind == "right":
        label = teacher.argmax(dim=1)
    if kind == "wrong":
        label = teacher.argmin(dim=1)
    return student.requires_grad_(), teacher, label


def both(student, teacher, label, rule, temperature, progress=0.3, **options):
    """Results and gradients of the plain and of the fast path, with an upstream gradient other than 1."""
    knowledge = Rectifier(rule, temperature)(teacher, label)
    found = []
    for fast in (False, True):
        objective = Objective(LOSSES["kd"](temperature=temperature), fast=fast, **options)
        assert kd_fast.applies(student, knowledge)
        result = objective(student, knowledge, label, progress)
        (gradient,) = torch.autograd.grad(1.7 * result.total, student)
        found.append((result, gradient))
    return found


def test_the_compact_rules_are_these():
    compact = {RULES[name] for name in COMPACT}
    assert set(kd_fast.COMPACT) == {RULES[name] for name in COMPACT if RULES[name]().effect == "rewrite"}
    student, teacher, label = batch(4, 3)
    for make in set(RULES.values()):
        assert kd_fast.applies(student, Rectifier(make())(teacher, label)) == (make in compact)


@pytest.mark.parametrize("rule", COMPACT)
@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.0, 4.0, 7.0, 8.0, 0.5, 2.5, 20.0])
@pytest.mark.parametrize("normalize", ["rows", "subset"])
def test_value_and_gradient(rule, temperature, normalize):
    (plain, plain_gradient), (fast, gradient) = both(
        *batch(33, 7), rule, temperature, normalize=normalize, schedule="linear", task_weight=0.7, weight=1.3
    )
    torch.testing.assert_close(fast.total, plain.total, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(gradient, plain_gradient, rtol=1e-9, atol=1e-12)
    assert set(fast.terms) == set(plain.terms)
    assert set(fast.stats) == set(plain.stats)
    for name, value in {**plain.terms, **plain.stats}.items():
        torch.testing.assert_close(
            {**fast.terms, **fast.stats}[name], value, rtol=1e-9, atol=1e-11, check_dtype=False
        )


@pytest.mark.parametrize("kind", ["right", "wrong", "mixed"])
@pytest.mark.parametrize("rows, classes", [(1, 2), (1, 100), (5, 1), (300, 513), (3, 70000)])
def test_shapes(kind, rows, classes):
    """More than one block, blocks that do not divide the rows, rows longer than a block, one class."""
    (plain, plain_gradient), (fast, gradient) = both(*batch(rows, classes, kind=kind), "pair", 4.0)
    torch.testing.assert_close(fast.total, plain.total, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradient, plain_gradient, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("rule", COMPACT)
@pytest.mark.parametrize("rows, classes", [(64, 10), (512, 100), (128, 1000)])
def test_float32_is_as_good_as_promised(rule, rows, classes):
    student, teacher, label = batch(rows, classes, dtype=torch.float32, scale=8.0)
    exact = both(student.detach().double().requires_grad_(), teacher.double(), label, rule, 4.0)[0]
    result, gradient = both(student, teacher, label, rule, 4.0)[1]
    t, log_p = (teacher.double() / 4).softmax(1), (student.detach().double() / 4).log_softmax(1)
    bound = 16 * ((t * t.log()).sum(1).abs() + (t * log_p).sum(1).abs()).mean() + exact[0].terms["task"]
    assert (result.total.double() - exact[0].total).abs() <= 1e-6 * bound
    assert (gradient.double() - exact[1]).norm() <= 1e-6 * exact[1].norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    """Computed in float32; the gradient is rounded to the input's type, once."""
    (plain, plain_gradient), (fast, gradient) = both(*batch(65, 11, dtype=dtype), "pair", 4.0)
    torch.testing.assert_close(fast.total, plain.total, rtol=1e-5, atol=1e-5)
    assert gradient.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(gradient.float(), plain_gradient.float(), rtol=4 * eps, atol=eps * 0.05)


@pytest.mark.parametrize("rule", COMPACT)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_logits(rule, dtype):
    logits = torch.tensor(
        [[1e3, -1e3, 0.0], [-1e3, 1e3, 1e3], [0.0, 1e3, -1e3], [0.0, 0.0, 0.0]], dtype=dtype
    )
    student = logits.flip(0).clone().requires_grad_()
    (plain, plain_gradient), (fast, gradient) = both(student, logits, torch.tensor([1, 0, 0, 2]), rule, 4.0)
    assert gradient.isfinite().all()
    torch.testing.assert_close(fast.total, plain.total, rtol=1e-5, atol=1e-4)
    eps = torch.finfo(dtype).eps  # the plain path rounds every part of a half-precision gradient
    torch.testing.assert_close(gradient, plain_gradient, rtol=8 * eps, atol=max(8 * eps, 1e-5))


def test_zero_at_a_match():
    student, _, label = batch(20, 6)
    knowledge = Rectifier("identity")(student.detach().clone(), label)
    result = Objective("kd", task_weight=0.0)(student, knowledge, label, 0.0)
    assert result.total.abs() < 1e-12
    assert torch.autograd.grad(result.total, student)[0].abs().max() < 1e-14


def test_where_it_does_not_apply():
    student, teacher, label = batch(6, 4)
    applies = lambda target, **options: kd_fast.applies(student, Rectifier(**options)(teacher, target))  # noqa: E731
    assert applies(label)
    assert not applies(label, rows="all")
    assert not applies(Target(label, partner=label, mix=torch.ones(6)))
    assert not applies(Target(label, may_ignore=True))
    ignored = label.clone()
    ignored[0] = -100
    assert not applies(ignored)
    assert not applies(label, rule="project")
    assert not kd_fast.applies(student[:0], Rectifier()(teacher[:0], label[:0]))


@pytest.mark.parametrize("loss", ["dkd", "standardize", "kd + dkd", "kd + kd(temperature=4)"])
def test_other_objectives_keep_to_the_plain_path(loss, monkeypatch):
    monkeypatch.setattr(kd_fast, "fused", lambda *_, **__: pytest.fail("the fast path ran"))
    student, teacher, label = batch(6, 4)
    objective = Objective(loss)
    knowledge = Rectifier("pair", objective.temperature or 4.0)(teacher, label)
    assert objective(student, knowledge, label, 0.0).total.isfinite()
    # and the trap is armed: the objective that may take the fast path does
    with pytest.raises(pytest.fail.Exception):
        Objective("kd")(student, Rectifier("pair")(teacher, label), label, 0.0)


def test_a_second_backward_is_refused_with_a_message():
    student, teacher, label = batch(6, 4)
    knowledge = Rectifier("pair")(teacher, label)
    total = Objective("kd")(student, knowledge, label, 0.0).total
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="use Objective"):
        total.backward()
    total = Objective("kd")(student, knowledge, label, 0.0).total
    with pytest.raises(RuntimeError, match=r"got create_graph=True; use Objective\(..., fast=False\)"):
        torch.autograd.grad(total, student, create_graph=True)
    plain = Objective("kd", fast=False)(student, knowledge, label, 0.0).total
    (gradient,) = torch.autograd.grad(plain, student, create_graph=True)
    gradient.square().sum().backward()


def test_without_a_gradient():
    student, teacher, label = batch(6, 4)
    knowledge = Rectifier("pair")(teacher, label)
    with torch.no_grad():
        result = Objective("kd")(student, knowledge, label, 0.0)
    torch.testing.assert_close(
        result.total, Objective("kd", fast=False)(student, knowledge, label, 0.0).total.detach()
    )


def test_features_travel_with_outputs():
    student, teacher, label = batch(6, 4)
    result = Objective("kd")(
        Outputs(student, {"a": student}), Rectifier()(Outputs(teacher), label), Target(label), 0.0
    )
    assert result.total.isfinite()
