"""The record of a run as a typed model, and the names of its metrics.

    record = read_record("runs/first/record.json")      # a RunRecord; older layouts are read too
    record.student_score, record.teacher_score          # in the record's own metric, percent
    record.seed, record.preset, record.method_text      # what was run
    record.as_dict()                                     # what record.json holds

Layout 2 has ``version``. Records without it are layout 1; the oldest of those have no ``metric``, and their
epochs have ``top1`` instead of ``score``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_serializer, field_validator

from outgrow.machine.files import unsealed
from outgrow.training.config import Config, known_fields
from outgrow.training.meter import EpochRecord
from outgrow.training.progress import MEASURES

VERSION = 2
"""The layout that this version writes."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, populate_by_name=True)


class NetworkRecord(_Part):
    """A network and its scores on the test images, in percent; ``nll`` in nats. None if not measured."""

    name: str
    parameters: int
    top1: float | None = None
    top5: float | None = None
    nll: float | None = None
    ap: float | None = None
    ap50: float | None = None
    ap75: float | None = None
    ap_small: float | None = None
    ap_medium: float | None = None
    ap_large: float | None = None
    ar1: float | None = None
    ar10: float | None = None
    ar100: float | None = None
    ar_small: float | None = None
    ar_medium: float | None = None
    ar_large: float | None = None

    @property
    def short_name(self) -> str:
        """The name without the arguments after the question mark, for headings.

        >>> NetworkRecord(name="fasterrcnn:timm/mobilenetv2_100?size=320&levels=3-5", parameters=1).short_name
        'fasterrcnn:timm/mobilenetv2_100'
        """
        return self.name.partition("?")[0]


class StudentRecord(NetworkRecord):
    """The student after the last epoch, and the score of the best epoch, which was selected on the test images."""

    top1_best: float | None = None
    ap_best: float | None = None
    epoch_best: int


class AloneRecord(_Part):
    """Images that a teacher gets right under one augmentation alone; ``setting`` is that in words."""

    name: str
    setting: str
    right: int


class AugmentedRecord(_Part):
    """How many of the same images a teacher gets right as they are, and in one augmented view of each; ``majority`` are those
    of the most frequent class. ``p`` is that of the difference (McNemar). Where much is lost, ``alone`` has each of
    several augmentations by itself, and ``unchanged`` counts views of the training size without any."""

    whose: str
    images: int
    majority: int
    plain: int
    views: int
    p: float
    alone: tuple[AloneRecord, ...] = ()
    unchanged: int | None = None


class TeacherRecord(NetworkRecord):
    """The teacher. ``top1_corrected`` is its score after correction of its bias, if it was corrected.

    ``wrong_rate`` is the share of training views that it gets wrong before correction. ``augmented`` is a classifier's on
    views of test images; None if nothing is augmented.
    """

    weights: str
    classes: int
    wrong_rate: float | None = None
    augmented: AugmentedRecord | None = None
    top1_corrected: float | None = None
    ap_corrected: float | None = None


class CandidateRecord(_Part):
    """One candidate for the correction; ``nll`` and ``accuracy`` (0 to 1) are out of fold."""

    name: str
    source: str
    ridge: float | None = None
    nll: float
    accuracy: float


class CorrectionRecord(_Part):
    """The candidates of a correction, the chosen one and the reason. ``raw`` is None if the teacher has other classes.
    ``memory`` are the shares of fitted and held-out rows on which the teacher is right, if it has memorised the former."""

    candidates: tuple[CandidateRecord, ...]
    chosen: CandidateRecord
    raw: CandidateRecord | None
    reason: str
    num_images: int
    used: bool = True
    memory: tuple[float, float] | None = None


class MemberRecord(TeacherRecord):
    """One of several teachers. ``weight`` is its share of the mean (mean over the folds), ``nll_alone`` the negative
    log-likelihood of the training labels under it alone, out of fold; None if the weights were not fitted, and where it is
    infinite."""

    weight: float
    nll_alone: float | None = None
    correction: CorrectionRecord | None = None


