"""The ways of distilling that are compared; each runs until its turn is over (see :mod:`benchmarks.turns`).

    plain         as in most research code: PIL images decoded and augmented one by one in DataLoader
                  workers, float32, the teacher computed for every batch, the loss read at every step
    torchdistill  that library's DistillationBox, configured and used as in its own CIFAR-100 example
    ours          this library's trainer and loader in the precision that is fast here (`train.precision=auto`)
                  and channels_last, batch norm and ReLU in one pass (`train.fused_norms`), the teacher folded
                  as a run does by default
    cached        the same with the teacher's logits read from a cache
    apart         `cached` with batch norm and ReLU as separate modules
    student       the student alone on one batch, in the same precision: a lower bound for every library
                  that does not change the network

Weights are random: only speed is measured.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import outgrow
from benchmarks.turns import Turn
from outgrow.classification import Classify
from outgrow.data import ArraySplit, Augment, Loader, make_loader, open_data
from outgrow.machine.host_memory import kept_pages
from outgrow.machine.norm_relu import fused_norms
from outgrow.machine.precision import computes_bfloat16
from outgrow.models import Network, create_model
from outgrow.teacher import BaseTeacher
from outgrow.teacher.cache import CachedTeacher, TeacherCache
from outgrow.teacher.inference import fold_norms
from outgrow.training.config import TrainConfig
from outgrow.training.trainer import Trainer

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
SGD = {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}
TEMPERATURE, ALPHA = 4.0, 0.1


@dataclass(frozen=True)
class Task:
    """One way of training one pair on some images."""

    way: str
    teacher: str
    student: str
    data: str = "random"
    """``random``, or a source as the command line takes it."""
    label: str | None = None
    num: int = 1024
    """How many images: of random ones, or the first of the source's."""
    size: int = 32
    """Side of random images."""
    batch: int = 64
    device: str = "cpu"
    workers: int = 2
    """Of the DataLoader, where there is one."""
    cache: str | None = None
    """Folder of the teacher's logits."""
    batches: int = 0
    """How many of an epoch's batches are put into the cache beforehand."""
    epochs: int = 1000

    def __call__(self, turn: Turn) -> None:
        torch.manual_seed(0)
        torch.backends.cudnn.benchmark = True
        WAYS[self.way](self, turn)


def plain(task: Task, turn: Turn) -> None:
    teacher, student = (network.net.to(task.device) for network in networks(task))
    teacher.eval()
    loader = DataLoader(
        Pictures(split_of(task)), task.batch, shuffle=True, drop_last=True, num_workers=task.workers
    )
    optimizer = torch.optim.SGD(student.parameters(), **SGD)  # type: ignore[arg-type]
    turn.ready()
    for images, label in endless(loader):
        images, label = images.to(task.device), label.to(task.device)
        logits = student(images)
        with torch.no_grad():
            other = teacher(images)
        kd = F.kl_div(
            F.log_softmax(logits / TEMPERATURE, 1), F.softmax(other / TEMPERATURE, 1), reduction="batchmean"
        )
        loss = ALPHA * F.cross_entropy(logits, label) + (1 - ALPHA) * TEMPERATURE**2 * kd
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        turn()


def ours(task: Task, turn: Turn) -> None:
    trainer = trainer_of(task)
    trainer.on_step = lambda epoch, done: turn()
    turn.ready()
    trainer.fit()


def fill(task: Task, turn: Turn) -> None:
    """Put the teacher's logits of the first batches of epoch 0 into the cache; one step."""
    trainer = trainer_of(task)
    teacher = trainer.teacher
    assert isinstance(teacher, CachedTeacher)
    teacher.to(task.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    turn.ready()
    teacher.at(0)
    batches = trainer.loader.epoch(0)
    with autocast(task):
        for _ in range(task.batches):
            batch = next(batches)
            teacher(batch.images.contiguous(memory_format=torch.channels_last), index=batch.target.index)
    teacher.at(None)
    turn()


def student_alone(task: Task, turn: Turn) -> None:
    student = networks(task)[1].to(task.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    batch = next(loader_of(task).epoch(0))
    images, label = batch.images.contiguous(memory_format=torch.channels_last), batch.target.label
    optimizer = torch.optim.SGD(student.parameters(), **SGD, fused=True)  # type: ignore[arg-type]
    turn.ready()
    with kept_pages(), fused_norms():
        while True:
            with autocast(task):
                logits = student(images)
            F.cross_entropy(logits.float(), label).backward()
            optimizer.step()
            optimizer.zero_grad()
            turn()


def students(task: Task, turn: Turn) -> None:
    """One student after another, each for ``task.epochs``; a step is a student."""
    turn.ready()
    while True:
        trainer_of(task).fit()
        turn()


def peer(task: Task, turn: Turn) -> None:
    from benchmarks.peer_step import run

    run(task, turn)


WAYS: dict[str, Callable[[Task, Turn], None]] = {
    "plain": plain,
    "torchdistill": peer,
    "ours": ours,
    "cached": ours,
    "apart": ours,
    "student": student_alone,
    "fill": fill,
    "students": students,
}


def trainer_of(task: Task) -> Trainer:
    """The trainer as a run has it, with the rule ``pair``; behind a cache where one is named."""
    teacher, student = networks(task)
    rectify, objective = outgrow.preset("kd", rule="pair")
    loader = loader_of(task)
    teacher = teacher.to(task.device).eval()
    folded, _ = fold_norms(teacher, next(loader.epoch(0)).images[:16])
    frozen: BaseTeacher = outgrow.Teacher(folded)
    if task.cache is not None:
        facts = {"teacher": f"{task.teacher} of a benchmark"}
        cache = TeacherCache(
            task.cache, facts, num_indices=loader.num_indices, num_classes=teacher.num_classes
        )
        frozen = CachedTeacher(frozen, cache)
    config = TrainConfig(
        epochs=task.epochs,
        batch_size=task.batch,
        precision="auto",
        channels_last=True,
        fused_norms=task.device == "cpu" and task.way != "apart",
        device=task.device,  # type: ignore[arg-type]
    )
    return Trainer(
        outgrow.Taps(student), frozen, rectify, objective, loader, config, Classify(channels_last=True)
    )


def autocast(task: Task) -> torch.autocast:
    """What the trainer computes in."""
    return torch.autocast(task.device, torch.bfloat16, enabled=computes_bfloat16(task.device))


def networks(task: Task) -> tuple[Network, Network]:
    return create_model(task.teacher, 100), create_model(task.student, 100)


def loader_of(task: Task) -> Loader:
    return make_loader(
        split_of(task),
        batch_size=task.batch,
        device=task.device,
        augment=Augment(),
        shuffle=True,
        drop_last=True,
    )


def split_of(task: Task) -> ArraySplit:
    if task.data == "random":
        generator = torch.Generator().manual_seed(0)
        shape = (task.num, 3, task.size, task.size)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        return ArraySplit.of(images, torch.randint(100, (task.num,), generator=generator))
    split = open_data(task.data, label=task.label).train
    if not isinstance(split, ArraySplit):
        raise ValueError(f"benchmarks: needs decoded images of one size, got {task.data}; give CIFAR-100.")
    return split.subset(torch.arange(min(task.num, len(split))))


class Pictures(Dataset[Any]):
    """An array that becomes PIL images one by one, as torchvision's CIFAR100 does, and its transforms."""

    def __init__(self, split: ArraySplit) -> None:
        from torchvision import transforms

        self.images = split.images[split.index].permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = split.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(self.images.shape[1], padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[position])), self.labels[position]


def endless(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader
