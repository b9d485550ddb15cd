"""Rows of a detector against slow literal references: labels, splits, corrections, balance."""

import pytest
import torch

import outgrow
from outgrow import IGNORE, Objective, Outputs, Rectifier, Target, corrected_logits, rectify
from outgrow.detection.boxes import Scenes
from outgrow.detection.families.detector import FrozenDetector
from outgrow.detection.lesson import MAX_FACTOR, Balanced, Detect, balance, target_of
from outgrow.models.taps import OBJECTS
from tests.detection.scenes import CLASSES, TINY, detector, scenes
from tests.reference import losses as reference
from tests.reference import rules


@pytest.fixture(scope="module")
def lesson():
    torch.manual_seed(2)
    student, teacher = detector(0).train(), FrozenDetector(detector(1), CLASSES)
    return Detect()(student, teacher, scenes())


def test_mask_and_corrected_rows_of_a_slow_reference(lesson):
    knowledge = Balanced(Rectifier("pair"))(lesson.teacher, lesson.target)
    logits = corrected_logits(knowledge).double()
    wrong_rows = right_rows = 0
    for row, (z, y) in enumerate(
        zip(lesson.teacher.logits.double(), lesson.target.label.tolist(), strict=True)
    ):
        if y == IGNORE:
            assert not knowledge.wrong[row]
            assert knowledge.weight[row] == 0
            continue
        wrong = bool(z[y] < z.max())
        assert bool(knowledge.wrong[row]) == wrong
        t = rules.softmax(z.tolist(), 4.0)
        expected = torch.tensor(rules.pair(t, y) if wrong else t, dtype=torch.float64)
        torch.testing.assert_close((logits[row] / 4).softmax(0), expected, rtol=1e-4, atol=1e-6)
        wrong_rows, right_rows = wrong_rows + wrong, right_rows + (not wrong)
    assert wrong_rows > 3
    assert right_rows > 3


def test_distillation_on_proposals_of_a_slow_reference(lesson):
    """The whole term, weights and schedule included, number by number."""
    rectify, objective = outgrow.preset("paper", normalize="rows")
    knowledge = Balanced(rectify)(lesson.teacher, lesson.target)
    result = objective(lesson.student, knowledge, lesson.target, 0.25, lesson.task)
    labels = lesson.target.label.tolist()
    valid = [y for y in labels if y != IGNORE]
    share = sum(y > 0 for y in valid) / len(valid)
    wanted = max(share, min(0.5, MAX_FACTOR * share))
    total = 0.0
    for s, z, y in zip(
        lesson.student.logits.detach().double(), lesson.teacher.logits.double(), labels, strict=True
    ):
        if y == IGNORE:
            continue
        t = rules.softmax(z.tolist(), 4.0)
        wrong = bool(z[y] < z.max())
        q = torch.tensor(rules.pair(t, y) if wrong else t, dtype=torch.float64)
        value = float(reference.kd(s[None], 4.0 * q.log()[None], None)[0])
        weight = wanted / share if y > 0 else (1 - wanted) / (1 - share)
        total += (0.25 if wrong else 0.75) * weight * value
    assert float(result.terms["kd"]) == pytest.approx(total / len(valid), rel=1e-4)
    assert float(result.terms["task"]) == pytest.approx(lesson.task.item())
    assert result.total.item() == pytest.approx(lesson.task.item() + total / len(valid), rel=1e-4)


def test_the_gradient_reaches_the_student_and_nothing_else():
    student, inner = detector(0).train(), detector(1)
    told = Detect()(student, FrozenDetector(inner, CLASSES), scenes())
    rectifier, objective = outgrow.preset(
        "kd", loss="kd + box + fgd + 0.1*fitnet + mgd + cwd + pkd + reviewkd(mid_channels=8)"
    )
    objective.setup(told.student, told.teacher, num_samples=8)
    knowledge = Balanced(rectifier)(told.teacher, told.target)
    result = objective(told.student, knowledge, told.target, 0.0, told.task)
    assert set(result.terms) == {"task", "kd", "box", "fgd", "fitnet", "mgd", "cwd", "pkd", "reviewkd"}
    assert all(value > 0 for value in result.terms.values())
    result.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())
    assert all(p.grad is None for p in inner.parameters())


