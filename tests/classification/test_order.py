"""A classifier in another order than the data's is told apart from one that errs."""

import pytest
import torch
from PIL import Image

from outgrow.classification.evaluation import evaluate_classifier
from outgrow.classification.order import check_order, order_of
from outgrow.training.progress import Reporter

NAMES = tuple("abcdefghij")


def labels(per_class: int, classes: int = 10) -> torch.Tensor:
    return torch.arange(classes).repeat_interleave(per_class)


def noisy(label: torch.Tensor, right: float, classes: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    keep = torch.rand(len(label), generator=generator) < right
    return torch.where(keep, label, torch.randint(classes, label.shape, generator=generator))


def test_by_hand():
    """Five images of each of two classes, answers exchanged: nothing by position, all by the other half's fit."""
    order = order_of(torch.tensor([1] * 5 + [0] * 5), torch.tensor([0] * 5 + [1] * 5), 2)
    assert (order.by_position, order.crossed, order.balanced, order.balanced_crossed) == (0, 1, 0, 1)
    assert order.likely == (1, 0)
    assert (order.chance, order.num_images) == (0.5, 10)
    assert order.is_wrong
    # 4 of 4 is within three standard errors, 0.75, of one half
    assert not order_of(torch.tensor([1, 1, 0, 0]), torch.tensor([0, 0, 1, 1]), 2).is_wrong


@pytest.mark.parametrize("shift", [1, 3, 9])
@pytest.mark.parametrize("per_class", [2, 4, 50])
def test_a_rotated_classifier_is_refused(shift, per_class):
    label = labels(per_class)
    predicted = (label + shift) % 10
    with pytest.raises(
        ValueError, match=r"got 0.0 % right by position and 100.0 % .* likely .*; name its classes"
    ):
        check_order(predicted, label, NAMES, who="evaluate x")
    assert order_of(predicted, label, 10).likely == tuple((number - shift) % 10 for number in range(10))


def test_a_rotated_classifier_that_errs_is_refused():
    label = labels(30)
    predicted = (noisy(label, 0.6, 10, seed=0) + 1) % 10
    with pytest.raises(ValueError, match="likely j, a, b"):
        check_order(predicted, label, NAMES, who="evaluate x")


@pytest.mark.parametrize("seed", range(5))
def test_a_biased_teacher_keeps_its_order(seed):
    """41 in 100 right, 45 taken for the next class."""
    label = labels(40)
    draw = torch.rand(len(label), generator=torch.Generator().manual_seed(seed))
    other = torch.randint(10, label.shape, generator=torch.Generator().manual_seed(seed + 100))
    predicted = torch.where(draw < 0.41, label, torch.where(draw < 0.86, (label + 1) % 10, other))
    check_order(predicted, label, NAMES, who="x")


@pytest.mark.parametrize("classes", [2, 3, 10, 100])
@pytest.mark.parametrize("per_class", [1, 2, 3, 10])
def test_guessing_is_no_order(classes, per_class):
    label = labels(per_class, classes)
    names = [str(number) for number in range(classes)]
    assert not any(order_of(noisy(label, 0.0, classes, seed), label, classes).is_wrong for seed in range(30))
    check_order(torch.zeros_like(label), label, names, who="x")


@pytest.mark.parametrize("answer", [0, 1])
def test_one_answer_on_lopsided_data_is_no_order(answer):
    """An untrained net that always says the rare class would gain 80 points by exchanging the two."""
    label = torch.tensor([0] * 90 + [1] * 10)
    check_order(torch.full_like(label, answer), label, ("a", "b"), who="x")


def test_a_good_classifier_and_one_image_a_class_pass():
    check_order(labels(5), labels(5), NAMES, who="x")
    check_order((labels(1) + 1) % 10, labels(1), NAMES, who="x")  # nothing to fit on is no proof
    check_order(torch.tensor([0]), torch.tensor([0]), ("a",), who="x")


NET = """
import torch
from torch import nn

class Red(nn.Module):
    '''Right on every picture: the class is in the red channel. Outputs are in the order of numbers.'''
    def forward(self, x):
        c = torch.arange(12) * 20 / 255
        red = x[:, 0].mean((1, 2))
        return 600 * red[:, None] * c - 300 * c ** 2

def red(num_classes=12):
    net = Red()
    net.head = nn.Linear(1, 12)
    return net
"""


class Notes(Reporter):
    def __init__(self):
        self.said = []

    def note(self, text):
        self.said.append(text)


def folder(root, names):
    for split in ("train", "val"):
        for number, name in enumerate(names):
            for k in range(4):
                path = root / split / name / f"{k}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (16, 16), (number * 20, 255 - number * 20, k + 10 * (split == "val"))).save(
                    path
                )
    return f"folder:{root}"


def score(source, name, weights=None, report=None):
    return evaluate_classifier(
        source, name, weights=weights, label=None, batch_size=10, workers=0, report=report or Reporter()
    )


@pytest.fixture
def net(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "net.py").write_text(NET)
    return f"py:{tmp_path / 'net.py'}:red"


def test_evaluate_refuses_the_order_of_numbers_for_that_of_text(net, tmp_path):
    source = folder(tmp_path / "numbers", [str(n) for n in range(12)])
    with (
        pytest.warns(
            UserWarning, match="by position, as the weights have no class names.*the order is a guess"
        ),
        pytest.raises(ValueError, match=r"16.7 % right by position and 100.0 % .* likely 0, 1, 2, 3"),
    ):
        score(source, net)


def test_evaluate_says_where_position_counts(net, tmp_path):
    source = folder(tmp_path / "padded", [f"{n:02}" for n in range(12)])
    notes = Notes()
    with pytest.warns(UserWarning, match="by position"):
        assert score(source, net, report=notes)["top1"] == 100
    assert any("input of any size, mean 0 0 0, std 1 1 1 (from its file)" in text for text in notes.said)
