"""What may be handed in where Outputs and Target are wanted."""

import warnings

import pytest
import torch

import outgrow
from outgrow.outputs import IGNORE, as_target, flatten_rows


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.bool])
def test_labels_of_other_types_are_labels(dtype):
    student, teacher = torch.randn(8, 3, requires_grad=True), torch.randn(8, 3)
    label = torch.tensor([0, 1, 1, 0, 0, 1, 0, 1])
    results = []
    for given in (label, label.to(dtype)):
        rectify, objective = outgrow.preset("paper")
        results.append(objective(student, rectify(teacher, given), given, 0.3).total)
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    assert as_target(label.to(dtype)).label.dtype == torch.int64


def test_labels_that_are_no_classes_are_refused():
    with pytest.raises(ValueError, match="needs one integer class per row"):
        as_target(torch.rand(4))


@pytest.mark.parametrize("whose", ["teacher", "student"])
def test_probabilities_are_noticed_once(whose):
    rectify, objective = outgrow.preset("kd")
    label = torch.tensor([0, 1, 2, 3])
    given = {"teacher": torch.randn(4, 10), "student": torch.randn(4, 10)}
    given[whose] = given[whose].softmax(1)
    student = given["student"].requires_grad_()
    with pytest.warns(
        UserWarning, match=f"{whose}: needs logits, got rows .* probabilities; remove the softmax"
    ):
        objective(student, rectify(given["teacher"], label), label, 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        objective(student, rectify(given["teacher"], label), label, 0.0)


def test_logits_that_look_a_little_like_probabilities_are_not():
    label = torch.tensor([0, 1])
    for teacher in (torch.eye(2) * 1.5, torch.tensor([[0.5, 0.5], [2.0, -1.0]]), torch.zeros(2, 2)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            outgrow.rectify(teacher, label)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_masks_of_any_whole_numbers_have_rows_to_ignore(dtype):
    """Segmentation masks are bytes, and 255 is what they ignore."""
    label = torch.tensor([[[0, 255], [1, 255]]]).to(dtype)
    _, target = flatten_rows(torch.zeros(1, 3, 2, 2), label, ignore_index=255)
    assert target.label.tolist() == [0, IGNORE, 1, IGNORE]
    assert target.takes_part.tolist() == [True, False, True, False]
