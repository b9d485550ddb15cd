"""Every kind of error by hand, and random pictures against plain loops."""

import random
from collections import Counter
from dataclasses import replace

import pytest
import torch

from outgrow.detection.boxes import Detections, Truth
from outgrow.detection.errors import (
    KINDS,
    REASONS,
    best_threshold,
    class_errors,
    confident,
)


def truth(*rows, crowd=()):
    """From rows of (left, top, right, bottom, label)."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 5)
    crowds = torch.tensor(crowd, dtype=torch.float32).reshape(-1, 4)
    return Truth(table[:, :4], table[:, 4].long(), crowds, 0)


def detections(*rows):
    """From rows of (left, top, right, bottom, label, score)."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4].long(), table[:, 5])


CAT, DOG = 1, 2
OBJECT = (0, 0, 10, 10)
HALF = (0, 0, 10, 5)  # IoU 0.5 with the object, exactly
TENTH = (0, 0, 10, 1)  # IoU 0.1
FAR = (100, 100, 110, 110)


@pytest.mark.parametrize(
    "objects, crowd, said, expected",
    [
        ([(*OBJECT, CAT)], [], [(*OBJECT, CAT)], {"found": 1}),
        ([(*OBJECT, CAT)], [], [(*HALF, CAT)], {"found": 1}),
        ([(*OBJECT, CAT)], [], [], {"missed_altogether": 1}),
        ([], [], [(*OBJECT, CAT)], {"background": 1}),
        ([(*OBJECT, CAT)], [], [(*OBJECT, DOG)], {"missed_confused": 1, "confused": 1}),
        ([(*OBJECT, CAT)], [], [(*HALF, DOG)], {"missed_confused": 1, "confused": 1}),
        ([(*OBJECT, CAT)], [], [(*OBJECT, CAT), (*HALF, CAT)], {"found": 1, "duplicated": 1}),
        ([(*OBJECT, CAT)], [], [(0, 0, 10, 4, CAT)], {"missed_badly_placed": 1, "badly_placed": 1}),
        # 0.1 touches
        ([(*OBJECT, CAT)], [], [(*TENTH, CAT)], {"missed_badly_placed": 1, "badly_placed": 1}),
        ([(*OBJECT, CAT)], [], [(0, 0, 10, 0.9, CAT)], {"missed_altogether": 1, "background": 1}),
        ([(*OBJECT, CAT)], [], [(*FAR, CAT)], {"missed_altogether": 1, "background": 1}),
        # neither class nor place
        ([(*OBJECT, CAT)], [], [(0, 0, 10, 4, DOG)], {"missed_altogether": 1, "both": 1}),
        # the larger overlap explains a box over objects of both classes
        (
            [(*OBJECT, CAT), (*HALF, DOG)],
            [],
            [(*OBJECT, CAT), (*OBJECT, CAT)],
            {"found": 1, "duplicated": 1, "missed_altogether": 1},
        ),
        (
            [(*HALF, CAT), (*OBJECT, DOG)],
            [],
            [(*HALF, CAT), (*OBJECT, CAT)],
            {"found": 1, "confused": 1, "missed_confused": 1},
        ),
        # a confusion of the right place, though it touches its own class; TIDE: badly placed
        (
            [(*OBJECT, DOG), (5, 0, 15, 10, CAT)],
            [],
            [(*OBJECT, CAT)],
            {"confused": 1, "missed_confused": 1, "missed_altogether": 1},
        ),
        # inside a crowd, half inside, less than half inside
        ([], [(0, 0, 100, 100)], [(*OBJECT, CAT)], {"ignored": 1}),
        ([], [(5, 0, 100, 100)], [(*OBJECT, CAT)], {"ignored": 1}),
        ([], [(5.1, 0, 100, 100)], [(*OBJECT, CAT)], {"background": 1}),
        # two regions are not one
        ([], [(0, 0, 4, 10), (6, 0, 10, 10)], [(*OBJECT, CAT)], {"background": 1}),
        # an object in a crowd is found all the same
        ([(*OBJECT, CAT)], [(0, 0, 100, 100)], [(*OBJECT, CAT)], {"found": 1}),
        # a box without area shares nothing
        ([(*OBJECT, CAT)], [(0, 0, 9, 9)], [(3, 3, 3, 8, CAT)], {"background": 1, "missed_altogether": 1}),
        # the better score takes the object, and the other then its second choice
        (
            [(*OBJECT, CAT), (0, 0, 10, 8, CAT)],
            [],
            [(*OBJECT, CAT), (*OBJECT, CAT)],
            {"found": 2},
        ),
        # greedy by score: the worse box comes first
        (
            [(*OBJECT, CAT), (*FAR, CAT)],
            [],
            [(*HALF, CAT), (*OBJECT, CAT)],
            {"found": 1, "duplicated": 1, "missed_altogether": 1},
        ),
        # of equal overlaps COCO takes the last, which leaves the first to a later box
        (
            [(*HALF, CAT), (0, 5, 10, 10, CAT)],
            [],
            [(*OBJECT, CAT), (*HALF, CAT)],
            {"found": 2},
        ),
        # confusion goes before a bad place as the reason
        (
            [(*OBJECT, CAT)],
            [],
            [(*TENTH, CAT), (*OBJECT, DOG)],
            {"badly_placed": 1, "confused": 1, "missed_confused": 1},
        ),
    ],
)
def test_by_hand(objects, crowd, said, expected):
    there = truth(*objects, crowd=crowd)
    found = detections(*[(*row, 0.9 - 0.1 * place) for place, row in enumerate(said)])
    errors = class_errors([there], [found], 2, score_threshold=0.0)
    assert int(errors.objects.sum()) == len(objects)
    total = {name: int(errors.count(name).sum()) for name in (*KINDS, *REASONS)}
    assert {name: count for name, count in total.items() if count} == expected


