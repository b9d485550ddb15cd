"""Six losses (two on logits, two on features, two on relations), each with and without the paper's rule.

    python -m benchmarks.cifar100_six --data parquet:PATH --weights c100_resnet56_chenyaofo.safetensors --out DIR

CIFAR-100's 100 fine classes, 10,000 training images, 12 epochs, ResNet-56 (third party, fixed) to
ResNet-20. Losses on features or relations are combined with `kd`, since a rule corrects only logits.
Constants are those of the recipes. Finished runs are kept, so an interrupted study can continue.
"""

import argparse
from pathlib import Path
from typing import Any

from outgrow.report.table import tabulate
from outgrow.report.text import text_table
from outgrow.run.recipes import RECIPES
from outgrow.run.study import run_study
from outgrow.training.config import merge
from outgrow.training.progress import make_reporter

ON_LOGITS: dict[str, dict[str, Any]] = {
    "none": {"preset": "none"},
    "kd": {"preset": "kd"},
    "dkd": {"preset": "kd", "loss": "dkd(beta=2.0)", "schedule": "warmup(until=0.0833)"},
    "standardize": {"preset": "kd", "loss": "standardize", "weight": 9.0, "task_weight": 0.1},
}
ON_FEATURES: dict[str, dict[str, Any]] = {
    "at": {"preset": "kd", "loss": "kd + 1000*at"},
    "fitnet": {"preset": "kd", "loss": "kd + 100*fitnet"},
    "rkd": {"preset": "kd", "loss": "kd + rkd"},
    # crd, with its 16,384 negatives a row, took four minutes an epoch here
    "sp": {"preset": "kd", "loss": "kd + 3000*sp"},
}
SHORT = {
    "data": {"label": "fine_label", "train_rows": 10_000},
    "train": {
        "epochs": 12,
        "lr_schedule": "one_cycle",
        "lr": 0.1,
        "precision": "auto",
        "channels_last": True,
        "eval_every": 12,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", help="names of methods, such as sp sp-pair; all without it")
    args = parser.parse_args()
    base = merge(
        RECIPES["cifar100/resnet56-resnet20"].layer,
        {"recipe": "cifar100/resnet56-resnet20", "data": {"source": args.data}},
        {"teacher": {"weights": args.weights}},
        SHORT,
    )
    cached = merge(base, {"teacher": {"cache": str(args.out / "cache")}})
    records = {}
    for layer, methods in ((cached, ON_LOGITS), (base, ON_FEATURES)):
        for name, method in methods.items():
            pair = {} if name == "none" else {f"{name}-pair": {**method, "rule": "pair"}}
            chosen = {name: method, **pair}
            chosen = {name: chosen[name] for name in chosen if not args.only or name in args.only}
            records |= run_study(layer, chosen, args.seeds, out=args.out, reporter=make_reporter())
    print(text_table(tabulate(records)))


if __name__ == "__main__":
    main()