def test_background_in_a_crowd_is_ignored():
    """The third picture's upper half is a crowd: background proposals that lie in it mean nothing."""
    batch = scenes()
    student = detector(0).train()
    torch.manual_seed(2)
    answer = student(batch.images, batch.truth)
    target = target_of(answer.proposals, batch.truth)
    ignored = 0
    for image, boxes in enumerate(answer.proposals.boxes):
        rows = (answer.proposals.image == image).nonzero()[:, 0].tolist()
        for row, (left, top, right, bottom) in zip(rows, boxes.tolist(), strict=True):
            inside = 0.0
            for l, t, r, b in batch.truth[image].crowd.tolist():  # noqa: E741
                width, height = min(right, r) - max(left, l), min(bottom, b) - max(top, t)
                inside = max(width, 0) * max(height, 0) / ((right - left) * (bottom - top))
            background = answer.proposals.label[row] == 0
            expected = IGNORE if background and inside >= 0.5 else int(answer.proposals.label[row])
            assert int(target.label[row]) == expected
            ignored += expected == IGNORE
    assert ignored > 3
    assert (target.label[target.image == 1] == 0).all()  # the picture without objects


def test_balance_by_hand():
    for objects, rows in ((1, 100), (3, 10), (8, 10), (0, 5), (5, 5)):
        label = torch.zeros(rows, dtype=torch.long)
        label[:objects] = 2
        weight = balance(rectify(torch.eye(4)[label], Target(label))).weight.double()
        assert float(weight.mean()) == pytest.approx(1.0, abs=1e-6)
        share = objects / rows
        wanted = max(share, min(0.5, 8 * share))
        assert float(weight[:objects].sum()) == pytest.approx(wanted * rows, abs=1e-5)
        assert objects == 0 or float(weight[0]) <= 8 + 1e-6


def test_balance_keeps_what_is_removed_removed():
    label = torch.tensor([1, 0, 0, IGNORE])
    teacher = Outputs(torch.tensor([[5.0, 0, 0], [0, 5, 0], [5, 0, 0], [0, 0, 5]]))
    weight = balance(rectify(teacher, Target(label, may_ignore=True), rule="drop")).weight
    assert weight[0] == weight[1] == weight[3] == 0
    assert weight[2] == pytest.approx(0.75)


def test_levels_of_one_network_alone_are_left_out():
    student = detector(0).train()
    teacher = FrozenDetector(detector(1, TINY.replace("levels=3-5", "levels=4-5")), CLASSES)
    told = Detect()(student, teacher, scenes())
    assert [name for name in told.student.features if name.startswith("p") and name[1].isdigit()] == [
        "p4",
        "p5",
        "p6",
    ]
    assert set(told.student.features) == {*told.teacher.features, OBJECTS}
    _, objective = outgrow.preset("kd", loss="fitnet(student='p4', teacher='p4')")
    objective.setup(told.student, told.teacher, num_samples=8)


def test_pictures_without_any_object_teach_background_alone():
    batch = scenes()
    empty = Scenes(batch.images[1:2], batch.truth[1:2])
    told = Detect()(detector(0).train(), FrozenDetector(detector(1), CLASSES), empty)
    assert not told.target.label.any()
    rectifier, objective = outgrow.preset("kd", loss="kd + box")
    result = objective(
        told.student, Balanced(rectifier)(told.teacher, told.target), told.target, 0.0, told.task
    )
    assert result.total.isfinite()
    assert result.terms["box"] == 0
    result.total.backward()


def test_dropping_every_row_leaves_the_task(lesson):
    label = (lesson.teacher.logits.argmax(1) + 1) % 4
    target = Target(label, image=lesson.target.image)
    knowledge = Balanced(Rectifier("drop"))(lesson.teacher, target)
    result = Objective("kd")(lesson.student, knowledge, target, 0.0, lesson.task)
    assert result.terms["kd"] == 0
    assert result.total.item() == pytest.approx(lesson.task.item())
