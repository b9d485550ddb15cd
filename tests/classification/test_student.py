"""Modules that are passed from Python."""

import pytest
import torch
from torch import nn

from outgrow.run import distill

CONFIG = {
    "data": {"source": "digits", "train_rows": 64, "workers": 0},
    "train": {"epochs": 1, "batch_size": 32},
}
ALONE = CONFIG | {"method": {"preset": "none"}}


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 6 * 6, 10))


class Grey(nn.Module):
    """Changes the channels itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(images.mean(1, keepdim=True)).mean((2, 3)))


@pytest.mark.parametrize("who", ["student", "teacher"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.bfloat16])
def test_parameters_must_be_float32(who, dtype):
    modules = {"student": net(), "teacher": net()}
    modules[who].to(dtype)
    with pytest.raises(
        ValueError, match=rf"{who}: needs .* float32 parameters, got {dtype}; call \.float\(\)"
    ):
        distill(CONFIG, **modules)


def test_a_frozen_student_is_refused():
    with pytest.raises(ValueError, match=r"--student student: needs parameters that require grad, got none"):
        distill(CONFIG, teacher=net(), student=net().requires_grad_(False))


def test_teacher_and_student_are_two():
    """A teacher is frozen, and so would be its student."""
    one = net()
    with pytest.raises(ValueError, match="needs a teacher and a student of their own, got two that share"):
        distill(CONFIG | {"method": {"preset": "kd"}}, teacher=one, student=one)


def test_a_student_may_be_frozen_in_part():
    student = net()
    student[0].requires_grad_(False)
    before = student[0].weight.clone()
    distill(ALONE, student=student)
    assert student[0].weight.equal(before)


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_a_net_for_greyscale_images_is_refused(who):
    grey = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    modules = {"student": net(), "teacher": net(), who: grey}
    with pytest.raises(ValueError, match=rf"{who}: needs a net for images with 3 channels, got one for 1"):
        distill(CONFIG, **modules)
    assert all(module.training for module in grey.modules())


def test_a_net_that_takes_the_mean_of_the_channels_is_not():
    distill(ALONE, student=Grey())
