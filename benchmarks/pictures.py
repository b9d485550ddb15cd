"""The charts of README.md, drawn from the records in results/.

    python -m benchmarks.pictures            # writes docs/images/helps.svg and speed.svg

All numbers come from the records. A test compares the committed files with newly drawn ones.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from outgrow.report.palette import LIGHT
from outgrow.report.plots import Effect, add_axis, dot_plot, new_figure
from outgrow.report.statistics import paired
from outgrow.report.svg import inline_svg, standalone
from outgrow.report.words import interval
from outgrow.training.record import read_record

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "results" / "records"
PAIRS = {"ResNet-32x4 to 8x4": 0}
KD, OURS = "s1", "s0"
HELPS: tuple[tuple[str, str, dict[str, tuple[str, str]]], ...] = (
    (
        "biased-216",
        "alone-216",
        {"kd": ("5,000 labels: plain KD", KD), "outgrow": ("5,000 labels: outgrow", OURS)},
    ),
    (
        "few-biased",
        "few-alone",
        {
            "kd-weight4": ("500 labels: plain KD", KD),
            "kd-weight4-unlabelled": ("500 + unlabelled: plain KD", KD),
            "outgrow-weight4-unlabelled": ("500 + unlabelled: outgrow", OURS),
        },
    ),
)
"""Folders of records, that of the student alone, and of each method its name and colour in the chart."""
WAYS = {
    "plain loop": "plain",
    "torchdistill": "torchdistill",
    "outgrow": "ours",
    "outgrow, cached teacher": "cached",
}


def helps() -> str:
    """Students of the study: difference to the student without a teacher, with the same labels and seeds."""
    effects = []
    for regime, alone, methods in HELPS:
        baseline = _scores(alone, "none")
        for method, (label, colour) in methods.items():
            scores = _scores(regime, method)
            seeds = sorted(scores.keys() & baseline.keys())
            sides = [scores[seed] for seed in seeds], [baseline[seed] for seed in seeds]
            found = paired(*sides)
            values = [a - b for a, b in zip(*sides, strict=True)]
            effects.append(Effect(label, values, found.mean, found.low, found.high, interval(found), colour))
    plot = dot_plot(
        effects,
        name="helps",
        title="CIFAR-100, 20 classes, a biased teacher, three to five seeds",
        x_label="points of top-1 over the student without a teacher",
    )
    assert plot is not None
    return standalone(str(plot.wide))


def _scores(regime: str, method: str) -> dict[int, float]:
    """Scores at the last epoch by seed."""
    folder = RECORDS / "study" / regime / method
    return {int(file.stem[4:]): read_record(file).student_score for file in sorted(folder.glob("seed*.json"))}


def speed() -> str:
    """Images a second of a CIFAR-100 training step, over the plain float32 loop."""
    measured = json.loads((RECORDS / "benchmarks" / "throughput.json").read_text())["result"]
    width, row, left = 880.0, 24.0, 210.0
    bars = [
        (pair, way, _rate(measured[number], key) / _rate(measured[number], "plain"))
        for pair, number in PAIRS.items()
        for way, key in WAYS.items()
    ]
    height = row * (len(bars) + 1) + 54
    with new_figure(width, height) as figure:
        axis = add_axis(figure, left, width - 60, 6.0, height - 48)
        axis.set_xlim(0, 10)
        axis.set_ylim(len(bars) + 1.2, -0.2)
        axis.set_yticks([])
        axis.grid(axis="x")
        axis.set_xlabel(
            "times the images a second of a plain float32 loop, two CPU cores with AMX", labelpad=4
        )
        place = 0.5
        for number, (pair, way, ratio) in enumerate(bars):
            if number % len(WAYS) == 0:
                axis.text(-0.1, place, pair, ha="right", va="center", color=LIGHT["ink"], weight="bold")
                place += 1
            shade = LIGHT["s0"] if way.startswith("outgrow") else LIGHT["alone"]
            axis.barh(place, ratio, height=0.68, color=shade)
            axis.text(-0.1, place, way, ha="right", va="center", color=LIGHT["soft"])
            axis.text(ratio + 0.08, place, f"{ratio:.1f}", ha="left", va="center", color=LIGHT["ink"])
            place += 1 if (number + 1) % len(WAYS) else 1.5
        said = "; ".join(f"{pair}, {way}: {ratio:.1f}" for pair, way, ratio in bars)
        return standalone(str(inline_svg(figure, "wide", "speed", "Speed of a training step", said)))


def _rate(pair: dict[str, Any], way: str) -> float:
    return float(pair["ways"][way]["rate"])


PICTURES = {"helps.svg": helps, "speed.svg": speed}


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    for name, draw in PICTURES.items():
        (ROOT / "docs" / "images" / name).write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
