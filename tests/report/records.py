"""Made-up records for the tests of reports: round numbers that no training gave."""

from typing import Any

import torch

from outgrow.data import ArraySplit
from outgrow.training.config import build_config

CLASSES = ["cat", "dog", "<script>alert('class')</script>"]


def candidate(name: str, ridge: float | None, nll: float, accuracy: float) -> dict[str, Any]:
    source = {"as it is": "none", "temperature alone": "scale"}.get(name, "logits")
    return {"name": name, "source": source, "ridge": ridge, "nll": nll, "accuracy": accuracy}


def correction() -> dict[str, Any]:
    chosen = candidate("map of the logits", 300.0, 0.3125, 0.9125)
    return {
        "candidates": [
            candidate("as it is", None, 1.2345, 0.5125),
            candidate("temperature alone", None, 1.1, 0.5125),
            chosen,
        ],
        "chosen": chosen,
        "raw": candidate("as it is", None, 1.2345, 0.5125),
        "reason": "map of the logits is used: it is better by <0.9> nats.",
        "num_images": 1234,
        "used": True,
    }


def record(
    preset: str,
    seed: int,
    top1: float,
    *,
    teacher: float | None = 50.0,
    corrected: bool = False,
    epochs: int = 4,
    terms: tuple[str, ...] = ("task", "kd"),
    examples: tuple[int, ...] = (0, 1),
) -> dict[str, Any]:
    config = build_config({"seed": seed, "method": {"preset": preset}, "train": {"epochs": epochs}})
    facts: dict[str, Any] = {}
    if teacher is not None:
        facts = {"name": "made/teacher", "parameters": 4000, "weights": "trained here", "classes": 3}
        facts |= {"top1": teacher, "top5": 99.0, "nll": 1.5}
    if corrected:
        facts |= {"top1_corrected": 91.0 + seed, "wrong_rate": 0.375}
    return {
        "metric": "top1",
        "teacher": facts,
        "correction": correction() if corrected else None,
        "student": {
            "name": "made/student",
            "parameters": 1000,
            "top1": top1,
            "top5": 99.5,
            "nll": 0.4321,
            "top1_best": top1 + 0.25,
            "epoch_best": epochs,
        },
        "epochs": [
            {
                "epoch": e,
                "loss": 3.0 / e,
                "terms": {name: (1.0 + i) / e for i, name in enumerate(terms)},
                "wrong_rate": None if teacher is None else 0.25,
                # tested every other epoch, and at the last
                "score": top1 * e / epochs if e % 2 == 0 or e == epochs else None,
                "lr": 0.1 / e,
                "seconds": 1.0,
                "images_per_second": 100.0,
                "stats": {},
            }
            for e in range(1, epochs + 1)
        ],
        "compared": None
        if teacher is None
        else {
            "both_right": 4,
            "only_teacher": 1,
            "only_student": 12,
            "neither": 3,
            "examples": [
                {"position": i, "label": i % 3, "teacher": (i + 1) % 3, "student": i % 3} for i in examples
            ],
        },
        "data": {
            "source": "folder:made-up",
            "fingerprint": "0123abcd",
            "classes": CLASSES,
            "train": 1234,
            "val": 0,
            "test": 20,
        },
        "config": config.model_dump(mode="json"),
        "versions": {"outgrow": "0.1.0", "torch": "9.9.9"},
        "commit": "abcdef012345+",
        "command": "outgrow demo --out a&b",
        "hardware": "a made-up machine",
        "started": f"2030-01-0{seed + 1}T00:00:00Z",
        "seconds": 10.0,
    }


def features_alone(run: dict[str, Any]) -> dict[str, Any]:
    """The same run, of a teacher that gives no logits."""
    epochs = [{**epoch, "wrong_rate": None} for epoch in run["epochs"]]
    return {**run, "epochs": epochs}


def as_of_old(run: dict[str, Any]) -> dict[str, Any]:
    """The same record as it was written before runs were judged by anything but top-1."""
    epochs = [{"top1" if key == "score" else key: e[key] for key in e} for e in run["epochs"]]
    return {**{key: run[key] for key in run if key != "metric"}, "epochs": epochs}