class MixtureRecord(_Part):
    """Several teachers as one. ``nll`` is the negative log-likelihood of the training labels under their mean, out of fold;
    None if the weights were not fitted, and where it is infinite. ``num_images`` is None if they were not. ``teacher`` of the run has the scores of all together."""

    members: tuple[MemberRecord, ...]
    nll: float | None = None
    num_images: int | None = None


class NoiseCandidateRecord(_Part):
    """One kind of noise of the labels beside one map; ``nll`` of the given labels, out of fold, ``rate`` of wrong labels (0 to
    1)."""

    kind: str
    pseudo_counts: float | None = None
    nll: float
    rate: float
    map: str = ""


class NoiseRecord(_Part):
    """The noise of the training labels. ``wrong`` is the share that is thought wrong (0 to 1), ``map`` the correction of the
    teacher that was fitted together with it. ``used`` is False where no wrong labels were found."""

    candidates: tuple[NoiseCandidateRecord, ...]
    chosen: NoiseCandidateRecord
    reason: str
    wrong: float
    used: bool
    map: str
    task: Literal["label", "posterior"] = "label"
    """What the student's own loss was compared with."""
    matrix: tuple[tuple[float, ...], ...] | None = None
    """``matrix[i][j]``: the share of the images of class i that have the label j. None if there are too many classes."""
    judge: str = ""
    """Of several teachers, the one that found this: under it the given labels are likeliest."""


class ExampleRecord(_Part):
    """A test image by position, its label, and the predictions of both networks, as class numbers."""

    position: int
    label: int
    teacher: int
    student: int


class ComparedRecord(_Part):
    """Counts of test images by which network is right, and the first ones that only the student gets right."""

    both_right: int
    only_teacher: int
    only_student: int
    neither: int
    examples: tuple[ExampleRecord, ...] = ()
    lost: tuple[ExampleRecord, ...] = ()
    """The first ones that only the teacher gets right."""


class ErrorsRecord(_Part):
    """The results of a detector on the objects of one class: counts on the test images; ``ap`` in percent."""

    name: str = Field(alias="class")
    objects: int
    found: int
    missed: int
    confused: int
    duplicated: int
    badly_placed: int = Field(alias="badly placed")
    background: int
    ap: float | None = None


Measured = TypeVar("Measured")


class BinRecord(_Part):
    """The images whose largest probability is in one bin: mean confidence and accuracy, in percent."""

    confidence: float | None
    accuracy: float | None
    count: int


class ClassesRecord(_Part):
    """A classifier on the test images beyond its accuracy; percent. ``per_class`` is None for a class without images.

    ``ece`` is the expected calibration error of ``reliability``'s bins.
    """

    balanced_accuracy: float
    ece: float
    per_class: tuple[float | None, ...]
    reliability: tuple[BinRecord, ...]
    confusion: tuple[tuple[int, ...], ...] | None = None
    """``confusion[i][j]`` images of class i were predicted as class j; None if there are too many classes."""


class LatencyRecord(_Part):
    """Milliseconds per batch of ``batch`` images of ``size`` pixels: median and 95th percentile of ``repeats`` passes."""

    batch: int
    size: int
    median: float
    p95: float
    repeats: int


class CostRecord(_Part):
    """The cost of a network on the machine of the run, in float32. ``flops`` are for one image; a multiply-add counts as
    two."""

    bytes: int
    flops: int | None
    latency: tuple[LatencyRecord, ...]


class ClassificationRecord(_Part):
    """Both networks on the test images, by class, and their cost. ``majority`` is the accuracy of always predicting the
    most frequent class, ``counts`` the number of images of each class."""

    majority: float
    counts: tuple[int, ...]
    classes: "Both[ClassesRecord]"
    cost: "Both[CostRecord]"


class Both(_Part, Generic[Measured]):
    """A value for each of the two networks; ``teacher`` is None without one."""

    student: Measured
    teacher: Measured | None = None


