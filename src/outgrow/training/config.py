"""What a run is made of, typed. A recipe is a complete one; the command line changes a few fields.

The resolved configuration is saved with every run (``config.yaml``) and reruns it.
"""

import difflib
import hashlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from outgrow.machine.precision import resolve_precision


class _Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True
    )


class AugmentConfig(_Section):
    """How training images are varied; see :class:`outgrow.data.Augment`."""

    crop_padding: int = 4
    """Pixels of padding before a random crop back to the image's size; 0 for no crop."""
    padding: Literal["zero", "reflect"] = "zero"
    """What that padding is filled with."""
    flip: bool = True
    """Flip half of the images from left to right."""
    cutout: int = 0
    """Side in pixels of a square that is blanked out at random; 0 for none."""
    randaugment: float = 0.0
    """Magnitude of RandAugment (two operations an image), 0 to 1; 0 for none."""
    mixup: float = 0.0
    """Parameter of mixup's beta distribution; 0 for none."""
    cutmix: float = 0.0
    """Parameter of CutMix's beta distribution; 0 for none."""
    resized_crop: tuple[float, float] | None = None
    """Smallest and largest share of an image's area that a random resized crop keeps; None for none."""


class DataConfig(_Section):
    """Where images and labels come from, and how training sees them."""

    source: str = "digits"
    """digits, folder:PATH, parquet:PATH, cifar10:ROOT, cifar100:ROOT, imagenet:ROOT, hf:NAME, coco:IMAGES:ANNOTATIONS."""
    label: str | None = None
    """The label column, where a source has several (``fine_label`` or ``coarse_label``)."""
    val_fraction: float = Field(0.0, ge=0, lt=1)
    """Share of the training set kept back: for checking a teacher, never for training. Without effect
    where the source has validation images of its own."""
    train_rows: int | None = Field(None, ge=1)
    """Train on the first rows of a seeded shuffle alone; None for all."""
    exclude: str | None = None
    """A CSV file of training images to leave out, such as the ``label_errors.csv`` of ``outgrow audit``. Test and
    validation images always stay."""
    size: int | None = Field(None, ge=1)
    """Side in pixels of the training views, and of what the student is made for and tested on; None for the larger
    of what the two networks want. A student that is built for one size has ``student.input_size`` instead."""
    on_fault: Literal["refuse", "skip"] = "refuse"
    """An image that cannot be decoded: an error that names it, or left out, counted and named in the record. To
    skip means to decode all images once before the first epoch."""
    workers: int = Field(2, ge=0)
    """Processes that decode images; 0 decodes in the training process. Changes no number."""
    augment: AugmentConfig = AugmentConfig()
    """How training images are varied."""


class ModelConfig(_Section):
    """A network by name, and where its weights come from."""

    name: str = ""
    """cifar/NAME, timm/NAME, torchvision/NAME, hf/NAME, py:FILE:CALLABLE, or a detector such as fasterrcnn:BACKBONE."""
    weights: str | None = None
    """File of weights: safetensors, or a torch file. None for none."""
    pretrained: bool = False
    """Published weights through the model's own library."""
    input_size: int | None = Field(None, ge=1)
    """Side in pixels of the network's input; None for its own."""
    mean: tuple[float, float, float] | None = None
    """What is subtracted from red, green and blue in [0, 1], for weights whose normalisation is known to you alone;
    None for what the file of weights states, else the default of the model's family."""
    std: tuple[float, float, float] | None = None
    """What they are then divided by; as ``mean``."""


class TeacherConfig(ModelConfig):
    """The teacher, how it came to be, and whether its bias is corrected."""

    train: bool = False
    """Train it first, with the ``teacher_train`` section, on the same training rows."""
    rows: Literal["same", "disjoint"] = "same"
    """What a teacher that is trained here sees: the student's rows, or only the others."""
    correct: Literal["auto", "always", "never"] = "auto"
    """Correct the teacher's bias: auto where the preset asks for it and it is measured to help."""
    cache: str | None = None
    """Folder for the teacher's logits by view: computed once, read by every later run that shares them."""
    cache_features: bool = False
    """Keep in it, too, the features that the losses read. They can be a thousand times the logits' size,
    which is said before anything is written."""
    correct_views: int = Field(1, ge=1)
    """Passes over the training views that a correction is fitted on."""
    fold: bool = True
    """Fold its batch norms into the convolutions before them: the same logits up to float32's rounding."""
    precision: Literal["as_student", "fp32", "bf16"] = "as_student"
    """What it computes in; ``as_student`` is ``train.precision``."""
    compile: bool = False
    """Through torch.compile where there is a compiler: minutes at the start, for runs of hours."""


