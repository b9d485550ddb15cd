"""The study of results/README.md: regimes of teachers x methods x seeds, at a budget where students have converged.

    python -m benchmarks.study --data parquet:PATH --out DIR [--seeds 0 1 2] [--regimes weak biased ...]
    python -m benchmarks.study --out DIR --table

CIFAR-100's 20 coarse classes. A student, ResNet-8, has 5,000 rows and 5,600 steps of 64. The teachers of a seed
learn from other rows:

    strong    ResNet-20, 20,000 rows
    weak      ResNet-8, 5,000 rows
    biased    the strong one with a head that was fitted on labels of which 45 % are the next class

All methods of a seed have the same rows, views, initial student and teacher. Finished runs are kept, so a study that
was interrupted continues. ``--triple`` trains students alone for three times the budget: the check of convergence.
"""

import argparse
import itertools
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from outgrow.classification.data import eval_loader, open_run_data
from outgrow.classification.student import train_alone
from outgrow.models import create_model, save_student
from outgrow.models.taps import PENULTIMATE, Taps
from outgrow.report import formats
from outgrow.report.table import Records, compare
from outgrow.run.recipes import RECIPES
from outgrow.run.study import run_study
from outgrow.training.config import Config, build_config, merge
from outgrow.training.progress import Reporter, make_reporter
from outgrow.training.record import read_record

EPOCHS = 72
TEACHERS = {
    "strong": {"name": "cifar/resnet20", "rows": 20_000, "epochs": 15, "batch_size": 128},
    "weak": {"name": "cifar/resnet8", "rows": 5_000, "epochs": EPOCHS, "batch_size": 64},
    "biased": {"name": "cifar/resnet20"},
}
ALONE: dict[str, dict[str, Any]] = {"none": {"preset": "none"}}
FIRST: dict[str, dict[str, Any]] = {
    "kd": {"preset": "kd"},
    "outgrow": {"preset": "outgrow"},
    "pair": {"preset": "kd", "rule": "pair"},
    "paper": {"preset": "paper"},
}
"""Trained for all seeds before the others."""
MORE: dict[str, dict[str, Any]] = {
    "kd, weight 4": {"preset": "kd", "weight": 4.0},
    "outgrow, weight 4": {"preset": "outgrow", "weight": 4.0},
    "outgrow + pair": {"preset": "outgrow", "rule": "pair"},
    "standardize": {"preset": "kd", "loss": "9*standardize"},
    "swap": {"preset": "kd", "rule": "swap"},
    "project": {"preset": "kd", "rule": "project"},
    "drop": {"preset": "drop"},
}
FLIPPED = 0.45


def base_of(source: str, epochs: int) -> dict[str, Any]:
    recipe = RECIPES["cifar100-small"].layer
    own = {
        "recipe": "cifar100-small",
        "data": {"source": source, "label": "coarse_label", "workers": 0},
        "train": {"epochs": epochs, "eval_every": epochs // 3},
    }
    return merge(recipe, own)


def make_teacher(config: Config, regime: str, folder: Path, report: Reporter) -> nn.Module:
    """The teacher of a regime and of ``config.seed``, trained once and kept in ``folder``."""
    data = open_run_data(config)
    facts = TEACHERS[regime]
    file = folder / f"{regime}-seed{config.seed}.safetensors"
    if file.is_file():
        return create_model(str(facts["name"]), classes=data.classes, weights=file)
    assert data.others is not None
    order = torch.randperm(len(data.others), generator=torch.Generator().manual_seed(config.seed))
    if regime == "biased":
        network = make_teacher(config, "strong", folder, report)
        rows = data.others.subset(order[: TEACHERS["strong"]["rows"]])
        _bias(network, eval_loader(rows, network, config.train, torch.device("cpu"), 0), config.seed)
    else:
        train = {"epochs": facts["epochs"], "eval_every": facts["epochs"], "batch_size": facts["batch_size"]}
        config = build_config(merge(config.model_dump(), {"teacher_train": train}))
        torch.manual_seed(config.seed)
        network = create_model(str(facts["name"]), classes=data.classes)
        rows = data.others.subset(order[: facts["rows"]])
        train_alone(config, rows, data, network, reporter=report)
    network.classes = data.classes
    save_student(network, file)
    return network


def _bias(network: nn.Module, loader: Any, seed: int) -> None:
    """Fit the head anew on labels of which a share ``FLIPPED`` is the next class."""
    features, labels = [], []
    tapped = Taps(network.eval(), (PENULTIMATE,))
    with torch.no_grad():
        for batch in loader.epoch(0):
            features.append(tapped(batch.images).features[PENULTIMATE])
            labels.append(batch.target.label)
    x, y = torch.cat(features).float(), torch.cat(labels)
    generator = torch.Generator().manual_seed(seed)
    flipped = torch.rand(len(y), generator=generator) < FLIPPED
    head = network.net.fc
    y = torch.where(flipped, (y + 1) % head.out_features, y)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    for _ in range(30):
        for rows in torch.randperm(len(y), generator=generator).split(512):
            loss = F.cross_entropy(head(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def train(args: argparse.Namespace, regime: str, methods: dict[str, dict[str, Any]], seed: int) -> None:
    report = make_reporter()

    def teacher(config: Config) -> nn.Module:
        return make_teacher(config, regime, args.out / "teachers", report)

    base = base_of(args.data, EPOCHS)
    if regime != "alone":
        cache = args.out / "cache" / f"{regime}-seed{seed}"
        base = merge(
            base, {"teacher": {"name": TEACHERS[regime]["name"], "train": False, "cache": str(cache)}}
        )
    run_study(base, methods, [seed], out=args.out / regime, teacher=teacher, reporter=report)


def collect(out: Path) -> dict[str, Records]:
    """Finished runs by regime; the student alone stands beside each."""
    found: dict[str, Records] = {}
    for file in sorted(out.glob("*/*/seed*/record.json"), key=lambda f: int(f.parent.name[4:])):
        record = read_record(file)
        found.setdefault(file.parts[-4], {}).setdefault(file.parts[-3], []).append(record)
    alone = found.pop("alone", {})
    found.pop("triple", None)
    order = [*ALONE, *FIRST, *MORE]
    return {
        regime: {name: {**alone, **records}[name] for name in order if name in {**alone, **records}}
        for regime, records in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--regimes", nargs="+", default=["biased", "weak", "strong"], choices=TEACHERS)
    parser.add_argument("--more", action="store_true", help="the second list of methods too")
    parser.add_argument("--triple", action="store_true", help="students alone at three times the budget")
    parser.add_argument("--table", action="store_true", help="tables of what is finished; trains nothing")
    args = parser.parse_args()
    if args.table:
        print(formats.text(compare(collect(args.out))))
        return
    if args.triple:
        base = base_of(args.data, 3 * EPOCHS)
        run_study(base, ALONE, args.seeds, out=args.out / "triple", reporter=make_reporter())
        return
    for methods, seed in itertools.product([FIRST, MORE] if args.more else [FIRST], args.seeds):
        train(args, "alone", ALONE, seed)
        for regime in args.regimes:
            train(args, regime, methods, seed)


if __name__ == "__main__":
    main()
