"""On a CUDA device that is not there: nothing looks at a value, and results stay where they are.

A fake tensor has a shape, a type and a device, and refuses to tell a number: what would make a real step
wait for its device is an error here. Backward passes need the device (tests/test_gpu.py).
"""

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import outgrow
from outgrow.knowledge import RULES
from outgrow.losses.kd_fast import eager
from tests import contract


@pytest.fixture
def fake():
    with FakeTensorMode() as mode:
        yield mode


def batch(rows=64, classes=11):
    student, teacher = (torch.randn(rows, classes, device="cuda") for _ in range(2))
    return student.requires_grad_(), teacher, torch.randint(classes, (rows,), device="cuda")


def on_device(result):
    return {
        value.device.type for value in (result.total, *result.terms.values(), *result.stats.values())
    } == {"cuda"}


def test_the_trap_is_armed(fake):
    with pytest.raises(DataDependentOutputException):
        batch()[0].sum().item()


@pytest.mark.parametrize("preset", ["paper", "released", "kd", "drop", "outgrow"])
@pytest.mark.parametrize("rule", sorted({rule().name for rule in RULES.values()}))
@pytest.mark.parametrize("fast", [True, False])
def test_a_step_does_not_look(fake, preset, rule, fast):
    student, teacher, label = batch()
    rectify, objective = outgrow.preset(preset, rule=rule)
    objective.fast = fast
    assert on_device(objective(student, rectify(teacher, label), label, 0.3))


@pytest.mark.parametrize("rule", sorted({rule().name for rule in RULES.values()} - {"drop"}))
@pytest.mark.parametrize("normalize", ["rows", "subset"])
def test_the_closed_form_of_a_device_is_taken(fake, rule, normalize, monkeypatch):
    answers, own = [], eager.closed_form
    monkeypatch.setattr(eager, "closed_form", lambda *x: answers.append(own(*x)) or answers[-1])
    student, teacher, label = batch()
    knowledge = outgrow.Rectifier(rule)(teacher, label)
    result = outgrow.Objective("kd", normalize=normalize, schedule="linear")(student, knowledge, label, 0.3)
    assert on_device(result)
    (answer,) = answers
    assert (answer.gradient.shape, answer.gradient.device.type) == (student.shape, "cuda")


@pytest.mark.parametrize("name", list(outgrow.losses.LOSSES))
def test_no_loss_looks(name):
    def move(outputs):
        return outgrow.Outputs(outputs.logits.cuda(), {k: v.cuda() for k, v in outputs.features.items()})

    built = contract.loss(name, torch.float32)
    with FakeTensorMode():
        for module in built.modules():
            for held in (module._parameters, module._buffers):
                held.update({key: pretend(value) for key, value in held.items() if value is not None})
        goal = contract.target(6)
        goal = outgrow.Target(goal.label.cuda(), index=None if goal.index is None else goal.index.cuda())
        outputs = [move(contract.outputs(6, seed=seed, dtype=torch.float32)) for seed in (0, 5)]
        assert contract.call(built, *outputs, goal).device.type == "cuda"


def pretend(tensor):
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda", requires_grad=tensor.requires_grad)
