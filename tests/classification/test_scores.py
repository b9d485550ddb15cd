"""Scores of a classifier: what cannot be scored is said."""

import pytest
import torch
from torch import Tensor, nn

from outgrow.classification.scores import evaluate
from outgrow.data import ArraySplit, Loader, make_loader


@pytest.fixture
def images() -> Loader:
    """Images of three classes, as bright as the number of their class."""
    label = torch.arange(3).repeat(4)
    pixels = (80 * label).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8).contiguous()
    return make_loader(ArraySplit.of(pixels, label), batch_size=5, shuffle=False, num_workers=0)


class Bright(nn.Module):
    """Logits from the brightness of an image, for ``classes`` classes."""

    def __init__(self, classes: int = 3, *, softmax: bool = False) -> None:
        super().__init__()
        self.classes, self.softmax = classes, softmax

    def forward(self, images: Tensor) -> Tensor:
        level = images.mean(dim=(1, 2, 3)) * 255 / 80
        logits = -10 * (level[:, None] - torch.arange(self.classes)).square()
        return logits.softmax(dim=1) if self.softmax else logits


def test_a_right_model_is_right(images: Loader) -> None:
    scores = evaluate(Bright(), images)
    assert scores.top1 == 100
    assert scores.nll == pytest.approx(0, abs=1e-3)


class Rounded(nn.Module):
    """Logits with few digits, as of a teacher in bfloat16: many are equal."""

    def forward(self, images: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return (4 * torch.randn(len(images), 40, generator=generator)).round()


def test_ties_are_decided_as_on_the_page() -> None:
    """For the class with the lower number: the accuracy of a run is that of its confusion matrix."""
    label = torch.arange(40).repeat(20)
    pixels = torch.zeros(800, 3, 2, 2, dtype=torch.uint8)
    loader = make_loader(ArraySplit.of(pixels, label), batch_size=800, shuffle=False, num_workers=0)
    scores = evaluate(Rounded(), loader)
    best = scores.logits.sort(dim=1, descending=True, stable=True).indices
    assert scores.predicted.equal(best[:, 0])
    assert scores.top5 == 100 * int((best[:, :5] == label[:, None]).sum()) / 800


def test_probabilities_are_warned_of(images: Loader) -> None:
    """Their top class is right, but not their likelihood."""
    with pytest.warns(UserWarning, match="Bright: needs logits, got rows .* which are probabilities"):
        assert evaluate(Bright(softmax=True), images).top1 == 100


def test_labels_beyond_the_classes(images: Loader) -> None:
    with pytest.raises(
        ValueError, match=r"all classes up to label 2, got shape \(5, 2\) from Bright; check its number"
    ):
        evaluate(Bright(2), images)
