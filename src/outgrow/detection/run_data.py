"""The data of a detection run: the splits and the loader of training views."""

from dataclasses import dataclass

import torch

from outgrow.data import drops_last
from outgrow.data.mixed import UNLABELLED_SEED
from outgrow.data.notes import fewer, warn_notes
from outgrow.detection.data import DetectionData, DetectionSplit, open_boxes, untaught
from outgrow.detection.loader import MixedScenes, SceneLoader, make_scene_loader
from outgrow.detection.unlabelled import Pictures, open_pictures
from outgrow.training.config import Config, TrainConfig
from outgrow.training.processes import process_group, rank_and_size

UNSUPPORTED = ("cutout", "randaugment", "mixup", "cutmix")
"""Augmentations that do not move the boxes along."""


@dataclass(frozen=True)
class RunScenes:
    """A data set, and the images of it that the student trains on."""

    source: DetectionData
    train: DetectionSplit
    unlabelled: Pictures | None = None

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
    train, limit = data.train, config.data.train_rows
    warn_notes(fewer("data.train_rows", limit, config.data.source, len(train)))
    if limit is not None and limit < len(train):
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(config.seed))
        train = train.subset(order[:limit])
        warn_notes(note for note in untaught(train, data.test) if note not in data.notes)
    return RunScenes(data, train, _open_unlabelled(config, data, train))


def _open_unlabelled(config: Config, data: DetectionData, train: DetectionSplit) -> Pictures | None:
    options = config.data
    if options.unlabelled is None:
        return None
    known = {"training": train, "test": data.test} | ({} if data.val is None else {"validation": data.val})
    pictures = open_pictures(
        options.unlabelled,
        known=known,
        rows=options.unlabelled_rows,
        seed=config.seed,
        on_fault=options.on_fault,
    )
    warn_notes(pictures.notes)
    return pictures


def train_scenes(
    config: Config,
    train: TrainConfig,
    split: DetectionSplit,
    device: torch.device,
    *,
    least: int = 1,
    short_sides: tuple[int, ...] = (),
    unlabelled: DetectionSplit | None = None,
) -> SceneLoader | MixedScenes:
    """The loader of training views: this process's share of them, of sizes ``short_sides``. No batch has fewer than
    ``least`` images. With ``unlabelled`` the share ``data.unlabelled_share`` of each batch is of these, after those of
    ``split``. A student without a teacher gets the same batches without them.
    """
    augment = config.data.augment
    unsupported = [name for name in UNSUPPORTED if getattr(augment, name)]
    if unsupported:
        raise ValueError(
            f"data.augment: needs augmentations that move boxes along (flip, resized_crop), got {', '.join(unsupported)}; "
            "set them to 0."
        )
    rank, world_size = rank_and_size(process_group())

    def views(
        split: DetectionSplit, batch_size: int, seed: int, *, drop_last: bool, group: bool
    ) -> SceneLoader:
        return make_scene_loader(
            split,
            batch_size=batch_size,
            device=device,
            seed=seed,
            shuffle=True,
            drop_last=drop_last,
            flip=augment.flip,
            resized_crop=augment.resized_crop,
            group_orientation=group,
            short_sides=short_sides,
            num_workers=config.data.workers,
            rank=rank,
            world_size=world_size,
            least=least,
        )

    size, extra = train.batch_size, 0
    if unlabelled is not None:
        extra = min(max(round(size * config.data.unlabelled_share), 1), size - least)
        if extra < 1:
            raise ValueError(
                f"--unlabelled: needs train.batch_size of at least {least + 1}, got {size}; raise it."
            )
    size = min(size - extra, len(split))
    last = drops_last(len(split), size, least=least)
    loader = views(split, size, config.seed, drop_last=last, group=config.data.group_orientation)
    if unlabelled is None or config.method.preset == "none":
        return loader
    # of any orientation: one that is rare would always be in the batch that is dropped
    extra = min(extra, len(unlabelled))
    others = views(unlabelled, extra, config.seed + UNLABELLED_SEED, drop_last=True, group=False)
    return MixedScenes(loader, others)
