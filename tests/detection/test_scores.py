"""COCO's numbers agree with pycocotools, on real annotations and detections made from them."""

import contextlib
import copy
import io
import json
import math
import random
import sys
import warnings
from dataclasses import fields, replace

import pytest
import torch

from outgrow.detection.boxes import Detections
from outgrow.detection.scores import NUMBERS, CocoScores, coco_scores

pytest.importorskip("faster_coco_eval", reason="needs outgrow[detection]")

SPLITS = {
    "tiny_coco": "tiny_coco/annotations/instances_val2017.json",
    "tiny_coco_train": "tiny_coco/annotations/instances_train2017.json",
    "bccd": "bccd/annotations/instances_test.json",
}


def detections(rows):
    """From rows of (left, top, right, bottom, label, score)."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4].long(), table[:, 5])


NOTHING = detections([])


def imitate(annotations, image_ids, category_ids, seed, *, coarse=False):
    """What a fair detector might say: the truth moved, dropped, doubled, relabelled, and inventions.

    Crowds get several boxes inside them, and one picture more boxes of one class than COCO counts.
    ``coarse`` rounds the scores, so that there are many ties.
    """
    rng = random.Random(seed)
    label_of = {category: place + 1 for place, category in enumerate(category_ids)}
    found = []
    for position, image in enumerate(image_ids):
        rows = []
        mine = [a for a in annotations["annotations"] if a["image_id"] == image]
        for annotation in mine:
            left, top, width, height = annotation["bbox"]
            copies = 6 if annotation["iscrowd"] else rng.choice([0, 1, 1, 1, 1, 2, 3])
            for _ in range(copies):
                size = 0.3 if annotation["iscrowd"] else 1.0
                move = rng.choice([0.0, 0.02, 0.1, 0.3])
                x = left + width * (rng.uniform(-move, move) + (1 - size) * rng.random())
                y = top + height * (rng.uniform(-move, move) + (1 - size) * rng.random())
                w, h = width * size * rng.uniform(1 - move, 1 + move), height * size
                label = label_of[annotation["category_id"]]
                if rng.random() < 0.1:
                    label = rng.randrange(1, len(category_ids) + 1)
                rows.append([x, y, x + w, y + h, label, rng.random()])
        for _ in range(150 if position == 0 else 3):
            x, y = rng.uniform(0, 500), rng.uniform(0, 400)
            label = 1 if position == 0 else rng.randrange(1, len(category_ids) + 1)
            rows.append([x, y, x + rng.uniform(2, 200), y + rng.uniform(2, 200), label, rng.random()])
        if coarse:
            rows = [[*row[:5], round(row[5], 1)] for row in rows]
        found.append(detections(rows) if position % 7 != 6 else NOTHING)
    return found


def official(annotations, image_ids, category_ids, found):
    """The twelve numbers and AP per class in percent by pycocotools."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore", DeprecationWarning)
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        truth = COCO()
        truth.dataset = copy.deepcopy({"info": {}, **annotations})
        truth.createIndex()
        rows = []
        for image, one in zip(image_ids, found, strict=True):
            for box, label, score in zip(
                one.boxes.double().tolist(), one.label.tolist(), one.score.tolist(), strict=True
            ):
                left, top, right, bottom = box
                rows.append(
                    {
                        "image_id": image,
                        "category_id": category_ids[label - 1],
                        "bbox": [left, top, right - left, bottom - top],
                        "score": score,
                    }
                )
        evaluation = COCOeval(truth, truth.loadRes(rows), "bbox")
        evaluation.params.imgIds = list(image_ids)
        evaluation.params.catIds = list(category_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    per_class = {}
    names = {category["id"]: category["name"] for category in annotations["categories"]}
    for place, category in enumerate(sorted(category_ids)):
        values = evaluation.eval["precision"][:, :, place, 0, -1]
        values = values[values > -1]
        per_class[names[category]] = 100 * values.mean() if values.size else None
    numbers = {
        name: None if value == -1 else 100 * value
        for name, value in zip(NUMBERS, evaluation.stats, strict=True)
    }
    return numbers, per_class


def assert_same(scores, reference):
    numbers, per_class = reference
    assert set(scores.per_class) == set(per_class)
    pairs = [(getattr(scores, name), numbers[name]) for name in NUMBERS]
    pairs += [(scores.per_class[name], per_class[name]) for name in per_class]
    for ours, theirs in pairs:
        assert (ours is None) == (theirs is None)
        assert ours is None or math.isclose(ours, theirs, rel_tol=0, abs_tol=1e-9)


@pytest.fixture(params=SPLITS)
def split(request, shared_data):
    annotations = json.loads((shared_data / SPLITS[request.param]).read_text())
    image_ids = [image["id"] for image in annotations["images"]]
    return annotations, image_ids, [category["id"] for category in annotations["categories"]]


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_agrees_with_pycocotools(split, seed, coarse):
    annotations, image_ids, category_ids = split
    # classes and pictures in an order of their own: the evaluation sorts both
    rng = random.Random(seed)
    rng.shuffle(image_ids)
    rng.shuffle(category_ids)
    found = imitate(annotations, image_ids, category_ids, seed, coarse=coarse)
    assert max(len(one.label) for one in found) > 150, "no picture has more than COCO counts"
    before = copy.deepcopy(annotations)
    scores = coco_scores(annotations, image_ids, category_ids, found)
    assert annotations == before
    assert list(scores.per_class) == [
        {c["id"]: c["name"] for c in annotations["categories"]}[number] for number in category_ids
    ]
    assert_same(scores, official(annotations, image_ids, category_ids, found))
    # the detections are neither perfect nor useless, so agreement means something
    assert 5 < scores.ap < scores.ap50 < 99
    assert scores.ar1 < scores.ar10 <= scores.ar100


def test_agrees_on_part_of_the_pictures_and_classes(split):
    annotations, image_ids, category_ids = split
    image_ids, category_ids = image_ids[3:30], category_ids[:2]
    found = imitate(
        {
            "annotations": [
                one for one in annotations["annotations"] if one["category_id"] in set(category_ids)
            ]
        },
        image_ids,
        category_ids,
        5,
    )
    scores = coco_scores(annotations, image_ids, category_ids, found)
    assert_same(scores, official(annotations, image_ids, category_ids, found))
    assert len(scores.per_class) == 2


def test_crowds_matter(shared_data):
    # without this the agreement above might never meet a crowd
    annotations = json.loads((shared_data / SPLITS["tiny_coco"]).read_text())
    image_ids = [image["id"] for image in annotations["images"]]
    category_ids = [category["id"] for category in annotations["categories"]]
    found = imitate(annotations, image_ids, category_ids, 0)
    crowds = sum(one["iscrowd"] for one in annotations["annotations"])
    assert crowds == 5
    with_crowds = coco_scores(annotations, image_ids, category_ids, found)
    for one in annotations["annotations"]:
        one["iscrowd"] = 0
    assert coco_scores(annotations, image_ids, category_ids, found).ap < with_crowds.ap


SMALL = {
    "images": [{"id": 7}, {"id": 3}],
    "annotations": [
        # an id of 0 is no match to the evaluations; the identical ids come from careless converters
        {"id": 0, "image_id": 7, "category_id": 20, "bbox": [10, 10, 50, 50]},
        {"id": 0, "image_id": 3, "category_id": 20, "bbox": [0, 0, 20, 20]},
    ],
    "categories": [{"id": 20, "name": "cat"}, {"id": 10, "name": "dog"}],
}
PERFECT = [detections([[10, 10, 60, 60, 1, 0.9]]), detections([[0, 0, 20, 20, 1, 0.8]])]


def test_perfect_detections_score_100_without_optional_keys():
    scores = coco_scores(SMALL, [7, 3], [20, 10], PERFECT)
    assert scores.per_class == {"cat": pytest.approx(100), "dog": None}
    for name in NUMBERS:
        expected = None if name.endswith("large") else pytest.approx(100)
        assert getattr(scores, name) == expected, name


def test_the_area_of_a_missing_area_is_the_boxs():
    areas = copy.deepcopy(SMALL)
    for one in areas["annotations"]:
        one["area"] = 100.0 * 100.0
    assert coco_scores(areas, [7, 3], [20, 10], PERFECT).ap_large == pytest.approx(100)
    assert coco_scores(areas, [7, 3], [20, 10], PERFECT).ap_small is None


def test_a_class_is_found_by_its_position():
    # the same boxes under the other label are dogs
    wrong = [replace(one, label=one.label + 1) for one in PERFECT]
    assert coco_scores(SMALL, [7, 3], [20, 10], wrong).ap == 0
    assert coco_scores(SMALL, [7, 3], [10, 20], wrong).ap == pytest.approx(100)


def test_nothing_found_scores_zero(split):
    annotations, image_ids, category_ids = split
    scores = coco_scores(annotations, image_ids, category_ids, [NOTHING] * len(image_ids))
    assert {getattr(scores, name) for name in NUMBERS} <= {0.0, None}
    assert scores.ap == scores.ar100 == 0
    there = {one["category_id"] for one in annotations["annotations"] if not one["iscrowd"]}
    assert sum(value == 0 for value in scores.per_class.values()) == len(there)


def test_nothing_to_find_is_not_zero():
    empty = {**SMALL, "annotations": []}
    scores = coco_scores(empty, [7, 3], [20, 10], PERFECT)
    assert {getattr(scores, name) for name in NUMBERS} == {None}
    assert scores.per_class == {"cat": None, "dog": None}
    assert scores.curves == {}


def test_the_means_of_the_curves_are_ap(split):
    annotations, image_ids, category_ids = split
    scores = coco_scores(
        annotations, image_ids, category_ids, imitate(annotations, image_ids, category_ids, 0)
    )
    for name in ("ap", "ap50"):
        curve = scores.curves[name]
        assert len(curve) == 101
        assert sum(curve) / 101 == pytest.approx(getattr(scores, name))
        assert list(curve) == sorted(curve, reverse=True)


def test_prints_nothing(capfd):
    coco_scores(SMALL, [7, 3], [20, 10], PERFECT)
    assert capfd.readouterr() == ("", "")


def test_the_numbers_are_all_there():
    assert (*NUMBERS, "per_class", "curves") == tuple(field.name for field in fields(CocoScores))
    assert len(NUMBERS) == 12


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((SMALL, [7, 3], [20, 10], PERFECT[:1]), "each of 2 image_ids, got 1; pass one"),
        ((SMALL, [7, 3], [20], [replace(one, label=one.label + 1) for one in PERFECT]), "from 1 to 1, got 2"),
        ((SMALL, [7, 3], [20], [replace(one, label=one.label - 1) for one in PERFECT]), "from 1 to 1, got 0"),
        ((SMALL, [7, 4], [20, 10], PERFECT), r"image_ids .* got unknown \[4\]; pass"),
        ((SMALL, [7, 7], [20, 10], PERFECT), r"image_ids .* got \[7\] twice; pass"),
        ((SMALL, [], [20, 10], []), "image_ids .* got none; pass"),
        ((SMALL, [7, 3], [20, 11], PERFECT), r"category_ids .* got unknown \[11\]; pass"),
        (
            (
                {**SMALL, "categories": [{"id": 20, "name": "cat"}, {"id": 10, "name": "cat"}]},
                [7, 3],
                [20, 10],
                PERFECT,
            ),
            r"needs a unique name .* got \['cat'\]",
        ),
        (
            (SMALL, [7, 3], [20, 10], [replace(one, score=one.score * math.nan) for one in PERFECT]),
            "finite boxes and scores, got others in the image 7; check",
        ),
    ],
)
def test_says_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        coco_scores(*arguments)


def test_asks_for_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(
        ValueError, match=r"faster-coco-eval, got none installed.*pip install 'outgrow\[detection\]'"
    ):
        coco_scores(SMALL, [7, 3], [20, 10], PERFECT)
