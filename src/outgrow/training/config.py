"""The typed configuration of a run. Recipes set its fields; the command line overrides some.

The resolved configuration is saved with every run (``config.yaml``). ``--config`` repeats the run from it.
"""

import difflib
import hashlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from outgrow.machine.files import parse_yaml
from outgrow.machine.precision import resolve_precision


class _Section(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value_for_a_number(cls, value: Any, info: Any) -> Any:
        """Pydantic would read ``true`` as 1."""
        annotation = cls.model_fields[info.field_name].annotation
        kinds = get_args(annotation) or (annotation,)
        if isinstance(value, bool) and (int in kinds or float in kinds) and bool not in kinds:
            raise ValueError(f"needs a number, got {str(value).lower()}; write it as a number")
        return value


class AugmentConfig(_Section):
    """Augmentation of the training images; see :class:`outgrow.data.Augment`."""

    crop_padding: int = 4
    """Pixels of padding before a random crop back to the image's size; 0 for no crop."""
    padding: Literal["zero", "reflect"] = "zero"
    """How that padding is filled."""
    flip: bool = True
    """Flip half of the images from left to right."""
    cutout: int = 0
    """Side in pixels of a random square that is filled with grey; 0 for none."""
    randaugment: float = 0.0
    """Magnitude of RandAugment (two operations per image), 0 to 10, commonly 9; 0 for none."""
    mixup: float = 0.0
    """Parameter of mixup's beta distribution; 0 for none."""
    cutmix: float = 0.0
    """Parameter of CutMix's beta distribution; 0 for none."""
    resized_crop: tuple[float, float] | None = None
    """Smallest and largest share of the area of an image that a random resized crop keeps; None for no such crop."""


class DataConfig(_Section):
    """The source of images and labels, and how they are loaded."""

    source: str = "digits"
    """digits, folder:PATH, parquet:PATH, cifar10:ROOT, cifar100:ROOT, imagenet:ROOT, hf:NAME; with boxes coco:IMAGES:ANNOTATIONS,
    coco:FOLDER, yolo:DATA.yaml, voc:FOLDER, hf:NAME."""
    label: str | None = None
    """The label column, if a source has several (``fine_label`` or ``coarse_label``)."""
    val_fraction: float = Field(0.0, ge=0, lt=1)
    """Share of the training set that is held out to check a teacher and is never trained on. It has no effect
    if the source has both validation and test images, or boxes."""
    train_rows: int | None = Field(None, ge=1)
    """Train on this number of images only, the first of a seeded shuffle; None for all."""
    exclude: str | None = None
    """A CSV file of training images to leave out, such as the ``label_errors.csv`` of ``outgrow audit``. Test and
    validation images always stay."""
    class_map: str | None = None
    """A CSV file with the columns ``teacher`` and ``data``: which classes of a teacher, or of a student's weights, are which
    of the data's, where names differ. Several of a teacher's may form one of the data's."""
    unlabelled: str | None = None
    """Images without labels, or pictures without boxes, that are distilled too: a source as ``data.source``, whose labels are
    not used. A folder may have images at any depth. Images that are also training, validation or test images are left out."""
    unlabelled_share: float = Field(0.5, gt=0, lt=1)
    """Share of unlabelled images in a batch. ``train.batch_size`` counts both kinds; an epoch is one pass over
    the labelled images, so at 0.75 it has four times the steps."""
    unlabelled_rows: int | None = Field(None, ge=1)
    """Use this number of unlabelled images only, the first of a seeded shuffle; None for all."""
    size: int | None = Field(None, ge=1)
    """Side in pixels of the training views, and of the input of the student. None: the views have the larger input size of the
    two networks (square images in memory keep theirs), and each network resizes them to its own. For a student that is built
    for one size set ``student.input_size`` instead. It has no effect with boxes."""
    on_fault: Literal["refuse", "skip"] = "refuse"
    """What happens if an image cannot be decoded, or a box or an image is annotated with a fault. ``refuse`` raises an
    error that names it. ``skip`` leaves it out and names it in the record; all images are then decoded once before
    the first epoch."""
    group_orientation: bool = True
    """With boxes: fill batches with images of one orientation. A mixed batch is padded to squares, which costs up to half
    more. Every image still comes once an epoch. It has no effect with ``augment.resized_crop``."""
    short_sides: tuple[int, ...] = ()
    """With boxes: multi-scale training. Each step resizes the images to one of these short sides, in pixels; the teacher's
    size changes by the same factor. A text such as "480-800" is 480, 512, ..., 800. Evaluation, and a teacher that is
    trained first, keep their own size. Empty for one size."""
    workers: int = Field(2, ge=0)
    """Processes that decode images; 0 decodes in the training process. The results do not depend on it."""
    augment: AugmentConfig = AugmentConfig()
    """Augmentation of the training images."""

    @field_validator("short_sides", mode="before")
    @classmethod
    def _sides(cls, value: Any) -> Any:
        """ "480-800" as the sizes from 480 on in steps of 32 pixels."""
        if isinstance(value, int):
            return [value]
        if not isinstance(value, str):
            return value
        first, _, last = value.partition("-")
        if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
            raise ValueError(
                f"needs short sides in pixels, got {value!r}; write such as 480-800 or [480, 640, 800]"
            )
        return list(range(int(first), int(last) + 1, 32))

    @field_validator("short_sides")
    @classmethod
    def _large_enough(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(side < 32 for side in value):
            raise ValueError(
                f"needs short sides of at least 32 pixels, got {list(value)}; write such as 480-800"
            )
        return value


class ModelConfig(_Section):
    """A network by name, and its weights."""

    name: str = ""
    """cifar/NAME, timm/NAME, torchvision/NAME, hf/NAME, py:FILE:CALLABLE, or a detector such as fasterrcnn:BACKBONE."""
    weights: str | None = None
    """File of weights: safetensors, or a torch file. None for none."""
    pretrained: bool = False
    """Load the published weights through the library of the model."""
    input_size: int | None = Field(None, ge=1)
    """Side in pixels of the input of the network; None for its default."""
    mean: tuple[float, float, float] | None = None
    """Mean that is subtracted from red, green and blue in [0, 1]; None for the mean in the metadata of the weights
    file, or else the default of the model family. Set it for weights without such metadata."""
    std: tuple[float, float, float] | None = None
    """Standard deviation by which red, green and blue are then divided; None as for ``mean``."""


class TeacherConfig(ModelConfig):
    """The teacher, how it is trained, and whether its bias is corrected."""

    others: tuple[ModelConfig, ...] = ()
    """More teachers, such as ``[{name: timm/resnet50, pretrained: true}]``. The student learns from the weighted mean of the
    probabilities of all; the weights are those under which the training labels are most likely, out of fold."""
    train: bool = False
    """Train the teacher first, as section ``teacher_train`` says, on the training images."""
    rows: Literal["same", "disjoint"] = "same"
    """The training images of a teacher that is trained here: those of the student, or only the others."""
    correct: Literal["auto", "always", "never"] = "auto"
    """Correct the bias of the teacher, if that helps on held-out folds. ``auto`` does so with the preset ``outgrow`` and with the rule
    or the task ``posterior``; ``always`` with any preset, and without the check for memorisation. Both map the classes of a teacher
    with others to those of the data; ``never`` refuses such a teacher."""
    cache: str | None = None
    """Folder for cached logits of the teacher. They are computed once for each view and read by later runs."""
    cache_features: bool = False
    """Also cache the features that the losses read. They can be a thousand times larger than the logits; the size
    is printed before anything is written."""
    cache_plain: bool = False
    """Also cache the logits before a correction, in the same pass, for runs that do not correct the teacher."""
    views: int = Field(1, ge=1)
    """Number of views of a training image over which the teacher's probabilities are averaged. The belief in an image is then
    the same in every epoch, and the teacher is not computed again. With 1 the teacher looks at the view that the student sees."""
    correct_views: int = Field(1, ge=1)
    """Number of passes over the augmented training images on which a correction is fitted. With ``views`` above 1 it is
    fitted on the averaged beliefs, one for each image, and this has to be 1."""
    fold: bool = True
    """Fold batch norms into the preceding convolutions: the same logits up to float32 rounding."""
    precision: Literal["as_student", "fp32", "bf16"] = "as_student"
    """Precision of the teacher; ``as_student`` is ``train.precision``."""
    compile: bool = False
    """Use torch.compile if there is a compiler. It takes minutes at the start and pays in runs of hours."""


class MethodConfig(_Section):
    """The distillation method: a preset, and the parts of it to replace."""

    preset: str = "outgrow"
    """`outgrow list presets`."""
    loss: str | None = None
    """The losses, such as "dkd(beta=6)" or "kd + 0.8*crd"; None for those of the preset."""
    rule: str | None = None
    """The rule for rows that the teacher gets wrong, such as "pair"; None for that of the preset."""
    task: Literal["label", "posterior"] | None = None
    """What the task loss compares the student with: the label, or the posterior of label and teacher, with the noise of the
    labels estimated as for the rule ``posterior``. None for the choice of the preset: that of `outgrow` is the posterior where
    labels look wrong, that of all others the label."""
    trust: str | None = None
    """How far rows are trusted: "confidence(0.8)" leaves out rows without a label on which the teacher is less confident,
    "reliability" weighs them by how often it is right at that confidence; with rows=all also those with a label. None
    weighs all alike."""
    schedule: str | None = None
    """The weights of easy and hard rows over the training, such as "linear"; None for those of the preset."""
    temperature: float | None = Field(None, gt=0)
    """Temperature of the losses that soften logits, and of the rule; None for that of the preset, or with ``loss`` for the
    defaults of the losses."""
    weight: float | None = None
    """Factor of all distillation terms; None for that of the preset."""
    task_weight: float | None = None
    """Factor of the task loss; None for that of the preset."""
    normalize: Literal["rows", "subset"] | None = None
    """``rows`` divides the distillation losses by the number of rows in the batch. ``subset`` divides those of right and of wrong
    rows each by the number of such rows. None for the choice of the preset. The task loss is always a mean over rows with a label."""

    @property
    def effective(self) -> "MethodConfig":
        """The fields that have an effect: of a student alone only the preset, as the others are about a teacher.

        >>> MethodConfig(preset="none", loss="dkd", weight=4.0).effective == MethodConfig(preset="none")
        True
        """
        return MethodConfig(preset="none") if self.preset == "none" else self


class TrainConfig(_Section):
    """Training of one network."""

    epochs: int = Field(30, ge=1)
    """Passes over the training images."""
    min_steps: int | None = Field(None, ge=1)
    """Least number of steps. With few images the training has more epochs than ``epochs``, and as many evaluations.
    None for no minimum. Setting ``epochs`` or ``max_steps`` removes a recipe's minimum."""
    batch_size: int = Field(64, ge=1)
    """Images per step, over all processes."""
    accumulate: int = Field(1, ge=1)
    """Parts of a batch that run one after another before the step (gradient accumulation), to save memory. The batch
    keeps its size. Batch norms, and losses that compare the rows of a batch, get one part at a time; with
    ``normalize=subset`` each part is divided by its own right and wrong rows."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum, or AdamW."""
    lr: float = Field(0.05, gt=0)
    """Peak learning rate of the schedule."""
    head_lr: float | None = Field(None, gt=0)
    """Peak learning rate of the classifier, which is usually higher than ``lr`` for a pretrained student; None for
    ``lr``."""
    layer_decay: float | None = Field(None, gt=0, le=1)
    """Factor of the learning rate from each stage or block to the one before it, commonly 0.65 to 0.9 for a pretrained
    student. The classifier and the losses keep ``lr``. None for one learning rate."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of SGD."""
    nesterov: bool = False
    """Nesterov momentum for SGD."""
    weight_decay: float = Field(5e-4, ge=0)
    """L2 penalty for SGD; decoupled weight decay for AdamW."""
    lr_schedule: Literal["step", "cosine", "one_cycle", "constant"] = "cosine"
    """Schedule of the learning rate."""
    milestones: tuple[float, ...] = (0.625, 0.75, 0.875)
    """Fractions of the training at which the step schedule multiplies the learning rate by ``lr_decay``."""
    lr_decay: float = Field(0.1, gt=0, le=1)
    """Factor of the learning rate at each milestone of the step schedule."""
    warmup: float = Field(0.0, ge=0, lt=1)
    """Fraction of the training over which the learning rate rises linearly."""
    clip: float | None = Field(None, gt=0)
    """Maximum gradient norm; None for no clipping."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay of an exponential moving average of the student's weights, commonly 0.999 to 0.9999. The average is what
    is evaluated and saved. In the first steps the decay is (1 + steps) / (10 + steps) if that is smaller. None for no
    average."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the label that the task loss spreads evenly over all classes. It does not change the distillation
    terms."""
    class_weights: Literal["balanced"] | dict[str, float] | None = None
    """Weights of the classes in the task loss. ``balanced`` is images / (classes x images of the class), which is 1 on
    average. A mapping gives weights by class name; other classes have weight 1."""
    sampling: Literal["uniform", "balanced"] = "uniform"
    """``balanced`` draws all classes equally often, so images of rare classes come several times an epoch, with the
    same augmentation. An epoch keeps its number of steps."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    """Precision of the training. ``auto`` is bfloat16 if the hardware supports it, else float32; see
    ``outgrow.machine.precision``."""
    channels_last: bool = False
    """Use the channels-last memory layout, which is faster for convolutions in bfloat16."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device; ``auto`` is CUDA, else MPS, else the CPU."""
    keep_memory: bool = True
    """On a CPU under Linux, keep freed memory for the next step instead of returning it to the system; see
    ``outgrow.machine.host_memory``. The results do not depend on it."""
    fused_norms: bool = False
    """On a CPU with channels_last: fuse batch norm, residual sum and ReLU of the cifar/ networks into one pass in C.
    It rounds once where separate operations round twice; see ``outgrow.machine.norm_relu``."""
    compile: bool | Literal["graphs"] = False
    """Use torch.compile if there is a compiler. The first step then takes a minute or more, so it pays in runs of
    hours. ``graphs`` also uses CUDA graphs, for small networks that are limited by kernel launches."""
    progress: Literal["epoch", "step"] = "epoch"
    """Whether the schedule of the objective advances by epoch, as in the paper, or by step."""
    max_steps: int | None = Field(None, ge=1)
    """End each epoch after this number of steps, to try something out. It is in the record."""
    eval_every: int = Field(1, ge=1)
    """Epochs between evaluations on the test images; the last epoch is always evaluated."""
    checkpoint_steps: int = Field(1000, ge=1)
    """Steps between checkpoints within an epoch. A kill repeats at most this many. A checkpoint is also written after
    every epoch."""

    def for_steps(self, steps_per_epoch: int) -> "TrainConfig":
        """This training with as many epochs as ``min_steps`` needs.

        >>> TrainConfig(epochs=10, min_steps=1000).for_steps(4).epochs
        250
        """
        each = min(steps_per_epoch, self.max_steps or steps_per_epoch)
        epochs = max(self.epochs, math.ceil((self.min_steps or 0) / max(each, 1)))
        eval_every = self.eval_every * math.ceil(epochs / self.epochs)
        return self.model_copy(update={"epochs": epochs, "eval_every": eval_every})

    @model_validator(mode="after")
    def _one_kind_of_fusion(self) -> "TrainConfig":
        if self.compile and self.fused_norms:
            raise ValueError(
                "needs compile or fused_norms, got both; leave one out, as a compiler cannot fuse across C code"
            )
        return self

    @model_validator(mode="after")
    def _momentum_for_nesterov(self) -> "TrainConfig":
        if self.nesterov and self.optimizer == "sgd" and not self.momentum:
            raise ValueError(
                "needs a momentum above zero for nesterov, got 0; raise it, or leave nesterov out"
            )
        return self

    @field_validator("class_weights", mode="before")
    @classmethod
    def _weights_of_classes(cls, value: Any) -> Any:
        if value is None or value == "balanced":
            return value
        weights = {str(name): weight for name, weight in value.items()} if isinstance(value, Mapping) else {}
        numbers = [
            weight
            for weight in weights.values()
            if isinstance(weight, int | float) and not isinstance(weight, bool) and 0 <= weight < math.inf
        ]
        if not any(numbers) or len(numbers) < len(weights):
            raise ValueError(
                f"needs balanced, or weights of zero or more by class name, not all zero, got {value}; write such as "
                "{cat: 2.0, dog: 0.5}"
            )
        return weights

    @field_validator("milestones")
    @classmethod
    def _fractions(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < v < 1 for v in value) or list(value) != sorted(value):
            raise ValueError(
                f"needs rising fractions of the training, got {list(value)}; write such as [0.625, 0.75, 0.875]"
            )
        return value


TrackerName = Literal["tensorboard", "wandb", "trackio", "mlflow"]


class Config(_Section):
    """One distillation run."""

    recipe: str = "default"
    """Recipe that sets the fields that are not given; see `outgrow list recipes`. The command applies it, and Python's
    ``outgrow.distill`` that of a mapping that names one."""
    data: DataConfig = DataConfig()
    """Images and labels."""
    teacher: TeacherConfig = TeacherConfig()
    """The teacher."""
    student: ModelConfig = ModelConfig()
    """The student."""
    method: MethodConfig = MethodConfig()
    """Losses, rule and schedule."""
    train: TrainConfig = TrainConfig()
    """The student's training."""
    teacher_train: TrainConfig = TrainConfig()
    """The training of the teacher, with teacher.train."""
    seed: int = Field(0, ge=0, lt=2**62)
    """Seed of all random choices. Equal seeds give equal results on one machine."""
    out: str | None = None
    """Folder of the run; None writes nothing."""
    track: tuple[TrackerName, ...] = ()
    """Experiment trackers that get the numbers of every epoch and the result. They change no result."""

    @field_validator("track", mode="before")
    @classmethod
    def _one_tracker(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def settled(train: TrainConfig) -> TrainConfig:
    """``train`` with precision ``auto`` replaced by the precision of this machine."""
    return train.model_copy(update={"precision": resolve_precision(train.precision, train.device)})


def settle(config: Config) -> Config:
    """``config`` with all automatic choices resolved for this machine, as in the record and ``config.yaml``."""
    update = {"train": settled(config.train), "teacher_train": settled(config.teacher_train)}
    return config.model_copy(update=update)


MAX_CONFIG_BYTES = 1 << 20
"""A configuration has a few kilobytes; a larger file is refused."""


_CHECKSUM = "# checksum "


def with_checksum(text: str) -> str:
    """``text`` between two comment lines with its checksum, which :func:`load_config` verifies.

    There are two, because a truncated file has no last line.
    """
    line = f"{_CHECKSUM}{_text_checksum(text)}\n"
    return f"{line}{text}{line}"


def _text_checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _warn_if_changed(text: str, path: Path) -> None:
    lines = text.splitlines(keepends=True)
    stated = [line for line in lines if line.startswith(_CHECKSUM)]  # older files have one, at the end
    body = "".join(line for line in lines if not line.startswith(_CHECKSUM))
    if any(line.removeprefix(_CHECKSUM).strip() != _text_checksum(body) for line in stated):
        warnings.warn(
            f"--config: {path} was changed or damaged since a run wrote it (its checksum differs); it is read as it is. If "
            "the change is yours, remove its lines '# checksum ...'.",
            stacklevel=3,
        )


def _small_text(path: Path) -> str:
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise ValueError(f"{path.stat().st_size:,} bytes are too many for a configuration")
    return path.read_text(encoding="utf-8")


def load_config(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file, not yet validated. It may have only some of the fields."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"--config: needs a YAML file, got {str(path)!r}, which does not exist; name one, such as OUT/config.yaml of a run."
        )
    try:
        text = _small_text(path)
        content = parse_yaml(text)
    except (yaml.YAMLError, RecursionError, ValueError, OSError) as error:
        raise ValueError(
            f"--config: needs a YAML file, got {path}, which cannot be read ({error}); see OUT/config.yaml of a run."
        ) from None
    _warn_if_changed(text, path)
    if not isinstance(content, dict):
        raise ValueError(
            f"--config: needs a mapping of sections, got {type(content).__name__} in {path}; see OUT/config.yaml of a run, "
            "or restore the file."
        )
    return content


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Merge ``layers`` recursively; later ones override earlier ones."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            if isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
                result[key] = merge(result[key], value)
            else:
                result[key] = value
    return result


def override(base: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    """Merge a user's ``layer`` over a recipe. Where it sets the length of a training, the recipe's minimum is removed.

    >>> override({"train": {"epochs": 10, "min_steps": 1000}}, {"train": {"epochs": 3}})
    {'train': {'epochs': 3, 'min_steps': None}}
    """
    lifted = {}
    for section in ("train", "teacher_train"):
        own, minimum = layer.get(section), dict(base.get(section) or {}).get("min_steps")
        if isinstance(own, Mapping) and {"epochs", "max_steps"} & set(own) and minimum is not None:
            lifted[section] = {"min_steps": None}
    return merge(base, lifted, layer)


def assignments(items: Sequence[str]) -> dict[str, Any]:
    """``["train.epochs=30"]`` as nested mappings; values are YAML.

    >>> assignments(["train.epochs=30", "data.augment.flip=false"])
    {'train': {'epochs': 30}, 'data': {'augment': {'flip': False}}}
    """
    result: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals or not key:
            raise ValueError(
                f"--set: needs section.field=value, got {item!r}; write it as in --set train.epochs=30."
            )
        try:
            nested: Any = parse_yaml(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(
                f"--set {key}: needs a YAML value, got {text!r} ({reason}); correct it, or quote it if it is text."
            ) from None
        for part in reversed(key.strip().split(".")):
            nested = {part: nested}
        result = merge(result, nested)
    return result


def leaves(
    values: Mapping[str, Any], prefix: str = "", section: type[BaseModel] | None = None
) -> Iterator[tuple[str, Any]]:
    """The fields of a configuration as nested mappings. A field that is a mapping itself is one field.

    >>> dict(leaves({"seed": 3, "train": {"epochs": 2, "class_weights": {"cat": 2.0}}}))
    {'seed': 3, 'train.epochs': 2, 'train.class_weights': {'cat': 2.0}}
    """
    for name, value in values.items():
        kind = (section or Config).model_fields[name].annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from leaves(value, f"{prefix}{name}.", kind)
        else:
            yield f"{prefix}{name}", value


def without_effect(config: Config) -> Iterator[tuple[str, str]]:
    """The fields that nothing reads because of others, each with the reason.

    >>> dict(without_effect(Config(train={"optimizer": "adamw"})))["train.nesterov"]
    'train.optimizer is adamw'
    """
    for section in ("train", "teacher_train") if config.teacher.train else ("train",):
        train: TrainConfig = getattr(config, section)
        if train.optimizer != "sgd":
            yield from _each(section, ("momentum", "nesterov"), f"{section}.optimizer is {train.optimizer}")
        if train.lr_schedule != "step":
            yield from _each(
                section, ("milestones", "lr_decay"), f"{section}.lr_schedule is {train.lr_schedule}"
            )
    if config.method.preset == "none":
        fields = [name for name in MethodConfig.model_fields if name != "preset"]
        yield from _each("method", fields, "method.preset is none: the student is trained without a teacher")
    if config.data.unlabelled is None:
        yield from _each("data", ("unlabelled_share", "unlabelled_rows"), "data.unlabelled is not set")
    augment = config.data.augment
    if augment.resized_crop is not None:
        yield from _each("data.augment", ("crop_padding", "padding"), "data.augment.resized_crop is set")
    elif not augment.crop_padding:
        yield "data.augment.padding", "data.augment.crop_padding is 0"


def _each(section: str, names: Sequence[str], reason: str) -> Iterator[tuple[str, str]]:
    return ((f"{section}.{name}", reason) for name in names)


def describe_fields(section: type[BaseModel], prefix: str = "") -> list[tuple[str, str, str, str]]:
    """Name, type, default and meaning of every field, section by section."""
    found: list[tuple[str, str, str, str]] = []
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found += describe_fields(kind, f"{prefix}{name}.")
            continue
        shown = getattr(kind, "__name__", None) if isinstance(kind, type) else str(kind)
        text = (shown or str(kind)).replace("typing.", "")
        about = " ".join((field.description or "").split()).replace("``", "")
        found.append((prefix + name, text, repr(field.default), about))
    return found


def known_fields(values: Mapping[str, Any], section: type[BaseModel] = Config) -> dict[str, Any]:
    """``values`` without the fields that ``section`` does not have, for configurations of other versions.

    >>> known_fields({"seed": 3, "gone": 1, "train": {"epochs": 2, "gone": 1}})
    {'seed': 3, 'train': {'epochs': 2}}
    """
    known = {}
    for name, value in values.items():
        field = section.model_fields.get(name)
        if field is None:
            continue
        kind = field.annotation
        nested = isinstance(kind, type) and issubclass(kind, BaseModel) and isinstance(value, Mapping)
        known[name] = known_fields(value, kind) if nested else value  # type: ignore[arg-type]
    return known


def build_config(*layers: Mapping[str, Any]) -> Config:
    """Validate the merged ``layers``. Errors name the field, and a similar name for an unknown one."""
    config: dict[str, Any] = {}
    for layer in layers:
        config = override(config, layer)
    try:
        return Config.model_validate(config)
    except ValidationError as error:
        raise ValueError(_explain(error)) from None


def _explain(error: ValidationError) -> str:
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(where, _fields(Config), n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(_fields(Config)[:12])}, ..."
            lines.append(f"configuration: there is no field {where}; {hint}")
        else:
            lines.append(explain_field(where, item))
    return "\n".join(lines)


def explain_field(where: str, item: Any) -> str:
    """The error of pydantic for one field, as a message in three parts."""
    if item["type"] == "value_error":  # from a validator above, whose message has all three
        return f"configuration: {where}: {item['ctx']['error']}"
    wanted = item["msg"][0].lower() + item["msg"][1:]
    return (
        f"configuration: {where}: {wanted}, got {item['input']!r}; correct it, or remove it for the default"
    )


def _fields(section: type[BaseModel], prefix: str = "") -> list[str]:
    names = []
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            names += _fields(kind, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names