class MethodConfig(_Section):
    """What to believe and how far to be from it: a preset, and parts of one's own."""

    preset: str = "outgrow"
    """`outgrow list presets`."""
    loss: str | None = None
    """Such as "dkd(beta=6)" or "kd + 0.8*crd"; None for the preset's."""
    rule: str | None = None
    """What is done with rows that the teacher gets wrong, such as "pair"; None for the preset's."""
    schedule: str | None = None
    """How easy and hard rows are weighted over the training; None for the preset's."""
    temperature: float | None = Field(None, gt=0)
    """Of the losses that soften logits, and of the rule; None for the losses' own."""
    weight: float | None = None
    """Multiplies all distillation terms; None for the preset's."""
    task_weight: float | None = None
    """Multiplies the task's own loss; None for the preset's."""
    normalize: Literal["rows", "subset"] | None = None
    """Divide by the rows of the batch, or right and wrong rows each by their own number; None for the preset's."""


class TrainConfig(_Section):
    """How a network is trained."""

    epochs: int = Field(30, ge=1)
    """Passes over the training images."""
    batch_size: int = Field(64, ge=1)
    """Images a step, over all processes."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum, or AdamW."""
    lr: float = Field(0.05, gt=0)
    """The highest learning rate of the schedule."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Of SGD."""
    nesterov: bool = False
    """Nesterov's form of momentum, for SGD."""
    weight_decay: float = Field(5e-4, ge=0)
    """L2 penalty of SGD; decoupled decay of AdamW."""
    lr_schedule: Literal["step", "cosine", "one_cycle", "constant"] = "cosine"
    """How the learning rate changes over the training."""
    milestones: tuple[float, ...] = (0.625, 0.75, 0.875)
    """Where a step schedule multiplies the rate by ``lr_decay``, as fractions of the training."""
    lr_decay: float = Field(0.1, gt=0, le=1)
    """What a step schedule multiplies the learning rate by at each milestone."""
    warmup: float = Field(0.0, ge=0, lt=1)
    """Fraction of the training over which the rate rises linearly."""
    clip: float | None = Field(None, gt=0)
    """Largest norm of the gradient; None for no clipping."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    """``auto`` is bfloat16 where the machine computes in it, else float32: :mod:`outgrow.machine.precision`."""
    channels_last: bool = False
    """Memory layout with the channels last: faster for convolutions in bfloat16."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto is CUDA, else MPS, else the CPU."""
    keep_memory: bool = True
    """On a CPU under Linux, keep freed memory for the next step instead of giving it back; see
    :mod:`outgrow.machine.host_memory`. Changes no number."""
    fused_norms: bool = False
    """On a CPU and in channels_last: batch norm, the sum of a residual block and ReLU of our own nets in one
    pass in C, which rounds once where they round twice; see :mod:`outgrow.machine.norm_relu`."""
    compile: bool | Literal["graphs"] = False
    """The network through torch.compile where there is a compiler: a minute or more at its first step, for
    runs of hours. ``graphs``: its kernels as CUDA graphs besides, for small nets that wait for launches."""
    progress: Literal["epoch", "step"] = "epoch"
    """What the objective's schedule advances by; the paper's is the epoch."""
    max_steps: int | None = Field(None, ge=1)
    """Stop each epoch after so many steps: for trying out, and said in the record."""
    eval_every: int = Field(1, ge=1)
    """Epochs between evaluations on the test images; the last one is always evaluated."""
    checkpoint_steps: int = Field(1000, ge=1)
    """Steps between checkpoints inside an epoch: what a kill can cost. One is written after every epoch, too."""

    @model_validator(mode="after")
    def _one_kind_of_fusion(self) -> "TrainConfig":
        if self.compile and self.fused_norms:
            raise ValueError("needs compile or fused_norms, since a compiler does not see into the second")
        return self

    @field_validator("milestones")
    @classmethod
    def _fractions(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < v < 1 for v in value) or list(value) != sorted(value):
            raise ValueError("milestones need rising fractions of the training, such as (0.625, 0.75, 0.875)")
        return value


