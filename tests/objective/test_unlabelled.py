"""Rows without a label: the teacher alone speaks. Not the same as rows that take part in nothing."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import outgrow
from outgrow import IGNORE, UNLABELLED, Objective, Rectifier, Target
from outgrow.knowledge import RULES, label_trails
from outgrow.losses import kd_fast
from outgrow.objective import objective as module
from tests.reference import objective as reference
from tests.reference import rules

SHARES = {"none": [], "some": [1, 2, 7], "all": list(range(10))}


def batch(rows=10, classes=5, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    student = 2 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    teacher = 3 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    label = torch.randint(classes, (rows,), generator=generator)
    label[: rows // 2] = teacher[: rows // 2].argmax(dim=1)
    return student.to(dtype).requires_grad_(), teacher.to(dtype), label


def mixed(unlabelled, ignored=(3, 8)):
    """A batch with labelled rows, rows without a label and rows to ignore."""
    student, teacher, label = batch()
    label[list(ignored)] = IGNORE
    label[unlabelled] = UNLABELLED
    return student, teacher, label


def in_words(label):
    words = {UNLABELLED: None, IGNORE: "ignore"}
    return [words.get(y, y) for y in label.tolist()]


def test_the_two_are_different_numbers_that_are_no_class():
    assert outgrow.UNLABELLED == -1
    assert outgrow.IGNORE == -100
    target = Target(torch.tensor([2, UNLABELLED, IGNORE]))
    assert target.valid.tolist() == [True, False, False]
    assert target.takes_part.tolist() == [True, True, False]


@pytest.mark.parametrize("rule", ["identity", "drop", "pair", "swap", "lead", "sort", "project"])
@pytest.mark.parametrize("normalize", ["rows", "subset"])
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("may_ignore", [True, False])
@pytest.mark.parametrize("fast", [True, False])
def test_value_gradient_and_statistics_of_the_literal_reference(rule, normalize, share, may_ignore, fast):
    student, teacher, label = mixed(SHARES[share])
    target = Target(label, may_ignore=may_ignore)
    objective = Objective("kd", schedule="linear_keep", normalize=normalize, fast=fast)
    result = objective(student, Rectifier(rule)(teacher, target), target, 0.3)

    def literal(rows):
        options = {"normalize": normalize, "drop": rule == "drop"}
        return reference.total(
            rows, teacher.tolist(), in_words(label), rules.RULES[rule], (1.0, 0.7, 0.3), **options
        )

    value, wrong_rate, unlabelled = literal(student.tolist())
    assert result.total.item() == pytest.approx(value, rel=1e-12, abs=1e-14)
    assert result.stats["wrong_rate"].item() == pytest.approx(wrong_rate, rel=1e-6)
    assert result.stats["unlabelled"].item() == pytest.approx(unlabelled, rel=1e-6)
    (gradient,) = torch.autograd.grad(result.total, student)
    assert (gradient[label == IGNORE] == 0).all()
    for i, c in [(0, 0), (1, 3), (2, 2), (6, 1), (7, 4), (9, 0)]:
        numeric = []
        for step in (1e-6, -1e-6):
            moved = student.tolist()
            moved[i][c] += step
            numeric.append(literal(moved)[0])
        assert gradient[i, c].item() == pytest.approx((numeric[0] - numeric[1]) / 2e-6, abs=1e-7)


REWRITES = [name for name in RULES if RULES[name]().effect == "rewrite"]


@pytest.mark.parametrize(
    "name, rows", [*((name, "wrong") for name in RULES), *((name, "all") for name in REWRITES)]
)
def test_split_and_rules_leave_it_alone(name, rows):
    _, teacher, label = mixed([1, 7])
    knowledge = Rectifier(name, rows=rows)(teacher, Target(label))
    alone = [1, 7]
    assert not knowledge.wrong[alone].any()
    assert not knowledge.corrected[alone].any()
    assert (knowledge.weight[alone] == 1).all()
    assert (knowledge.weight[[3, 8]] == 0).all()
    assert torch.equal(outgrow.corrected_logits(knowledge)[alone], teacher[alone])
    assert not label_trails(knowledge)[alone].any()
    assert knowledge.wrong.any()


@pytest.mark.parametrize("preset", ["paper", "released", "kd", "drop", "outgrow"])
def test_labels_of_some_rows_and_none_of_others(preset):
    """A batch of both is the sum of its halves, each by its own divisor."""
    student, teacher, label = batch()
    label[[1, 2, 7]] = UNLABELLED
    rectify, objective = outgrow.preset(preset, normalize="rows")
    target = Target(label)
    whole = objective(student, rectify(teacher, target), target, 0.4)
    has, no = target.valid, ~target.valid
    own = objective(student[has], rectify(teacher[has], label[has]), label[has], 0.4)
    rest = objective(student[no], rectify(teacher[no], label[no]), label[no], 0.4)
    assert rest.terms["task"] == 0
    assert rest.stats["unlabelled"] == 1
    assert rest.stats["wrong_rate"] == 0
    torch.testing.assert_close(whole.terms["task"], own.terms["task"])
    torch.testing.assert_close(whole.terms["kd"], 0.7 * own.terms["kd"] + 0.3 * rest.terms["kd"])
    torch.testing.assert_close(whole.stats["wrong_rate"], own.stats["wrong_rate"], check_dtype=False)


def test_a_pass_that_knows_labels_only_is_not_taken():
    """On a CPU the closed form is left to batches in which every row has a label."""
    student, teacher, label = batch()
    target = Target(label)
    assert kd_fast.applies(student, Rectifier("pair")(teacher, target), target)
    label[4] = UNLABELLED
    for flag in (True, False):
        target = Target(label.clone(), may_ignore=flag)
        for rule in ("pair", "drop", "identity"):
            assert not kd_fast.applies(student, Rectifier(rule)(teacher, target), target)


@pytest.mark.parametrize("rule", ["identity", "pair", "swap", "lead", "boost"])
@pytest.mark.parametrize("normalize", ["rows", "subset"])
@pytest.mark.parametrize("share", SHARES)
def test_the_pass_of_a_device_that_cannot_look(rule, normalize, share, monkeypatch):
    """There the closed form is taken without asking, and must not take -1 for a class."""
    student, teacher, label = mixed(SHARES[share])
    target = Target(label)
    knowledge = Rectifier(rule)(teacher, target)
    results = []
    for fast in (True, False):
        objective = Objective("kd", schedule="linear_keep", normalize=normalize, fast=fast)
        with monkeypatch.context() as patch:
            if fast:
                patch.setattr(module, "_on_host", lambda logits: False)
                patch.setattr(kd_fast, "applies", lambda *_: True)
                patch.setattr(kd_fast.dispatch, "on_host", kd_fast.dispatch.on_device)
                patch.setattr(kd_fast.eager, "_may_look", lambda label: False)
            result = objective(student, knowledge, target, 0.3)
        results.append((result, torch.autograd.grad(result.total, student)[0]))
    (fast, own), (plain, theirs) = results
    torch.testing.assert_close(own, theirs)
    torch.testing.assert_close(fast.total, plain.total)
    assert set(fast.stats) == set(plain.stats)
    for name, value in {**plain.terms, **plain.stats}.items():
        torch.testing.assert_close({**fast.terms, **fast.stats}[name], value, check_dtype=False)


@pytest.mark.parametrize("loss", ["kd", "kd + dkd + nkd + wsl + rld + rc + sld", "dist"])
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("may_ignore", [True, False])
@pytest.mark.parametrize("rule", ["identity", "swap", "drop"])
def test_no_device_is_asked(loss, fast, may_ignore, rule):
    with FakeTensorMode():
        student, teacher = (torch.randn(8, 5, device="cuda") for _ in range(2))
        target = Target(torch.randint(-1, 5, (8,), device="cuda"), may_ignore=may_ignore)
        objective = Objective(loss, fast=fast)
        result = objective(student.requires_grad_(), Rectifier(rule)(teacher, target), target, 0.3)
        assert {v.device.type for v in (result.total, *result.stats.values())} == {"cuda"}


class TestMixup:
    """Two labels are blended by their shares; a row without one has no share to give."""

    mix = torch.tensor([0.5, 0.5])

    @pytest.mark.parametrize("label, partner", [([0, UNLABELLED], [1, 1]), ([0, 0], [1, UNLABELLED])])
    def test_is_refused_with_rows_without_a_label(self, label, partner):
        message = (
            r"Target: needs two labels for a blended row, got UNLABELLED in row 1; leave rows without a label"
        )
        with pytest.raises(ValueError, match=message):
            Target(torch.tensor(label), partner=torch.tensor(partner), mix=self.mix)

    @pytest.mark.parametrize("fast", [True, False])
    def test_rows_without_any_label_beside_blended_ones(self, fast):
        student, teacher, label = batch()
        none = torch.tensor([1, 7])
        partner, share = (label + 1) % 5, torch.linspace(0, 1, 10, dtype=torch.float64)
        blended = Target(
            label.index_fill(0, none, UNLABELLED),
            partner=partner.index_fill(0, none, UNLABELLED),
            mix=share.index_fill(0, none, 1.0),
        )
        objective = Objective("kd", fast=fast)
        result = objective(student, Rectifier("pair")(teacher, blended), blended, 0.3)
        has = blended.valid
        alone = Target(label[has], partner=partner[has], mix=share[has])
        own = objective(student[has], Rectifier("pair")(teacher[has], alone), alone, 0.3)
        rest = objective(
            student[~has],
            Rectifier("pair")(teacher[~has], label[~has].fill_(UNLABELLED)),
            Target(torch.full((2,), UNLABELLED)),
            0.3,
        )
        torch.testing.assert_close(result.terms["task"], own.terms["task"])
        torch.testing.assert_close(result.terms["kd"], 0.8 * own.terms["kd"] + 0.2 * rest.terms["kd"])
        task = Objective({}, fast=fast)(student, Rectifier("identity")(teacher, blended), blended, 0.3)
        (gradient,) = torch.autograd.grad(task.total, student)
        assert (gradient[none] == 0).all()
        assert (gradient[has] != 0).any(dim=1).all()

    def test_does_not_look_at_a_device(self):
        with FakeTensorMode():
            label = torch.zeros(2, dtype=torch.long, device="cuda")
            Target(label, partner=label, mix=torch.ones(2, device="cuda"))


def test_other_negative_labels_are_still_mistakes():
    for wrong in (-2, -99, -101):
        with pytest.raises(ValueError, match=rf"needs every label in 0..4 .* got {wrong} in row 1; check"):
            outgrow.rectify(torch.zeros(3, 5), torch.tensor([0, wrong, UNLABELLED]))


def test_pixels_and_tokens():
    """A map of labels may hold both; one's own number for either is mapped by its owner."""
    label = torch.tensor([[0, 1, 255], [UNLABELLED, 2, 2]])
    outputs, target = outgrow.flatten_rows(torch.zeros(2, 3, 3), label, ignore_index=255)
    assert target.takes_part.tolist() == [True, True, False, True, True, True]
    assert target.valid.tolist() == [True, True, False, False, True, True]
    result = Objective("kd")(outputs, outgrow.rectify(outputs, target), target, 0.0)
    assert result.terms["task"].item() == pytest.approx(math.log(3))
    assert result.stats["unlabelled"].item() == pytest.approx(1 / 5)
