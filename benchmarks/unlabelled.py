"""Images without labels, half of which show something else: how far to trust a wrong teacher on them.

    python -m benchmarks.unlabelled --cifar100 DIR --out OUT [--seeds 0 1 2] [--methods kd "kd, reliability"]

scikit-learn's digits, cut once into parts that share no image:

    student      300 images, of which a seed draws 50, with labels
    teacher      300, of whose labels 40 % are the next digit: ResNet-8, 20 epochs
    unlabelled   597 digits and 597 photographs of CIFAR-100, grey and in 8x8 pixels
    test         500

A student, ResNet-8, takes 240 steps of 64 images, three quarters of them without labels. All methods of a seed have the same
rows, views and initial student. Prints the mean over seeds, and each; finished trainings are kept in OUT.
"""

import argparse
import io
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from outgrow.data import open_data
from outgrow.run import distill
from outgrow.training.config import build_config, merge

Layer = dict[str, Any]

STEPS, BATCH, SHARE, ROWS = 240, 64, 0.75, 50
FLIPPED = 0.4
TEACHER_EPOCHS = 20
METHODS: dict[str, Layer] = {
    "none": {"preset": "none"},
    **{
        f"{preset}{suffix}": {"preset": preset, "weight": 4.0, **options}
        for preset in ("kd", "outgrow")
        for suffix, options in {
            "": {},
            ", confidence(0.8)": {"trust": "confidence(0.8)"},
            ", reliability": {"trust": "reliability"},
            ", semiparametric": {"loss": "semiparametric"},
            ", weight 1": {"weight": 1.0},
            ", slam, weight 1": {"loss": "slam", "weight": 1.0},
        }.items()
    },
    "kd, slam": {"preset": "kd", "loss": "slam", "weight": 4.0},
    "kd, ppi, weight 0.5": {"preset": "kd", "loss": "ppi", "weight": 0.5},
    "kd, ppi, weight 0.1": {"preset": "kd", "loss": "ppi", "weight": 0.1},
}
"""The distillation weight is 4 unless a name says another."""


def prepare(cifar100: Path, out: Path) -> None:
    """Cut the data."""
    digits = open_data("digits")
    assert digits.train is not None
    splits = (digits.train, digits.test)
    images = torch.stack([torch.as_tensor(split.image(i)) for split in splits for i in range(len(split))])
    labels = torch.cat([split.labels for split in splits])
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    test, student, teacher, unlabelled = order[:500], order[500:800], order[800:1100], order[1100:1697]
    draw = torch.Generator().manual_seed(2)
    own = labels[teacher]
    wrong = torch.where(torch.rand(len(own), generator=draw) < FLIPPED, (own + 1) % 10, own)
    photographs = _thumbnails(sorted(cifar100.glob("**/test-*.parquet"))[0], len(unlabelled))
    for part, rows, given in (("student", student, labels[student]), ("teacher", teacher, wrong)):
        _write(out / "data" / part, "train", images[rows], given)
        _write(out / "data" / part, "test", images[test], labels[test])
    _write(out / "data" / "unlabelled", "train", torch.cat([images[unlabelled], photographs]), None)


def _thumbnails(shard: Path, number: int) -> Tensor:
    table = pq.read_table(shard).slice(0, number)
    (column,) = {"img", "image"} & set(table.column_names)
    pictures = (Image.open(io.BytesIO(row["bytes"])) for row in table.column(column).to_pylist())
    small = [torch.from_numpy(np.array(picture.convert("L").resize((8, 8)))) for picture in pictures]
    return torch.stack(small)[:, None].expand(-1, 3, -1, -1)


def _write(folder: Path, split: str, images: Tensor, labels: Tensor | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    column = []
    for number, image in enumerate(images):
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "PNG")
        column.append({"bytes": file.getvalue(), "path": f"{split}{number}.png"})
    table = {"image": column} | ({} if labels is None else {"label": labels.tolist()})
    pq.write_table(pa.table(table), folder / f"{split}-00000-of-00001.parquet")


def base_of(out: Path, part: str, epochs: int, batch: int) -> Layer:
    return {
        "recipe": "digits",
        "data": {
            "source": f"parquet:{out / 'data' / part}",
            "label": "label",
            "val_fraction": 0.0,
            "workers": 0,
            "augment": {"crop_padding": 1, "flip": False},
        },
        "teacher": {"name": "none", "train": False},
        "student": {"name": "cifar/resnet8"},
        "train": {"batch_size": batch, "lr": 0.05, "epochs": epochs, "eval_every": epochs},
    }


def train(out: Path, method: str, seed: int) -> dict[str, Any]:
    """The numbers of one student; read back if it has been trained."""
    file = out / "runs" / f"{method} seed{seed}.json"
    if file.is_file():
        found: dict[str, Any] = json.loads(file.read_text())
        return found
    weights = out / "teacher" / "student.safetensors"
    if not weights.is_file():
        own = base_of(out, "teacher", TEACHER_EPOCHS, 32)
        distill(merge(own, {"method": METHODS["none"], "seed": 100, "out": str(weights.parent)}))
    labelled = BATCH - round(BATCH * SHARE)
    config = merge(
        base_of(out, "student", STEPS // -(-ROWS // labelled), BATCH),
        {
            "data": {
                "train_rows": ROWS,
                "unlabelled": f"parquet:{out / 'data' / 'unlabelled'}",
                "unlabelled_share": SHARE,
            },
            "teacher": {
                "name": "cifar/resnet8",
                "weights": str(weights),
                "cache": str(out / "cache" / str(seed)),
            },
            "method": METHODS[method],
            "seed": seed,
        },
    )
    record = distill(build_config(config))
    found = {"top1": record["student"]["top1"], "teacher": record["teacher"], **record["epochs"][-1]}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found))
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cifar100", type=Path, required=True, help="a folder of CIFAR-100 as Parquet")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    args = parser.parse_args(arguments)
    if not (args.out / "data").is_dir():
        prepare(args.cifar100, args.out)
    for method in args.methods:
        found = [train(args.out, method, seed)["top1"] for seed in args.seeds]
        print(f"{method:<32}{statistics.mean(found):6.1f}   {' '.join(f'{top1:.1f}' for top1 in found)}")


if __name__ == "__main__":
    main()
