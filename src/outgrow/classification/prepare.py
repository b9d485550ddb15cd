"""What a run needs besides its teacher: data, views, the student, the objective, a loop.

The functions here turn parts of a :class:`outgrow.training.config.Config` into the library's objects; they are
shared by a run, by the training of its teacher, and by evaluation.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from outgrow.classification.scores import evaluate
from outgrow.data import Augment, FileSplit, ImageData, Loader, Split, drops_last, make_loader, open_data
from outgrow.knowledge import Rectifier
from outgrow.models import InputSpec, Network, create_model
from outgrow.models.taps import Taps
from outgrow.objective import Objective
from outgrow.objective.presets import preset
from outgrow.teacher import NoTeacher
from outgrow.training.checkpoint import fingerprint
from outgrow.training.config import Config, TrainConfig
from outgrow.training.progress import Reporter
from outgrow.training.trainer import EpochRecord, Trainer, make_accelerator


def open_run_data(config: Config) -> ImageData:
    """The data of a run; there must be something to train on."""
    data = open_data(config.data.source, label=config.data.label, seed=config.seed)
    if data.val is None and data.train is not None and config.data.val_fraction > 0:
        # a source that keeps validation images of its own needs none cut off
        fraction = config.data.val_fraction
        data = open_data(config.data.source, label=config.data.label, val_fraction=fraction, seed=config.seed)
    if data.train is None:
        raise ValueError(
            f"--data {config.data.source}: needs images to train on, got only images to evaluate; "
            "put them under train/<class>/."
        )
    return data


def training_rows(config: Config, data: ImageData) -> tuple[Split, Split | None]:
    """The student's training rows."""
    assert data.train is not None
    wanted = config.data.train_rows
    if wanted is None or wanted >= len(data.train):
        return data.train, data.val
    return data.train.subset(shuffled(config, data.train)[:wanted]), data.val


def other_rows(config: Config, data: ImageData) -> Split:
    """The training rows that the student of ``config`` does not see."""
    assert data.train is not None
    wanted = config.data.train_rows
    if wanted is None or wanted >= len(data.train):
        raise ValueError(
            "teacher.rows=disjoint: needs rows that the student does not train on, got none; "
            "set data.train_rows to fewer than there are."
        )
    return data.train.subset(shuffled(config, data.train)[wanted:])


def shuffled(config: Config, split: Split) -> Tensor:
    return torch.randperm(len(split), generator=torch.Generator().manual_seed(config.seed))


def train_loader(
    config: Config,
    train: TrainConfig,
    split: Split,
    networks: Sequence[Network | None],
    device: torch.device,
    *,
    whole: bool = False,
) -> Loader:
    """The training views: this process's share of them, or all for a pass that every process makes alike."""
    group = None if whole else process_group()
    wanted = [n.input_spec.size for n in networks if n is not None and n.input_spec.size is not None]
    size = config.data.size or (max(wanted, default=224) if isinstance(split, FileSplit) else None)
    batch_size = min(train.batch_size, len(split))
    world_size = 1 if group is None else dist.get_world_size(group)
    return make_loader(
        split,
        batch_size=batch_size,
        device=device,
        seed=config.seed,
        augment=Augment(**config.data.augment.model_dump()),
        size=size,
        shuffle=True,
        drop_last=drops_last(len(split), batch_size, world_size, least=2),
        num_workers=config.data.workers,
        rank=0 if group is None else dist.get_rank(group),
        world_size=world_size,
    )


def eval_loader(
    split: Split, network: Network, train: TrainConfig, device: torch.device, workers: int
) -> Loader:
    """Images as ``network`` wants to be evaluated on them: its size, its crop, one centre view."""
    spec = network.input_spec
    # encoded photographs have many sizes and must be brought to one; decoded small images have one
    size = (spec.size or 224) if isinstance(split, FileSplit) else None
    return make_loader(
        split,
        # small on a CPU: activations that fit the allocator's pools are not mapped anew for every layer
        batch_size=train.batch_size if device.type == "cpu" else max(train.batch_size, 256),
        device=device,
        size=size,
        crop_pct=spec.crop_pct if size is not None else 1.0,
        interpolation=spec.interpolation,
        shuffle=False,
        num_workers=workers,
    )


def process_group() -> dist.ProcessGroup | None:
    """All processes of a distributed run; None in a run of one."""
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return dist.group.WORLD if several else None


def is_main() -> bool:
    """Whether this process writes files."""
    return process_group() is None or dist.get_rank() == 0


def as_network(name: str, module: nn.Module | None, num_classes: int) -> Network | None:
    """A module of the caller's own as a Network that sees plain [0, 1] images."""
    if module is None or isinstance(module, Network):
        return module
    plain = InputSpec(None, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return Network(module, name=name, num_classes=num_classes, input_spec=plain)


def student_network(config: Config, data: ImageData, module: nn.Module | None) -> Network:
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
    return network


def method_of(config: Config) -> tuple[Rectifier, Objective]:
    method = config.method
    return preset(
        method.preset,
        temperature=method.temperature,
        loss=method.loss,
        rule=method.rule,
        schedule=method.schedule,
        weight=method.weight,
        task_weight=method.task_weight,
        normalize=method.normalize,
    )


def set_up(
    objective: Objective,
    student: Taps,
    teacher: nn.Module,
    loader: Loader,
    train: Split,
    device: torch.device,
) -> None:
    """Connectors and memories, from one dry run on a batch."""
    if not objective.reads_features:
        return
    batch = next(loader.epoch(0))
    student.to(device).eval()
    teacher.to(device)
    with torch.no_grad():
        student_out, teacher_out = student(batch.images), teacher(batch.images, index=batch.target.index)
    label = torch.full((loader.num_indices,), 0, dtype=torch.long)
    label[train.index] = train.labels
    objective.setup(student_out, teacher_out, num_samples=loader.num_indices, label=label)


def fit(
    trainer: Trainer, resume: bool, report: Reporter, who: str, *, metric: str = "top1"
) -> list[EpochRecord]:
    """Train to the end, telling of the epochs. ``metric`` is what the trainer's scores are."""
    total = trainer.config.epochs * trainer.loader.num_samples
    if trainer.compiles:
        report.note(f"{who}: compiles at its first step, which can take minutes ...")
    with report.bar(who, total) as advance:
        trainer.on_step = lambda epoch, done: advance(epoch * trainer.loader.num_samples + done)
        trainer.on_epoch = lambda record: report.event("epoch", network=who, **asdict(record), metric=metric)
        return trainer.fit(resume=resume)


def train_alone(
    config: Config,
    train: TrainConfig,
    rows: Split,
    data: ImageData,
    network: Network,
    *,
    out: Path | None = None,
    resume: bool = False,
    reporter: Reporter | None = None,
) -> list[EpochRecord]:
    """Train ``network`` on ``rows`` without a teacher, through the same loop."""
    device = make_accelerator(train).device
    test = eval_loader(data.test, network, train, device, config.data.workers)
    checkpoint = out / "teacher.pt" if out is not None else None
    trainer = Trainer(
        student=Taps(network),
        teacher=NoTeacher(data.num_classes),
        rectify=Rectifier("identity"),
        objective=Objective({}),
        loader=train_loader(config, train, rows, [network], device),
        config=train,
        evaluate=lambda model: evaluate(model, test).top1,
        checkpoint=checkpoint,
        run=fingerprint(config),
    )
    return fit(
        trainer, resume and checkpoint is not None and checkpoint.is_file(), reporter or Reporter(), "teacher"
    )
