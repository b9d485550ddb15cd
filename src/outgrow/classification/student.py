"""The student of a classification run, and any network trained without a teacher."""

from pathlib import Path

from torch import nn

from outgrow.classification.data import RunData, eval_loader, train_loader
from outgrow.classification.lesson import Classify
from outgrow.classification.scores import evaluate
from outgrow.classification.view import whole_size
from outgrow.data import Split
from outgrow.knowledge import Rectifier
from outgrow.models import InputSpec, Network, create_model, feature_paths
from outgrow.models.network import resized
from outgrow.models.taps import PENULTIMATE, Taps
from outgrow.objective import Objective
from outgrow.teacher import NoTeacher
from outgrow.training.acceleration import make_accelerator
from outgrow.training.config import Config
from outgrow.training.fitting import fit, teacher_checkpoint
from outgrow.training.meter import EpochRecord
from outgrow.training.progress import Reporter
from outgrow.training.trainer import Trainer


def as_network(name: str, module: nn.Module | None, num_classes: int) -> Network | None:
    """A module of the caller's own as a Network that sees plain [0, 1] images."""
    if module is None or isinstance(module, Network):
        return module
    plain = InputSpec(None, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return Network(module, name=name, num_classes=num_classes, input_spec=plain)


def student_network(config: Config, data: RunData, module: nn.Module | None) -> Network:
    """The student for the data's classes. ``ValueError`` where it has another number of them."""
    network = as_network("student", module, data.num_classes)
    if network is None:
        if not config.student.name:
            raise ValueError(
                "--student: needs a model such as cifar/resnet8 or timm/mobilenetv3_small_100, got none; "
                "`outgrow list models` has all names."
            )
        network = create_model(
            config.student.name,
            data.num_classes,
            pretrained=config.student.pretrained and config.student.weights is None,
            weights=config.student.weights,
            input_size=config.student.input_size,
        )
    if network.num_classes != data.num_classes:
        raise ValueError(
            f"--student {network.name}: needs {data.num_classes} classes, got {network.num_classes}; "
            "build it for the classes of the data."
        )
    network.classes = data.classes
    sized(network, config, data)
    return network


def sized(network: Network, config: Config, data: RunData) -> None:
    """``network``, where it takes any size, sees photographs at the side of the training views from now on: one that
    was trained at 32 pixels must not be tested at 224."""
    if network.input_spec.size is None and config.data.size and whole_size(data.test) is None:
        resized(network, config.data.size)


def tapped(student: Network, objective: Objective) -> Taps:
    """``student`` with the features in its outputs that the losses may read; without any where none is read."""
    return Taps(student, (*feature_paths(student), PENULTIMATE) if objective.reads_features else ())


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
    """Train ``network`` on ``rows`` as ``config.teacher_train`` says, without a teacher, through the same loop."""
    train = config.teacher_train
    device = make_accelerator(train).device
    test = eval_loader(data.test, network, train, device, config.data.workers)
    checkpoint = None if out is None else teacher_checkpoint(out, config, data.source.fingerprint, reporter)
    trainer = Trainer(
        student=Taps(network),
        teacher=NoTeacher(data.num_classes),
        rectify=Rectifier("identity"),
        objective=Objective({}),
        loader=train_loader(config, train, rows, [network], device),
        config=train,
        ask=Classify(train.channels_last),
        evaluate=lambda model: evaluate(model, test).top1,
        checkpoint=checkpoint,
    )
    return fit(trainer, reporter or Reporter(), "teacher", metric="top1", resume=resume)