class IntervalRecord(_Part):
    """A 95 % interval over test images, in percent. ``low`` and ``high`` are None where there is none; ``reason`` says why.

    ``images`` is the number of test images that have such an object.
    """

    low: float | None
    high: float | None
    images: int
    reason: str | None = None


class IntervalsRecord(_Part):
    """The intervals of a detector's APs: by the name of the number, and by class."""

    numbers: dict[str, IntervalRecord]
    classes: dict[str, IntervalRecord]


class DetectionRecord(_Part):
    """A detector's numbers on the test images: COCO's twelve in percent, errors by class, drawn images."""

    numbers: Both[dict[str, float | None]] | None = None
    """``{"ap": 43.2, "ap50": ...}`` of each network."""
    intervals: Both[IntervalsRecord] | None = None
    """Over test images, of one training each: they hold nothing of the spread over seeds."""
    difference: IntervalRecord | None = None
    """The student's AP minus the teacher's, on the same draws of images; None without a teacher."""
    errors: Both[tuple[ErrorsRecord, ...]] | None = None
    """``[{"class": "RBC", "objects": 819, "found": ...}]`` of each network."""
    curves: Both[dict[str, tuple[float, ...]]] | None = None
    """``{"ap": (...), "ap50": (...)}`` of each network: precision in percent at COCO's 101 recalls."""
    cost: Both[CostRecord] | None = None
    """The latency is that of whole detections in test images, one at a time; its size is the detector's short side."""
    pictures: tuple[str, ...] = ()
    """Files of images with boxes drawn, relative to the run folder."""
    pictures_of: Literal["validation", "test"] | None = None
    """The split of these images; None in older records."""


class DataRecord(_Part):
    """The source of the images, and the size of each split."""

    source: str
    fingerprint: str
    classes: tuple[str, ...] = ()
    train: int
    val: int
    test: int
    size: int | None = None
    """Side in pixels of the images that a classifier was trained and tested on; None if their sizes differ."""
    image_size: tuple[int, int] | None = None
    """Height and width of the test images if all are equal and kept in memory; None for photographs."""
    duplicates: int | None = None
    """Number of test images that are also training images, byte for byte; None if that was not checked."""
    faults: tuple[str, ...] = ()
    """Images that were left out because they cannot be decoded."""
    excluded: int = 0
    """Training images that ``data.exclude`` has left out."""
    class_map: str | None = None
    """A hash of the content of ``data.class_map``; None without one."""
    unlabelled: int | None = None
    """Images without labels that were distilled too; None without any."""
    unlabelled_fingerprint: str | None = None
    """Changes whenever those images may have changed; ``fingerprint`` is that of the labelled images."""


class TrialRecord(_Part):
    """One trial of a search for values of the configuration (`outgrow tune`)."""

    values: dict[str, float]
    """The values that were tried, by name: weight, temperature, lr."""
    scores: tuple[float, ...]
    """The score on the held-out images after each epoch, in percent."""
    finished: bool
    """False if it was ended early as one of the worse, or diverged."""
    diverged: bool = False
    """Whether its loss or its logits became infinite or NaN."""
    seconds: float


