"""A training step of a detector without a teacher, beside a plain loop on the same net.

    python -m benchmarks.detection_step [--families fasterrcnn retinanet fcos ssdlite rtdetr dfine] [--steps 30]
                                        [--data coco:IMAGES:ANNOTATIONS] [--size 192] [--batch 4] [--out FILE]
    python -m benchmarks.detection_step --orientation --data coco:IMAGES:ANNOTATIONS [--rounds 5]

The plain loop calls torchvision's or transformers' net with its targets, sums its losses, and steps. Outgrow's step is
that of a run with ``--preset none``. Both have copies of one net, the same batches, the same optimiser and random numbers, and
take turns step by step in one process; so their losses are equal, which is reported. CPU time is of all threads. A pair of
steps gives one ratio; the median and its 95 % interval (of the sign test) are printed. Without ``--data`` pictures are random.

``--orientation`` measures epochs of batches with one orientation against epochs of mixed ones, in turns.
"""

import argparse
import copy
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from outgrow.detection import (
    Balanced,
    Detect,
    Detector,
    Scenes,
    Truth,
    create_detector,
    make_scene_loader,
    open_boxes,
)
from outgrow.detection.families.detector import NoDetector
from outgrow.knowledge import Rectifier
from outgrow.objective import Objective
from outgrow.training.config import TrainConfig
from outgrow.training.trainer import Trainer

BODY = "timm/mobilenetv1_025_128?size={size}&levels=3-5"
NAMES = {
    "fasterrcnn": f"fasterrcnn:{BODY}&channels=32&head=128&rois=48&proposals=300&anchors=2",
    "retinanet": f"retinanet:{BODY}&channels=64&anchors=2",
    "fcos": f"fcos:{BODY}&channels=64",
    "ssdlite": f"ssdlite:{BODY}&channels=128",
    "rtdetr": "rtdetr:?size={size}&d_model=64&queries=50&layers=2&backbone=10&width=16",
    "dfine": "dfine:?size={size}&d_model=64&queries=50&layers=2&backbone=10&width=16",
}
WARM = 3
"""First steps, which are not counted."""


@dataclass
class Turns:
    """Batches for a Trainer. Before each, the plain loop takes its step on it; both start from the same random numbers."""

    scenes: Sequence[Scenes]
    plain: Callable[[Scenes], float]
    steps: int
    seconds: list[tuple[float, float]] = field(default_factory=list)
    """Of the plain step and of Outgrow's."""
    _first: float = 0.0
    _start: float = 0.0

    @property
    def num_samples(self) -> int:
        return self.steps * len(self.scenes[0].images)

    num_indices = num_samples

    def __len__(self) -> int:
        return self.steps

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Scenes]:
        for step in range(start, self.steps):
            scenes = self.scenes[step % len(self.scenes)]
            numbers = torch.get_rng_state()
            before = time.process_time()
            self.plain(scenes)
            self._first = time.process_time() - before
            torch.set_rng_state(numbers)
            self._start = time.process_time()
            yield scenes

    def stepped(self, epoch: int, done: int) -> None:
        self.seconds.append((self._first, time.process_time() - self._start))


