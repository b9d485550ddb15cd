"""``standardize``: rows of equal logits, in a precision in which their mean is not quite their value."""

import pytest
import torch

from outgrow.losses.normkd import normkd_loss
from outgrow.losses.standardize import Standardize, standardize_logits
from tests import contract
from tests.reference import losses as reference

CLASSES = [1, 2, 3, 5, 7, 10, 17, 33, 100, 101, 257, 365, 1000, 1001, 4096, 10_000, 21_843]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def constants(number=200):
    drawn = 10 * torch.randn(number, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.cat([drawn, torch.tensor([0.0, 0.1, -0.3, 1e-4, 1e3, 3e4, -7.7], dtype=torch.float64)])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", CLASSES)
def test_a_constant_row_is_zeros_with_a_zero_gradient(classes, dtype):
    rows = constants().to(dtype)[:, None].expand(-1, classes).clone().requires_grad_()
    value = standardize_logits(rows)
    assert (value == 0).all()
    upstream = torch.linspace(-1, 2, classes).to(value.dtype).expand_as(value)
    assert (torch.autograd.grad(value, rows, upstream)[0] == 0).all()


@pytest.mark.parametrize("classes", [2, 7, 100, 1001])
def test_a_row_that_varies_by_a_rounding_is_constant_too(classes):
    """Dividing by it would give gradients of 1e7 to a row that says nothing."""
    value = constants().float()
    value = value[value.abs() > 1e-3]
    rows = value[:, None].repeat(1, classes)
    rows[:, -1] = torch.nextafter(value, value.new_full((), float("inf")))
    rows.requires_grad_()
    made = standardize_logits(rows)
    assert (made == 0).all()
    assert (torch.autograd.grad(made[:, 0].sum(), rows)[0] == 0).all()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("offset", [0.0, -3.0, 100.0])
@pytest.mark.parametrize("classes", [2, 5, 100, 1001])
def test_rows_that_vary_are_the_literal_reference(classes, offset, scale):
    rows = (contract.outputs(20, classes, scale=scale).logits + offset * scale).requires_grad_()
    expected = torch.stack([reference.zscore(row) for row in rows])
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    theirs = torch.autograd.grad(expected, rows, upstream)[0]
    for dtype, rtol in ((torch.float64, 1e-9), (torch.float32, 1e-3)):
        leaf = rows.detach().to(dtype).requires_grad_()
        value = standardize_logits(leaf)
        torch.testing.assert_close(value.double(), expected.detach(), rtol=rtol, atol=rtol)
        (ours,) = torch.autograd.grad(value, leaf, upstream.to(dtype))
        torch.testing.assert_close(ours.double() * scale, theirs * scale, rtol=10 * rtol, atol=30 * rtol)


@pytest.mark.parametrize("side", ["student", "teacher", "both"])
@pytest.mark.parametrize("classes", CLASSES[1:])
def test_constant_rows_in_the_losses(classes, side):
    """Of either network, under ``standardize`` and ``normkd``: finite and small; nothing to say, nothing said."""
    rows = constants().float()[:, None].expand(-1, classes).contiguous()
    other = contract.outputs(len(rows), classes, dtype=torch.float32).logits
    student = (other if side == "teacher" else rows).clone().requires_grad_()
    teacher = other if side == "student" else rows
    label = torch.zeros(len(rows), dtype=torch.long)
    for value in (Standardize()(student, teacher, label), normkd_loss(student, teacher)):
        assert value.isfinite().all()
        gradient = torch.autograd.grad(value.sum(), student)[0]
        assert gradient.abs().max() < 100
        if side == "both":
            assert (gradient == 0).all()


@pytest.mark.parametrize("size", [10.0**-k for k in range(0, 46)])
def test_tiny_logits_have_finite_gradients(size):
    student = (size * contract.outputs(6, scale=1.0).logits).float().requires_grad_()
    teacher = contract.outputs(6, seed=5).logits.float()
    label = torch.zeros(6, dtype=torch.long)
    for other in (teacher, size * teacher):
        for value in (Standardize()(student, other, label), normkd_loss(student, other)):
            assert value.isfinite().all()
            assert torch.autograd.grad(value.sum(), student)[0].isfinite().all()