def test_counts_stand_at_the_class_that_was_said_and_misses_at_the_objects():
    errors = class_errors([truth((*OBJECT, CAT))], [detections((*OBJECT, DOG, 0.5))], 3, score_threshold=0.0)
    assert errors.confused.tolist() == [0, 1, 0]
    assert errors.missed_confused.tolist() == errors.missed.tolist() == errors.objects.tolist() == [1, 0, 0]


def slow_iou(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    shared = width * height
    return shared / (areas[0] + areas[1] - shared) if shared else 0.0


def slow_picture(there, said, threshold):
    """(kind, label) of each detection and (reason, label) of each object, by the words of the docstring."""
    objects = list(zip(there.boxes.double().tolist(), there.label.tolist(), strict=True))
    boxes = list(zip(said.boxes.double().tolist(), said.label.tolist(), said.score.tolist(), strict=True))
    boxes = [one for one in boxes if one[2] >= threshold]
    taken, kinds = set(), {}
    for place in sorted(range(len(boxes)), key=lambda place: -boxes[place][2]):
        box, label, _ = boxes[place]
        choice, best = None, 0.5
        for number, (other, its) in enumerate(objects):
            if its == label and number not in taken and slow_iou(box, other) >= best:
                choice, best = number, slow_iou(box, other)
        if choice is not None:
            taken.add(choice)
            kinds[place] = "found"
    confused, badly = [], []
    for place, (box, label, _) in enumerate(boxes):
        if place in kinds:
            continue
        own = max([slow_iou(box, other) for other, its in objects if its == label], default=0)
        strange = max([slow_iou(box, other) for other, its in objects if its != label], default=0)
        area = (box[2] - box[0]) * (box[3] - box[1])
        inside = 0.0
        for region in there.crowd.double().tolist():
            width = max(0.0, min(box[2], region[2]) - max(box[0], region[0]))
            height = max(0.0, min(box[3], region[3]) - max(box[1], region[1]))
            inside = max(inside, width * height)
        if inside >= area / 2:
            kinds[place] = "ignored"
        elif own >= 0.5 and own >= strange:
            kinds[place] = "duplicated"
        elif strange >= 0.5:
            kinds[place] = "confused"
            confused.append((box, label))
        elif own >= 0.1:
            kinds[place] = "badly_placed"
            badly.append((box, label))
        elif strange >= 0.1:
            kinds[place] = "both"
        else:
            kinds[place] = "background"
    reasons = []
    for number, (box, label) in enumerate(objects):
        if number in taken:
            reason = "object found"
        elif any(its != label and slow_iou(box, other) >= 0.5 for other, its in confused):
            reason = "missed_confused"
        elif any(its == label and slow_iou(box, other) >= 0.1 for other, its in badly):
            reason = "missed_badly_placed"
        else:
            reason = "missed_altogether"
        reasons.append((reason, label))
    return [(kinds[place], boxes[place][1]) for place in range(len(boxes))], reasons


def slow_f1(there, said, threshold):
    kinds, reasons = [], []
    for one, other in zip(there, said, strict=True):
        kind, reason = slow_picture(one, other, threshold)
        kinds += [name for name, _ in kind]
        reasons += reason
    right = kinds.count("found")
    wrong = len(kinds) - right - kinds.count("ignored")
    return 2 * right / (right + wrong + len(reasons)) if right + wrong + len(reasons) else 1.0


def random_split(seed, pictures=6):
    """Integer boxes, so that an IoU of exactly 0.5 occurs, and few different scores, so that ties do."""
    rng = random.Random(seed)

    def box():
        x, y = rng.randrange(0, 24), rng.randrange(0, 24)
        return (x, y, x + rng.randrange(2, 14), y + rng.randrange(2, 14))

    def near(one):
        left, top, right, bottom = (value + rng.choice([0, 0, 1, -1, 2]) for value in one)
        return (left, top, max(right, left + 1), max(bottom, top + 1))

    split = []
    for _ in range(pictures):
        objects = [(*box(), rng.randrange(1, 4)) for _ in range(rng.randrange(0, 9))]
        crowd = [box() for _ in range(rng.choice([0, 0, 1, 2]))]
        said = [
            (*near(one[:4]), rng.choice([one[4], one[4], rng.randrange(1, 4)]), rng.randrange(1, 9) / 8)
            for one in objects
            for _ in range(rng.randrange(0, 4))
        ]
        said += [(*box(), rng.randrange(1, 4), rng.randrange(1, 9) / 8) for _ in range(rng.randrange(0, 9))]
        rng.shuffle(said)
        split.append((truth(*objects, crowd=crowd), detections(*said)))
    there, found = zip(*split, strict=True)
    return there, found


@pytest.mark.parametrize("threshold", [None, 0.0, 0.5])
def test_agrees_with_plain_loops(threshold):
    seen = Counter()
    for seed in range(60):
        there, found = random_split(seed)
        errors = class_errors(there, found, 3, score_threshold=threshold)
        kinds, reasons, objects = Counter(), Counter(), Counter()
        for one, said in zip(there, found, strict=True):
            kind, reason = slow_picture(one, said, errors.threshold)
            kinds.update(kind)
            reasons.update(reason)
            objects.update(one.label.tolist())
        for name, counts in [(n, kinds) for n in KINDS] + [(n, reasons) for n in REASONS]:
            expected = [counts[name, label] for label in (1, 2, 3)]
            assert errors.count(name).tolist() == expected, (seed, name)
            seen[name] += sum(expected)
        assert errors.objects.tolist() == [objects[label] for label in (1, 2, 3)]
        assert (errors.found + errors.missed).tolist() == errors.objects.tolist()
        assert errors.f1 == pytest.approx(slow_f1(there, found, errors.threshold), abs=1e-12)
    # every kind and every reason was met, often enough to tell rules apart
    assert min(seen[name] for name in (*KINDS, *REASONS)) > 20, seen


def test_each_detection_above_the_threshold_is_counted_once():
    there, found = random_split(0)
    for threshold in (0.0, 0.5, 2.0):
        errors = class_errors(there, found, 3, score_threshold=threshold)
        kept = [confident(one, threshold).label for one in found]
        expected = torch.cat(kept).bincount(minlength=4)[1:]
        assert sum(errors.count(name) for name in KINDS).tolist() == expected.tolist()


def test_the_threshold_is_the_lowest_of_the_best():
    ties = 0
    for seed in range(60):
        there, found = random_split(seed, pictures=3)
        # ignored detections change no F1, so with crowds a lower score might be as good
        there = [replace(one, crowd=torch.zeros(0, 4)) for one in there]
        candidates = sorted({score for one in found for score in one.score.tolist()})
        values = [slow_f1(there, found, one) for one in candidates]
        best = [
            one for one, value in zip(candidates, values, strict=True) if abs(value - max(values)) < 1e-12
        ]
        assert best_threshold(there, found) == best[0], seed
        ties += len(best) > 1
    assert ties > 0


def test_ignored_detections_have_no_say_in_the_threshold():
    there = truth((*OBJECT, CAT), (50, 0, 60, 10, CAT), crowd=[(100, 100, 200, 200)])
    # as inventions they would be a reason to stop at 0.9
    found = detections((*OBJECT, CAT, 0.9), *[(*FAR, CAT, 0.6)] * 3, (50, 0, 60, 10, CAT, 0.4))
    assert best_threshold([there], [found]) == pytest.approx(0.4)
    errors = class_errors([there], [found], 2)
    assert errors.f1 == 1.0
    assert errors.ignored.tolist() == [3, 0]


def test_the_threshold_suits_the_detector_not_the_scale_of_its_scores():
    there, found = random_split(3)
    timid = [Detections(one.boxes, one.label, one.score / 16) for one in found]
    a, b = class_errors(there, found, 3), class_errors(there, timid, 3)
    assert b.threshold == a.threshold / 16
    c = class_errors(there, timid, 3, score_threshold=0.5)
    assert all(torch.equal(a.count(kind), b.count(kind)) for kind in KINDS)
    assert not all(torch.equal(a.count(kind), c.count(kind)) for kind in KINDS)


def test_the_threshold_leaves_out_what_does_harm():
    there = truth((*OBJECT, CAT), (*FAR, CAT))
    found = detections(
        (*OBJECT, CAT, 0.9), (*FAR, CAT, 0.6), *[(50, y, 60, y + 10, CAT, 0.5) for y in (0, 20, 40)]
    )
    assert best_threshold([there], [found]) == pytest.approx(0.6)
    assert class_errors([there], [found], 2).f1 == 1.0


def test_no_detection_and_no_picture():
    errors = class_errors([truth((*OBJECT, CAT))], [detections()], 2)
    assert (errors.threshold, errors.f1) == (0.0, 0.0)
    assert errors.missed_altogether.tolist() == [1, 0]
    empty = class_errors([], [], 2)
    assert empty.f1 == 1.0
    assert not any(empty.count(kind).any() for kind in (*KINDS, *REASONS))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: class_errors([truth()], [], 2), "each of 1 images, got 0; pass one"),
        (lambda: class_errors([truth((*OBJECT, 3))], [detections()], 2), "from 1 to 2, got 3 .* position 0"),
        (lambda: class_errors([truth()], [detections((*OBJECT, 0, 0.5))], 2), "from 1 to 2, got 0 .*; pass"),
    ],
)
def test_says_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()
