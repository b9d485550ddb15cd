"""``python -m benchmarks [--device cpu|cuda] [--out FILE]``: all measurements, as lines and as JSON."""

import argparse
import json
import os
import platform
from pathlib import Path

import torch

from benchmarks import objective, throughput


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    hardware = (
        torch.cuda.get_device_name() if args.device == "cuda" else platform.processor() or platform.machine()
    )
    print(f"{hardware}, {os.cpu_count()} cores, torch {torch.__version__}")
    result = {
        "hardware": hardware,
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "objective": objective.measure(args.device),
        "throughput": throughput.measure(args.device),
    }
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
