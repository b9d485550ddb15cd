"""Classes that the teacher rules out with a logit of minus infinity: the limit of a very small logit."""

import shutil

import pytest
import torch

from outgrow import Objective, Rectifier, spec
from outgrow.knowledge import RULES
from outgrow.losses import LOSSES as REGISTRY
from outgrow.losses import make_loss

INF = float("inf")
RULE_NAMES = sorted({rule().name for rule in RULES.values()})
LOSSES = [
    "kd",
    "kd(temperature=1)",
    "dkd",
    "jsd",
    "nkd",
    "ttm",
    "wttm",
    "ctkd",
    "wsl",
    "sld",
    "rld",
    "dist",
    "ppi",
    "slam",
]
LOSSES += ["semiparametric"]
OTHERS = {
    "reverse_kl": "infinite there, as it is the limit",
    "rc": "reads no teacher",
    "standardize": "below",
    "normkd": "below",
}


def test_the_set_is_complete():
    reading = {name for name in REGISTRY if "logits" in make_loss(name).reads}
    assert reading == {spec.parse(one)[0].name for one in LOSSES} | set(OTHERS)


def batch(dtype=torch.float64, *, out=-INF):
    """Ruled out: the label of a wrong row, others of a wrong and of a right row, all but two or one."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(6, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    label = torch.tensor([0, 1, 2, 3, 4, 0])
    teacher[0, 0] = teacher[1, 2] = teacher[2, 0] = out
    teacher[2, 2] = 20.0
    teacher[3, :3] = teacher[4, :4] = teacher[5, [0, 1, 3, 4]] = out
    return student.to(dtype).requires_grad_(), teacher.to(dtype), label


def result(student, teacher, label, loss, rule, fast):
    objective = Objective(loss, fast=fast)
    knowledge = Rectifier(rule, objective.temperature or 4.0)(teacher, label)
    found = objective(student, knowledge, label, 0.3)
    return found.total.detach(), torch.autograd.grad(found.total, student)[0]


@pytest.mark.parametrize("rule", RULE_NAMES)
@pytest.mark.parametrize("loss", ["kd", "kd(temperature=1)", "kd(temperature=2.5)"])
@pytest.mark.parametrize("fast", [False, True])
def test_kd_under_every_rule(rule, loss, fast):
    limit = result(*batch(out=-1e5), loss, rule, False)
    found = result(*batch(), loss, rule, fast)
    assert limit[1].isfinite().all()
    torch.testing.assert_close(found, limit, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("rule", RULE_NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("fast", ["eager", True])
def test_the_fast_path_in_float32(rule, dtype, fast):
    if fast is True and not any(shutil.which(name) for name in ("gcc", "clang", "cc")):
        pytest.skip("needs a C compiler")
    student, teacher, label = batch(dtype)
    exact = student.detach().double().requires_grad_()
    limit = result(exact, teacher.double(), label, "kd", rule, False)
    value, gradient = result(student, teacher, label, "kd", rule, fast)
    torch.testing.assert_close(value.double(), limit[0], rtol=1e-5, atol=1e-5)
    eps = max(torch.finfo(dtype).eps, 1e-5)
    torch.testing.assert_close(gradient.double(), limit[1], rtol=2 * eps, atol=eps * 0.1)


@pytest.mark.parametrize("fast", [False, "eager", True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_there_is_the_students_own_probability(fast, dtype):
    student, teacher, label = batch(dtype)
    objective = Objective("kd", task_weight=0.0, fast=fast)
    total = objective(student, Rectifier("identity")(teacher, label), label, 0.0).total
    (gradient,) = torch.autograd.grad(total, student)
    p = (student.detach() / 4).softmax(dim=1)
    ruled_out = teacher == -INF
    torch.testing.assert_close(gradient[ruled_out], 4 / 6 * p[ruled_out])


@pytest.mark.parametrize("fast", [False, "eager", True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_student_may_rule_out_the_same_class(fast, dtype):
    """As with a head that masks classes: such a class is then not there."""
    student, teacher, label = batch(dtype)
    teacher[:, 1] = -INF
    label = torch.where(label == 1, 2, label)
    masked = student.detach().clone()
    masked[:, 1] = -INF
    keep = [0, 2, 3, 4]
    found = result(masked.requires_grad_(), teacher, label, "kd", "identity", fast)
    fewer = student.detach()[:, keep].requires_grad_()
    expected = result(fewer, teacher[:, keep], (label - 1).clamp(min=0), "kd", "identity", False)
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1][:, keep], expected[1])
    assert found[1][:, 1].abs().max() == 0


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_of_the_same_kind(loss):
    # one row has no class but its label left: what dkd says about the others is then undefined; another has none below it
    rows = [0, 1, 2, 5] if loss == "rld" else [0, 1, 2, 3, 5]
    found = []
    for out in (-INF, -1e12):
        student, teacher, label = batch(out=out)
        student = student.detach()[rows].requires_grad_()
        module = make_loss(loss)
        module.at(1.0)
        value = module(student, teacher[rows], label[rows])
        wanted = [student, *module.parameters()]  # a learnt temperature
        found.append((value.detach(), *torch.autograd.grad(value.sum(), wanted)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-9)


def test_rld_where_only_ruled_out_classes_are_below_the_label():
    student, teacher, label = batch()
    value = make_loss("rld(alpha=0)")(student, teacher, label)
    assert value[3] == 0
    assert value.isfinite().all()
    assert torch.autograd.grad(value.sum(), student)[0].isfinite().all()


@pytest.mark.parametrize("loss", ["standardize", "standardize(dkd)", "normkd"])
def test_deviations_leave_it_out(loss):
    """Both networks rule out the same class: as if it were not there."""
    student, teacher, label = batch()
    teacher = student.detach().flip(0) + 0.5 * torch.arange(5.0)
    teacher[:, 1] = -INF
    label = torch.where(label == 1, 2, label)
    keep = [0, 2, 3, 4]
    masked = student.detach().clone()
    masked[:, 1] = -INF
    masked.requires_grad_()
    fewer = student.detach()[:, keep].requires_grad_()
    found = make_loss(loss)(masked, teacher, label)
    expected = make_loss(loss)(fewer, teacher[:, keep], (label - 1).clamp(min=0))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(found.sum(), masked)
    (kept,) = torch.autograd.grad(expected.sum(), fewer)
    torch.testing.assert_close(gradient[:, keep], kept, rtol=1e-12, atol=1e-12)
    assert gradient[:, 1].abs().max() == 0


@pytest.mark.parametrize("loss", ["standardize", "standardize(kd)", "normkd"])
@pytest.mark.parametrize("rule", RULE_NAMES)
def test_the_teacher_alone_rules_out_under_a_deviation(loss, rule):
    """The class adds nothing to the loss, and the student still lowers its logit there."""
    value, gradient = result(*batch(), loss, rule, False)
    assert value.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("bad", [[-INF] * 5, [INF, 0, 0, 0, 0], [float("nan"), 0, 0, 0, 0]])
def test_a_row_that_says_nothing_is_refused_by_name(bad):
    _, teacher, label = batch()
    teacher[3] = torch.tensor(bad)
    with pytest.raises(ValueError, match=r"teacher: needs .* in row 3; .*"):
        Rectifier("pair")(teacher, label)
