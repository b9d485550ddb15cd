"""One belief for each image, the mean over views."""

import pytest
import torch
from torch import nn

from outgrow import PENULTIMATE, BiasCorrection, CorrectedTeacher, Outputs, Teacher
from outgrow.teacher import AveragedTeacher, BaseTeacher
from tests.reference import beliefs as reference


class Plain(BaseTeacher):
    """Its images are logits already; it counts what it is asked."""

    def __init__(self, features: bool = False) -> None:
        super().__init__()
        self.features, self.rows = features, 0

    def forward(self, images, *, index=None):
        self.rows += len(images)
        return Outputs(images, {PENULTIMATE: 2 * images} if self.features else {})


def filled(views=3, images=6, classes=4, features=False):
    generator = torch.Generator().manual_seed(0)
    seen = 3 * torch.randn(views, images, classes, generator=generator)
    teacher = AveragedTeacher(Plain(features), 10)
    for view in seen:
        order = torch.randperm(images, generator=generator)
        teacher.add(view[order], order)
    teacher.teacher.rows = 0
    return teacher, seen


def test_it_is_the_mean_of_the_probabilities_of_all_views():
    teacher, seen = filled()
    index = torch.tensor([4, 0, 0, 5])
    found = teacher(torch.zeros(4, 4), index=index).logits
    for row, image in enumerate(index.tolist()):
        literal = reference.mixture(seen[:, image].tolist(), [1 / 3] * 3)
        assert found[row].exp().tolist() == pytest.approx(literal, abs=1e-6)
    assert teacher.teacher.rows == 0  # no network was asked


def test_one_view_is_that_view():
    teacher, seen = filled(views=1)
    torch.testing.assert_close(
        teacher(torch.zeros(6, 4), index=torch.arange(6)).logits, seen[0].log_softmax(1), rtol=1e-5, atol=1e-5
    )


def test_other_images_have_the_belief_in_the_view():
    """Without an index, beyond the table, never added; and beside known images in one batch."""
    teacher, _ = filled(features=True)
    images = torch.randn(4, 4)
    assert torch.equal(teacher(images).logits, images)
    for index in ([6, 9, 10, -1], [99, 7, 8, 10**6]):
        assert torch.equal(teacher(images, index=torch.tensor(index)).logits, images)
    index = torch.tensor([2, 9, 0, 11])
    found = teacher(images, index=index)
    known = teacher(images, index=torch.tensor([2, 0]).repeat(2))
    assert torch.equal(found.logits[[0, 2]], known.logits[:2])
    assert torch.equal(found.logits[[1, 3]], images[[1, 3]])
    assert torch.equal(found.features[PENULTIMATE][[1, 3]], 2 * images[[1, 3]])
    assert torch.equal(found.features[PENULTIMATE][[0, 2]], known.features[PENULTIMATE][:2])
    assert teacher(images[:0], index=index[:0]).logits.shape == (0, 4)


def test_features_are_averaged_for_a_correction():
    teacher, seen = filled(features=True)
    found = teacher(torch.zeros(6, 4), index=torch.arange(6)).features[PENULTIMATE]
    torch.testing.assert_close(found, 2 * seen.mean(0))
    without = AveragedTeacher(Plain(features=True), 10, keep_features=False)
    without.add(torch.zeros(1, 4), torch.tensor([0]))
    assert without(torch.zeros(1, 4), index=torch.tensor([0])).features == {}


def test_certain_and_ruled_out_classes():
    teacher = AveragedTeacher(Plain(), 1)
    teacher.add(torch.tensor([[1e3, -1e3, -torch.inf]]), torch.tensor([0]))
    teacher.add(torch.tensor([[-1e3, 1e3, -torch.inf]]), torch.tensor([0]))
    found = teacher(torch.zeros(1, 3), index=torch.tensor([0])).logits
    assert found.exp().tolist() == [[0.5, 0.5, 0.0]]


def test_a_correction_takes_the_averaged_beliefs_and_training_too():
    torch.manual_seed(0)
    label = torch.randint(3, (60,))
    inner = AveragedTeacher(Teacher(nn.Identity()), 60)
    for _ in range(4):
        inner.add((torch.eye(3)[(label + 1) % 3] + torch.randn(60, 3)) * 2, torch.arange(60))
    index = torch.arange(60)
    beliefs = inner(torch.zeros(60, 3), index=index)
    correction = BiasCorrection(3).fit(beliefs, label, index)
    teacher = CorrectedTeacher(inner, correction)
    found = teacher(torch.zeros(60, 3), index=index).logits
    assert torch.equal(found, correction(beliefs, index=index).logits)
    assert (found.argmax(1) == label).float().mean() > 0.7


def test_the_table_is_no_part_of_the_state():
    teacher, _ = filled()
    assert not list(teacher.state_dict())
