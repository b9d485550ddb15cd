"""What may be handed in where Outputs and Target are wanted."""

import warnings

import jaxtyping
import pytest
import torch

import outgrow
from outgrow.outputs import IGNORE, Target, as_target, flatten_rows


@pytest.fixture
def as_installed(monkeypatch):
    """Without the types that are checked in tests alone, which would refuse the arguments first."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


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


@pytest.mark.usefixtures("as_installed")
@pytest.mark.parametrize(
    ("label", "advice"),
    [
        (torch.zeros(4, 1, dtype=torch.long), r"pass label\.flatten\(\)"),
        (torch.tensor(1), r"pass label\.flatten\(\)"),
        (torch.eye(4, dtype=torch.long), r"pass label\.argmax\(dim=1\)"),
        (torch.eye(4), "other soft labels are not supported"),
        (torch.zeros(2, 3, 3, dtype=torch.long), "flatten_rows"),
        ([0, 1], r"pass torch\.as_tensor\(\.\.\.\) of it"),
    ],
)
def test_what_to_do_with_other_labels_is_said(label, advice):
    with pytest.raises(ValueError, match=f"needs one integer class per row .*{advice}"):
        as_target(label)


@pytest.mark.usefixtures("as_installed")
@pytest.mark.parametrize("places", [(7,), (8, 9)])
def test_logits_with_the_classes_last_are_not_flattened(places):
    logits, label = torch.randn(2, *places, 5), torch.randint(5, (2, *places))
    with pytest.raises(ValueError, match=r"pass logits\.movedim\(-1, 1\)"):
        flatten_rows(logits, label)
    rows, target = flatten_rows(logits.movedim(-1, 1), label)
    assert torch.equal(rows.logits, logits.reshape(-1, 5))
    assert torch.equal(target.label, label.flatten())


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


@pytest.mark.parametrize("whose", ["teacher", "student"])
def test_what_a_sigmoid_has_made_is_noticed(whose):
    """The softmax of values in 0..1 is all but uniform: a teacher that was trained with one loss per class taught nothing."""
    rectify, objective = outgrow.preset("kd")
    label = torch.tensor([0, 1, 2, 3])
    given = {"teacher": torch.randn(4, 10), "student": torch.randn(4, 10)}
    given[whose] = given[whose].sigmoid()
    with pytest.warns(
        UserWarning, match=f"{whose}: needs logits, got values .* after a sigmoid; remove the sigmoid"
    ):
        objective(given["student"], rectify(given["teacher"], label), label, 0.0)


def test_a_network_of_one_output_for_two_classes_is_told_so():
    with pytest.raises(ValueError, match="give a network of two classes two outputs"):
        outgrow.rectify(torch.randn(3, 1), torch.tensor([0, 1, 0]))


def test_logits_that_look_a_little_like_probabilities_are_not():
    label = torch.tensor([0, 1])
    for teacher in (
        torch.eye(2) * 1.5,
        torch.tensor([[0.5, 0.5], [2.0, -1.0]]),
        torch.zeros(2, 2),
        torch.full((2, 2), 0.1),
    ):
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


@pytest.mark.usefixtures("as_installed")
@pytest.mark.parametrize("name", ["label", "partner", "index", "image"])
def test_fractions_are_no_labels(name):
    """They were cut off: 0.9 and 1.9 became the classes 0 and 1."""
    whole = torch.tensor([0, 1])
    fields = {"label": whole, "partner": whole, "mix": torch.rand(2), name: torch.tensor([0.9, 1.9])}
    with pytest.raises(ValueError, match=rf"^Target: {name} needs whole numbers, got torch.float32 of shape"):
        Target(**fields)


@pytest.mark.usefixtures("as_installed")
def test_soft_labels_and_lists_are_no_labels():
    with pytest.raises(
        ValueError, match=r"label needs whole numbers, got torch.float32 of shape \(8, 10\); .*mix"
    ):
        Target(torch.rand(8, 10).softmax(1))
    with pytest.raises(ValueError, match=r"label needs one class per row .*got shape \(8, 10\)"):
        Target(torch.zeros(8, 10, dtype=torch.int64))
    with pytest.raises(
        ValueError, match=r"label needs a tensor of whole numbers, got list; pass torch\.as_te"
    ):
        Target([1, 2])
    with pytest.raises(ValueError, match="label needs a tensor of whole numbers, got NoneType"):
        Target(None)


@pytest.mark.usefixtures("as_installed")
@pytest.mark.parametrize("wrong", [70.0, -0.5, 1.5, float("nan")])
def test_a_share_is_in_0_to_1(wrong):
    label = torch.tensor([0, 1, 2])
    message = rf"^Target: mix needs shares in \[0, 1\], got {wrong:g}; "
    with pytest.raises(ValueError, match=message):
        Target(label, partner=label, mix=wrong)
    with pytest.raises(ValueError, match=message):
        Target(label, partner=label, mix=torch.tensor([0.5, 1.0, wrong]))
    with pytest.raises(ValueError, match="mix needs a tensor of shares, got list"):
        Target(label, partner=label, mix=[wrong] * 3)


@pytest.mark.usefixtures("as_installed")
@pytest.mark.parametrize("share", [0.25, torch.tensor(0.25)])
def test_one_share_is_that_of_every_row(share):
    label = torch.tensor([0, 1, 2])
    target = Target(label, partner=label.flip(0), mix=share)
    assert target.mix.tolist() == [0.25] * 3
    assert target.rows(slice(1, 3)).mix.tolist() == [0.25] * 2


@pytest.mark.usefixtures("as_installed")
@pytest.mark.parametrize("name", ["partner", "mix", "index", "image"])
@pytest.mark.parametrize("length", [1, 2, 4])
def test_every_field_has_a_value_for_each_row(name, length):
    """One of length 1 was broadcast to all rows."""
    label = torch.tensor([0, 1, 2])
    fields = {"partner": label, "mix": torch.rand(3), name: torch.ones(length)}
    if name != "mix":
        fields[name] = fields[name].long()
    with pytest.raises(
        ValueError, match=rf"^Target: {name} needs one value for each of 3 rows, got shape \({length},\)"
    ):
        Target(label, **fields)


@pytest.mark.usefixtures("as_installed")
@pytest.mark.parametrize("shape", [(2, 8, 4), (4, 2, 8), (2, 32), (64,), (1, 4, 8)])
def test_a_map_of_labels_has_the_places_of_the_logits(shape):
    """Transposed, it has as many labels, each beside another's logits."""
    wanted = r"got logits of shape \(2, 5, 4, 8\) and labels of shape .*; give labels of shape \(2, 4, 8\)"
    with pytest.raises(ValueError, match=wanted):
        flatten_rows(torch.zeros(2, 5, 4, 8), torch.zeros(shape, dtype=torch.int64))


@pytest.mark.usefixtures("as_installed")
def test_masks_of_fractions_are_refused():
    with pytest.raises(ValueError, match=r"flatten_rows: label needs whole numbers, got torch\.float32"):
        flatten_rows(torch.zeros(1, 3, 2, 2), torch.rand(1, 2, 2))
    with pytest.raises(ValueError, match="add the missing axes"):
        flatten_rows(torch.zeros(3), torch.zeros(3, dtype=torch.int64))
    _, target = flatten_rows(torch.zeros(1, 2, 2, 2), torch.tensor([[[True, False], [False, True]]]))
    assert target.label.tolist() == [1, 0, 0, 1]
