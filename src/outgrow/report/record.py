"""What a run was judged by, and where its record keeps it. Nothing else of a report knows the keys.

    record["metric"]          "top1", or "ap" for a detector
    record["student"]         the measure under its own name, and its best: "ap", "ap_best"
    record["teacher"]         the same, and "top1_corrected" where the teacher was corrected; {} without one
    record["epochs"][i]       "score", whatever the measure; None where the epoch was not tested

Records from before there was a choice have no "metric", and their epochs say "top1" for "score".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from outgrow.training.progress import MEASURES

Run = Mapping[str, Any]
"""The record of a run."""


@dataclass(frozen=True)
class Column:
    """A further number about a network, where its record has one under ``key``."""

    key: str
    name: str
    decimals: int

    def text(self, network: Mapping[str, Any]) -> str:
        """The number as a table shows it; nothing where there is none."""
        value = network.get(self.key)
        return "" if value is None else f"{value:.{self.decimals}f}"


@dataclass(frozen=True)
class Metric:
    """What a run is judged by, in percent, and its words.

    >>> METRICS["ap"].label, METRICS["ap"].value(43.2), METRICS["top1"].value(43.2)
    ('test box AP (%)', '43.20 % box AP', '43.20 %')
    """

    key: str
    name: str
    """Within a sentence, and over a column."""
    unit: str
    """Behind a number that stands alone."""
    sentence: str
    """What a network does on the test images, with a place for the number."""
    caption: str
    """Below a plot of it."""
    rows: str
    """Of which the teacher gets a share wrong."""
    beside: tuple[Column, ...]
    """What a run's own table may show next to it."""

    @property
    def title(self) -> str:
        """The name at the head of a sentence."""
        return self.name[0].upper() + self.name[1:]

    @property
    def label(self) -> str:
        """The name at an axis."""
        return f"test {self.name} (%)"

    def value(self, score: float) -> str:
        """A number that stands alone."""
        return f"{score:.2f} {self.unit}"


METRICS = {
    "top1": Metric(
        key="top1",
        name=MEASURES["top1"],
        unit="%",
        sentence="is right on {:.2f} % of the test images",
        caption="Percent of the test images.",
        rows="training views",
        beside=(Column("top5", "top-5 (%)", 2), Column("nll", "negative log-likelihood", 4)),
    ),
    "ap": Metric(
        key="ap",
        name=MEASURES["ap"],
        unit="% box AP",
        sentence="reaches {:.2f} % box AP on the test images",
        caption="COCO's average precision of boxes on the test images, mean over IoU 0.50 to 0.95, in percent.",
        rows="proposals in training",
        beside=(Column("ap50", "at IoU 0.50 (%)", 2), Column("ap75", "at IoU 0.75 (%)", 2)),
    ),
}


def metric_of(record: Run) -> Metric:
    """What the run was judged by. ``ValueError`` where this version does not know it."""
    key = record.get("metric", "top1")
    if key not in METRICS:
        raise ValueError(
            f"report: needs a run that was judged by one of {', '.join(METRICS)}, got {key!r}; "
            "read the record with the version that wrote it."
        )
    return METRICS[key]


def common_metric(records: Sequence[Run]) -> Metric:
    """What all of these were judged by. ``ValueError`` where that is not one thing: nothing compares them."""
    found = list(dict.fromkeys(metric_of(record).key for record in records))
    if len(found) != 1:
        raise ValueError(
            f"report: needs runs that were judged by one measure, got {' and '.join(found) or 'no runs'}; "
            "give the runs of each measure a folder of their own."
        )
    return METRICS[found[0]]


def student_score(record: Run) -> float:
    """The student's, after the last epoch."""
    return float(record["student"][metric_of(record).key])


def best_score(record: Run) -> float:
    """The student's at its best epoch, which was picked on the test images."""
    return float(record["student"][f"{metric_of(record).key}_best"])


def epoch_scores(record: Run) -> list[tuple[int, float]]:
    """The student's by epoch, where it was tested."""
    scores = [(e["epoch"], e["score"] if "score" in e else e["top1"]) for e in record["epochs"]]
    return [(epoch, score) for epoch, score in scores if score is not None]


def teacher_score(record: Run) -> float | None:
    """The teacher's as it is; None without a teacher."""
    return _optional(record["teacher"], metric_of(record).key)


def corrected_score(record: Run) -> float | None:
    """The teacher's after correction of its bias; None where it was not corrected."""
    return _optional(record["teacher"], f"{metric_of(record).key}_corrected")


def _optional(network: Mapping[str, Any], key: str) -> float | None:
    value = network.get(key)
    return None if value is None else float(value)


def short_name(network: Mapping[str, Any]) -> str:
    """A network's name for a heading: without the arguments behind the question mark.

    >>> short_name({"name": "fasterrcnn:timm/mobilenetv2_100?size=320&levels=3-5"})
    'fasterrcnn:timm/mobilenetv2_100'
    """
    return str(network["name"]).partition("?")[0]
