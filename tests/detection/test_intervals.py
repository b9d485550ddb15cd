"""Intervals over test images: their APs are COCO's, in every draw, and no interval is given where none is known."""

import copy
import json
import math
import time

import pytest
import torch

from outgrow.detection.intervals import Interval, average_precisions, difference, interval, resample
from outgrow.detection.scores import coco_scores
from tests.detection.test_scores import NOTHING, SMALL, SPLITS, detections, imitate, official

pytest.importorskip("faster_coco_eval", reason="needs outgrow[detection]")
NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


@pytest.fixture(params=SPLITS)
def split(request, shared_data):
    annotations = json.loads((shared_data / SPLITS[request.param]).read_text())
    image_ids = [image["id"] for image in annotations["images"]]
    return annotations, image_ids, [category["id"] for category in annotations["categories"]]


def assert_numbers(found, draw, numbers, per_class):
    pairs = [(found.numbers.get(name), numbers[name]) for name in NAMES]
    pairs += [(found.classes.get(name), value) for name, value in per_class.items()]
    for ours, theirs in pairs:
        value = None if ours is None or bool(ours[draw].isnan()) else float(ours[draw])
        assert (value is None) == (theirs is None)
        assert value is None or math.isclose(value, theirs, rel_tol=0, abs_tol=1e-9)


@pytest.mark.parametrize("coarse", [False, True])
def test_each_image_once_is_cocos_ap(split, coarse):
    annotations, image_ids, category_ids = split
    image_ids = image_ids[::-1]
    found = imitate(annotations, image_ids, category_ids, 0, coarse=coarse)
    once = average_precisions(
        annotations, image_ids, category_ids, found, torch.ones(1, len(image_ids), dtype=torch.float64)
    )
    scores = coco_scores(annotations, image_ids, category_ids, found)
    numbers, per_class = official(annotations, image_ids, category_ids, found)
    assert_numbers(once, 0, {name: getattr(scores, name) for name in NAMES}, scores.per_class)
    assert_numbers(once, 0, numbers, per_class)


def test_a_draw_is_cocos_ap_of_the_images_drawn(split):
    """Copies of an image, with ids of their own, are what a weight of 2 or 3 stands for."""
    annotations, image_ids, category_ids = split
    image_ids = sorted(image_ids)
    found = imitate(annotations, image_ids, category_ids, 3)
    weight = torch.zeros(2, len(image_ids), dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    for row in weight:
        row += torch.randint(len(image_ids), (len(image_ids),), generator=generator).bincount(
            minlength=len(image_ids)
        )
    drawn = average_precisions(annotations, image_ids, category_ids, found, weight)
    assert (weight == 0).any()
    assert weight.max() > 2
    for number, row in enumerate(weight):
        copies = {"images": [], "annotations": [], "categories": annotations["categories"]}
        ids, boxes = [], []
        for image, one, times in zip(image_ids, found, row.long().tolist(), strict=True):
            for _ in range(times):
                ids.append(len(ids))
                boxes.append(one)
                copies["images"].append({"id": ids[-1]})
                for annotation in annotations["annotations"]:
                    if annotation["image_id"] == image:
                        new = copy.deepcopy(annotation) | {"image_id": ids[-1]}
                        copies["annotations"].append(new | {"id": len(copies["annotations"]) + 1})
        assert_numbers(drawn, number, *official(copies, ids, category_ids, boxes))


def test_intervals_hold_the_number_and_are_the_same_again(shared_data):
    annotations = json.loads((shared_data / SPLITS["bccd"]).read_text())
    image_ids = [image["id"] for image in annotations["images"]]
    category_ids = [category["id"] for category in annotations["categories"]]
    found = imitate(annotations, image_ids, category_ids, 0)
    scores = coco_scores(annotations, image_ids, category_ids, found)
    start = time.process_time()
    first = resample(annotations, image_ids, category_ids, found)
    assert time.process_time() - start < 20
    for name, one in first.intervals.items():
        if one.low is not None:
            assert one.low < getattr(scores, name) < one.high, name
    assert first.intervals["ap"].images == len(image_ids)
    wide = first.intervals["ap"].high - first.intervals["ap"].low
    assert 1 < wide < 20
    for name, one in first.per_class.items():
        assert one.low < scores.per_class[name] < one.high
    again = resample(annotations, image_ids[::-1], category_ids, found[::-1])
    assert again.intervals == first.intervals
    other = resample(annotations, image_ids, category_ids, found, seed=1).intervals["ap"]
    assert abs(other.low - first.intervals["ap"].low) < wide / 5
    # the same draws on both sides: a detector does not differ from itself
    assert difference(first, again).reason == "the same in all draws"
    worse = resample(annotations, image_ids, category_ids, imitate(annotations, image_ids, category_ids, 5))
    gap = difference(first, worse)
    mean = float((first.numbers["ap"] - worse.numbers["ap"]).mean())
    assert gap.low < mean < gap.high


def test_the_interval_is_the_middle_of_the_draws():
    """2.5 % on either side, draws without such an object left out; from 20 images on."""
    values = torch.linspace(0, 100, 1001, dtype=torch.float64)[torch.randperm(1001)]
    missing = torch.full((50,), math.nan, dtype=torch.float64)
    found = interval(torch.cat([values, missing]), 20)
    assert (found.low, found.high) == pytest.approx((2.5, 97.5))
    assert found.images == 20
    assert interval(values, 19) == Interval(None, None, 19, "19 images")
    assert interval(values, 1).reason == "1 image"


def test_no_interval_from_few_images():
    found = resample(SMALL, [7, 3], [20, 10], [NOTHING, NOTHING])
    assert found.intervals["ap"] == Interval(None, None, 2, "2 images")
    assert found.per_class["cat"].reason == "2 images"
    assert "dog" not in found.per_class
    assert "ap_large" not in found.intervals


def test_no_interval_of_a_detector_that_finds_nothing():
    many = {
        **SMALL,
        "images": [{"id": i} for i in range(30)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 20, "bbox": [10, 10, 50, 50]} for i in range(30)
        ],
    }
    nothing = resample(many, list(range(30)), [20, 10], [NOTHING] * 30)
    assert nothing.intervals["ap"] == Interval(None, None, 30, "the same in all draws")
    half = [detections([[10, 10, 60, 60, 1, 0.9]]) if i % 2 else NOTHING for i in range(30)]
    some = resample(many, list(range(30)), [20, 10], half)
    # without false boxes AP is the share of objects that are found: of 30 coins, 0.5 +- 1.96 * 0.091
    assert some.intervals["ap"].low == pytest.approx(32, abs=4)
    assert some.intervals["ap"].high == pytest.approx(68, abs=4)
    assert difference(some, nothing) == interval(some.numbers["ap"], 30)


def test_without_objects_there_is_nothing():
    nothing = resample({**SMALL, "annotations": []}, [7, 3], [20, 10], [NOTHING, NOTHING])
    assert nothing.intervals == {}
    assert nothing.per_class == {}
    assert difference(nothing, nothing) is None
