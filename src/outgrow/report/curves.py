"""The curves of one run."""

from pathlib import Path
from typing import Any


def draw_curves(record: dict[str, Any], path: str | Path) -> None:
    """Write a PNG: top-1 of student and teacher, and the terms of the loss, by epoch."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    epochs = record["epochs"]
    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), constrained_layout=True)
    tested = [e for e in epochs if e["top1"] is not None]
    left.plot(
        [e["epoch"] for e in tested],
        [e["top1"] for e in tested],
        marker="o",
        ms=3,
        color="#0b6e4f",
        label="student",
    )
    teacher = record["teacher"]
    if teacher.get("top1") is not None:
        left.axhline(teacher["top1"], color="#7a7a7a", ls="--", lw=1, label="teacher")
    if teacher.get("top1_corrected") is not None and teacher["top1_corrected"] != teacher.get("top1"):
        left.axhline(teacher["top1_corrected"], color="#c2571a", ls=":", lw=1.2, label="teacher, corrected")
    left.set(xlabel="epoch", ylabel="test top-1 (%)", title=f"student {record['student']['name']}")
    left.legend(frameon=False)
    for name in epochs[0]["terms"]:
        right.plot([e["epoch"] for e in epochs], [e["terms"][name] for e in epochs], label=name)
    right.set(xlabel="epoch", ylabel="weighted training loss", title="terms of the loss")
    right.legend(frameon=False)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    fig.savefig(path, dpi=130)
    plt.close(fig)
