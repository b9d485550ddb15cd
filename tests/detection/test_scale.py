"""Multi-scale training: the sizes that student and teacher resize a step to."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from outgrow.detection import Detect, FrozenDetector, create_detector
from outgrow.detection.scale import resized
from outgrow.training.config import build_config

from .scenes import CLASSES, TINY, scenes


def detector(size):
    return create_detector(TINY.replace("size=64", f"size={size}"), CLASSES)


def sizes_of(net):
    transform = net.net.transform
    return transform.min_size, transform.max_size


def test_both_are_resized_by_one_factor_and_then_back():
    student, teacher = detector(64), detector(96)
    before = sizes_of(student), sizes_of(teacher)
    with resized(nn.Sequential(student), FrozenDetector(teacher, CLASSES), 128):
        assert sizes_of(student) == ((128,), round(before[0][1] * 2))
        assert sizes_of(teacher) == ((192,), round(before[1][1] * 2))
    assert (sizes_of(student), sizes_of(teacher)) == before
    with pytest.raises(KeyError), resized(student, teacher, 128):
        raise KeyError
    with resized(student, teacher, None):
        assert (sizes_of(student), sizes_of(teacher)) == before


def test_a_step_sees_its_size():
    torch.manual_seed(0)
    student, teacher = detector(64).train(), FrozenDetector(detector(64), CLASSES)
    batch = scenes()
    maps = {}
    for side in (None, 64, 128):
        lesson = Detect()(student, teacher, replace(batch, short_side=side))
        assert lesson.student.features["p4"].shape[2:] == lesson.teacher.features["p4"].shape[2:]
        maps[side] = lesson.student.features["p4"].shape[2:]
    assert maps[None] == maps[64]
    assert maps[128] == tuple(2 * side for side in maps[64])
    assert len(student.detect(batch.images)) == len(batch.images)  # evaluation: its own size


def test_a_network_without_a_size_is_refused():
    with (
        pytest.raises(ValueError, match=r"data\.short_sides: needs .*, got Linear; leave"),
        resized(nn.Linear(2, 2), nn.Identity(), 64),
    ):
        pass


@pytest.mark.parametrize(
    "given, sides",
    [("480-800", tuple(range(480, 801, 32))), ([64, 96], (64, 96)), (320, (320,)), ([], ())],
)
def test_sides_are_a_list_or_a_range(given, sides):
    assert build_config({"data": {"short_sides": given}}).data.short_sides == sides


@pytest.mark.parametrize("given", ["800-480", "large", "480-", [0], [16, 64]])
def test_other_sides_are_refused(given):
    with pytest.raises(ValueError, match=r"short_sides: needs short sides .*, got .*; write such as 480-800"):
        build_config({"data": {"short_sides": given}})
