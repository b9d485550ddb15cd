"""``crd``: contrastive representation distillation, with its memories."""

import math

import pytest
import torch

from outgrow import IGNORE, PENULTIMATE, UNLABELLED, Objective, Outputs, Target, rectify
from outgrow.data.randomness import uniform_at
from outgrow.losses import Fixture
from outgrow.losses.crd import CRD, crd_loss
from tests import contract
from tests.reference import losses as reference

LABEL = torch.randint(
    5, (contract.NUM_SAMPLES,), generator=torch.Generator().manual_seed(3)
)  # as contract.loss
SUBSET = torch.tensor([31, 4, 17, 8, 22, 39, 0, 13, 25, 2, 11])
"""Sample numbers of a training split, in no order: 11 of 40."""


def batch(rows=6, seed=0, among=None):
    generator = torch.Generator().manual_seed(seed + 20)
    numbers = torch.arange(contract.NUM_SAMPLES) if among is None else among
    index = numbers[torch.randperm(len(numbers), generator=generator)[:rows]]
    return (
        contract.outputs(rows, seed=seed),
        contract.outputs(rows, seed=seed + 5),
        Target(LABEL[index], index=index),
    )


def build(index=None, label=None, negatives=16, num_samples=contract.NUM_SAMPLES, **arguments):
    torch.manual_seed(0)
    built = CRD(dim=8, negatives=negatives, **arguments)
    built.setup(Fixture(contract.outputs(4), contract.outputs(4, seed=5), num_samples, label, index))
    return built.double()


def embedded(layer, outputs):
    rows = outputs.features[PENULTIMATE] @ layer.weight.T + layer.bias
    return torch.stack([row / (row * row).sum().sqrt() for row in rows])


def literal(built, student, teacher, goal, samples, z=None):
    """The reference with the same layers and memories, and draws from plain Python integers: the key, the
    sample's place among those that are remembered, and the number of the draw."""
    seed, step = built.draw.tolist()
    place = {number: at for at, number in enumerate(samples)}
    uniform = torch.tensor(
        [
            [uniform_at(seed, step, place[number], k) for k in range(built.negatives)]
            for number in goal.index.tolist()
        ]
    )
    return reference.crd(
        embedded(built.embed_student, student),
        embedded(built.embed_teacher, teacher),
        dict(zip(samples, built.memory_student.clone(), strict=True)),
        dict(zip(samples, built.memory_teacher.clone(), strict=True)),
        goal.index.tolist(),
        [None if y < 0 else y for y in goal.label.tolist()],
        samples,
        uniform,
        z=z,
    )


def samples_of(index, label):
    numbers = range(contract.NUM_SAMPLES) if index is None else index.tolist()
    labels = [-1] * len(numbers) if label is None else label.tolist()
    return {n: None if y < 0 else y for n, y in zip(numbers, labels, strict=True)}


UNKNOWN = LABEL.clone()
UNKNOWN[::3] = -1
UNKNOWN[5] = IGNORE
SETTINGS = {
    "all": (None, LABEL),
    "no labels": (None, None),
    "some labels": (None, UNKNOWN),
    "subset": (SUBSET, LABEL[SUBSET]),
    "subset, no labels": (SUBSET, None),
    "subset, some labels": (SUBSET, UNKNOWN[SUBSET]),
}


def test_scores_by_hand():
    value = crd_loss(torch.tensor([2.0]), torch.tensor([[1.0, 3.0]]), num_samples=4)  # noise 2 / 4
    expected = -math.log(2 / 2.5) - math.log(0.5 / 1.5) - math.log(0.5 / 3.5)
    torch.testing.assert_close(value, torch.tensor([expected]))


