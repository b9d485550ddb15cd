"""The study of results/study.md: regimes of teachers x methods x seeds, at a long and a short budget.

    python -m benchmarks.study prepare --cifar100 DIR --out OUT            # splits and teachers, once
    python -m benchmarks.study train --out OUT [--epochs 216] [--seeds 0 1 2] [--regimes weak biased] [--methods kd outgrow]
    python -m benchmarks.study train --out OUT --epochs 648 --seeds 0 --regimes     # students alone, three times as long
    python -m benchmarks.study table --out OUT

CIFAR-100's 20 coarse classes, cut once into parts that share no image:

    student      10,000 images, of which a seed draws 5,000
    teacher      20,000, on which teachers are trained
    unlabelled   20,000, without labels

A student, ResNet-8, takes steps of 64 images for 216 epochs (17,000 steps), or for 72 (5,700). The teachers:

    strong    ResNet-20 on all 20,000
    weak      ResNet-8 on 5,000 of them
    biased    the strong one, with a head that was fitted on labels of which 45 % are the next class

With ``--few`` a student has 500 labels and 2,500 steps, and each method runs with and without the unlabelled images,
which are then three quarters of a batch. ``--unlabelled 500 2500`` takes so many of them instead of all.

All methods of a seed have the same rows, views, initial student and teacher. Finished runs are kept, so a study that
was interrupted continues. Convergence is checked with students alone at three times the budget.
"""

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.nn import functional as F

from outgrow.classification.data import eval_loader
from outgrow.data import open_data
from outgrow.models import create_model, save_student
from outgrow.models.taps import PENULTIMATE, Taps
from outgrow.report import formats
from outgrow.report.table import Records, compare
from outgrow.run.recipes import RECIPES
from outgrow.run.study import run_study
from outgrow.training.config import TrainConfig, merge
from outgrow.training.progress import make_reporter
from outgrow.training.record import read_record

Layer = dict[str, Any]

EPOCHS = 216
"""Of a student."""
SHORT = 72
"""Of a student at the short budget, and of the weak teacher."""
ROWS = 5_000
FEW = 500
FEW_STEPS = 2_500
SHARE = 0.75
"""Of unlabelled images in a batch."""
AMOUNTS = (500, 2_500, 10_000, 20_000)
"""Of unlabelled images in the tables, the last being all."""
PARTS = {"student": 10_000, "teacher": 20_000, "unlabelled": 20_000}
TEACHERS: dict[str, Layer] = {
    "strong": {"student": {"name": "cifar/resnet20"}, "train": {"epochs": 40, "batch_size": 128}},
    "weak": {"student": {"name": "cifar/resnet8"}, "data": {"train_rows": ROWS}, "train": {"epochs": SHORT}},
}
MODELS = {"strong": "cifar/resnet20", "weak": "cifar/resnet8", "biased": "cifar/resnet20"}
FLIPPED = 0.45
METHODS: dict[str, Layer] = {
    "none": {"preset": "none"},
    "kd": {"preset": "kd"},
    "outgrow": {"preset": "outgrow"},
    "pair": {"preset": "kd", "rule": "pair"},
    "paper": {"preset": "paper"},
    "kd, weight 0.5": {"preset": "kd", "weight": 0.5},
    "kd, weight 2": {"preset": "kd", "weight": 2.0},
    "kd, weight 4": {"preset": "kd", "weight": 4.0},
    "outgrow, weight 2": {"preset": "outgrow", "weight": 2.0},
    "outgrow, weight 4": {"preset": "outgrow", "weight": 4.0},
    "outgrow + pair": {"preset": "outgrow", "rule": "pair"},
    "standardize": {"preset": "kd", "loss": "9*standardize"},
    "swap": {"preset": "kd", "rule": "swap"},
    "project": {"preset": "kd", "rule": "project"},
    "drop": {"preset": "drop"},
    "released": {"preset": "released"},
}


def base_of(out: Path, part: str = "student", epochs: int = SHORT) -> Layer:
    own = {
        "recipe": "cifar100-small",
        "data": {
            "source": f"parquet:{out / 'data' / part}",
            "label": "coarse_label",
            "train_rows": ROWS,
            "val_fraction": 0.0,
            "workers": 0,
        },
        "teacher": {"name": "none", "train": False},
        "train": {"epochs": epochs, "eval_every": epochs // 3},
    }
    return merge(RECIPES["cifar100-small"].layer, own)


def prepare(cifar100: Path, out: Path) -> None:
    """Cut the data, and train the teachers."""
    train = pa.concat_tables(pq.read_table(file) for file in sorted(cifar100.glob("**/train-*.parquet")))
    test = pa.concat_tables(pq.read_table(file) for file in sorted(cifar100.glob("**/test-*.parquet")))
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(2026))
    for part, rows in zip(PARTS, order.split(list(PARTS.values())), strict=True):
        folder = out / "data" / part
        folder.mkdir(parents=True, exist_ok=True)
        table = train.take(pa.array(rows.sort().values.numpy()))
        if part == "unlabelled":
            table = table.drop_columns(["fine_label", "coarse_label"])
        else:
            pq.write_table(test, folder / "test-00000-of-00001.parquet")
        pq.write_table(table, folder / "train-00000-of-00001.parquet")
    for name, layer in TEACHERS.items():
        layer = merge(base_of(out, "teacher"), {"data": {"train_rows": None}}, layer)
        layer["train"]["eval_every"] = layer["train"]["epochs"]
        run_study(layer, {name: METHODS["none"]}, [100], out=out / "teachers", reporter=make_reporter())
    bias(out)


def weights_of(out: Path, regime: str) -> Path:
    return out / "teachers" / regime / "seed100" / "student.safetensors"


