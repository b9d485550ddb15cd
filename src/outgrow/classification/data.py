"""The data of a classification run: its splits, its training views, its test images."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from outgrow.classification.view import eval_view, whole_size
from outgrow.data import Augment, FileSplit, ImageData, Loader, Split, drops_last, make_loader, open_data
from outgrow.models import Network
from outgrow.training.config import Config, TrainConfig
from outgrow.training.processes import process_group, rank_and_size


@dataclass(frozen=True)
class RunData:
    """A source and the rows of it that a student trains on.

    ``others`` are the training rows that the student does not see, None where it sees all.
    """

    source: ImageData
    train: Split
    others: Split | None

    @property
    def val(self) -> Split | None:
        return self.source.val

    @property
    def test(self) -> Split:
        return self.source.test

    @property
    def classes(self) -> tuple[str, ...]:
        return self.source.classes

    @property
    def num_classes(self) -> int:
        return self.source.num_classes


def open_run_data(config: Config) -> RunData:
    """The data of a run. ``ValueError`` where there is nothing to train on."""
    options = config.data
    data = open_data(options.source, label=options.label, seed=config.seed)
    if data.val is None and data.train is not None and options.val_fraction > 0:
        # a source with validation images of its own needs none cut off
        data = open_data(
            options.source, label=options.label, val_fraction=options.val_fraction, seed=config.seed
        )
    if data.train is None:
        raise ValueError(
            f"--data {options.source}: needs images to train on, got only images to evaluate; "
            "put them under train/<class>/."
        )
    wanted = options.train_rows
    if wanted is None or wanted >= len(data.train):
        return RunData(data, data.train, None)
    order = _shuffled(config, len(data.train))
    return RunData(data, data.train.subset(order[:wanted]), data.train.subset(order[wanted:]))


def _shuffled(config: Config, num_rows: int) -> Tensor:
    return torch.randperm(num_rows, generator=torch.Generator().manual_seed(config.seed))


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
    rank, world_size = rank_and_size(None if whole else process_group())
    wanted = [n.input_spec.size for n in networks if n is not None and n.input_spec.size is not None]
    size = config.data.size or (max(wanted, default=224) if isinstance(split, FileSplit) else None)
    batch_size = min(train.batch_size, len(split))
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
        rank=rank,
        world_size=world_size,
    )


def eval_loader(
    split: Split, network: Network, train: TrainConfig, device: torch.device, workers: int
) -> Loader:
    """Images as ``network`` wants to be evaluated on them: its size, its crop, one centre view."""
    view = eval_view(network.input_spec, whole_size(split))
    size = None if view.whole else view.size
    return make_loader(
        split,
        # small on a CPU: activations that fit the allocator's pools are not mapped anew for every layer
        batch_size=train.batch_size if device.type == "cpu" else max(train.batch_size, 256),
        device=device,
        size=size,
        crop_pct=view.crop_pct,
        interpolation=view.interpolation,
        shuffle=False,
        num_workers=workers,
    )