class RunRecord(_Part):
    """One finished run."""

    version: int = 1
    metric: str = "top1"
    teacher: TeacherRecord | None = None
    """None without a teacher; ``{}`` in the file."""
    correction: CorrectionRecord | None = None
    mixture: MixtureRecord | None = None
    """None with one teacher."""
    noise: NoiseRecord | None = None
    """None if it was not estimated."""
    student: StudentRecord
    epochs: tuple[EpochRecord, ...] = Field(min_length=1)
    compared: ComparedRecord | None = None
    detection: DetectionRecord | None = None
    classification: ClassificationRecord | None = None
    data: DataRecord
    config: Config
    files: dict[str, str] = Field(default_factory=dict)
    """A hash of each file that ``config`` names, by the field."""
    tuning: tuple[TrialRecord, ...] = ()
    """The trials that chose values of the configuration."""
    versions: dict[str, str] = Field(default_factory=dict)
    commit: str | None = None
    command: str = ""
    hardware: str = ""
    started: str = ""
    seconds: float = 0.0

    @field_validator("teacher", mode="before")
    @classmethod
    def _no_teacher(cls, value: Any) -> Any:
        return value or None

    @field_validator("epochs", mode="before")
    @classmethod
    def _oldest_epochs(cls, value: Any) -> Any:
        """The oldest records have ``top1`` instead of ``score``."""
        if not isinstance(value, list | tuple):
            return value
        return [
            {("score" if key == "top1" else key): number for key, number in epoch.items()}
            if isinstance(epoch, Mapping)
            else epoch
            for epoch in value
        ]

    @field_validator("config", mode="before")
    @classmethod
    def _other_versions(cls, value: Any) -> Any:
        """Newer fields get their defaults; removed fields are dropped."""
        return known_fields(value) if isinstance(value, Mapping) else value

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, value: str) -> str:
        if value not in METRICS:
            raise ValueError(
                f"report: needs a run with one of the metrics {', '.join(METRICS)}, got {value!r}; "
                "read the record with the version of outgrow that wrote it."
            )
        return value

    @field_serializer("teacher")
    def _teacher_or_empty(self, value: TeacherRecord | None) -> dict[str, Any]:
        return {} if value is None else value.model_dump(mode="json", exclude_unset=True)

    @field_serializer("config")
    def _whole_config(self, value: Config) -> dict[str, Any]:
        return value.model_dump(mode="json")

    def as_dict(self) -> dict[str, Any]:
        """The record as in ``record.json``, without the values that were not measured."""
        return self.model_dump(mode="json", exclude_unset=True, by_alias=True)

    @property
    def trained_epochs(self) -> int:
        """Epochs of the student: more than ``config.train.epochs`` where ``min_steps`` asked for it."""
        return self.epochs[-1].epoch

    @property
    def seed(self) -> int:
        return self.config.seed

    @property
    def preset(self) -> str:
        return self.config.method.preset

    @property
    def method_text(self) -> str:
        """The method in one line: the preset, and the fields that differ from it."""
        chosen = self.config.method.model_dump(mode="json", exclude_defaults=True)
        chosen = {"preset": self.preset} | chosen
        return ", ".join(f"{name} {value}" for name, value in chosen.items() if value is not None)

    def class_name(self, label: int) -> str:
        """The name of a class, or its number if the record has no name. Early records have none."""
        known = 0 <= label < len(self.data.classes)
        return self.data.classes[label] if known else f"class {label}"

    @property
    def measure(self) -> "Metric":
        """The metric of the run."""
        return METRICS[self.metric]

    @property
    def student_score(self) -> float:
        """The student's score after the last epoch."""
        return _score(self.student, self.metric)

    @property
    def best_score(self) -> float:
        """The student's score at its best epoch, which was selected on the test images."""
        return _score(self.student, f"{self.metric}_best")

    @property
    def epoch_scores(self) -> list[tuple[int, float]]:
        """The student's score by epoch, for the epochs that were evaluated."""
        return [(epoch.epoch, epoch.score) for epoch in self.epochs if epoch.score is not None]

    @property
    def teacher_score(self) -> float | None:
        """The teacher's score without correction; None without a teacher."""
        return None if self.teacher is None else getattr(self.teacher, self.metric)

    @property
    def corrected_score(self) -> float | None:
        """The teacher's score after correction of its bias; None if it was not corrected."""
        return None if self.teacher is None else getattr(self.teacher, f"{self.metric}_corrected")

    @property
    def teacher_wrong_rate(self) -> float | None:
        """The share of training rows that the teacher gets wrong before any correction, if it was measured."""
        return None if self.teacher is None else self.teacher.wrong_rate

    @property
    def wrong_rate(self) -> float | None:
        """The share of rows that the teacher got wrong in the last epoch; None without a teacher, and for one that gives no
        logits. Older records have 0 where there is no teacher."""
        return None if self.teacher is None else self.epochs[-1].wrong_rate

    @property
    def is_mapped(self) -> bool:
        """Whether the teacher has other classes, so that it has a score only after mapping them to the student's."""
        return self.correction is not None and self.correction.raw is None


