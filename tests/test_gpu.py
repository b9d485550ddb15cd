"""On a CUDA device: the same numbers as on the CPU, no host synchronisation, and the guard's flag."""

import copy

import pytest
import torch
from torch import nn

import outgrow
from outgrow.knowledge import RULES
from tests import contract

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def batch():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(64, 11, generator=generator) for _ in range(2))
    return student, teacher, torch.randint(11, (64,), generator=generator)


@pytest.mark.parametrize("preset", ["paper", "released", "kd", "drop"])
@pytest.mark.parametrize("rule", sorted({rule().name for rule in RULES.values()}))
def test_values_and_gradients_are_the_cpus(preset, rule):
    found = []
    for device in ("cpu", "cuda"):
        student, teacher, label = (x.to(device) for x in batch())
        student.requires_grad_()
        rectify, objective = outgrow.preset(preset, rule=rule)
        result = objective(student, rectify(teacher, label), label, 0.3)
        found.append((result.total.cpu(), torch.autograd.grad(result.total, student)[0].cpu()))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


def test_a_step_does_not_wait_for_the_device():
    student, teacher, label = (x.cuda() for x in batch())
    student.requires_grad_()
    rectify, objective = outgrow.preset("paper")
    objective(student, rectify(teacher, label), label, 0.3).total.backward()  # warm
    torch.cuda.set_sync_debug_mode("error")
    try:
        objective(student, rectify(teacher, label), label, 0.3).total.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("fast", [True, "compiled", False])
@pytest.mark.parametrize("may_ignore", [True, False])
@pytest.mark.parametrize("normalize", ["rows", "subset"])
@pytest.mark.parametrize("rule", ["identity", "drop", "pair", "swap"])
def test_rows_without_a_label_are_the_cpus(rule, normalize, may_ignore, fast):
    """Nobody looks whether there are any, and they are no class all the same."""
    found = []
    for device, way in (("cpu", False), ("cuda", fast)):
        student, teacher, label = batch()
        label[::5], label[::7] = outgrow.UNLABELLED, outgrow.IGNORE
        student, teacher, label = (x.to(device) for x in (student, teacher, label))
        student.requires_grad_()
        target = outgrow.Target(label, may_ignore=may_ignore)
        objective = outgrow.Objective("kd", schedule="linear_keep", normalize=normalize, fast=way)
        result = objective(student, outgrow.Rectifier(rule)(teacher, target), target, 0.3)
        gradient = torch.autograd.grad(result.total, student)[0]
        found.append((result.total.cpu(), gradient.cpu(), result.stats["unlabelled"].cpu()))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


def test_a_sample_that_crd_was_not_told_of_is_not_a_number():
    """Refused on the CPU; here, where looking would stall the step, its value is NaN, and moves no memory."""
    shown = torch.arange(0, 40, 2)
    move = lambda o: outgrow.Outputs(o.logits.cuda(), {k: v.cuda() for k, v in o.features.items()})  # noqa: E731
    outputs = [move(contract.outputs(4, seed=seed, dtype=torch.float32)) for seed in (0, 5)]
    objective = outgrow.Objective("crd(8, 16)")
    objective.setup(*outputs, num_samples=40, index=shown)
    before = objective.crd.memory_student.clone()
    for index, weight, finite in (([0, 2, 4, 8], [1, 1, 1, 1], True), ([0, 2, 5, 8], [1, 1, 1, 1], False)):
        goal = outgrow.Target(
            torch.zeros(4, dtype=torch.long, device="cuda"), torch.tensor(index, device="cuda")
        )
        value = objective.crd(*outputs, goal, weight=torch.tensor(weight, device="cuda").float())
        assert bool(value.isfinite()) == finite
    moved = (objective.crd.memory_student != before).any(dim=1).nonzero()[:, 0]
    assert moved.tolist() == [0, 1, 2, 4]
    absent = torch.tensor([1.0, 1, 0, 1], device="cuda")
    assert objective.crd(*outputs, goal, weight=absent).isfinite()


