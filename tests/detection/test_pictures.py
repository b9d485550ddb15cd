"""Pictures of boxes, pixel by pixel where it matters, and the choice of which pictures to show."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from outgrow.detection.boxes import Detections, Truth
from outgrow.detection.pictures import (
    _font,
    _marks,
    _places,
    _shared,
    image_scores,
    side_by_side,
    where_they_differ,
)
from outgrow.report.curves import COLOURS

GAP, HEAD, FOOT = 12, 42, 14 + 30


def truth(*rows, crowd=()):
    """From rows of (left, top, right, bottom, label)."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 5)
    crowds = torch.tensor(crowd, dtype=torch.float32).reshape(-1, 4)
    return Truth(table[:, :4], table[:, 4].long(), crowds, 0)


def detections(*rows):
    """From rows of (left, top, right, bottom, label, score)."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4].long(), table[:, 5])


def grey(height=480, width=640):
    return torch.full((3, height, width), 128, dtype=torch.uint8)


def drawn(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def column(pixels, number, width=640, height=480):
    left = GAP + number * (width + GAP)
    return pixels[HEAD : HEAD + height, left : left + width]


def rgb(colour):
    return list(ImageColor.getrgb(colour))


def has(pixels, colour):
    return (pixels == rgb(colour)).all(axis=2).any()


def test_the_photograph_stands_in_every_column_and_boxes_in_their_own(tmp_path):
    path = tmp_path / "picture.png"
    cat, dog = (100, 100, 200, 200), (300, 200, 400, 400)
    columns = [
        ("nothing", truth()),
        ("truth", truth((*cat, 1), (*dog, 2))),
        ("student", detections((*dog, 2, 0.9))),
    ]
    side_by_side(path, columns, grey(), ["cat", "dog"])
    pixels = drawn(path)
    assert pixels.shape == (HEAD + 480 + FOOT, GAP + 3 * (640 + GAP), 3)
    nothing, both, one = (column(pixels, number) for number in range(3))
    assert (nothing == 128).all()
    # on the left and the right line, half-way down
    for place, expected in (((150, 101), 0), ((150, 199), 0), ((300, 301), 1), ((300, 399), 1)):
        assert both[place].tolist() == rgb(COLOURS[expected])
    assert one[300, 301].tolist() == rgb(COLOURS[1])
    assert not has(one, COLOURS[0])
    # within a box the photograph is as it was
    for pixels_of in (both, one):
        assert (pixels_of[210:390, 310:390] == 128).all()
    # a caption above each column, the legend below
    for number in range(3):
        left = GAP + number * (640 + GAP)
        assert (pixels[:HEAD, left : left + 60] < 100).any()
    assert has(pixels[-FOOT:], COLOURS[0])
    assert has(pixels[-FOOT:], COLOURS[1])


def test_four_columns_are_two_rows_of_two(tmp_path):
    """Side by side on a page they would be too small to read."""
    path = tmp_path / "picture.png"
    cat = truth((100, 100, 200, 200, 1))
    columns = [("a", truth()), ("b", truth()), ("c", truth()), ("d", cat)]
    side_by_side(path, columns, grey(), ["cat", "dog"])
    pixels = drawn(path)
    assert pixels.shape == (2 * (HEAD + 480) + FOOT, GAP + 2 * (640 + GAP), 3)
    upper, lower = pixels[: HEAD + 480], pixels[HEAD + 480 :]
    for number in (0, 1):
        assert (column(upper, number) == 128).all()
    assert column(lower, 1)[150, 101].tolist() == rgb(COLOURS[0])
    assert not has(column(lower, 0), COLOURS[0])
    assert has(pixels[-FOOT:], COLOURS[0])


def test_a_photograph_of_another_size_is_scaled_with_its_boxes(tmp_path):
    image = grey(240, 320)
    image[:, 60:180, 80:240] = 200
    path = tmp_path / "picture.png"
    side_by_side(path, [("truth", truth((80, 60, 240, 180, 1)))], image, ["cat"])
    pixels = column(drawn(path), 0)
    assert pixels[240, 161].tolist() == pixels[240, 479].tolist() == rgb(COLOURS[0])
    assert pixels[240, 320].tolist() == [200] * 3
    assert pixels[240, 100].tolist() == [128] * 3


@pytest.mark.parametrize("height, width", [(8, 8), (900, 300), (300, 900), (1, 1)])
@pytest.mark.parametrize("suffix, kind", [(".png", "PNG"), (".jpg", "JPEG"), (".JPEG", "JPEG")])
def test_any_shape_of_photograph(tmp_path, height, width, suffix, kind):
    path = tmp_path / f"picture{suffix}"
    # also boxes that are a point, or partly outside
    found = detections((0, 0, 0, 0, 1, 0.5), (-5, -5, 1000, 1000, 2, 1.0), (2, 1, 1, 0, 1, 0.1))
    long = "a caption that is much longer than a column of any photograph is wide, so that it is cut"
    side_by_side(path, [("truth", truth()), (long, found)], grey(height, width), ["cat", "dog"])
    with Image.open(path) as picture:
        assert picture.format == kind
        assert picture.width <= 3 * GAP + 2 * 640
        assert picture.height <= HEAD + 800 + FOOT


def test_classes_keep_their_colours_where_there_are_few(tmp_path):
    path = tmp_path / "picture.png"
    boxes = truth((100, 100, 200, 200, 3))
    side_by_side(path, [("truth", boxes)], grey(), ["a", "b", "c"])
    assert column(drawn(path), 0)[150, 101].tolist() == rgb(COLOURS[2])
    # of many, the most frequent one has the first colour
    side_by_side(path, [("truth", boxes)], grey(), [f"class {i}" for i in range(80)])
    assert column(drawn(path), 0)[150, 101].tolist() == rgb(COLOURS[0])


def test_text_is_for_few_boxes_and_the_rarest_classes():
    classes = ["RBC", "WBC", "Platelets"]
    many = [(20 * i, 0, 20 * i + 10, 10, 1, 0.5) for i in range(20)]
    few = [(0, 100, 50, 150, 2, 0.876), (100, 100, 120, 120, 3, 0.1), (200, 100, 220, 120, 3, 0.999)]
    texts = [mark.text for mark in _marks(detections(*many, *few), classes, 1.0)]
    assert texts == [""] * 20 + ["WBC 88%", "Platelets 10%", "Platelets 100%"]
    assert all(mark.text for mark in _marks(detections(*many[:9], *few), classes, 1.0))
    assert not any(mark.text for mark in _marks(detections(*many[:10], *few), classes, 1.0)[:10])
    assert [mark.text for mark in _marks(truth(few[0][:5]), classes, 1.0)] == ["WBC"]
    # marks are in pixels of the column
    assert _marks(truth((1, 2, 3, 4, 1)), classes, 2.0)[0].box == (2, 4, 6, 8)


def test_text_hides_no_object(tmp_path):
    path = tmp_path / "picture.png"
    # a box in the middle of eight others that leave no place for its text
    grid = [(x, y, x + 20, y + 20, 1) for y in (200, 224, 248) for x in (300, 324, 348)]
    side_by_side(path, [("truth", truth(*grid))], grey(), ["a very long name"])
    pixels = column(drawn(path), 0)
    for left, top, right, bottom, _ in grid:
        inner = pixels[int(top) + 3 : int(bottom) - 2, int(left) + 3 : int(right) - 2]
        assert (inner == 128).all(axis=2).mean() > 0.5
    # and yet some of them have their text
    assert has(pixels[170:198], COLOURS[0])


def test_text_stays_in_the_picture():
    for box in ((0.0, 0.0, 9.0, 9.0), (630.0, 470.0, 640.0, 480.0), (0.0, 0.0, 640.0, 480.0)):
        places = _places(box, 80.0, 20.0, (640, 480))
        assert places
        for left, top, right, bottom in places:
            assert 0 <= left < right <= 640
            assert 0 <= top < bottom <= 480
    # above, below and in the corners; only in them where the box is the picture
    assert len(_places((200.0, 200.0, 300.0, 300.0), 80.0, 20.0, (640, 480))) == 6
    assert len(_places((0.0, 0.0, 640.0, 480.0), 80.0, 20.0, (640, 480))) == 2
    assert _shared((0.0, 0.0, 10.0, 10.0), (5.0, 8.0, 20.0, 20.0)) == 10
    assert _shared((0.0, 0.0, 10.0, 10.0), (10.0, 0.0, 20.0, 10.0)) == 0


def test_crowds_are_dashed(tmp_path):
    path = tmp_path / "picture.png"
    side_by_side(path, [("truth", truth(crowd=[(100, 100, 300, 300)]))], grey(), ["cat"])
    line = column(drawn(path), 0)[100, 100:300]
    dark, light = (line < 60).all(axis=1), (line > 200).all(axis=1)
    assert dark.sum() > 60
    assert light.sum() > 60


def test_no_state_of_pyplot_and_fonts_of_matplotlib(tmp_path):
    import subprocess
    import sys

    code = (
        "import sys, torch; from outgrow.detection.pictures import side_by_side as s;"
        "from outgrow.detection.boxes import Truth;"
        "t = Truth(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), 0);"
        f"s({str(tmp_path / 'a.png')!r}, [('t', t)], torch.zeros(3, 9, 9, dtype=torch.uint8), []);"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert _font(20).getname()[0] == "DejaVu Sans"


@pytest.mark.parametrize(
    "name, columns, message",
    [
        ("a.gif", [("truth", truth())], "needs a path to .png.*got .*gif; change"),
        ("a.png", [], "needs at least one column, got none; pass"),
        ("a.png", [("truth", truth((0, 0, 1, 1, 3)))], "from 1 to 2, got 3 in the column 'truth'; pass"),
        ("a.png", [("found", detections((0, 0, 1, 1, 0, 0.5)))], "from 1 to 2, got 0 in the column 'found'"),
    ],
)
def test_says_what_is_wrong(tmp_path, name, columns, message):
    with pytest.raises(ValueError, match=message):
        side_by_side(tmp_path / name, columns, grey(), ["cat", "dog"])
    assert not list(tmp_path.iterdir())


OBJECT, FAR = (0, 0, 10, 10), (50, 50, 60, 60)


def test_the_score_of_a_picture_is_its_f1():
    there = [truth((*OBJECT, 1), (*FAR, 1))] * 4 + [truth(), truth(), truth(crowd=[(0, 0, 100, 100)])]
    found = [
        detections((*OBJECT, 1, 0.9), (*FAR, 1, 0.9)),
        detections((*OBJECT, 1, 0.9)),
        detections((*OBJECT, 1, 0.9), (*OBJECT, 1, 0.8), (*FAR, 2, 0.8), (*FAR, 1, 0.1)),
        detections(),
        detections(),
        detections((*OBJECT, 1, 0.9)),
        detections((*OBJECT, 1, 0.9)),
    ]
    scores = image_scores(there, found, 2, score_threshold=0.5)
    # 2 right / (right + wrong + objects); a crowd is neither
    assert scores.tolist() == pytest.approx([1, 2 / 3, 2 / 5, 0, 1, 0, 1])
    # the threshold that suits the split keeps the last detection of the third picture
    every = image_scores(there, found, 2, score_threshold=0.0)
    assert every.tolist() == pytest.approx([1, 2 / 3, 4 / 6, 0, 1, 0, 1])
    assert image_scores(there, found, 2).tolist() in (scores.tolist(), every.tolist())
    with pytest.raises(ValueError, match="image_scores: needs labels from 1 to 1, got 2"):
        image_scores(there, found, 1)
    assert image_scores([], [], 2).shape == (0,)


def test_where_they_differ_most():
    right, half, wrong = (
        detections((*OBJECT, 1, 0.9), (*FAR, 1, 0.9)),
        detections((*OBJECT, 1, 0.9)),
        detections((200, 200, 210, 210, 1, 0.9)),
    )
    there = [truth((*OBJECT, 1), (*FAR, 1))] * 6
    before = [right, right, half, wrong, right, half]
    after = [right, half, right, right, wrong, half]
    assert where_they_differ(there, before, after, 4) == [3, 4, 1, 2]
    assert where_they_differ(there, before, after, 9) == [3, 4, 1, 2, 0, 5]
    assert where_they_differ(there, before, after, 0) == []
    # each side has its own threshold: another scale of scores is no difference
    timid = [Detections(one.boxes, one.label, one.score / 10) for one in after]
    assert where_they_differ(there, before, timid, 9) == [3, 4, 1, 2, 0, 5]
    with pytest.raises(ValueError, match="each of 6 images, got 5"):
        where_they_differ(there, before[:5], after, 2)


def test_equal_differences_keep_the_order_of_the_pictures():
    def some(right, wrong):
        rows = [(20 * i, 0, 20 * i + 10, 10, 1, 0.9) for i in range(right)]
        return detections(*rows, *[(20 * i, 500, 20 * i + 10, 510, 1, 0.9) for i in range(wrong)])

    def objects(count):
        return truth(*[(20 * i, 0, 20 * i + 10, 10, 1) for i in range(count)])

    # from 0.6 to 0.4 and from 0.8 to 0.6: equal, but not as floating-point numbers
    there = [objects(7), objects(3)]
    before, after = [some(3, 0), some(2, 0)], [some(2, 1), some(3, 4)]
    assert image_scores(there, before, 1).tolist() == [0.6, 0.8]
    assert image_scores(there, after, 1).tolist() == [0.4, 0.6]
    assert 0.6 - 0.4 < 0.8 - 0.6
    assert where_they_differ(there, before, after, 2) == [0, 1]
    # many ties, for a sort that is stable only when short
    ones = [some(1, 0), some(0, 1)] * 200
    assert where_they_differ([objects(1)] * 400, ones, [some(1, 0)] * 400, 400) == [
        *range(1, 400, 2),
        *range(0, 400, 2),
    ]
