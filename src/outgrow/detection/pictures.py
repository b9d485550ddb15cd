"""Draw boxes on an image, one column per detector, and choose the images where two detectors differ most."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float64, UInt8
from torch import Tensor

from outgrow.detection.boxes import Detections, Truth
from outgrow.detection.errors import best_threshold, check, confident, f1, judge
from outgrow.report.curves import COLOURS

if TYPE_CHECKING:
    from PIL import ImageDraw, ImageFont

WIDTH = 640
"""Width of a column in pixels: COCO's images keep their size, and text is readable on a page."""
TAGS = 12
"""The most boxes of a column with text. More text hides the objects, as tried on blood cells and on COCO."""
LEGEND = 16
"""The most classes in the legend, two for each colour."""
SMALL = 32
"""Boxes with a shorter side than this, in pixels of a column, get thinner lines, which do not fill them."""
HIDDEN = 0.5
"""Text is left out if it would cover a larger share of a box than this."""
INK, PAPER = "#1a1a1a", "#ffffff"

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class _Mark:
    """One box to draw, in pixels of its column. ``text`` may be empty."""

    box: Box
    label: int
    text: str


def side_by_side(
    path: str | Path,
    columns: Sequence[tuple[str, Detections | Truth]],
    image: UInt8[Tensor, "3 height width"],
    classes: Sequence[str],
) -> None:
    """Draw ``image`` once per column, a pair of caption and boxes, and write a PNG or JPEG by the suffix of ``path``.

    Four columns are drawn as two rows of two, so that they stay readable on a page.

    Boxes are in pixels of ``image``; a label's class is ``classes[label - 1]``. All boxes are drawn, so pass
    ``errors.confident(found, threshold)`` with each detector's own threshold. A column is 640 pixels wide and at
    most 800 high.

    Colours show classes. Up to 8 classes have the same colour in all files. With more classes, colours repeat, and
    the classes with the most boxes in this image get theirs first. At most 12 boxes of a column get text (the class
    and, for detections, the score in percent), those of the rarest classes first. Text covers no other text and at
    most half of any box. A legend names the classes. Crowd regions are dashed.

    ``ValueError`` without columns, for a label without a class, and for another suffix.
    """
    from PIL import Image, ImageDraw

    _check(path, columns, classes)
    photo = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
    scale = min(WIDTH / photo.width, 1.25 * WIDTH / photo.height)
    size = max(1, round(photo.width * scale)), max(1, round(photo.height * scale))
    photo = photo.resize(size, Image.Resampling.LANCZOS)

    caption_font, tag_font, legend_font = _font(22, bold=True), _font(15, bold=True), _font(18)
    colours = _colours(columns, len(classes))
    gap, head = 12, 42
    # columns of narrow images are widened for their captions
    wide = max(size[0], *(min(WIDTH, round(caption_font.getlength(name)) + 8) for name, _ in columns))
    across = 2 if len(columns) == 4 else len(columns)
    rows = -(-len(columns) // across)
    total = gap + across * (wide + gap)
    below = rows * (head + size[1])
    legend = _legend(colours, classes, legend_font, total - 2 * gap)
    canvas = Image.new("RGB", (total, below + 14 + 30 * len(legend)), PAPER)
    draw = ImageDraw.Draw(canvas)

    for number, (caption, boxes) in enumerate(columns):
        left, top = gap + number % across * (wide + gap), number // across * (head + size[1])
        draw.text((left, top + head / 2), _fit(caption, caption_font, wide), INK, caption_font, anchor="lm")
        column = photo.copy()
        _draw_column(ImageDraw.Draw(column), boxes, classes, colours, size, scale, tag_font)
        canvas.paste(column, (left, top + head))
    for row, line in enumerate(legend):
        y = below + 14 + 30 * row + 10
        for x, label in line:
            draw.rectangle((gap + x, y - 8, gap + x + 16, y + 8), outline=colours[label], width=4)
            draw.text((gap + x + 24, y), classes[label - 1], INK, legend_font, anchor="lm")
    canvas.save(path, quality=92)


def image_scores(
    truth: Sequence[Truth],
    found: Sequence[Detections],
    num_classes: int,
    *,
    score_threshold: float | None = None,
) -> Float64[Tensor, " images"]:
    """F1 in [0, 1] of each image at IoU 0.5, over the detections with at least ``score_threshold``.

    The default is ``errors.best_threshold`` of the whole split. An image without objects and without detections
    scores 1. ``ValueError`` for lengths that differ and labels outside the classes.
    """
    check(truth, found, num_classes, "image_scores")
    threshold = best_threshold(truth, found) if score_threshold is None else score_threshold
    values = []
    for objects, detections in zip(truth, found, strict=True):
        right, ignored = judge(objects, confident(detections, threshold))
        hits = int(right.sum())
        values.append(f1(hits, int((~ignored).sum()) - hits, len(objects.label)))
    return torch.tensor(values, dtype=torch.float64)


def where_they_differ(
    truth: Sequence[Truth], before: Sequence[Detections], after: Sequence[Detections], k: int
) -> list[int]:
    """The positions of the ``k`` images whose F1 differs most, largest difference first, ties by position.

    Each side has its own threshold, see ``image_scores``. Returns fewer than ``k`` if there are fewer images.
    """
    labels = [one.label for side in (truth, before, after) for one in side]
    num_classes = max((int(label.max()) for label in labels if len(label)), default=0)
    change = image_scores(truth, after, num_classes) - image_scores(truth, before, num_classes)
    # rounded, so that equal differences of different scores are ties
    size = (change.abs() * 1e9).round()
    return size.argsort(descending=True, stable=True)[:k].tolist()


def _draw_column(
    draw: "ImageDraw.ImageDraw",
    boxes: Detections | Truth,
    classes: Sequence[str],
    colours: dict[int, str],
    size: tuple[int, int],
    scale: float,
    font: "ImageFont.FreeTypeFont",
) -> None:
    if isinstance(boxes, Truth):
        for region in boxes.crowd.tolist():
            _dashed(draw, _scaled(region, scale))
    marks = _marks(boxes, classes, scale)
    # small boxes are drawn over large ones
    for mark in sorted(marks, key=lambda one: -_area(one.box)):
        left, top, right, bottom = mark.box
        # a white line around each box keeps its colour visible on any image; large boxes get one inside, too
        thick = min(right - left, bottom - top) >= SMALL
        draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=PAPER, width=5 if thick else 2)
        draw.rectangle(mark.box, outline=colours[mark.label], width=3 if thick else 2)
    _draw_tags(draw, marks, colours, size, font)


