"""COCO's box AP by the official protocol: all twelve numbers, and AP per class.

It is computed by faster-coco-eval, a C++ version of pycocotools. The tests compare the two.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from outgrow.detection.boxes import Detections

# in the order of COCO's summary
NUMBERS = (
    "ap",
    "ap50",
    "ap75",
    "ap_small",
    "ap_medium",
    "ap_large",
    "ar1",
    "ar10",
    "ar100",
    "ar_small",
    "ar_medium",
    "ar_large",
)


@dataclass(frozen=True)
class CocoScores:
    """COCO's twelve numbers and the AP of each class, in percent; None if no object applies.

    ``ap`` is the mean over IoU 0.50, 0.55, ..., 0.95 and over classes. Small is below 32 x 32 pixels of
    area, large from 96 x 96. ``ar1``, ``ar10``, ``ar100`` allow 1, 10 and 100 detections per image and
    class; all other numbers allow 100. ``per_class`` is AP by class name. ``curves`` are the precisions at COCO's 101
    recalls (0, 0.01, ..., 1), the mean over classes: ``ap50`` and ``ap`` are their means. Empty if no object applies.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar1: float | None
    ar10: float | None
    ar100: float | None
    ar_small: float | None
    ar_medium: float | None
    ar_large: float | None
    per_class: dict[str, float | None]
    curves: dict[str, tuple[float, ...]]


def check_installed() -> None:
    """``ValueError`` if faster-coco-eval is not installed. Called before training, so that a run fails early."""
    try:
        import faster_coco_eval  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "coco_scores: needs the package faster-coco-eval, got none installed; "
            "pip install 'outgrow[detection]'."
        ) from error


def coco_scores(
    annotations: Mapping[str, Any],
    image_ids: Sequence[int],
    category_ids: Sequence[int],
    found: Sequence[Detections],
) -> CocoScores:
    """Score the detections ``found[i]`` in the image ``image_ids[i]`` against COCO annotations.

    ``annotations`` has "images", "annotations" and "categories" as in COCO's files; it is not changed. Crowds are
    ignored as in COCO. An annotation needs "image_id", "category_id" and "bbox"; the default of "area" is the area
    of the box. Only the images ``image_ids`` and the categories ``category_ids`` count. Detected boxes are left,
    top, right, bottom in pixels of the original image. Their label k, from 1 on, is ``category_ids[k - 1]``.

    ``ValueError`` without faster-coco-eval, if the numbers of ids and detections differ, for unknown or duplicate
    ids, a label outside the classes, and boxes or scores that are not finite.

    Reference: Lin et al., Microsoft COCO (2014), and cocodataset.org/#detection-eval.
    """
    check_installed()
    from faster_coco_eval import COCO, COCOeval_faster

    names = {category["id"]: str(category["name"]) for category in annotations["categories"]}
    _check_ids(annotations, image_ids, category_ids, names)
    _check_detections(image_ids, category_ids, found)

    truth = COCO(_truth(annotations, set(image_ids), names))
    guesses = COCO(_guesses(image_ids, category_ids, found, names))
    # by default it prints to a logger, not to stdout
    evaluation = COCOeval_faster(truth, guesses, "bbox")
    evaluation.params.imgIds = list(image_ids)
    evaluation.params.catIds = list(category_ids)
    evaluation.params.maxDets = [1, 10, 100]
    evaluation.run()

    # IoU x recall x class x area x max detections; classes are sorted by category id
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    per_class = {}
    for place, category in enumerate(sorted(category_ids)):
        known = precision[:, :, place][precision[:, :, place] > -1]
        per_class[names[category]] = 100 * float(known.mean()) if known.size else None
    known_classes = precision[:, :, (precision > -1).all(axis=(0, 1))]
    curves = {}
    if known_classes.size:
        by_recall = 100 * known_classes.mean(axis=2)  # IoU x recall
        curves = {"ap": tuple(by_recall.mean(axis=0).tolist()), "ap50": tuple(by_recall[0].tolist())}
    numbers = [None if value == -1 else 100 * float(value) for value in evaluation.stats]
    by_name = dict(zip(NUMBERS, numbers, strict=True))
    return CocoScores(
        **by_name,
        # in the order of the labels
        per_class={names[category]: per_class[names[category]] for category in category_ids},
        curves=curves,
    )


