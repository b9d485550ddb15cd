"""The data of a classification run: its splits, its training views, its test images."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from outgrow.classification.view import PHOTO, eval_view, whole_size
from outgrow.data import ArraySplit, Augment, FileSplit, ImageData, Loader, Split, drops_last, make_loader
from outgrow.data.exclusion import excluded_rows
from outgrow.data.identity import fingerprint
from outgrow.data.notes import printable, some, warn_notes
from outgrow.data.source import arrange, find_data
from outgrow.data.splits import Found, Part
from outgrow.models import InputSpec, Network
from outgrow.models.network import resized
from outgrow.training.config import Config, ModelConfig, TrainConfig
from outgrow.training.processes import process_group, rank_and_size

PLAIN = InputSpec(None, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
"""What a net wants that says nothing."""
LEAST = 2
"""Images that a process trains on at once, if any: a batch norm needs two."""


@dataclass
class RunData:
    """A source and the rows of it that a student trains on.

    ``others`` are the training rows that the student does not see, None where it sees all.
    """

    source: ImageData
    train: Split
    others: Split | None
    size: int | None = None
    """Side in pixels of what the student is trained and tested on, once it is made (:func:`set_size`)."""
    excluded: int = 0
    """Training images that ``data.exclude`` has left out of ``train``."""
    part: Part | None = None
    """The training images of the source as they were read: how they are named."""

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
    found = find_data(options.source, label=options.label, on_fault=options.on_fault)
    # a source with validation images of its own needs none cut off
    own = {"val", "test"} <= found.parts.keys() or "train" not in found.parts
    fraction = 0.0 if own else options.val_fraction
    data = arrange(options.source, found, val_fraction=fraction, seed=config.seed)
    warn_notes(data.notes)
    if data.train is None:
        raise ValueError(
            f"--data {options.source}: needs images to train on, got only images to evaluate; "
            "put them under train/<class>/."
        )
    wanted = options.train_rows
    train, others = data.train, None
    if wanted is not None and wanted < len(data.train):
        order = _shuffled(config, len(data.train))
        train, others = data.train.subset(order[:wanted]), data.train.subset(order[wanted:])
    run = RunData(data, train, others, part=found.parts["train"])
    return run if options.exclude is None else _without_listed(run, found, options.exclude)


def _without_listed(run: RunData, found: Found, path: str) -> RunData:
    """``run`` without the training images that the list at ``path`` names. Rows are chosen before: those that are
    left are the same as without the list, and so are the validation and test images."""
    source = run.source
    rows, elsewhere = excluded_rows(path, source.name, found.parts)

    def rest(split: Split) -> Split:
        return split.subset((~torch.isin(split.index, rows)).nonzero()[:, 0])

    train, others = rest(run.train), None if run.others is None else rest(run.others)
    gone = sorted(set(run.train.labels.tolist()) - set(train.labels.tolist()))
    if gone:
        raise ValueError(
            f"data.exclude: needs to leave images of every class, got none of {some([source.classes[i] for i in gone])} "
            f"after {printable(path)}; remove some of its lines."
        )
    left = len(run.train) - len(train)
    note = f"data: {left:,} images that {printable(path)} lists are left out of training."
    stay = elsewhere + len(rows) - left
    if others is not None and run.others is not None:
        stay -= len(run.others) - len(others)
    if stay:
        note += f" {stay:,} others that it lists are validation or test images, and stay."
    warn_notes([note])
    assert source.train is not None
    identity = fingerprint([source.fingerprint, "excluded", *rows.tolist()])
    source = replace(source, train=rest(source.train), fingerprint=identity, notes=(*source.notes, note))
    return replace(run, source=source, train=train, others=others, excluded=left)


def _shuffled(config: Config, num_rows: int) -> Tensor:
    return torch.randperm(num_rows, generator=torch.Generator().manual_seed(config.seed))


def view_size(size: int | None, split: Split, networks: Sequence[Network | None]) -> int | None:
    """Side in pixels of the views of ``split`` for ``networks``: the one rule for training, testing and prediction.

    ``size``, where one is given (``data.size``). Otherwise square images in memory keep theirs, and each
    network resizes for itself; all others are brought to the largest size that a network wants, photographs to
    224 where none wants any.
    """
    wanted = [n.input_spec.size for n in networks if n is not None and n.input_spec.size is not None]
    if size is not None:
        return size
    if isinstance(split, ArraySplit) and split.images.shape[2] == split.images.shape[3]:
        return None
    return max(wanted, default=PHOTO if isinstance(split, FileSplit) else None)


def set_size(asked: int | None, options: ModelConfig, data: RunData, network: Network) -> int | None:
    """Make ``network``, which is about to be trained, one for the size of its training views; returns that size.

    The size is part of its file, so that whoever evaluates it later does so at the size that it was trained at.
    A net that takes any size gets that of ``data.size`` or of the training images; one that takes only its own
    keeps it. ``asked`` is ``data.size``, ``options`` what is asked of the network; ``ValueError`` where those differ.
    """
    own = network.input_spec.size
    if own is None:
        size = asked or _own_size(data.train)
        if size is not None:
            resized(network, size)
        return size
    if asked is None or asked == own:
        return own
    if options.input_size == own:
        raise ValueError(
            f"data.size: needs the {own} of input_size, got {asked}: a network is tested at the size that it is trained at; "
            "give one of the two."
        )
    if not _takes(network, asked):
        raise ValueError(
            f"data.size: needs {own} for {network.name}, which is built for that, got {asked}; build it for another size with "
            f"student.input_size={asked} (teacher.input_size), or leave data.size out."
        )
    resized(network, asked)
    return asked


def _own_size(split: Split) -> int | None:
    """Of images in memory their own side, of photographs what nets are commonly made for; None if not square."""
    if isinstance(split, FileSplit):
        return PHOTO
    assert isinstance(split, ArraySplit)
    height, width = split.images.shape[2:]
    return height if height == width else None


def _takes(network: Network, size: int) -> bool:
    """Whether the net behind ``network`` can see images of another size than its own: tried on one."""
    modes = [module.training for module in network.modules()]
    image = network.mean.new_zeros(1, 3, size, size)
    try:
        with torch.no_grad():
            network.eval().net(image)
    except Exception:  # whatever it raises, it did not take the image
        return False
    finally:
        for module, training in zip(network.modules(), modes, strict=True):
            module.training = training
    return True


def train_loader(
    config: Config,
    train: TrainConfig,
    split: Split,
    networks: Sequence[Network | None],
    device: torch.device,
    *,
    whole: bool = False,
) -> Loader:
    """The training views: this process's share of them, or all for a pass that every process makes alike.

    They are cut and resized as the last of ``networks``, the one that is trained, wants to be tested.
    """
    rank, world_size = rank_and_size(None if whole else process_group())
    size = view_size(config.data.size, split, networks)
    spec = next((n.input_spec for n in reversed(networks) if n is not None), PLAIN)
    batch_size = min(train.batch_size, len(split))
    return make_loader(
        split,
        batch_size=batch_size,
        device=device,
        seed=config.seed,
        augment=Augment(**config.data.augment.model_dump()),
        size=size,
        crop_pct=_crop(spec, split, size),
        interpolation=spec.interpolation,
        shuffle=True,
        drop_last=drops_last(len(split), batch_size, least=LEAST),
        num_workers=config.data.workers,
        rank=rank,
        world_size=world_size,
        least=LEAST,
    )


def eval_loader(
    split: Split, network: Network, train: TrainConfig, device: torch.device, workers: int
) -> Loader:
    """Images as ``network`` wants to be evaluated on them: its size, its crop, one centre view."""
    view = eval_view(network.input_spec, whole_size(split))
    return make_loader(
        split,
        # small on a CPU: activations that fit the allocator's pools are not mapped anew for every layer
        batch_size=train.batch_size if device.type == "cpu" else max(train.batch_size, 256),
        device=device,
        size=view.size if view.whole is None else None,
        crop_pct=view.crop_pct,
        interpolation=view.interpolation,
        shuffle=False,
        num_workers=workers,
    )


def _crop(spec: InputSpec, split: Split, size: int | None) -> float:
    """Images in memory are seen whole: they were cut when they were made so small."""
    return 1.0 if size is None or isinstance(split, ArraySplit) else spec.crop_pct