def plain_step(detector: Detector, config: TrainConfig) -> Callable[[Scenes], float]:
    """A step as in torchvision's and transformers' examples."""
    net: Any = detector.net.train()
    optimizer = torch.optim.SGD(
        net.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=True
    )

    def torchvision_losses(scenes: Scenes) -> Tensor:
        targets = [{"boxes": one.boxes, "labels": one.label} for one in scenes.truth]
        return sum(net(list(scenes.images), targets).values(), torch.zeros(()))

    def transformers_losses(scenes: Scenes) -> Tensor:
        side = detector.preparation.size  # type: ignore[attr-defined]
        pixels = torch.cat(
            [F.interpolate(x[None], side, mode="bilinear", antialias=True) for x in scenes.images]
        )
        labels = [_shares(x, one) for x, one in zip(scenes.images, scenes.truth, strict=True)]
        return net(pixel_values=pixels, labels=labels).loss

    losses = transformers_losses if hasattr(detector, "preparation") else torchvision_losses

    def step(scenes: Scenes) -> float:
        loss = losses(scenes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def _shares(image: Tensor, truth: Truth) -> dict[str, Tensor]:
    height, width = image.shape[-2:]
    left, top, right, bottom = truth.boxes.unbind(1)
    box = torch.stack([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top], dim=1)
    return {"class_labels": truth.label - 1, "boxes": box / torch.tensor([width, height, width, height])}


def trainer_of(detector: Detector, batches: Any, config: TrainConfig) -> Trainer:
    """As a run with ``--preset none`` makes it."""
    return Trainer(
        student=detector,
        teacher=NoDetector(detector.num_classes),
        rectify=Balanced(Rectifier("identity")),
        objective=Objective({}),
        loader=batches,
        config=config,
        make_lesson=Detect(detector.least),
    )


def of_step(
    family: str, scenes: Sequence[Scenes], classes: Sequence[str], *, size: int = 192, steps: int = 30
) -> dict[str, Any]:
    """CPU seconds of both steps, their ratio, and the largest relative difference of their losses."""
    torch.manual_seed(0)
    ours = create_detector(NAMES.get(family, family).format(size=size), tuple(classes))
    config = TrainConfig(
        epochs=1, batch_size=len(scenes[0].images), lr=1e-3, lr_schedule="constant", device="cpu"
    )
    step, expected, own = plain_step(copy.deepcopy(ours), config), [], []

    def recorded(batch: Scenes) -> float:
        expected.append(step(batch))
        return expected[-1]

    turns = Turns(scenes, recorded, steps + WARM)
    trainer = trainer_of(ours, turns, config)
    objective = trainer.objective
    objective.register_forward_hook(lambda module, given, result: own.append(float(result.total.detach())))
    trainer.on_step = turns.stepped
    trainer.fit()
    pairs = turns.seconds[WARM:]
    ratios = sorted(mine / plain for plain, mine in pairs)
    at = rank_of(len(ratios))
    return {
        "family": family,
        "plain": statistics.median(plain for plain, _ in pairs),
        "ours": statistics.median(mine for _, mine in pairs),
        "ratio": statistics.median(ratios),
        "interval": [ratios[at], ratios[-1 - at]],
        "n": len(pairs),
        "loss_differs": max(abs(a - b) / abs(a) for a, b in zip(expected, own, strict=True)),
    }


def rank_of(count: int) -> int:
    """The rank of the lower end of the median's 95 % interval, by the sign test: as many readings lie below it."""
    below, rank = 0.0, 0
    while rank < count // 2 and below + math.comb(count, rank) / 2**count <= 0.025:
        below += math.comb(count, rank) / 2**count
        rank += 1
    return max(rank - 1, 0)


def of_orientation(data: str, *, size: int = 192, batch: int = 8, rounds: int = 5) -> dict[str, Any]:
    """CPU seconds of forward and backward passes over an epoch, with batches of one orientation and mixed."""
    source = open_boxes(data)
    assert source.train is not None
    torch.manual_seed(0)
    detector = create_detector(NAMES["retinanet"].format(size=size), source.classes).train()
    seconds: dict[bool, list[float]] = {True: [], False: []}
    pixels: dict[bool, list[int]] = {True: [], False: []}
    for number in range(rounds + 1):
        for grouped in seconds:
            loader = make_scene_loader(
                source.train, batch_size=batch, shuffle=True, group_orientation=grouped
            )
            spent, area = 0.0, 0
            for scenes in loader.epoch(number):
                before = time.process_time()
                detector(scenes.images, scenes.truth).task.backward()
                spent += time.process_time() - before
                area += padded(detector, scenes.images)
                detector.zero_grad()
            if number:
                seconds[grouped].append(spent)
                pixels[grouped].append(area)
    ratios = [b / a for a, b in zip(seconds[True], seconds[False], strict=True)]
    return {
        "mixed_over_grouped": statistics.median(ratios),
        "low": min(ratios),
        "high": max(ratios),
        "pixels": sum(pixels[False]) / sum(pixels[True]),
        "n": rounds,
        "images": len(source.train),
        "batch": batch,
    }


def padded(detector: Detector, images: Sequence[Tensor]) -> int:
    """Pixels of a batch as the net sees it."""
    tensors = detector.net.transform(list(images))[0].tensors
    return tensors.shape[0] * tensors.shape[2] * tensors.shape[3]


def random_scenes(count: int, batch: int, size: int, objects: int = 8) -> list[Scenes]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        images = [torch.rand(3, size, size * 4 // 3, generator=generator) for _ in range(batch)]
        truth = []
        for at in range(batch):
            corner = torch.rand(objects, 2, generator=generator) * size * 0.6
            side = (0.1 + 0.2 * torch.rand(objects, 2, generator=generator)) * size
            label = torch.randint(1, 4, (objects,), generator=generator)
            truth.append(Truth(torch.cat([corner, corner + side], 1), label, torch.zeros(0, 4), at))
        found.append(Scenes(images, truth))
    return found


def read_scenes(data: str, batch: int, count: int) -> tuple[list[Scenes], tuple[str, ...]]:
    source = open_boxes(data)
    assert source.train is not None
    loader = make_scene_loader(source.train, batch_size=batch, shuffle=True, drop_last=True, flip=True)
    return [scenes for scenes, _ in zip(loader.epoch(0), range(count), strict=False)], source.classes


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--families", nargs="+", default=list(NAMES), help="or names of detectors")
    parser.add_argument("--data")
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--orientation", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(arguments)
    if args.orientation:
        if args.data is None:
            parser.error("--orientation needs --data, pictures of both orientations")
        result: Any = of_orientation(args.data, size=args.size, batch=args.batch, rounds=args.rounds)
        print(
            f"mixed over grouped: {result['mixed_over_grouped']:.3f} ({result['low']:.3f} to {result['high']:.3f}), "
            f"pixels {result['pixels']:.3f}, {result['n']} rounds"
        )
    else:
        if args.data is None:
            scenes, classes = random_scenes(8, args.batch, args.size), ("a", "b", "c")
        else:
            scenes, classes = read_scenes(args.data, args.batch, 8)
        result = []
        for family in args.families:
            row = of_step(family, scenes, classes, size=args.size, steps=args.steps)
            result.append(row)
            low, high = row["interval"]
            print(
                f"{family:12}plain {1000 * row['plain']:7.1f} ms  ours {1000 * row['ours']:7.1f} ms  "
                f"ratio {row['ratio']:.3f} [{low:.3f}, {high:.3f}], n {row['n']}, losses differ by {row['loss_differs']:.1e}",
                flush=True,
            )
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
