"""(c) Ten students of one teacher: the teacher is computed for each, or once and then read from the cache.

    python -m benchmarks.students [--data parquet:PATH --label fine_label] [--threads 2]

An epoch has ``num`` images. Student k with a cache and student k without one are trained in turn. The first
student with a cache fills it, and that time is included.
"""

import statistics
import tempfile
from typing import Any

from benchmarks.throughput import PAIRS, arguments, started
from benchmarks.turns import Reading
from benchmarks.ways import Task


def measure(
    device: str = "cpu",
    *,
    data: str = "random",
    label: str | None = None,
    pair: tuple[str, str] = PAIRS[0],
    students: int = 10,
    epochs: int = 2,
    num: int = 1280,
    batch: int = 64,
    threads: int | None = None,
) -> dict[str, Any]:
    """Epochs an hour and the share of the online time, for one student and for all."""
    with tempfile.TemporaryDirectory() as folder:
        task = Task(
            "students", *pair, data, label, num=num, batch=batch, device=device, cache=folder, epochs=epochs
        )
        online_task = Task("students", *pair, data, label, num=num, batch=batch, device=device, epochs=epochs)
        with started(online_task, threads) as (online, _), started(task, threads) as (cached, _):
            turns = {"online": online, "cached": cached}
            readings: dict[str, list[Reading]] = {name: [] for name in turns}
            for _ in range(students):
                for name, worker in turns.items():
                    readings[name].append(worker.step(1))
    seconds = {name: [r.seconds for r in values] for name, values in readings.items()}
    result: dict[str, Any] = {
        "teacher": pair[0],
        "student": pair[1],
        "images": num,
        "epochs": epochs,
        "students": students,
        "seconds": seconds,
        "cpu_seconds": {name: [r.cpu for r in values] for name, values in readings.items()},
        "epochs_per_hour": {
            name: {
                "first": 3600 * epochs / values[0],
                "later": 3600 * epochs / statistics.median(values[1:] or values),
                "all": 3600 * epochs * students / sum(values),
            }
            for name, values in seconds.items()
        },
        "share": {"first": seconds["cached"][0] / seconds["online"][0]},
    }
    result["share"]["all"] = sum(seconds["cached"]) / sum(seconds["online"])
    print(f"{pair[0]} to {pair[1]}: {students} students, {epochs} epochs of {num} images each")
    for name, rate in result["epochs_per_hour"].items():
        print(
            f"  {name:<8}{sum(seconds[name]):7.1f} s; epochs an hour: first student {rate['first']:.0f}, a later one "
            f"{rate['later']:.0f}, all {rate['all']:.0f}"
        )
    print(f"  cached in {result['share']['all']:.3f} of the online time", flush=True)
    return result


if __name__ == "__main__":
    parsed = arguments(__doc__).parse_args()
    measure(parsed.device, data=parsed.data, label=parsed.label, threads=parsed.threads)