def _truth(annotations: Mapping[str, Any], images: set[int], names: Mapping[int, str]) -> dict[str, Any]:
    """A copy of the annotations in COCO's layout, as the evaluation modifies its input.

    Annotation ids are replaced by 1, 2, ...: the evaluation stores matches by id, and 0 means no match.
    """
    boxes = []
    for number, annotation in enumerate(
        (one for one in annotations["annotations"] if one["image_id"] in images), start=1
    ):
        left, top, width, height = (float(value) for value in annotation["bbox"])
        boxes.append(
            {
                "id": number,
                "image_id": annotation["image_id"],
                "category_id": annotation["category_id"],
                "bbox": [left, top, width, height],
                "area": float(annotation.get("area", width * height)),
                "iscrowd": int(annotation.get("iscrowd", 0)),
            }
        )
    return _dataset(images, boxes, names)


def _guesses(
    image_ids: Sequence[int],
    category_ids: Sequence[int],
    found: Sequence[Detections],
    names: Mapping[int, str],
) -> dict[str, Any]:
    boxes: list[dict[str, Any]] = []
    for image, detections in zip(image_ids, found, strict=True):
        rows = zip(
            # double precision, so that right - left is not rounded
            detections.boxes.double().tolist(),
            detections.label.tolist(),
            detections.score.double().tolist(),
            strict=True,
        )
        for (left, top, right, bottom), label, score in rows:
            width, height = right - left, bottom - top
            boxes.append(
                {
                    "id": len(boxes) + 1,
                    "image_id": image,
                    "category_id": category_ids[label - 1],
                    "bbox": [left, top, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                    "score": score,
                }
            )
    return _dataset(set(image_ids), boxes, names)


def _dataset(images: set[int], boxes: list[dict[str, Any]], names: Mapping[int, str]) -> dict[str, Any]:
    return {
        "images": [{"id": image} for image in sorted(images)],
        "annotations": boxes,
        "categories": [{"id": number, "name": name} for number, name in names.items()],
    }


def _check_ids(
    annotations: Mapping[str, Any],
    image_ids: Sequence[int],
    category_ids: Sequence[int],
    names: Mapping[int, str],
) -> None:
    known = {image["id"] for image in annotations["images"]}
    for what, ids, all_ids in (("image", image_ids, known), ("category", category_ids, names.keys())):
        twice = sorted(number for number, count in Counter(ids).items() if count > 1)
        strange = sorted(set(ids) - set(all_ids))
        if not ids or twice or strange:
            problem = f"{twice[:5]} twice" if twice else f"unknown {strange[:5]}" if strange else "none"
            raise ValueError(
                f"coco_scores: needs {what}_ids from the annotations, each once, got {problem}; "
                "pass the ids of the split that the annotations describe."
            )
    named = Counter(names[number] for number in category_ids)
    if len(named) < len(category_ids):
        raise ValueError(
            "coco_scores: needs a unique name for each category, got "
            f"{[name for name, count in named.items() if count > 1]} several times; rename categories."
        )


def _check_detections(
    image_ids: Sequence[int], category_ids: Sequence[int], found: Sequence[Detections]
) -> None:
    if len(found) != len(image_ids):
        raise ValueError(
            f"coco_scores: needs detections for each of {len(image_ids)} image_ids, got {len(found)}; "
            "pass one Detections per image, empty if nothing was found."
        )
    for image, detections in zip(image_ids, found, strict=True):
        outside = detections.label[(detections.label < 1) | (detections.label > len(category_ids))]
        if len(outside):
            raise ValueError(
                f"coco_scores: needs labels from 1 to {len(category_ids)}, got {int(outside[0])} in the "
                f"image {image}; pass a category id for each class of the detector."
            )
        if not (torch.isfinite(detections.boxes).all() and torch.isfinite(detections.score).all()):
            raise ValueError(
                f"coco_scores: needs finite boxes and scores, got others in the image {image}; "
                "check whether training diverged."
            )
