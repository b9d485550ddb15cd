"""A teacher with other classes and few photographs: the table "Other classes" in results.

    python -m benchmarks.photos --images DIR --weights DIR --out DIR [--seeds 0 1 2 3 4]

``--images`` has ImageNet photographs, one folder per class. Their classes are grouped into six kinds. Every second
photograph is for testing, which leaves about 150 for training. The student is a pretrained MobileNetV1 0.25. The
teacher is EfficientNet-Lite0, whose 1,000 classes are mapped to the six with the labels. ``--weights`` has both files.
Finished runs are kept.
"""

import argparse
import shutil
from pathlib import Path

from outgrow.report.table import tabulate
from outgrow.report.text import text_table
from outgrow.run.recipes import RECIPES
from outgrow.run.study import run_study
from outgrow.training.config import merge
from outgrow.training.progress import make_reporter

KINDS = {
    "bird": (range(7, 25), range(80, 101), range(127, 147)),
    "dog": (range(151, 269),),
    "food": (range(924, 970),),
    "insect": (range(300, 327),),
    "monkey": (range(365, 385),),
    "reptile": (range(33, 69),),
}
"""Places in the order of ImageNet's classes."""

TEACHER = {"name": "timm/tf_efficientnet_lite0", "weights": "in1k_tf_efficientnet_lite0.safetensors"}
STUDENT = {"name": "timm/mobilenetv1_025_128", "weights": "in1k_mobilenetv1_025_128.safetensors"}
METHODS = {"none": {"preset": "none"}, "kd": {"preset": "kd"}, "outgrow": {"preset": "outgrow"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    args = parser.parse_args()
    folder = args.out / "photos"
    print(f"{arrange(args.images, folder)} photographs to learn from")
    base = merge(
        RECIPES["finetune"].layer,
        {"recipe": "finetune", "data": {"source": f"folder:{folder}", "val_fraction": 0.0}},
        {"teacher": {**TEACHER, "weights": str(args.weights / TEACHER["weights"])}},
        {"student": {**STUDENT, "weights": str(args.weights / STUDENT["weights"])}},
        {"train": {"eval_every": 10}},
    )
    records = run_study(base, METHODS, args.seeds, out=args.out / "runs", reporter=make_reporter())
    print(text_table(tabulate(records)))


def arrange(images: Path, folder: Path) -> int:
    """Copies into ``folder/train/<kind>`` and ``folder/val/<kind>``; how many there are to learn from."""
    classes = sorted(path for path in images.iterdir() if path.is_dir())
    if len(classes) != 1000:
        raise SystemExit(f"photos: needs ImageNet's 1000 class folders, got {len(classes)} in {images}.")
    for kind, ranges in KINDS.items():
        files = [file for places in ranges for place in places for file in sorted(classes[place].iterdir())]
        for number, file in enumerate(files):
            there = folder / ("val" if number % 2 else "train") / kind / file.name
            if not there.is_file():
                there.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, there)
    return sum(1 for _ in (folder / "train").glob("*/*"))


if __name__ == "__main__":
    main()
