"""``crd``: contrastive representation distillation, with its memories."""

import math

import pytest
import torch

from outgrow import PENULTIMATE, Outputs, Target
from outgrow.losses import Fixture
from outgrow.losses.crd import CRD, crd_loss
from tests import contract
from tests.reference import losses as reference

LABEL = torch.randint(
    5, (contract.NUM_SAMPLES,), generator=torch.Generator().manual_seed(3)
)  # as contract.loss


def batch(rows=6, seed=0):
    index = torch.randperm(contract.NUM_SAMPLES, generator=torch.Generator().manual_seed(seed + 20))[:rows]
    return (
        contract.outputs(rows, seed=seed),
        contract.outputs(rows, seed=seed + 5),
        Target(LABEL[index], index=index),
    )


def embedded(layer, outputs):
    rows = outputs.features[PENULTIMATE] @ layer.weight.T + layer.bias
    return torch.stack([row / (row * row).sum().sqrt() for row in rows])


def literal(built, student, teacher, goal):
    """The loss by equations 17 to 19, sample by sample, with the samples that a call after seed 7 draws."""
    torch.manual_seed(7)
    drawn = built._draw(goal).tolist()
    own, other = embedded(built.embed_student, student), embedded(built.embed_teacher, teacher)
    total = 0.0
    for anchors, memory in ((own, built.memory_teacher.clone()), (other, built.memory_student.clone())):
        scores = [
            (anchor @ memory[j] / 0.07).exp() for anchor, row in zip(anchors, drawn, strict=True) for j in row
        ]
        z = (sum(scores) / len(scores)).detach() * contract.NUM_SAMPLES  # from this, the first batch
        for anchor, samples in zip(anchors, drawn, strict=True):
            total = total + reference.crd_side(anchor, memory, samples, z, contract.NUM_SAMPLES, 0.07)
    return total / len(own)


def test_scores_by_hand():
    value = crd_loss(torch.tensor([2.0]), torch.tensor([[1.0, 3.0]]), num_samples=4)  # noise 2 / 4
    expected = -math.log(2 / 2.5) - math.log(0.5 / 1.5) - math.log(0.5 / 3.5)
    torch.testing.assert_close(value, torch.tensor([expected]))


def test_value_and_gradient_of_the_literal_reference():
    student, teacher, goal = batch()
    student, (*_, leaf) = contract.leaves(student)
    built = contract.loss("crd")
    inputs = [leaf, *built.parameters()]
    expected = literal(built, student, teacher, goal)
    value = contract.call(built, student, teacher, goal)
    torch.testing.assert_close(value, expected, rtol=1e-7, atol=1e-9)
    for ours, theirs in zip(*(torch.autograd.grad(1.7 * v, inputs) for v in (value, expected)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


class TestNegatives:
    def test_are_never_of_the_rows_own_class(self):
        built = contract.loss("crd", negatives=500)
        goal = Target(LABEL, index=torch.arange(contract.NUM_SAMPLES))
        drawn = built._draw(goal)
        assert drawn.shape == (contract.NUM_SAMPLES, 501)
        assert (drawn[:, 0] == goal.index).all()
        assert (LABEL[drawn[:, 1:]] != LABEL[:, None]).all()
        for label in range(5):  # and every sample of another class comes up
            found = drawn[label == LABEL][:, 1:].unique().tolist()
            assert found == (label != LABEL).nonzero()[:, 0].tolist()

    def test_are_drawn_among_all_without_labels(self):
        built = CRD(dim=4, negatives=2000)
        built.setup(Fixture(contract.outputs(2), contract.outputs(2), contract.NUM_SAMPLES))
        drawn = built._draw(Target(torch.zeros(2, dtype=torch.long), index=torch.tensor([3, 9])))
        assert drawn[:, 1:].unique().tolist() == list(range(contract.NUM_SAMPLES))

    def test_uniformly(self):
        built = contract.loss("crd", negatives=20_000)
        drawn = built._draw(Target(LABEL[:1], index=torch.tensor([0])))[0, 1:]
        others = int((LABEL[0] != LABEL).sum())
        share = drawn.bincount(minlength=contract.NUM_SAMPLES)[LABEL[0] != LABEL] / 20_000
        torch.testing.assert_close(share, torch.full((others,), 1 / others), rtol=0.2, atol=0)


def test_the_constant_comes_from_the_first_batch_alone():
    built = contract.loss("crd")
    assert built.z_student == built.z_teacher == -1
    contract.call(built, *batch())
    first = built.z_student.clone(), built.z_teacher.clone()
    assert all(z > 0 and not z.requires_grad for z in first)
    contract.call(built, *batch(seed=1))
    assert (built.z_student, built.z_teacher) == first


def test_memories_move_half_way_and_stay_on_the_sphere():
    student, teacher, goal = batch()
    built = contract.loss("crd", momentum=0.75)
    before = built.memory_student.clone(), built.memory_teacher.clone()
    weight = torch.tensor([1.0, 0, 1, 1, 0.5, 0], dtype=torch.float64)
    contract.call(built, student, teacher, goal, weight)
    for memory, old, layer, outputs in (
        (built.memory_student, before[0], built.embed_student, student),
        (built.memory_teacher, before[1], built.embed_teacher, teacher),
    ):
        moved = 0.75 * old[goal.index] + 0.25 * embedded(layer, outputs).detach()
        moved = moved / moved.norm(dim=1, keepdim=True)
        expected = old.clone()
        for i, sample in enumerate(goal.index.tolist()):
            if weight[i] > 0:  # a removed row is not remembered
                expected[sample] = moved[i]
        torch.testing.assert_close(memory, expected)
        torch.testing.assert_close(memory.norm(dim=1), torch.ones(contract.NUM_SAMPLES, dtype=torch.float64))


def test_is_resumed_through_its_state():
    whole, first = contract.loss("crd"), contract.loss("crd")
    for loss in (whole, first):
        contract.call(loss, *batch())
    resumed = CRD(dim=8, negatives=16)
    resumed.setup(Fixture(contract.outputs(2), contract.outputs(2), contract.NUM_SAMPLES, LABEL))
    resumed.double().load_state_dict(first.state_dict())
    for seed in (1, 2):
        torch.testing.assert_close(
            contract.call(resumed, *batch(seed=seed)), contract.call(whole, *batch(seed=seed)), rtol=0, atol=0
        )


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
