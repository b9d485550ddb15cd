"""Copies the records of a study into results/: the last epoch of each run, without lists of single images.

    python -m benchmarks.records STUDY results/records/study --name STUDY=STUDY --name DATA=/data

``--name NAME=FOLDER`` puts a name in place of a folder, so that records say nothing about a machine. A record is written as
``<regime>/<method>/seed<N>.json``, as deep as it lies in STUDY, and other files of the target are removed. ``--add`` keeps them:
for a study that is continued on another machine.
"""

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from outgrow.machine.files import sealed, unsealed

PER_IMAGE = ("compared", "classification")
"""Fields with entries for single images or classes."""
OF_BOXES = ("numbers", "errors", "cost")
"""What is kept of ``detection``, which also has curves and pictures."""


def copy(study: Path, target: Path, names: Mapping[str, str], *, add: bool = False) -> int:
    """The number of records copied."""
    files = sorted(study.glob("**/record.json"))
    if not add:
        shutil.rmtree(target, ignore_errors=True)
    for file in files:
        record = shorten(unsealed(file.read_text(encoding="utf-8"), where=str(file)), names)
        *folders, seed = file.parent.relative_to(study).parts
        place = target.joinpath(*(slug(folder) for folder in folders), f"{seed}.json")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(sealed(record), encoding="utf-8")
    return len(files)


def shorten(record: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    text = json.dumps({key: value for key, value in record.items() if key not in PER_IMAGE})
    for folder, name in names.items():
        text = text.replace(folder, name)
    short: dict[str, Any] = json.loads(text)
    short["config"]["out"] = None
    short["epochs"] = short["epochs"][-1:]
    if short.get("detection"):
        short["detection"] = {key: short["detection"][key] for key in OF_BOXES if key in short["detection"]}
    return short


def slug(folder: str) -> str:
    """
    >>> slug("kd, weight 4")
    'kd-weight4'
    """
    return folder.replace(", ", "-").replace(" ", "").replace(",", "")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--name", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--add", action="store_true", help="keep the records that are there")
    args = parser.parse_args()
    names = {folder: name for name, _, folder in (item.partition("=") for item in args.name)}
    print(f"{copy(args.study, args.target, names, add=args.add)} records in {args.target}")


if __name__ == "__main__":
    main()
