"""The recipe ``cifar100-small`` over seeds and methods: the table in results/short-trainings.md.

    python -m benchmarks.cifar100_small --data parquet:PATH --out DIR [--seeds 3]

Every method of a seed has the same 5,000 rows, views, initial student and teacher (a ResNet-20 trained on
the 40,000 other rows). Finished runs are kept, so an interrupted study can continue.
"""

import argparse
from pathlib import Path

from torch import nn

from outgrow.classification.data import open_run_data
from outgrow.classification.student import train_alone
from outgrow.models import create_model, save_student
from outgrow.report.table import tabulate
from outgrow.report.text import text_table
from outgrow.run.recipes import RECIPES
from outgrow.run.study import run_study
from outgrow.training.config import Config
from outgrow.training.progress import make_reporter

METHODS = {
    "none": {"preset": "none"},
    "kd": {"preset": "kd"},
    "pair": {"preset": "kd", "rule": "pair"},
    "paper": {"preset": "paper"},
    "outgrow": {"preset": "outgrow"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    report = make_reporter()

    def teacher(config: Config) -> nn.Module:
        data = open_run_data(config)
        file = args.out / "teachers" / f"seed{config.seed}.safetensors"
        if file.is_file():
            return create_model(config.teacher.name, data.num_classes, weights=file)
        network = create_model(config.teacher.name, data.num_classes)
        assert data.others is not None
        train_alone(config, data.others, data, network, reporter=report)
        network.classes = data.classes
        save_student(network, file)
        return network

    base = {**RECIPES["cifar100-small"].layer, "recipe": "cifar100-small"}
    base["data"] = {**base["data"], "source": args.data, "label": "coarse_label"}
    records = run_study(base, METHODS, args.seeds, out=args.out, teacher=teacher, reporter=report)
    print(text_table(tabulate(records)))


if __name__ == "__main__":
    main()