class Config(_Section):
    """One distillation run."""

    recipe: str = "default"
    """`outgrow list recipes`: the fields that a run starts from."""
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
    """The teacher's training, with teacher.train."""
    seed: int = Field(0, ge=0)
    """Of all random choices; equal seeds give equal runs on one machine."""
    out: str | None = None
    """The run folder; None writes nothing."""

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def settled(train: TrainConfig) -> TrainConfig:
    """``train`` with the precision that ``auto`` means on this machine."""
    return train.model_copy(update={"precision": resolve_precision(train.precision, train.device)})


def settle(config: Config) -> Config:
    """``config`` as this machine runs it; record and ``config.yaml`` have it so."""
    update = {"train": settled(config.train), "teacher_train": settled(config.teacher_train)}
    return config.model_copy(update=update)


MAX_CONFIG_BYTES = 1 << 20
"""A configuration has some kilobytes; a larger file is something else."""


_CHECKSUM = "# checksum "


def with_checksum(text: str) -> str:
    """``text`` with a last line, a comment, by which :func:`load_config` sees that it was changed."""
    return f"{text}{_CHECKSUM}{hashlib.sha256(text.encode()).hexdigest()[:16]}\n"


def _warn_if_changed(text: str, path: Path) -> None:
    body, mark, stated = text.rpartition(_CHECKSUM)
    if mark and stated.strip() != hashlib.sha256(body.encode()).hexdigest()[:16]:
        warnings.warn(
            f"--config: {path} was changed or damaged since a run wrote it (its checksum differs); it is used as it is now. "
            "Remove its last line if the change is yours.",
            stacklevel=3,
        )


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases: they can make a few bytes mean billions of values, and no configuration has any."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not read; write the value out")
        return super().compose_node(parent, index)


def _parse_yaml(text: str) -> Any:
    return yaml.load(text, Loader=_PlainLoader)


def _small_text(path: Path) -> str:
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise ValueError(f"{path.stat().st_size:,} bytes is no configuration")
    return path.read_text(encoding="utf-8")


def load_config(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file, not yet validated: it may name a few fields only."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"--config: needs a YAML file, got {str(path)!r}, which is not there; a run's is OUT/config.yaml."
        )
    try:
        text = _small_text(path)
        content = _parse_yaml(text)
    except (yaml.YAMLError, RecursionError, ValueError, OSError) as error:
        raise ValueError(
            f"--config: needs YAML, got {path}: {error}; see OUT/config.yaml of a run."
        ) from None
    _warn_if_changed(text, path)
    if not isinstance(content, dict):
        raise ValueError(f"--config: needs a mapping of sections, got {type(content).__name__} in {path}.")
    return content


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Later layers over earlier ones, section by section."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            if isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
                result[key] = merge(result[key], value)
            else:
                result[key] = value
    return result


def assignments(items: Sequence[str]) -> dict[str, Any]:
    """``["train.epochs=30"]`` as nested mappings; values are YAML.

    >>> assignments(["train.epochs=30", "data.augment.flip=false"])
    {'train': {'epochs': 30}, 'data': {'augment': {'flip': False}}}
    """
    result: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals or not key:
            raise ValueError(f"--set: needs section.field=value, such as train.epochs=30, got {item!r}.")
        try:
            nested: Any = _parse_yaml(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"--set {key}: needs a YAML value, got {text!r} ({reason}); quote it.") from None
        for part in reversed(key.strip().split(".")):
            nested = {part: nested}
        result = merge(result, nested)
    return result


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
    """``values`` without the fields that ``section`` does not have: the configuration of another version.

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
    """The configuration that the layers make together; errors name the field and what is near."""
    try:
        return Config.model_validate(merge(*layers))
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
            lines.append(
                f"configuration: {where} {item['msg'][0].lower()}{item['msg'][1:]}, got {item['input']!r}"
            )
    return "\n".join(lines)


def _fields(section: type[BaseModel], prefix: str = "") -> list[str]:
    names = []
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            names += _fields(kind, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names
