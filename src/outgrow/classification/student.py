"""The student of a classification run, and any network trained without a teacher."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from outgrow.classification.data import PLAIN, RunData, eval_loader, set_input_size, train_loader
from outgrow.classification.lesson import Classify
from outgrow.classification.scores import evaluate
from outgrow.classification.view import eval_view, whole_size
from outgrow.data import Split
from outgrow.data.notes import some
from outgrow.knowledge import Rectifier
from outgrow.models import Network, create_model, feature_paths
from outgrow.models.network import check_channels
from outgrow.models.taps import PENULTIMATE, Taps
from outgrow.models.weights import order_heads
from outgrow.objective import Objective
from outgrow.teacher import NoTeacher
from outgrow.training.acceleration import make_accelerator
from outgrow.training.config import Config, ModelConfig, TrainConfig
from outgrow.training.fitting import fit, teacher_checkpoint
from outgrow.training.meter import EpochRecord
from outgrow.training.progress import Reporter
from outgrow.training.trainer import Trainer


def as_network(name: str, module: nn.Module | None, num_classes: int, options: ModelConfig) -> Network | None:
    """A module of the caller as a Network. It gets images in [0, 1], normalised by mean and std of ``options`` if given.

    ``ValueError`` if it has parameters of another type than float32, or takes images of other than three channels.
    """
    if module is None:
        return None
    types = {value.dtype for value in module.parameters() if value.is_floating_point()} - {torch.float32}
    if types:
        raise ValueError(
            f"{name}: needs a module with float32 parameters, got {some(sorted(map(str, types)))}; call .float() on it."
        )
    network = module
    if not isinstance(network, Network):
        spec = replace(PLAIN, mean=options.mean or PLAIN.mean, std=options.std or PLAIN.std)
        network = Network(module, name=name, num_classes=num_classes, input_spec=spec)
    check_channels(network)
    return network


def student_network(
    config: Config, data: RunData, module: nn.Module | None, report: Reporter | None = None
) -> Network:
    """The student with the classes of the data, in their order, and the input size of its training views.

    ``ValueError`` if it has another number of classes, nothing to train, or a size that contradicts ``data.size``.
    """
    options = config.student
    network = as_network("student", module, data.num_classes, options)
    if network is None:
        if not options.name:
            raise ValueError(
                "--student: needs a model such as cifar/resnet8 or timm/mobilenetv3_small_100, got none; "
                "`outgrow list models` prints all names."
            )
        network = create_model(
            options.name,
            pretrained=options.pretrained and options.weights is None,
            weights=options.weights,
            input_size=options.input_size,
            mean=options.mean,
            std=options.std,
            classes=data.classes,
            aliases=data.aliases,
        )
        for note in network.notes:
            (report or Reporter()).note(f"student: {note}")
    if network.num_classes != data.num_classes:
        raise ValueError(
            f"--student {network.name}: needs {data.num_classes} classes, got {network.num_classes}; "
            "build it for the classes of the data."
        )
    if not any(value.requires_grad for value in network.parameters()):
        raise ValueError(
            f"--student {network.name}: needs parameters that require grad, got none; call .requires_grad_() on it, and pass "
            "another module than the teacher, as a teacher is frozen."
        )
    if network.classes is not None and network.classes != data.classes:
        order_heads(network, data.classes, data.aliases)
    network.classes = data.classes
    set_input_size(network, data.train, config.data.size, options, channels_last=config.train.channels_last)
    _state_view(network, data)
    return network


def _state_view(network: Network, data: RunData) -> None:
    """The preprocessing of test images, which is saved with the weights."""
    network.view = asdict(eval_view(network.input_spec, whole_size(data.test)))


def tapped(student: Network, objective: Objective) -> Taps:
    """``student`` with taps for the features that the losses may read; without taps if they read none."""
    return Taps(student, (*feature_paths(student), PENULTIMATE) if objective.reads_features else ())


def weigh_task(objective: Objective, train: TrainConfig, split: Split, classes: Sequence[str]) -> None:
    """Set label smoothing and class weights of the task loss.

    ``ValueError`` for weights of classes that do not exist.
    """
    objective.label_smoothing = train.label_smoothing
    objective.class_weights = class_weights(train.class_weights, split.labels, classes)


def class_weights(
    option: str | Mapping[str, float] | None, labels: Int64[Tensor, " rows"], classes: Sequence[str]
) -> Float[Tensor, " classes"] | None:
    """The weights of the classes in the task loss, for ``train.class_weights``.

    >>> class_weights("balanced", torch.tensor([0, 0, 0, 1]), ("cat", "dog"))
    tensor([0.6667, 2.0000])
    >>> class_weights({"dog": 3.0}, torch.tensor([0, 1]), ("cat", "dog"))
    tensor([1., 3.])
    """
    if option is None:
        return None
    if isinstance(option, str):
        count = labels.bincount(minlength=len(classes))
        present = int((count > 0).sum())
        return torch.where(count > 0, len(labels) / (present * count.clamp(min=1)), 0.0).float()
    unknown = [name for name in option if name not in classes]
    if unknown:
        near = difflib.get_close_matches(unknown[0], classes, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the classes are {some(classes)}."
        raise ValueError(f"train.class_weights: needs names of classes, got {some(unknown)}; {hint}")
    return torch.tensor([float(option.get(name, 1.0)) for name in classes])


def train_alone(
    config: Config,
    rows: Split,
    data: RunData,
    network: Network,
    *,
    out: Path | None = None,
    resume: bool = False,
    reporter: Reporter | None = None,
) -> list[EpochRecord]:
    """Train ``network`` on ``rows`` with ``config.teacher_train``, without a teacher, in the same loop."""
    train = config.teacher_train
    set_input_size(network, rows, config.data.size, config.teacher, channels_last=train.channels_last)
    _state_view(network, data)
    device = make_accelerator(train).device
    test = eval_loader(data.test, network, train, device, config.data.workers)
    checkpoint = None if out is None else teacher_checkpoint(out, config, data.source.fingerprint, reporter)
    objective = Objective({})
    weigh_task(objective, train, rows, data.classes)
    trainer = Trainer(
        student=Taps(network),
        teacher=NoTeacher(data.num_classes),
        rectify=Rectifier("identity"),
        objective=objective,
        loader=train_loader(config, train, rows, [network], device),
        config=train,
        make_lesson=Classify(train.channels_last),
        evaluate=lambda model: evaluate(model, test).top1,
        checkpoint=checkpoint,
    )
    return fit(trainer, reporter or Reporter(), "teacher", metric="top1", resume=resume)
