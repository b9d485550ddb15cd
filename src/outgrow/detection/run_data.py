"""The data of a detection run: the splits and the loader of training views."""

from dataclasses import dataclass

import torch

from outgrow.data import drops_last
from outgrow.detection.data import DetectionData, DetectionSplit, open_boxes
from outgrow.detection.loader import SceneLoader, make_scene_loader
from outgrow.training.config import Config, TrainConfig
from outgrow.training.processes import process_group, rank_and_size

UNSUPPORTED = ("cutout", "randaugment", "mixup", "cutmix")
"""Augmentations that do not move the boxes along."""


@dataclass(frozen=True)
class RunScenes:
    """A data set, and the images of it that the student trains on."""

    source: DetectionData
    train: DetectionSplit

    @property
    def val(self) -> DetectionSplit | None:
        return self.source.val

    @property
    def test(self) -> DetectionSplit:
        return self.source.test

    @property
    def classes(self) -> tuple[str, ...]:
        return self.source.classes

    @property
    def num_classes(self) -> int:
        """Without the background."""
        return self.source.num_classes


def open_run_scenes(config: Config) -> RunScenes:
    """The data of a run. ``ValueError`` if it has no training annotations."""
    data = open_boxes(config.data.source, on_fault=config.data.on_fault)
    if data.train is None:
        raise ValueError(
            f"--data {config.data.source}: needs annotations to train on, got only some to evaluate on; pass the "
            "source that has a training split."
        )
    limit = config.data.train_rows
    if limit is None or limit >= len(data.train):
        return RunScenes(data, data.train)
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(config.seed))
    return RunScenes(data, data.train.subset(order[:limit]))


def train_scenes(
    config: Config,
    train: TrainConfig,
    split: DetectionSplit,
    device: torch.device,
    *,
    least: int = 1,
    short_sides: tuple[int, ...] = (),
) -> SceneLoader:
    """The loader of training views: this process's share of them, of sizes ``short_sides``. No batch has fewer than
    ``least`` images."""
    augment = config.data.augment
    unsupported = [name for name in UNSUPPORTED if getattr(augment, name)]
    if unsupported:
        raise ValueError(
            f"data.augment: needs augmentations that move boxes along (flip, resized_crop), got {', '.join(unsupported)}; "
            "set them to 0."
        )
    rank, world_size = rank_and_size(process_group())
    batch_size = min(train.batch_size, len(split))
    return make_scene_loader(
        split,
        batch_size=batch_size,
        device=device,
        seed=config.seed,
        shuffle=True,
        drop_last=drops_last(len(split), batch_size, least=least),
        flip=augment.flip,
        resized_crop=augment.resized_crop,
        group_orientation=config.data.group_orientation,
        short_sides=short_sides,
        num_workers=config.data.workers,
        rank=rank,
        world_size=world_size,
        least=least,
    )