@pytest.mark.parametrize("setting", SETTINGS)
def test_value_and_gradient_of_the_literal_reference(setting):
    index, label = SETTINGS[setting]
    samples = samples_of(index, label)
    built = build(index, label)
    z = None
    for seed in (0, 1):  # the first batch, which finds Z and moves the memories, and one that meets both
        student, teacher, goal = batch(seed=seed, among=index)
        if label is not None:  # a sample without a label has none as a row either
            known = [samples[n] for n in goal.index.tolist()]
            goal = Target(torch.tensor([-1 if y is None else y for y in known]), index=goal.index)
        student, (*_, leaf) = contract.leaves(student)
        inputs = [leaf, *built.parameters()]
        rows, z = literal(built, student, teacher, goal, samples, z)
        weight = torch.linspace(0.5, 2.0, len(rows), dtype=torch.float64)
        expected = (weight * rows).mean()
        value = contract.call(built, student, teacher, goal, weight)
        torch.testing.assert_close(value, expected, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(torch.stack([built.z_student, built.z_teacher]), torch.tensor(z).double())
        found = (torch.autograd.grad(1.7 * v, inputs) for v in (value, expected))
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


class TestNegatives:
    """What is drawn, by sample number; checked against the labels and not against the code."""

    def draws(self, built, goal, index=None):
        numbers = torch.arange(contract.NUM_SAMPLES) if index is None else index
        place = torch.full((contract.NUM_SAMPLES,), -1)
        place[numbers] = torch.arange(len(numbers))
        return numbers[built._draw(place[goal.index], goal.dominant)]

    @pytest.mark.parametrize("index", [None, SUBSET])
    def test_are_never_of_the_rows_own_class(self, index):
        numbers = torch.arange(contract.NUM_SAMPLES) if index is None else index
        built = build(index, LABEL[numbers], negatives=500)
        goal = Target(LABEL[numbers], index=numbers)
        drawn = self.draws(built, goal, index)
        assert drawn.shape == (len(numbers), 501)
        assert (drawn[:, 0] == goal.index).all()
        assert (LABEL[drawn[:, 1:]] != goal.label[:, None]).all()
        for row, label in enumerate(goal.label.tolist()):  # and every sample of another class comes up
            others = numbers[LABEL[numbers] != label].sort().values
            assert drawn[row, 1:].unique().tolist() == others.tolist()

    @pytest.mark.parametrize("index", [None, SUBSET])
    def test_are_drawn_among_all_without_labels(self, index):
        built = build(index, negatives=2000)
        goal = Target(torch.zeros(2, dtype=torch.long), index=torch.tensor([4, 17]))
        numbers = torch.arange(contract.NUM_SAMPLES) if index is None else index
        for row in self.draws(built, goal, index)[:, 1:]:
            assert row.unique().tolist() == numbers.sort().values.tolist()

    @pytest.mark.parametrize("label", [-1, IGNORE])
    def test_a_row_without_a_label_draws_among_all(self, label):
        built = build(SUBSET, LABEL[SUBSET], negatives=2000)
        goal = Target(torch.tensor([label, int(LABEL[17])]), index=torch.tensor([4, 17]))
        first, second = self.draws(built, goal, SUBSET)[:, 1:]
        assert first.unique().tolist() == SUBSET.sort().values.tolist()
        assert (LABEL[second] != LABEL[17]).all()

    @pytest.mark.parametrize("index", [None, SUBSET])
    def test_uniformly(self, index):
        numbers = torch.arange(contract.NUM_SAMPLES) if index is None else index
        built = build(index, LABEL[numbers], negatives=20_000)
        own = int(LABEL[numbers[0]])
        drawn = self.draws(built, Target(LABEL[numbers[:1]], index=numbers[:1]), index)[0, 1:]
        others = numbers[own != LABEL[numbers]]
        share = drawn.bincount(minlength=contract.NUM_SAMPLES)[others] / 20_000
        torch.testing.assert_close(share, torch.full((len(others),), 1 / len(others)), rtol=0.2, atol=0)

    def test_one_class_alone_and_no_class_at_all(self):
        for label in (torch.zeros(40, dtype=torch.long), torch.full((40,), -1)):
            student, teacher, goal = batch()
            assert contract.call(build(label=label), student, teacher, goal).isfinite()


class TestSubset:
    """Training shows 11 of 40 samples: only those are remembered, drawn and counted."""

    def test_memories_are_no_larger_than_the_rows(self):
        built = build(SUBSET, LABEL[SUBSET])
        assert built.memory_student.shape == built.memory_teacher.shape == (11, 8)

    def test_is_training_on_those_rows_alone(self):
        """Value, gradient and memories as with samples numbered 0 to 10, whatever their numbers are."""
        built, alone = build(SUBSET, LABEL[SUBSET]), build(label=LABEL[SUBSET], num_samples=11)
        alone.load_state_dict({k: v for k, v in built.state_dict().items() if k != "slot"})
        for seed in (0, 1, 2):
            student, teacher, goal = batch(seed=seed, among=SUBSET)
            place = torch.tensor([SUBSET.tolist().index(n) for n in goal.index.tolist()])
            found = []
            for loss, index in ((built, goal.index), (alone, place)):
                made, inputs = contract.leaves(student)
                value = contract.call(loss, made, teacher, Target(goal.label, index=index))
                found.append([value, torch.autograd.grad(value, [inputs[-1], *loss.parameters()])])
            torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
        assert torch.equal(built.memory_student, alone.memory_student)

    def test_what_stands_elsewhere_is_never_read(self):
        """Samples that are not shown cannot reach the value: as many again change nothing."""
        few = build(SUBSET, LABEL[SUBSET])
        many = build(SUBSET, LABEL[SUBSET], num_samples=4000)
        for seed in (0, 1):
            own = [contract.call(loss, *batch(seed=seed, among=SUBSET)) for loss in (few, many)]
            assert own[0] == own[1]

    @pytest.mark.parametrize("number", [1, -1, 40, 10**9])
    def test_a_sample_that_is_not_shown_is_refused(self, number):
        built = build(SUBSET, LABEL[SUBSET])
        student, teacher, goal = batch(among=SUBSET)
        index = goal.index.clone()
        index[2] = number
        message = (
            rf"crd: needs samples that it was set up for, got number {number} in row 2; give objective.setup\("
            r"..., num_samples=, index=\) the numbers of all training samples"
        )
        with pytest.raises(ValueError, match=message):
            contract.call(built, student, teacher, Target(goal.label, index=index))
        # a row that counts for nothing may have any number, and moves nobody's memory
        weight = torch.tensor([1.0, 1, 0, 1, 1, 1], dtype=torch.float64)
        before = built.memory_student.clone()
        value = contract.call(built, student, teacher, Target(goal.label, index=index), weight)
        keep = weight > 0
        rest = build(SUBSET, LABEL[SUBSET])
        assert torch.equal(rest.memory_student, before)
        contract.call(
            rest,
            contract.take(student, keep),
            contract.take(teacher, keep),
            Target(goal.label[keep], index=goal.index[keep]),
        )
        assert value.isfinite()
        torch.testing.assert_close(built.memory_student, rest.memory_student)
        torch.testing.assert_close(built.memory_teacher, rest.memory_teacher)

    def test_a_number_beyond_is_refused_without_a_subset_too(self):
        student, teacher, goal = batch()
        with pytest.raises(
            ValueError, match="crd: needs samples that it was set up for, got number 40 in row 0"
        ):
            contract.call(
                build(), student, teacher, Target(goal.label, index=goal.index + 40 - goal.index[0])
            )

    def test_through_the_objective(self):
        student, teacher, goal = batch(among=SUBSET)
        torch.manual_seed(0)
        objective = Objective("crd(8, 16)", task_weight=0.0)
        objective.setup(student, teacher, num_samples=40, label=LABEL[SUBSET], index=SUBSET)
        assert objective.crd.memory_student.shape == (11, 8)
        objective.double()
        result = objective(student, rectify(teacher, goal, rule="identity"), goal, 0.0)
        rows, _ = literal(
            build_like(objective.crd), student, teacher, goal, samples_of(SUBSET, LABEL[SUBSET])
        )
        torch.testing.assert_close(result.total, rows.mean())


def build_like(crd):
    """``crd`` before its first step: the memories of the same seed."""
    torch.manual_seed(0)
    fresh = CRD(dim=8, negatives=16)
    fresh.setup(Fixture(*batch(among=SUBSET)[:2], 40, LABEL[SUBSET], SUBSET))
    assert torch.equal(fresh.embed_student.weight.double(), crd.embed_student.weight)
    return fresh.double()


def test_the_constant_comes_from_the_first_batch_alone():
    built = contract.loss("crd")
    assert built.z_student == built.z_teacher == -1
    contract.call(built, *batch())
    first = built.z_student.clone(), built.z_teacher.clone()
    assert all(z > 0 and not z.requires_grad for z in first)
    contract.call(built, *batch(seed=1))
    assert (built.z_student, built.z_teacher) == first


@pytest.mark.parametrize("index", [None, SUBSET])
def test_memories_move_half_way_and_stay_on_the_sphere(index):
    student, teacher, goal = batch(among=index)
    numbers = torch.arange(contract.NUM_SAMPLES) if index is None else index
    place = {n: i for i, n in enumerate(numbers.tolist())}
    built = build(index, momentum=0.75)
    before = built.memory_student.clone(), built.memory_teacher.clone()
    weight = torch.tensor([1.0, 0, 1, 1, 0.5, 0], dtype=torch.float64)
    contract.call(built, student, teacher, goal, weight)
    for memory, old, layer, outputs in (
        (built.memory_student, before[0], built.embed_student, student),
        (built.memory_teacher, before[1], built.embed_teacher, teacher),
    ):
        expected = old.clone()
        for i, sample in enumerate(goal.index.tolist()):
            if weight[i] > 0:  # a removed row is not remembered
                moved = 0.75 * old[place[sample]] + 0.25 * embedded(layer, outputs)[i].detach()
                expected[place[sample]] = moved / moved.norm()
        torch.testing.assert_close(memory, expected)
        torch.testing.assert_close(memory.norm(dim=1), torch.ones(len(numbers), dtype=torch.float64))


def test_rows_that_count_for_nothing_may_hold_anything():
    """Nor does the constant Z know of them."""
    student, teacher, goal = batch()
    weight = torch.tensor([1.0, 0, 2, 0.5, 0, 1], dtype=torch.float64)
    clean = contract.call(build(), student, teacher, goal, weight)
    student.features[PENULTIMATE][1] = math.nan
    teacher.features[PENULTIMATE][4] = math.inf
    student, (*_, leaf) = contract.leaves(student)
    built = build()
    value = contract.call(built, student, teacher, goal, weight)
    torch.testing.assert_close(value, clean)
    assert torch.autograd.grad(value, leaf)[0].isfinite().all()
    assert all(buffer.isfinite().all() for buffer in built.buffers())


def test_a_removed_view_does_not_undo_what_a_counted_one_leaves():
    """Both show one sample: its memory moves, wherever the removed row stands."""
    student, teacher, goal = batch()
    for weight in ([1.0, 0, 1, 1, 1, 1], [0.0, 1, 1, 1, 1, 1]):
        index = goal.index.clone()
        index[0] = index[1]
        built = contract.loss("crd")
        before = built.memory_student[index[0]].clone()
        contract.call(built, student, teacher, Target(goal.label, index=index), torch.tensor(weight).double())
        assert not torch.equal(built.memory_student[index[0]], before)


def test_a_row_without_a_label_and_without_a_memory_adds_nothing():
    """An unlabelled image beside the training set: the value is that of the other rows, by their share."""
    student, teacher, goal = batch()
    beyond = Target(goal.label.index_fill(0, torch.tensor([2, 4]), UNLABELLED), index=goal.index.clone())
    beyond.index[[2, 4]] = 1000
    keep = [0, 1, 3, 5]
    whole, alone = contract.loss("crd"), contract.loss("crd")
    found = contract.call(whole, student, teacher, beyond)
    rest = contract.call(
        alone,
        *(Outputs(o.logits[keep], {k: v[keep] for k, v in o.features.items()}) for o in (student, teacher)),
        Target(goal.label[keep], index=goal.index[keep]),
    )
    torch.testing.assert_close(found, rest * 4 / 6)
    torch.testing.assert_close(whole.memory_student, alone.memory_student)
    torch.testing.assert_close(whole.z_student, alone.z_student)


def test_a_batch_without_any_memory_has_no_gradient():
    built = contract.loss("crd")
    student, teacher, goal = batch()
    nothing = Target(torch.full((6,), UNLABELLED), index=goal.index + 1000)
    feature = student.features[PENULTIMATE].requires_grad_()
    value = contract.call(built, student, teacher, nothing)
    assert value == 0
    assert (torch.autograd.grad(value, feature)[0] == 0).all()
    assert built.z_student < 0  # not estimated yet
    assert contract.call(built, student, teacher, goal).isfinite()
    assert built.z_student > 0


def test_is_resumed_through_its_state():
    for index, label in ((None, LABEL), (SUBSET, LABEL[SUBSET])):
        whole, first = build(index, label), build(index, label)
        for loss in (whole, first):
            contract.call(loss, *batch(among=index))
        resumed = build(index, label)
        resumed.load_state_dict(first.state_dict())
        for seed in (1, 2):
            own = [contract.call(loss, *batch(seed=seed, among=index)) for loss in (resumed, whole)]
            torch.testing.assert_close(own[0], own[1], rtol=0, atol=0)


def test_errors():
    student, teacher, goal = batch()
    with pytest.raises(ValueError, match=r"crd: needs its memories, got none; call objective.setup"):
        CRD()(student, teacher, goal)
    with pytest.raises(ValueError, match=r"crd: needs each sample's number .* Target\(label, index=...\)"):
        contract.loss("crd")(student, teacher, Target(goal.label))
    with pytest.raises(ValueError, match=r"crd: needs the teacher's features\['penultimate'\], got none"):
        contract.loss("crd")(student, Outputs(teacher.logits), goal)
    with pytest.raises(ValueError, match="crd: temperature needs a positive number"):
        CRD(temperature=-1.0)


@pytest.mark.parametrize(
    "given, message",
    [
        (
            {"index": SUBSET, "label": LABEL},
            "one label for each of 11 training samples, got 40; give the labels in",
        ),
        (
            {"label": LABEL[:7]},
            "one label for each of 40 training samples, got 7; give the labels in the order",
        ),
        (
            {"index": SUBSET + 30},
            "numbers of training samples in 0..39, got 30 to 69; num_samples is how many",
        ),
        (
            {"index": SUBSET - 1},
            "numbers of training samples in 0..39, got -1 to 38; num_samples is how many",
        ),
        ({"index": SUBSET[:0]}, "numbers of training samples in 0..39, got none; num_samples is how many"),
        (
            {"index": SUBSET.clamp(max=31)},
            "each training sample once, got 11 numbers of 10 samples; take repetitions",
        ),
    ],
)
def test_what_setup_is_told_is_checked(given, message):
    student, teacher, _ = batch()
    with pytest.raises(ValueError, match=f"setup: needs {message}"):
        Objective("kd").setup(student, teacher, num_samples=40, **given)
