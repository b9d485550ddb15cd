"""Detection on blood cells: families of detectors x methods x seeds.

    python -m benchmarks.bccd train --data coco:IMAGES:ANNOTATIONS --backbones DIR --out OUT
                                    [--families fasterrcnn retinanet fcos ssdlite rtdetr dfine] [--seeds 0 1 2]
                                    [--methods none kd pkd] [--size 192] [--epochs 12] [--teacher-epochs 16]
                                    [--few 20 --steps 600]
    python -m benchmarks.bccd table --out OUT

Of each family an EfficientNet-Lite0 teaches a MobileNetV1 0.25, both from the ImageNet weights in DIR; the rest of a
detector is random. One teacher serves all seeds. Every method of a seed has the same pictures, views, initial student
and epochs. Methods:

    none        the student alone
    kd          KD on rows, with box regression
    pair        the same, rectified
    pkd         KD on features
    pair-pkd    pair and pkd
    other-pkd   pkd from the RetinaNet; for students that are FCOS

With ``--few 20`` teacher and students have the same 20 pictures with annotations, drawn by the seed, and one teacher serves a
seed. All students take ``--steps`` steps. Beside ``none`` and ``kd`` there is then

    kd, unlabelled    the same with the rest of the training pictures, without annotations: half of a batch

Finished runs are kept in OUT/FAMILY/METHOD/seedK, so an interrupted study continues; ``table`` prints those there are.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from outgrow.detection.teacher import make_teacher
from outgrow.report import formats
from outgrow.report.statistics import summarize
from outgrow.report.table import Records, compare
from outgrow.run.distillation import start
from outgrow.run.recipes import RECIPES
from outgrow.run.study import run_study
from outgrow.run.tasks import task_of
from outgrow.training.config import build_config, merge
from outgrow.training.progress import make_reporter
from outgrow.training.record import read_record

Layer = dict[str, Any]

OTHER = "other-pkd"
UNLABELLED = "kd, unlabelled"
SHARE = 0.5
"""Of pictures without annotations in a batch."""
METHODS: dict[str, Layer] = {
    "none": {"preset": "none"},
    "kd": {"preset": "kd", "loss": "kd + box"},
    "pair": {"preset": "kd", "loss": "kd + box", "rule": "pair"},
    "pkd": {"preset": "kd", "loss": "6*pkd"},
    "pair-pkd": {"preset": "kd", "loss": "kd + box + 6*pkd", "rule": "pair"},
    OTHER: {"preset": "kd", "loss": "6*pkd"},
    UNLABELLED: {"preset": "kd", "loss": "kd + box"},
}
WEIGHTS = {"student": "in1k_mobilenetv1_025_128", "teacher": "in1k_tf_efficientnet_lite0"}
BACKBONES = {"student": "mobilenetv1_025_128", "teacher": "tf_efficientnet_lite0"}
SHAPES = {
    "fasterrcnn": {
        "student": "levels=3-5&channels=32&head=128&rois=48&proposals=300&anchors=2",
        "teacher": "levels=3-5&channels=64&head=256&rois=48&proposals=300&anchors=2",
    },
    "retinanet": dict.fromkeys(WEIGHTS, "levels=3-5&channels=64"),
    "fcos": dict.fromkeys(WEIGHTS, "levels=3-5&channels=64"),
    "ssdlite": dict.fromkeys(WEIGHTS, "levels=3-5&channels=128"),
}
TRANSFORMERS = {
    "student": {"width": 64, "queries": 50, "layers": 2},
    "teacher": {"width": 128, "queries": 50, "layers": 3},
}
FAMILIES = (*SHAPES, "rtdetr", "dfine")
IN_FILE = {"rtdetr": "rtdetr:", "dfine": "dfine:"}


class Study:
    """What the trainings have in common, and the teachers, which are trained when they are first needed."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.report = args, make_reporter()
        train = {"epochs": args.epochs, "eval_every": args.epochs}
        teacher = {"epochs": args.teacher_epochs, "eval_every": args.teacher_epochs}
        self.base = merge(
            RECIPES["bccd"].layer,
            {"recipe": "bccd", "data": {"source": args.data}, "train": train, "teacher_train": teacher},
        )
        if args.few:
            self.base = merge(self.base, {"data": {"train_rows": args.few}})

    def model(self, family: str, part: str, seed: int) -> Layer:
        """Name and initial weights of the student or the teacher."""
        weights = self.args.backbones / f"{WEIGHTS[part]}.safetensors"
        if family in SHAPES:
            name = f"{family}:timm/{BACKBONES[part]}?size={self.args.size}&{SHAPES[family][part]}"
            return {"name": name, "weights": str(weights)}
        from benchmarks.detection_start import checkpoint

        name = checkpoint(
            self.args.out / family / f"{part}-seed{seed}",
            family,
            backbone=BACKBONES[part],
            weights=weights,
            size=self.args.size,
            classes=("RBC", "WBC", "Platelets"),
            seed=seed,
            **TRANSFORMERS[part],
        )
        return {"name": name, "weights": None}

    def teacher(self, family: str, seed: int) -> Layer:
        """The trained teacher: one for all seeds, or with few pictures one for those of each seed."""
        folder = self.args.out / family
        if self.args.few:
            folder, own = folder / f"teacher-{seed}", {"seed": seed}
        else:
            own = {}
        file = folder / "teacher.safetensors"
        model = self.model(family, "teacher", 0)
        if not file.is_file():
            model = {**model, "train": True}
            config = build_config(merge(self.base, {"method": {"preset": "kd"}, "teacher": model}, own))
            torch.manual_seed(config.seed)
            begun = (folder / "config.yaml").is_file()
            out = config.model_copy(update={"out": str(folder)})
            context = start(out, resume=begun, reporter=self.report)
            make_teacher(context, task_of(config.data.source).open_data(context), None)
        return {"train": False, "name": IN_FILE.get(family, model["name"]), "weights": str(file)}

    def run(self, family: str, seed: int) -> None:
        asked = [name for name in self.args.methods if name != OTHER or family == "fcos"]
        base = merge(self.base, {"student": self.model(family, "student", seed)})
        for name in asked:
            other = "retinanet" if name == OTHER else family
            teacher = {"name": "none", "train": False} if name == "none" else self.teacher(other, seed)
            run_study(
                merge(base, {"teacher": teacher}, self.training(name)),
                {name: METHODS[name]},
                [seed],
                out=self.args.out / family,
                reporter=self.report,
            )

    def training(self, method: str) -> Layer:
        """The epochs of a student that has few pictures: all methods take as many steps of as many pictures."""
        if not self.args.few:
            return {}
        batch, data = self.base["train"]["batch_size"], {}
        if method == UNLABELLED:
            data = {"unlabelled": self.args.data, "unlabelled_share": SHARE}
            batch -= round(batch * SHARE)
        epochs = round(self.args.steps / -(-self.args.few // batch))
        return {"data": data, "train": {"epochs": epochs, "eval_every": epochs}}


def collect(out: Path) -> dict[str, Records]:
    """Finished runs by family and method."""
    found: dict[str, Records] = {}
    for family in FAMILIES:
        for method in METHODS:
            files = sorted((out / family / method).glob("seed*/record.json"))
            if files:
                found.setdefault(family, {})[method] = [read_record(file) for file in files]
    return found


def table(out: Path) -> str:
    """AP as the library's statistics have it, then AP50."""
    found = collect(out)
    baselines = [name for name in ("none", "kd") if all(name in records for records in found.values())]
    lines = [formats.text(compare(found, baselines)), "", "AP50, last epoch", ""]
    for family, records in found.items():
        for method, runs in records.items():
            numbers = [run.student.ap50 for run in runs if run.student.ap50 is not None]
            lines.append(f"{family:12}{method:16}{summarize(numbers)}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=["train", "table"])
    parser.add_argument("--data")
    parser.add_argument("--backbones", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--families", nargs="+", default=["fasterrcnn"], choices=FAMILIES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=["none", "kd", "pkd"], choices=METHODS)
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--teacher-epochs", type=int, default=16)
    parser.add_argument("--few", type=int, help="number of pictures with annotations")
    parser.add_argument("--steps", type=int, default=600, help="of a student that has few pictures")
    args = parser.parse_args(arguments)
    if args.step == "table":
        print(table(args.out))
        return
    if args.data is None or args.backbones is None:
        parser.error("train needs --data and --backbones")
    if UNLABELLED in args.methods and not args.few:
        parser.error("kd, unlabelled needs --few: otherwise all pictures have annotations")
    study = Study(args)
    for seed in args.seeds:
        for family in args.families:
            study.run(family, seed)


if __name__ == "__main__":
    main()