@pytest.mark.parametrize("name", list(outgrow.losses.LOSSES))
def test_every_loss_runs_there(name):
    goal = contract.target(6)
    move = lambda o: outgrow.Outputs(o.logits.cuda(), {k: v.cuda() for k, v in o.features.items()})  # noqa: E731
    goal = outgrow.Target(goal.label.cuda(), index=None if goal.index is None else goal.index.cuda())
    built = contract.loss(name, torch.float32).cuda()
    student = move(contract.outputs(6, dtype=torch.float32))
    value = contract.call(built, student, move(contract.outputs(6, seed=5, dtype=torch.float32)), goal)
    assert value.isfinite().all()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_step_that_is_not_finite_is_skipped_on_the_device(optimizer):
    """The fused optimiser takes no step; the host hears of it within a few."""
    from outgrow.training.config import TrainConfig
    from outgrow.training.guard import READ_EVERY, Guard, NonFiniteLoss
    from outgrow.training.optimizer import make_optimizer

    net = nn.Linear(3, 2).cuda()
    fused = make_optimizer(TrainConfig(optimizer=optimizer, lr=0.1), net, nn.Module())
    guard = Guard(fused, torch.device("cuda"), scaled=False)
    before = net.weight.detach().clone()
    batch = type("Batch", (), {"target": outgrow.Target(torch.tensor([0]), index=torch.tensor([7]))})()

    def train():
        for step in range(READ_EVERY):
            total = net(torch.full((1, 3), float("nan"), device="cuda")).sum()
            guard.before_step(outgrow.ObjectiveResult(total, {"task": total.detach()}, {}), batch, 0, step)
            total.backward()
            fused.step()
            fused.zero_grad()

    with pytest.raises(NonFiniteLoss, match=r"step 1 .*Its samples: \[7\]"):
        train()
    assert torch.equal(net.weight, before)


def test_a_detectors_step_is_the_cpus():
    """The teacher's answer about the same proposals, the corrected rows and the box term."""
    from outgrow.detection.families.detector import FrozenDetector, Proposals
    from outgrow.detection.lesson import Balanced, target_of
    from tests.detection.scenes import CLASSES, detector, scenes

    batch, student = scenes(), detector(0).train()
    proposals = student(batch.images, batch.truth).proposals
    found = []
    for device in ("cpu", "cuda"):
        images = [image.to(device) for image in batch.images]
        truth = [t.to(torch.device(device)) for t in batch.truth]
        moved = Proposals(
            tuple(boxes.to(device) for boxes in proposals.boxes),
            proposals.label.to(device),
            proposals.truth.to(device),
        )
        said = [FrozenDetector(detector(seed), CLASSES).to(device)(images, moved) for seed in (0, 1)]
        target = target_of(moved, truth)
        rectify, objective = outgrow.preset("kd", loss="kd + box", rule="pair")
        result = objective(said[0], Balanced(rectify)(said[1], target), target, 0.3, said[0].logits.sum())
        found.append({name: value.cpu() for name, value in result.terms.items()})
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-4)


def test_a_compiled_students_steps_are_the_plain_ones():
    """Through CUDA graphs: the same losses over steps, since nothing of the last step is read in the next."""
    from outgrow.models import create_model
    from outgrow.models.compiled import Compiled

    torch.manual_seed(0)
    plain = outgrow.Taps(create_model("cifar/resnet8", 10).cuda().train(), ["layer1"])
    other = copy.deepcopy(plain)
    found = []
    for student in (plain, Compiled(other, graphs=True)):
        torch.manual_seed(1)
        optimizer = torch.optim.SGD(student.parameters(), lr=0.05, fused=True)
        rectify, objective = outgrow.preset("paper")
        losses = []
        for _ in range(5):
            images, teacher = torch.rand(16, 3, 32, 32).cuda(), torch.randn(16, 10).cuda()
            label = torch.randint(10, (16,)).cuda()
            said = student(images)
            total = (
                objective(said, rectify(teacher, label), label, 0.3).total
                + said.features["layer1"].square().mean()
            )
            total.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(total.detach())
        found.append(torch.stack(losses).cpu())
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-3)