def _score(network: NetworkRecord, key: str) -> float:
    value = getattr(network, key)
    if value is None:
        raise ValueError(
            f"report: needs {key} of the student, got a record without it; rerun the run with its config.yaml."
        )
    return float(value)


def read_record(path: str | Path) -> RunRecord:
    """The record in a file. ``ValueError`` if it is not a record, or one of a later version."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise ValueError(
            f"report: needs a run's record.json, got {path}, which cannot be read ({error}); rerun the run with its "
            "config.yaml."
        ) from None
    try:
        content = unsealed(text, where=str(path), optional=lambda found: found.get("version", 1) == 1)
    except ValueError as error:
        raise ValueError(f"report: {error}") from None
    return parse_record(content, where=str(path))


def parse_record(content: Any, *, where: str = "record") -> RunRecord:
    """``content`` (as read from JSON) as a record; ``where`` names it in errors."""
    if isinstance(content, RunRecord):
        return content
    if not isinstance(content, Mapping):
        raise ValueError(
            f"report: needs a mapping in {where}, got {type(content).__name__}; rerun the run with its config.yaml."
        )
    version = content.get("version", 1)
    if not isinstance(version, int) or version > VERSION:
        raise ValueError(
            f"report: needs a record of layout {VERSION} or older in {where}, got {version!r}; read it with the version "
            "of outgrow that wrote it."
        )
    try:
        return RunRecord.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(
            f"report: needs a valid record in {where}, got {error.error_count()} errors, the first at {place} "
            f"({first['msg']}); rerun the run with its config.yaml."
        ) from None


Run = RunRecord | Mapping[str, Any]
"""A record, or the mapping that ``outgrow.distill`` returns; :func:`parse_record` takes both."""


@dataclass(frozen=True)
class Column:
    """Another number of a network, from the field ``key`` of its record."""

    key: str
    name: str
    decimals: int

    def text(self, network: NetworkRecord | None) -> str:
        """The number as in a table; empty if there is none."""
        value = None if network is None else getattr(network, self.key)
        return "" if value is None else f"{value:.{self.decimals}f}"


@dataclass(frozen=True)
class Metric:
    """A metric of runs, in percent, and its names.

    >>> METRICS["ap"].label, METRICS["ap"].value(43.2), METRICS["top1"].value(43.2)
    ('test box AP (%)', '43.20 % box AP', '43.20 %')
    """

    key: Literal["top1", "ap"]
    name: str
    """Its name within a sentence and above a column."""
    unit: str
    """Its unit after a number."""
    sentence: str
    """A phrase about a network on the test images, with a placeholder for the number."""
    caption: str
    """The caption of a plot of it."""
    rows: str
    """The name of the rows of which the teacher gets a share wrong."""
    beside: tuple[Column, ...]
    """Other numbers in the table of a run."""

    @property
    def title(self) -> str:
        """The name at the start of a sentence."""
        return self.name[0].upper() + self.name[1:]

    @property
    def label(self) -> str:
        """The name on an axis."""
        return f"test {self.name} (%)"

    def value(self, score: float) -> str:
        """A number with its unit."""
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


def common_metric(records: Sequence[RunRecord]) -> Metric:
    """The metric of all records. ``ValueError`` if they have different metrics, which cannot be compared."""
    found = list(dict.fromkeys(record.metric for record in records))
    if len(found) != 1:
        raise ValueError(
            f"report: needs runs with the same metric, got {' and '.join(found) or 'no runs'}; "
            "put the runs of each metric into their own folder."
        )
    return METRICS[found[0]]
