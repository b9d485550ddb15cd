"""Metrics against values by hand, and against their definitions in plain Python."""

import math
from dataclasses import asdict, astuple
from json import dumps

import pytest
import torch
from torch import Tensor

from outgrow.classification.metrics import classification_metrics, reliability_diagram

INF = math.inf


def logits_of(*probabilities: tuple[float, ...]) -> Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


# classes 0, 1, 2 and 3; class 3 is missing from the test set, though once predicted
BY_HAND = logits_of(
    (0.70, 0.10, 0.10, 0.10),  # right, of class 0
    (0.10, 0.70, 0.10, 0.10),  # 0 taken for 1
    (0.50, 0.20, 0.20, 0.10),  # right
    (0.02, 0.02, 0.02, 0.94),  # 0 taken for 3
    (0.20, 0.50, 0.20, 0.10),  # 1, right
    (0.50, 0.20, 0.20, 0.10),  # 2 taken for 0
)
LABEL = torch.tensor([0, 0, 0, 0, 1, 2])


def test_by_hand_with_a_class_that_is_missing() -> None:
    metrics = classification_metrics(BY_HAND, LABEL, 4)
    assert metrics.top1 == 50
    assert metrics.top5 == 100
    assert metrics.per_class == [50, 100, 0, None]
    assert metrics.balanced_accuracy == 50
    assert metrics.majority_share == pytest.approx(100 * 4 / 6)
    assert metrics.confusion == [[2, 1, 0, 1], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert metrics.nll == pytest.approx(-sum(map(math.log, (0.7, 0.1, 0.5, 0.02, 0.5, 0.2))) / 6)
    # bins: 0.7 twice, one right; 0.5 three times, two right; 0.94 wrong
    errors = (abs(1 / 2 - 0.7) * 2, abs(2 / 3 - 0.5) * 3, 0.94)
    assert metrics.ece == pytest.approx(100 * sum(errors) / 6, abs=1e-4)
    assert dumps(asdict(metrics))  # goes into a record as it is


def test_reliability_by_hand() -> None:
    bins = reliability_diagram(BY_HAND, LABEL)
    assert len(bins) == 15
    filled = {place: one for place, one in enumerate(bins) if one.count}
    assert {place: one.count for place, one in filled.items()} == {7: 3, 10: 2, 14: 1}
    assert filled[7].confidence == pytest.approx(50)
    assert filled[7].accuracy == pytest.approx(100 * 2 / 3)
    assert astuple(filled[10]) == pytest.approx((70, 50, 2))
    assert astuple(filled[14]) == pytest.approx((94, 0, 1))
    assert astuple(bins[0]) == (None, None, 0)
    assert astuple(reliability_diagram(BY_HAND, LABEL, bins=1)[0]) == pytest.approx((384 / 6, 50, 6))


@pytest.mark.parametrize("scale", [0.1, 3.0, 100.0])  # at 100 most probabilities are exactly 1
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_ece_is_the_gap_of_the_diagram(scale: float, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    logits = (scale * torch.randn(500, 10, generator=draw)).to(dtype)
    label = torch.randint(10, (500,), generator=draw)
    gaps = [abs(b.confidence - b.accuracy) * b.count for b in reliability_diagram(logits, label) if b.count]
    assert classification_metrics(logits, label, 10).ece == pytest.approx(sum(gaps) / 500, abs=1e-3)


def test_logits_between_0_and_1_are_not_taken_for_probabilities() -> None:
    logits = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    sure = [1 / (1 + math.exp(-0.8)), 1 / (1 + math.exp(-0.6))]
    metrics = classification_metrics(logits, torch.tensor([0, 1]), 2)
    assert metrics.ece == pytest.approx(100 * (1 - sum(sure) / 2), abs=1e-4)


@pytest.mark.parametrize("right", [True, False])
def test_one_image(right: bool) -> None:
    logits = logits_of((0.25, 0.75))
    metrics = classification_metrics(logits, torch.tensor([int(right)]), 2)
    assert metrics.top1 == metrics.balanced_accuracy == (100 if right else 0)
    assert metrics.per_class == ([None, 100] if right else [0, None])
    assert (metrics.top5, metrics.majority_share) == (100, 100)
    assert metrics.ece == pytest.approx(25 if right else 75, abs=1e-4)


def test_classes_that_are_ruled_out() -> None:
    logits = torch.tensor([[2.0, -INF, 2.0 + math.log(3), -INF, -INF, -INF, -INF]] * 2)
    metrics = classification_metrics(logits, torch.tensor([2, 0]), 7)
    assert (metrics.top1, metrics.top5) == (50, 100)
    assert metrics.nll == pytest.approx(-(math.log(0.75) + math.log(0.25)) / 2)
    assert metrics.ece == pytest.approx(25, abs=1e-4)
    # the truth itself is ruled out: never right, and infinitely surprising
    metrics = classification_metrics(logits, torch.tensor([1, 1]), 7)
    assert (metrics.top1, metrics.top5, metrics.nll) == (0, 0, INF)
    only = torch.tensor([[-INF, 0.0]])
    assert classification_metrics(only, torch.tensor([1]), 2).ece == pytest.approx(0, abs=1e-4)


def test_a_tie_goes_to_the_lower_class() -> None:
    logits = torch.zeros(8, 8)
    metrics = classification_metrics(logits, torch.arange(8), 8)
    assert metrics.top1 == 100 / 8
    assert metrics.top5 == 500 / 8
    assert metrics.per_class == [100, *[0] * 7]
    assert [row[0] for row in metrics.confusion] == [1] * 8
    second = torch.tensor([[1.0, 3.0, 3.0]])
    assert classification_metrics(second, torch.tensor([1]), 3).top1 == 100
    assert classification_metrics(second, torch.tensor([2]), 3).top1 == 0


def test_top5_is_topk_without_ties() -> None:
    draw = torch.Generator().manual_seed(1)
    logits, label = torch.randn(300, 30, generator=draw), torch.randint(30, (300,), generator=draw)
    metrics = classification_metrics(logits, label, 30)
    for k, value in ((1, metrics.top1), (5, metrics.top5)):
        among = (logits.topk(k, dim=1).indices == label[:, None]).any(1)
        assert value == pytest.approx(100 * among.double().mean().item())


@pytest.mark.parametrize("measure", ["metrics", "diagram"])
@pytest.mark.parametrize(
    ("logits", "label", "message"),
    [
        (torch.zeros(0, 3), [], "at least one row of 3 logits, got 0 x 3; pass"),
        (
            torch.tensor([[0.0, 1, 2], [0, math.nan, 0]]),
            [0, 0],
            r"got nan as the largest logit of row 1 \(1 such",
        ),
        (torch.tensor([[0.0, INF, 0]]), [0], "got inf as the largest logit of row 0"),
        (torch.full((2, 3), -INF), [0, 0], r"got -inf as the largest logit of row 0 \(2 such rows\); look"),
        (torch.zeros(2, 3), [0, 3], "labels from 0 to 2, got 0 to 3; leave"),
        (torch.zeros(2, 3), [-1, 2], "labels from 0 to 2, got -1 to 2; leave"),
    ],
)
def test_says_what_is_wrong(measure: str, logits: Tensor, label: list[int], message: str) -> None:
    arguments = (logits, torch.tensor(label, dtype=torch.int64))
    with pytest.raises(ValueError, match=message):
        classification_metrics(*arguments, 3) if measure == "metrics" else reliability_diagram(*arguments)


def test_says_which_width_and_bins_are_wrong() -> None:
    with pytest.raises(ValueError, match="of 4 logits, got 1 x 3; pass"):
        classification_metrics(torch.zeros(1, 3), torch.tensor([0]), 4)
    with pytest.raises(ValueError, match="bins >= 1, got 0; 15"):
        reliability_diagram(torch.zeros(1, 3), torch.tensor([0]), bins=0)
