"""Teachers stay frozen, taps leave nothing behind."""

import math

import jaxtyping
import pytest
import torch
from torch import nn

from outgrow import PENULTIMATE, Taps, Teacher
from outgrow.teacher import GroupedClasses, NoTeacher, SelectedClasses
from outgrow.teacher.cache import digest
from outgrow.teacher.teacher import grouped


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(4, 5),
    )


def test_a_teacher_never_trains():
    model = net()
    teacher = Teacher(model)
    student = nn.Module()
    student.teacher = teacher
    before = {k: v.clone() for k, v in model.state_dict().items()}
    images = torch.randn(8, 3, 8, 8)
    first = teacher(images).logits
    student.train()
    model.train()  # behind the teacher's back
    assert torch.equal(teacher(images).logits, first)
    assert not any(module.training for module in model.modules())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not first.requires_grad
    assert not any(p.requires_grad for p in teacher.parameters())


def test_taps_return_features_and_leave_no_hook():
    model = net()
    outputs = Taps(model, ["2", PENULTIMATE])(torch.randn(2, 3, 8, 8))
    assert {k: tuple(v.shape) for k, v in outputs.features.items()} == {
        "2": (2, 4, 6, 6),
        PENULTIMATE: (2, 4),
    }
    assert outputs.features["2"].requires_grad
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_hooks_go_when_the_model_fails():
    model = net()
    with pytest.raises(RuntimeError):
        Taps(model, ["2"])(torch.randn(2, 7, 8, 8))
    assert not any(m._forward_hooks for m in model.modules())


def test_a_path_that_is_not_there():
    with pytest.raises(
        ValueError, match=r"needs a module path of Sequential, got 'layer9'; use one of 0, 1, 2"
    ):
        Taps(net(), ["layer9"])


def test_an_output_overwritten_in_place():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4 * 36, 5))
    with pytest.raises(ValueError, match="overwrote in place; tap that module instead"):
        Taps(model, ["0"])(torch.randn(2, 3, 8, 8))
    Taps(model, ["1"])(torch.randn(2, 3, 8, 8))


def test_features_under_inference_mode():
    teacher, images = Teacher(net(), taps=["0", PENULTIMATE]), torch.rand(2, 3, 8, 8)
    with torch.inference_mode():
        features = teacher(images).features
    assert features.keys() == {"0", PENULTIMATE}
    for name, value in teacher(images).features.items():
        assert torch.equal(features[name], value)


def test_what_is_no_model_and_what_is_no_list_of_paths(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # types are checked in tests alone
    for make in (Taps, Teacher):
        with pytest.raises(ValueError, match=r"needs a torch\.nn\.Module, got function"):
            make(lambda images: images)
        with pytest.raises(
            ValueError, match=r"needs a list of paths, got 'penultimate'; pass \['penultimate'\]"
        ):
            make(net(), PENULTIMATE) if make is Taps else make(net(), taps=PENULTIMATE)


def test_hugging_face_outputs_and_other_returns():
    class Wrapped(nn.Module):
        def __init__(self, value):
            super().__init__()
            self.value = value

        def forward(self, images):
            return self.value

    class ModelOutput:
        logits = torch.zeros(2, 3)

    assert Taps(Wrapped(ModelOutput()))(torch.zeros(2, 3, 4, 4)).logits.shape == (2, 3)
    with pytest.raises(
        ValueError, match=r"Wrapped: needs logits .* got dict; if the model returns a dictionary"
    ):
        Taps(Wrapped({"logits": 1}))(torch.zeros(1))
    with pytest.raises(ValueError, match="flatten maps of logits"):
        Taps(Wrapped(torch.zeros(1, 2, 3)))(torch.zeros(1))


class TestGroupedClasses:
    GROUPS = ((4,), (0, 2, 3), (1, 5))

    def test_probabilities_add(self):
        """Against the literal sum: softmax, add, divide by the sum of all groups."""
        torch.manual_seed(0)
        logits = 5 * torch.randn(50, 7)  # class 6 is in no group
        found = GroupedClasses(Teacher(nn.Identity()), self.GROUPS)(logits).logits.softmax(1)
        for row, own in zip(found, logits.double().softmax(1), strict=True):
            sums = [sum(float(own[place]) for place in group) for group in self.GROUPS]
            expected = torch.tensor([value / sum(sums) for value in sums])
            assert torch.allclose(row, expected, atol=1e-6)

    def test_a_group_of_one_keeps_its_logit_bit_for_bit(self):
        logits = torch.randn(9, 6)
        groups = [[place] for place in (3, 1, 5)]
        assert torch.equal(grouped(logits, groups), logits[:, [3, 1, 5]])

    def test_far_and_missing_logits(self):
        low = -torch.inf
        logits = torch.tensor([[1e4, 1e4, -1e4, 0.0], [low, low, low, 1.0]])
        found = grouped(logits, [[0, 1], [2, 3]])
        assert torch.allclose(found, torch.tensor([[1e4 + math.log(2), 0.0], [low, 1.0]]))

    def test_half_precision_is_summed_in_single(self):
        logits = torch.randn(9, 6).bfloat16()
        assert torch.equal(grouped(logits, self.GROUPS), grouped(logits.float(), self.GROUPS))

    def test_other_groups_have_another_digest(self):
        made = [GroupedClasses(nn.Identity(), groups) for groups in (self.GROUPS, ((4, 0), (2, 3), (1, 5)))]
        assert digest(made[0]) != digest(made[1])


def test_a_teacher_says_whether_its_logits_say_anything():
    assert not NoTeacher(2).gives_logits
    assert Teacher(nn.Linear(3, 2)).gives_logits
    assert not SelectedClasses(NoTeacher(2), [0]).gives_logits
    assert SelectedClasses(Teacher(nn.Linear(3, 2)), [0]).gives_logits
