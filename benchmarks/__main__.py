"""All measurements, as lines and as JSON.

    python -m benchmarks [--data parquet:PATH --label fine_label] [--device cpu|cuda] [--threads 2] [--repeat 5]
                         [--only objective throughput students growth profile] [--out runs/benchmarks]

    objective   (a) rectified KD against plain KD
    throughput  (b, d) images per second and peak memory of the ways of training, including torchdistill
    students    (c) ten students of one teacher, with and without the cache
    growth      (e) with classes, batch and image size
    profile     time of a step by kind of operation

Without ``--data`` images are random. ``OUT/NAME.json`` has each measurement with hardware, versions and
commit. Run nothing else at the same time.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import growth, objective, step_profile, students, throughput
from outgrow.training.provenance import provenance


def main(arguments: list[str] | None = None) -> None:
    parser = throughput.arguments(__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--only", nargs="+")
    args = parser.parse_args(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    images: dict[str, Any] = {"data": args.data, "label": args.label}
    on: dict[str, Any] = {**images, "threads": args.threads}
    parts: dict[str, Callable[[], Any]] = {
        "objective": lambda: objective.measure(args.device),
        "throughput": lambda: throughput.measure(args.device, **on, repeat=args.repeat),
        "students": lambda: students.measure(args.device, **on),
        "growth": lambda: {
            "objective": growth.of_objective(args.device),
            "step": growth.of_step(args.device, threads=args.threads),
        },
        "profile": lambda: [
            step_profile.measure(args.device, **images, pair=pair, cached=cached)
            for pair in throughput.PAIRS
            for cached in (True, False)
        ],
    }
    unknown = sorted(set(args.only or ()) - set(parts))
    if unknown:
        parser.error(f"--only: there are {', '.join(parts)}, got {', '.join(unknown)}")
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.only or parts:
        print(f"{name}:", flush=True)
        started = time.time()
        result = parts[name]()
        facts = provenance(torch.device(args.device), started)
        kind, colon, where = args.data.partition(":")
        if where:  # a path of this machine is useless elsewhere
            facts["command"] = facts["command"].replace(args.data, f"{kind}{colon}DATA")
        (args.out / f"{name}.json").write_text(json.dumps({"result": result, **facts}, indent=1))


if __name__ == "__main__":
    main()