def _draw_tags(
    draw: "ImageDraw.ImageDraw",
    marks: Sequence[_Mark],
    colours: dict[int, str],
    size: tuple[int, int],
    font: "ImageFont.FreeTypeFont",
) -> None:
    """Draw each text where it covers boxes least, small boxes first. Text that would hide a box is left out."""
    taken: list[Box] = []
    for mark in sorted(marks, key=lambda one: _area(one.box)):
        if not mark.text:
            continue
        places = [
            place
            for place in _places(mark.box, font.getlength(mark.text) + 8, 20.0, size)
            if not any(_shared(place, other) for other in taken)
        ]
        # the share of each box that the text would cover; on a tie the first place, above the box, is used
        hidden = [[_shared(place, one.box) / max(_area(one.box), 1.0) for one in marks] for place in places]
        allowed = [number for number, shares in enumerate(hidden) if max(shares) <= HIDDEN]
        if not allowed:
            continue
        left, top, right, bottom = place = places[min(allowed, key=lambda number: sum(hidden[number]))]
        taken.append(place)
        draw.rectangle((left, top, right - 1, bottom - 1), fill=colours[mark.label])
        draw.text((left + 4, (top + bottom) / 2), mark.text, PAPER, font, anchor="lm")


def _places(box: Box, width: float, height: float, size: tuple[int, int]) -> list[Box]:
    """Places for text of this size within the column: above, below and in the corners of its box."""
    left, top, right, bottom = box
    places = []
    for x, y in (
        (left - 1, top - 1 - height),
        (right - width + 1, top - 1 - height),
        (left - 1, bottom + 2),
        (right - width + 1, bottom + 2),
        # in the corners, within the column even if the box reaches its edge
        (left - 1, max(0.0, top - 1)),
        (left - 1, min(bottom + 1, float(size[1])) - height),
    ):
        x = max(0.0, min(x, size[0] - width))
        if 0 <= y <= size[1] - height:
            places.append((x, y, x + width, y + height))
    return places