def bias(out: Path) -> None:
    """Fit the strong teacher's head anew on labels of which a share ``FLIPPED`` is the next class."""
    data = open_data(base_of(out, "teacher")["data"]["source"], label="coarse_label")
    network = create_model(MODELS["strong"], classes=data.classes, weights=weights_of(out, "strong"))
    assert data.train is not None
    tapped = Taps(network.eval(), (PENULTIMATE,))
    features = []
    with torch.no_grad():
        for batch in eval_loader(
            data.train, network, TrainConfig(batch_size=256), torch.device("cpu"), 0
        ).epoch(0):
            features.append(tapped(batch.images).features[PENULTIMATE])
    x, y = torch.cat(features), data.train.labels
    generator = torch.Generator().manual_seed(0)
    head = network.net.get_submodule("fc")
    y = torch.where(torch.rand(len(y), generator=generator) < FLIPPED, (y + 1) % data.num_classes, y)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    for _ in range(30):
        for rows in torch.randperm(len(y), generator=generator).split(512):
            loss = F.cross_entropy(head(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    file = weights_of(out, "biased")
    file.parent.mkdir(parents=True, exist_ok=True)
    save_student(network, file)


def train(out: Path, regime: str, methods: Mapping[str, Layer], seed: int, epochs: int) -> None:
    base = base_of(out, epochs=epochs)
    if regime != "alone":
        cache = str(out / "cache" / f"{regime}-seed{seed}")
        teacher = {"name": MODELS[regime], "weights": str(weights_of(out, regime)), "cache": cache}
        base = merge(base, {"teacher": teacher})
    run_study(base, methods, [seed], out=out / f"{regime}-{epochs}", reporter=make_reporter())


def train_few(
    out: Path, regime: str, methods: Mapping[str, Layer], seed: int, amounts: Sequence[int]
) -> None:
    """500 labels; each method with a teacher also with unlabelled images, in as many steps of as many images."""
    base = merge(base_of(out), {"data": {"train_rows": FEW}})
    batch = base["train"]["batch_size"]
    layers: dict[str, Layer] = {"": {"train": _steps(FEW, batch)}}
    if regime != "alone":
        teacher = {"name": MODELS[regime], "weights": str(weights_of(out, regime))}
        base = merge(base, {"teacher": teacher})
        training = _steps(FEW, batch - round(batch * SHARE))
        for amount in amounts:
            data = {"unlabelled": f"parquet:{_some(out, amount)}", "unlabelled_share": SHARE}
            layers[_suffix(amount)] = {"data": data, "train": training}
    for suffix, layer in layers.items():
        named = {f"{name}{suffix}": method for name, method in methods.items()}
        run_study(merge(base, layer), named, [seed], out=out / f"few-{regime}", reporter=make_reporter())


def _suffix(amount: int) -> str:
    return ", unlabelled" if amount == PARTS["unlabelled"] else f", {amount:,} unlabelled"


def _some(out: Path, amount: int) -> Path:
    """The folder with so many of the unlabelled images."""
    whole = out / "data" / "unlabelled"
    if amount == PARTS["unlabelled"]:
        return whole
    folder = out / "data" / f"unlabelled-{amount}"
    if not folder.is_dir():
        table = pq.read_table(whole).slice(0, amount)  # CIFAR-100 is in random order
        folder.mkdir()
        pq.write_table(table, folder / "train-00000-of-00001.parquet")
    return folder


def _steps(rows: int, batch: int) -> Layer:
    """Epochs for ``FEW_STEPS`` steps."""
    epochs = round(FEW_STEPS / -(-rows // batch))
    return {"epochs": epochs, "eval_every": epochs}


def collect(out: Path) -> dict[str, Records]:
    """Finished runs by regime and epochs; the student alone stands beside each."""
    found: dict[str, Records] = {}
    for file in sorted(out.glob("*/*/seed*/record.json"), key=lambda f: int(f.parent.name[4:])):
        found.setdefault(file.parts[-4], {}).setdefault(file.parts[-3], []).append(read_record(file))
    suffixes = ["", *(_suffix(amount) for amount in AMOUNTS)]
    order = [f"{name}{suffix}" for name in METHODS for suffix in suffixes]
    tables = {}
    for form in (f"{{}}-{EPOCHS}", f"{{}}-{SHORT}", "few-{}"):
        for regime in (form.format(name) for name in MODELS):
            if regime in found:
                both = {**found.get(form.format("alone"), {}), **found[regime]}
                tables[regime] = {name: both[name] for name in order if name in both}
    return tables


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=["prepare", "train", "table"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cifar100", type=Path, help="folder of the train-* and test-*.parquet of CIFAR-100")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--regimes", nargs="*", default=list(MODELS), choices=MODELS)
    parser.add_argument("--methods", nargs="+", default=["kd", "outgrow", "pair", "paper"], choices=METHODS)
    parser.add_argument("--few", action="store_true", help="500 labels, with and without unlabelled images")
    parser.add_argument("--unlabelled", type=int, nargs="+", default=[AMOUNTS[-1]], choices=AMOUNTS)
    args = parser.parse_args()
    none = {"none": METHODS["none"]}
    if args.step == "prepare":
        prepare(args.cifar100, args.out)
    elif args.step == "table":
        print(formats.text(compare(collect(args.out))))
    else:
        step = partial(train_few, amounts=args.unlabelled) if args.few else partial(train, epochs=args.epochs)
        for seed in args.seeds:
            step(args.out, "alone", none, seed)
            for regime in args.regimes:
                step(args.out, regime, {name: METHODS[name] for name in args.methods}, seed)


if __name__ == "__main__":
    main()
