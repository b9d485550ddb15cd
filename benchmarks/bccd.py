"""Detection on blood cells over seeds: student alone, KD, rectified KD, feature KD, and both.

    python -m benchmarks.bccd --data coco:IMAGES:ANNOTATIONS --backbones DIR --out DIR [--seeds 0 1 2]

One teacher (EfficientNet-Lite0, from ImageNet weights in DIR) for all; every method of a seed has the same
pictures, views, initial student and epochs. Finished runs are kept, so an interrupted study can continue.
"""

import argparse
from pathlib import Path

import torch

from outgrow.detection.families.create import create_detector
from outgrow.detection.teacher import make_teacher
from outgrow.report.table import tabulate
from outgrow.report.text import text_table
from outgrow.run.distillation import start
from outgrow.run.recipes import RECIPES
from outgrow.run.study import run_study
from outgrow.run.tasks import task_of
from outgrow.training.config import build_config, merge
from outgrow.training.progress import make_reporter

METHODS = {
    "none": {"preset": "none"},
    "kd": {"preset": "kd", "loss": "kd + box"},
    "pair": {"preset": "kd", "loss": "kd + box", "rule": "pair"},
    "pkd": {"preset": "kd", "loss": "6*pkd"},
    "pair-pkd": {"preset": "kd", "loss": "kd + box + 6*pkd", "rule": "pair"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--backbones", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    args = parser.parse_args()
    report = make_reporter()
    base = merge(
        RECIPES["bccd"].layer,
        {"recipe": "bccd", "data": {"source": args.data}},
        {"student": {"weights": str(args.backbones / "in1k_mobilenetv1_025_128.safetensors")}},
    )
    file = args.out / "teacher.safetensors"
    if not file.is_file():
        weights = str(args.backbones / "in1k_tf_efficientnet_lite0.safetensors")
        config = build_config(merge(base, {"method": {"preset": "kd"}, "teacher": {"weights": weights}}))
        torch.manual_seed(config.seed)
        context = start(config.model_copy(update={"out": str(args.out)}), reporter=report)
        make_teacher(context, task_of(config.data.source).open_data(context), None)
    base = merge(base, {"teacher": {"train": False, "weights": str(file)}})
    assert create_detector(base["teacher"]["name"], weights=file).classes
    methods = {name: METHODS[name] for name in args.methods}
    print(text_table(tabulate(run_study(base, methods, args.seeds, out=args.out, reporter=report))))


if __name__ == "__main__":
    main()