def _marks(boxes: Detections | Truth, classes: Sequence[str], scale: float) -> list[_Mark]:
    labels = boxes.label.tolist()
    texts = [classes[label - 1] for label in labels]
    if isinstance(boxes, Detections):
        scores = boxes.score.tolist()
        texts = [f"{text} {100 * score:.0f}%" for text, score in zip(texts, scores, strict=True)]
    # all boxes of a class or none, rarest classes first, so that boxes without text are of frequent classes
    with_text: set[int] = set()
    room = TAGS
    for label, count in sorted(Counter(labels).items(), key=lambda one: (one[1], one[0])):
        room -= count
        if room < 0:
            break
        with_text.add(label)
    return [
        _Mark(_scaled(box, scale), label, text if label in with_text else "")
        for box, label, text in zip(boxes.boxes.tolist(), labels, texts, strict=True)
    ]


def _colours(columns: Sequence[tuple[str, Detections | Truth]], num_classes: int) -> dict[int, str]:
    """The colour of each class in ``columns``, in the order of the legend."""
    counts = Counter(label for _, boxes in columns for label in boxes.label.tolist())
    if num_classes <= len(COLOURS):
        return {label: COLOURS[label - 1] for label in sorted(counts)}
    order = sorted(counts, key=lambda label: (-counts[label], label))
    return {label: COLOURS[place % len(COLOURS)] for place, label in enumerate(order)}


def _legend(
    colours: dict[int, str], classes: Sequence[str], font: "ImageFont.FreeTypeFont", width: int
) -> list[list[tuple[float, int]]]:
    """The lines of the legend, as (distance from the left in pixels, label)."""
    lines: list[list[tuple[float, int]]] = []
    x = 0.0
    for label in list(colours)[:LEGEND]:
        needed = 24 + font.getlength(classes[label - 1]) + 28
        if not lines or x + needed > width:
            lines.append([])
            x = 0.0
        lines[-1].append((x, label))
        x += needed
    return lines


def _dashed(draw: "ImageDraw.ImageDraw", box: Box) -> None:
    left, top, right, bottom = box
    for start, end in (
        ((left, top), (right, top)),
        ((right, top), (right, bottom)),
        ((left, bottom), (right, bottom)),
        ((left, top), (left, bottom)),
    ):
        length = abs(end[0] - start[0]) + abs(end[1] - start[1])
        steps = max(1, int(length / 8))
        for step in range(steps):
            ends = []
            for part in (step / steps, (step + 1) / steps):
                ends.append((start[0] + (end[0] - start[0]) * part, start[1] + (end[1] - start[1]) * part))
            draw.line(ends, fill=PAPER if step % 2 else INK, width=3)


def _font(size: int, *, bold: bool = False) -> "ImageFont.FreeTypeFont":
    """DejaVu Sans, which comes with matplotlib and covers most languages."""
    from matplotlib import get_data_path
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(get_data_path(), "fonts", "ttf", name)), size)


def _fit(text: str, font: "ImageFont.FreeTypeFont", width: int) -> str:
    """``text``, cut to ``width`` pixels with three dots at the end if it is too long."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..."


def _scaled(box: Sequence[float], scale: float) -> Box:
    left, top, right, bottom = (value * scale for value in box)
    # PIL refuses a rectangle with right < left or bottom < top
    return left, top, max(left, right), max(top, bottom)


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _shared(a: Box, b: Box) -> float:
    """The area of the intersection of two boxes."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, width) * max(0.0, height)


def _check(
    path: str | Path, columns: Sequence[tuple[str, Detections | Truth]], classes: Sequence[str]
) -> None:
    if Path(path).suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ValueError(f"side_by_side: needs a path to .png, .jpg or .jpeg, got {path}; change the suffix.")
    if not columns:
        raise ValueError("side_by_side: needs at least one column, got none; pass pairs (caption, boxes).")
    for caption, boxes in columns:
        outside = boxes.label[(boxes.label < 1) | (boxes.label > len(classes))]
        if len(outside):
            raise ValueError(
                f"side_by_side: needs labels from 1 to {len(classes)}, got {int(outside[0])} in the column "
                f"{caption!r}; pass the name of every class."
            )
