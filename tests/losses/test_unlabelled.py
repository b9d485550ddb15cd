"""Rows without a label: each loss does with them what its card and its declarations say."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from outgrow import UNLABELLED, Objective, Outputs, Target, rectify
from outgrow.losses import DETECTOR_LOSSES, LOSSES
from outgrow.models.taps import BOX, BOX_IOU, OBJECTNESS, OBJECTS
from tests import contract

CARDS = Path(__file__).resolve().parents[2] / "docs" / "methods"
LINE = re.compile(
    r"^- \*\*Unlabelled rows\*\*: they (count|add nothing|do what they do in `base`)(?!\w)", re.M
)

MAKE = {**LOSSES, **DETECTOR_LOSSES}
NAMES = list(MAKE)
ON_LOGITS = [name for name in LOSSES if "logits" in LOSSES[name]().reads and name != "standardize"]
WITHOUT = torch.tensor([1, 4])

READERS = {"dkd", "nkd", "wsl", "rld", "rc", "sld", "semiparametric", "crd"}
"""The losses whose value depends on which label a row has."""
PRESENCE = {"ppi", "box"}
"""Those that ask only whether a row has a label (``ppi``), or an object (``box``)."""


def stated(name):
    """What the card says: "count" or "add nothing"."""
    card = (CARDS / f"{name}.md").read_text()
    _, _, rest = card.partition("\n## Rows\n")
    found = LINE.findall(rest.partition("\n## ")[0])
    assert len(found) == card.count("**Unlabelled rows**") == 1, (
        f"{name}.md: one line of the form {LINE.pattern}"
    )
    return stated("kd") if found[0].startswith("do what") else found[0]


def outputs(seed=0):
    """Six images with one row each, and what a detector says of them beside: a box, anchors, objects."""
    made = contract.outputs(6, seed=seed)
    generator = torch.Generator().manual_seed(100 + seed)
    draw = lambda *shape: torch.rand(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    corner = draw(6, 2, 2) / 2
    detector = {
        BOX: draw(6, 4),
        BOX_IOU: torch.full(
            (6,), 0.8 if seed else 0.3, dtype=torch.float64
        ),  # the teacher's box is the better one
        OBJECTNESS: draw(6, 30),
        OBJECTS: torch.cat([corner, corner + 0.3], dim=2),
    }
    return Outputs(made.logits, {**made.features, **detector})


def build(name, training=True):
    if name in LOSSES:
        return contract.loss(name).train(training)
    return contract.set_up(MAKE[name](), outputs(), outputs(5)).train(training)


def target(label, **more):
    return Target(label, index=contract.target(6).index, **more)


def labels():
    """All labels, and the same without those of two rows. None is 0, which is the background of a detector."""
    label = contract.target(6).label.clamp_min(1)
    return label, label.index_fill(0, WITHOUT, UNLABELLED)


def run(built, goal, rows=slice(None)):
    """The value, and its gradient in what the loss reads of the student."""
    at = torch.arange(6)[rows]
    student, inputs = contract.leaves(outputs())
    value = contract.call(
        built,
        contract.take(student, at),
        contract.take(outputs(5), at),
        replace(goal, label=goal.label[at], index=goal.index[at]),
    )
    grads = [g for g in torch.autograd.grad(value.sum(), inputs, allow_unused=True) if g is not None]
    assert grads
    assert value.isfinite().all()
    assert all(g.isfinite().all() for g in grads)
    return value.detach(), grads


def moved(grads):
    """Which rows have a gradient that is not exactly zero."""
    return torch.stack([grad.flatten(1).any(dim=1) for grad in grads]).any(dim=0)


def same_bits(one, other):
    (value, grads), (again, others) = one, other
    return torch.equal(value, again) and all(map(torch.equal, grads, others)) and len(grads) == len(others)


@pytest.mark.parametrize("name", NAMES)
def test_the_card_says_what_the_loss_declares(name):
    assert (stated(name) == "add nothing") == MAKE[name]().needs_label
    if name in READERS | {"ppi"}:
        assert "without a label" in " ".join((MAKE[name].__doc__ or "").split())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NAMES)
class TestWhatTheCardSays:
    def test_of_value_and_gradient(self, name, training):
        label, lacking = labels()
        value, grads = run(build(name, training), target(lacking))
        count = torch.tensor(stated(name) == "count")
        assert (moved(grads)[WITHOUT] == count).all()
        assert moved(grads)[label == lacking].all()
        if value.dim():
            assert ((value != 0)[WITHOUT] == count).all()
            assert (value != 0)[label == lacking].all()

    def test_they_count_in_the_divisor(self, name, training):
        """A mean over all rows: where those without a label add nothing it is smaller by their share."""
        _, lacking = labels()
        value, _ = run(build(name, training), target(lacking))
        built = build(name, training)
        objective = Objective(built, task_weight=0.0).train(training)
        knowledge = rectify(outputs(5), target(lacking), rule="identity")
        torch.manual_seed(7)
        total = objective(outputs(), knowledge, target(lacking), 1.0).total
        torch.testing.assert_close(total, value.sum() / 6 if value.dim() else value)


@pytest.mark.parametrize("name", NAMES)
class TestAPoisonedLabelOfThemChangesNoBit:
    def test_whichever_class_it_is(self, name, monkeypatch):
        label, lacking = labels()
        found = run(build(name), target(lacking))
        if name == "ppi":
            # it asks which rows have a label, and for nothing else
            others = [torch.where(lacking >= 0, (lacking + shift) % 5, lacking) for shift in range(1, 5)]
            assert not same_bits(found, run(build(name), target(label.index_fill(0, WITHOUT, 3))))
        elif name == "crd":
            # negatives among all samples, as for a class that no sample has
            others = [label.index_fill(0, WITHOUT, 5)]
            assert not same_bits(found, run(build(name), target(label.index_fill(0, WITHOUT, 3))))
        elif name in READERS:
            self.check_reader(name, lacking, found, monkeypatch)
            return
        else:
            classes = range(1, 5) if name == "box" else range(5)
            others = [label.index_fill(0, WITHOUT, poison) for poison in classes]
        for other in others:
            assert same_bits(found, run(build(name), target(other)))

    def check_reader(self, name, lacking, found, monkeypatch):
        """It must index with some class: whichever that is makes no difference."""
        module = sys.modules[MAKE[name].__module__]
        whole, calls = module.safe_label, []
        for poison in range(5):

            def poisoned(label, num_classes, poison=poison):
                calls.append(int((label < 0).sum()))
                return torch.where(label < 0, poison, whole(label, num_classes))

            monkeypatch.setattr(module, "safe_label", poisoned)
            assert same_bits(found, run(build(name), target(lacking)))
        assert calls
        assert all(rows == 2 for rows in calls)

    def test_nor_does_a_share_of_one(self, name):
        """In a batch of mixup or CutMix."""
        label, lacking = labels()
        partner = torch.where(lacking >= 0, label.roll(1), UNLABELLED)

        def of(share):
            mix = torch.tensor([0.7, 0.0, 0.4, 1.0, 0.0, 0.2], dtype=torch.float64)
            return run(build(name), target(lacking, partner=partner, mix=mix.index_fill(0, WITHOUT, share)))

        assert same_bits(of(1.0), of(0.0))
        assert same_bits(of(1.0), of(0.3))


def test_which_losses_read_a_label():
    """Those that are said to, and no others; the tests above follow this list."""

    def differs(name, one, other):
        return not same_bits(run(build(name), target(one)), run(build(name), target(other)))

    label, lacking = labels()
    shifted = label % 4 + 1
    background = label.index_fill(0, WITHOUT, 0)
    assert {name for name in NAMES if differs(name, label, shifted)} == READERS
    assert {name for name in NAMES if differs(name, label, lacking)} == READERS | {"ppi"}
    assert {name for name in NAMES if differs(name, background, lacking)} == READERS | PRESENCE
    assert {name for name in NAMES if MAKE[name]().needs_label} == READERS - {"sld", "crd", "semiparametric"}
    assert sorted(contract.LACKING) == ["ppi"]


@pytest.mark.parametrize("name", [name for name in NAMES if MAKE[name]().axis == "row"])
class TestRowsAreIndependent:
    def test_those_with_a_label_do_not_see_them(self, name):
        label, lacking = labels()
        has = label == lacking
        plain, value = (run(build(name), target(each))[0] for each in (label, lacking))
        torch.testing.assert_close(value[has], plain[has], rtol=0, atol=0)

    def test_nor_they_their_neighbours(self, name):
        _, lacking = labels()
        whole, _ = run(build(name), target(lacking))
        for row in range(6):
            alone, _ = run(build(name), target(lacking), rows=[row])
            torch.testing.assert_close(alone[0], whole[row])


@pytest.mark.parametrize("base", ON_LOGITS)
def test_standardize_does_what_its_base_does(base):
    label, lacking = labels()
    built = LOSSES["standardize"](contract.loss(base))
    assert built.needs_label == LOSSES[base]().needs_label
    value, grads = run(built, target(lacking))
    count = torch.tensor(stated(base) == "count")
    assert (moved(grads)[WITHOUT] == count).all()
    assert moved(grads)[label == lacking].all()
    if value.dim():
        assert ((value != 0)[WITHOUT] == count).all()


@pytest.mark.parametrize("rule", ["identity", "swap"])
@pytest.mark.parametrize("name", [name for name in ON_LOGITS if LOSSES[name]().needs_label])
def test_standardize_in_an_objective_does_too(name, rule):
    _, lacking = labels()
    student, (logits, *_) = contract.leaves(contract.outputs(6))
    objective = Objective(LOSSES["standardize"](name), task_weight=0.0)
    knowledge = rectify(
        contract.outputs(6, seed=5), target(lacking), rule=rule, temperature=objective.temperature or 4.0
    )
    (grad,) = torch.autograd.grad(objective(student, knowledge, target(lacking), 0.5).total, logits)
    assert (moved([grad]) == (lacking >= 0)).all()


class TestDetectors:
    """Where a picture has no annotations the teacher says where its objects are."""

    def test_box_adds_nothing_where_the_teacher_finds_no_object(self):
        _, lacking = labels()
        student, (boxes,) = outputs(), [outputs().features[BOX].requires_grad_()]
        teacher = outputs(5)
        overlap = teacher.features[BOX_IOU].clone()
        overlap[1] = 0.0
        none = student.features[BOX_IOU].clone()
        none[1] = 0.0
        value = build("box")(
            Outputs(student.logits, {**student.features, BOX: boxes, BOX_IOU: none}),
            Outputs(teacher.logits, {**teacher.features, BOX_IOU: overlap}),
            target(lacking),
        )
        (grad,) = torch.autograd.grad(value.sum(), boxes)
        assert (value != 0).tolist() == moved([grad]).tolist() == [True, False, True, True, True, True]

    def test_fgd_compares_the_objects_that_it_is_given(self):
        _, lacking = labels()
        student, teacher, goal = outputs(), outputs(5), target(lacking)
        built = build("fgd")
        value = built(student, teacher, goal)
        nothing = student.features[OBJECTS].index_fill(0, WITHOUT, 0.0)
        empty = built(Outputs(student.logits, {**student.features, OBJECTS: nothing}), teacher, goal)
        assert ((value != empty) == (lacking < 0)).all()
