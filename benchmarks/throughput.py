"""(b, c) A distillation step end to end: images a second, ours against a plain loop, interleaved.

``plain`` is written as the field's repositories write theirs: PIL images decoded and augmented one by one in
DataLoader workers, float32, the teacher run for every batch, the loss read by the host at every step.
``ours`` is this library's trainer and loader in bfloat16 and channels_last; ``cached`` the same with the
teacher's logits read from a cache. Weights are random: only speed is measured.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

import outgrow
from outgrow.config import TrainConfig
from outgrow.data import ArraySplit, Augment, make_loader
from outgrow.models import create_model
from outgrow.teacher_cache import CachedTeacher, TeacherCache
from outgrow.trainer import Trainer

PAIRS = (("cifar/resnet32x4", "cifar/resnet8x4"), ("cifar/wrn_40_2", "cifar/wrn_16_2"))
BATCH = 64


class _Pictures(Dataset[Any]):
    """PIL images and torchvision transforms, one by one."""

    def __init__(self, split: ArraySplit) -> None:
        from torchvision import transforms
        from torchvision.transforms.functional import to_pil_image

        self.images = [to_pil_image(image) for image in split.images]
        self.labels = split.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> tuple[Any, int]:
        return self.transform(self.images[position]), self.labels[position]


def plain(teacher: nn.Module, student: nn.Module, split: ArraySplit, device: str) -> Callable[[int], float]:
    """A function that takes so many steps and returns images a second."""
    teacher, student = teacher.to(device).eval(), student.to(device).train()
    loader = DataLoader(_Pictures(split), batch_size=BATCH, shuffle=True, drop_last=True, num_workers=2)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    batches: Iterator[Any] = iter(cycle(loader))

    def run(steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            images, label = next(batches)
            images, label = images.to(device), label.to(device)
            logits = student(images)
            with torch.no_grad():
                other = teacher(images)
            kd = F.kl_div(F.log_softmax(logits / 4, 1), F.softmax(other / 4, 1), reduction="batchmean")
            loss = 0.1 * F.cross_entropy(logits, label) + 0.9 * 16 * kd
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
        return steps * BATCH / (time.perf_counter() - start)

    return run


def ours(
    teacher: nn.Module, student: nn.Module, split: ArraySplit, device: str, folder: str | None
) -> Callable[[int], float]:
    """The same through the library, from the cache in ``folder`` where one is named."""
    rectify, objective = outgrow.preset("kd", rule="pair")
    loader = make_loader(
        split, batch_size=BATCH, device=device, augment=Augment(), shuffle=True, drop_last=True
    )
    frozen: nn.Module = outgrow.Teacher(teacher)
    if folder is not None:
        cache = TeacherCache(
            folder, {"teacher": "benchmark"}, num_indices=loader.num_indices, num_classes=100
        )
        frozen = CachedTeacher(frozen, cache)
        frozen.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        frozen.at(0)
        for batch in loader.epoch(0):
            frozen(batch.images, index=batch.target.index)
        frozen.at(None)

    def run(steps: int) -> float:
        config = TrainConfig(epochs=1, max_steps=steps, precision="bf16", channels_last=True, device="auto")
        trainer = Trainer(outgrow.Taps(student), frozen, rectify, objective, loader, config)
        return trainer.fit()[0].images_per_second

    return run


def measure(device: str = "cpu", *, steps: int = 8, repeat: int = 5, num: int = 1024) -> list[dict[str, Any]]:
    """A row per pair: medians of images a second and ratios to the plain loop."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (num, 3, 32, 32), dtype=torch.uint8, generator=generator)
    split = ArraySplit.of(images, torch.randint(100, (num,), generator=generator))
    rows = []
    for teacher_name, student_name in PAIRS:
        with tempfile.TemporaryDirectory() as folder:
            make = lambda name: create_model(name, 100)  # noqa: E731
            ways = {
                "plain": plain(make(teacher_name).net, make(student_name).net, split, device),
                "ours": ours(make(teacher_name), make(student_name), split, device, None),
                "cached": ours(make(teacher_name), make(student_name), split, device, folder),
            }
            rates: dict[str, list[float]] = {name: [] for name in ways}
            for round_ in range(repeat + 1):
                for name, way in ways.items():
                    rate = way(steps)
                    if round_:
                        rates[name].append(rate)
        median = {name: statistics.median(values) for name, values in rates.items()}
        rows.append(
            {"teacher": teacher_name, "student": student_name, "n": repeat, "images_per_second": median}
        )
        print(
            f"{teacher_name} to {student_name}: "
            + ", ".join(
                f"{name} {value:.0f} images/s ({value / median['plain']:.2f}x)"
                for name, value in median.items()
            ),
            flush=True,
        )
    return rows


if __name__ == "__main__":
    measure()
