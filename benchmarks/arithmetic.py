"""Accuracy in float32, in bfloat16, and with fused norms: one training over seeds.

    python -m benchmarks.arithmetic --data parquet:PATH --out DIR [--seeds 0 1 2 3 4]

CIFAR-100's 20 coarse classes, 5,000 training images, 24 epochs, ResNet-8 without a teacher, as only the
student's arithmetic is compared. All arms of a seed have the same rows, views and initial weights. Finished
runs are kept.
"""

import argparse
from pathlib import Path
from typing import Any

from outgrow.report.statistics import paired, summarize
from outgrow.run.recipes import RECIPES
from outgrow.run.study import run_study
from outgrow.training.config import merge
from outgrow.training.progress import make_reporter

ARMS: dict[str, dict[str, Any]] = {
    "fp32": {"precision": "fp32", "channels_last": False},
    "bf16": {"precision": "bf16", "channels_last": True},
    "bf16-fused": {"precision": "bf16", "channels_last": True, "fused_norms": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    args = parser.parse_args()
    base = merge(
        RECIPES["cifar100-small"].layer,
        {"recipe": "cifar100-small", "data": {"source": args.data, "label": "coarse_label"}},
        {"train": {"eval_every": 24}},
    )
    scores: dict[str, list[float]] = {}
    for arm in args.arms:
        layer = merge(base, {"train": ARMS[arm]})
        records = run_study(
            layer, {arm: {"preset": "none"}}, args.seeds, out=args.out, reporter=make_reporter()
        )
        scores[arm] = [record.student_score for record in records[arm]]
    for arm, values in scores.items():
        print(f"{arm:<12}{summarize(values)}; over {args.arms[0]} {paired(values, scores[args.arms[0]])}")


if __name__ == "__main__":
    main()