NUMBERS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
NUMBERS += ("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")


def detector(
    preset: str, seed: int, ap: float, *, teacher: float | None = 40.0, pictures: tuple[str, ...] = ()
) -> dict[str, Any]:
    """A run that was judged by box AP. No network here was corrected, and no images are compared."""
    run = record(preset, seed, ap, teacher=teacher, terms=("task",) if teacher is None else ("task", "kd"))
    for network, score in ((run["student"], ap), (run["teacher"], teacher)):
        for key in ("top1", "top1_best", "top5", "nll"):
            network.pop(key, None)
        if score is not None:
            network |= {"ap": score, "ap50": score + 25.0}
    run["student"]["ap_best"] = ap + 0.25

    def numbers(score: float) -> dict[str, float]:
        return {key: score + i for i, key in enumerate(NUMBERS)} | {"ap_small": -1.0}

    def errors(found: int) -> list[dict[str, Any]]:
        return [
            {
                "class": name,
                "objects": 2000 + i,
                "found": found + i,
                "missed": 2000 - found,
                "confused": 31,
                "duplicated": 32,
                "badly placed": 33,
                "background": 34,
                "ap": ap + i,
            }
            for i, name in enumerate(("RBC", "WBC", "<b>platelets</b>"))
        ]

    def interval(score: float) -> dict[str, Any]:
        return {"low": score - 2, "high": score + 2, "images": 72}

    def intervals(score: float) -> dict[str, Any]:
        few = {"low": None, "high": None, "images": 3, "reason": "3 images"}
        return {"numbers": {"ap": interval(score), "ap_large": few}, "classes": {"RBC": interval(score)}}

    def cost(size: int, median: float) -> dict[str, Any]:
        times = {"batch": 1, "size": 320, "median": median, "p95": 2 * median, "repeats": 50}
        return {"bytes": size, "flops": None, "latency": [times]}

    run["detection"] = {
        "numbers": {"student": numbers(ap), "teacher": None if teacher is None else numbers(teacher)},
        "errors": {"student": errors(1700), "teacher": None if teacher is None else errors(1500)},
        "curves": {
            "student": {"ap50": [ap] * 101, "ap": [ap / 2] * 101},
            "teacher": None if teacher is None else {"ap50": [teacher] * 101, "ap": [teacher / 2] * 101},
        },
        "intervals": {
            "student": intervals(ap),
            "teacher": None if teacher is None else intervals(teacher),
        },
        "difference": None if teacher is None else interval(ap - teacher),
        "cost": {
            "student": cost(2**20, 12.34),
            "teacher": None if teacher is None else cost(3 * 2**20, 45.67),
        },
        "pictures": list(pictures),
        "pictures_of": "test",
    }
    return {**run, "metric": "ap", "compared": None}


def detectors(*, seeds: int = 3) -> dict[str, list[dict[str, Any]]]:
    """As :func:`study`: +4 over no teacher, and over the teacher too."""
    wiggle = [0.0, 0.5, -0.5][:seeds]
    return {
        "none": [detector("none", s, 40.0 + w, teacher=None) for s, w in enumerate(wiggle)],
        "kd": [detector("kd", s, 44.0 + 2 * w) for s, w in enumerate(wiggle)],
    }


def study(*, seeds: int = 3) -> dict[str, list[dict[str, Any]]]:
    """Outgrow beats all: +4 over no teacher, +6 over KD, +40 over a teacher of 50."""
    wiggle = [0.0, 0.5, -0.5][:seeds]
    return {
        "none": [record("none", s, 90.0 + w, teacher=None, terms=("task",)) for s, w in enumerate(wiggle)],
        "kd": [record("kd", s, 88.0 + 2 * w) for s, w in enumerate(wiggle)],
        "outgrow": [record("outgrow", s, 94.0 - w, corrected=True) for s, w in enumerate(wiggle)],
    }


def images(*, side: int = 8, count: int = 20) -> ArraySplit:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, side, side + 2), dtype=torch.uint8, generator=generator)
    return ArraySplit.of(pixels, torch.arange(count) % 3)
