"""The data of a classification run: its splits, its training views, its test images."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from outgrow.classification.view import PHOTO, eval_view, whole_size
from outgrow.data import ArraySplit, Augment, FileSplit, ImageData, Loader, Split, drops_last, make_loader
from outgrow.data.class_map import ClassMap, read_class_map
from outgrow.data.exclusion import excluded_rows
from outgrow.data.identity import fingerprint
from outgrow.data.mixed import UNLABELLED_SEED, MixedLoader
from outgrow.data.notes import fewer, printable, some, warn_notes
from outgrow.data.plan import ImageLoader
from outgrow.data.source import arrange, find_data, untaught
from outgrow.data.splits import Found, Part
from outgrow.data.unlabelled import UnlabelledImages, open_unlabelled
from outgrow.models import InputSpec, Network
from outgrow.models.network import check_layout, check_size, check_state, on_trial, resized
from outgrow.training.config import Config, ModelConfig, TrainConfig
from outgrow.training.processes import process_group, rank_and_size

PLAIN = InputSpec(None, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
"""The input of a network that does not define one."""
LEAST = 2
"""Minimum number of images in the share of a process, unless it is empty. A batch norm needs two."""


@dataclass(frozen=True)
class RunData:
    """A source and the rows of it that a student trains on.

    ``others`` are the training rows that the student does not train on, None if it trains on all.
    """

    source: ImageData
    train: Split
    others: Split | None
    unlabelled: UnlabelledImages | None = None
    """Images that are distilled without a label."""
    excluded: int = 0
    """Training images that ``data.exclude`` has left out of ``train``."""
    part: Part | None = None
    """The training images of the source as they were read: how they are named."""
    class_map: ClassMap | None = None
    """Which classes of other networks are which of the source's, where names differ."""

    @property
    def val(self) -> Split | None:
        return self.source.val

    @property
    def test(self) -> Split:
        return self.source.test

    @property
    def fingerprint(self) -> str:
        """Changes whenever an image, a label or a split may have changed."""
        if self.unlabelled is None:
            return self.source.fingerprint
        return fingerprint([self.source.fingerprint, self.unlabelled.fingerprint])

    @property
    def classes(self) -> tuple[str, ...]:
        return self.source.classes

    @property
    def num_classes(self) -> int:
        return self.source.num_classes

    @property
    def aliases(self) -> dict[str, str] | None:
        """Other names of the classes, in weights whose head is to be loaded."""
        return None if self.class_map is None else self.class_map.aliases


def same_set(train: Split, other: Split) -> bool:
    """Whether both were cut from what was read as one."""
    for name in ("images", "source"):
        mine, theirs = getattr(train, name, None), getattr(other, name, None)
        if mine is not None or theirs is not None:
            return mine is theirs
    return True


def open_run_data(config: Config) -> RunData:
    """The data of a run. ``ValueError`` if there are no training images."""
    options = config.data
    found = find_data(options.source, label=options.label, on_fault=options.on_fault)
    # a source with its own validation images needs no split
    own = {"val", "test"} <= found.parts.keys() or "train" not in found.parts
    fraction = 0.0 if own else options.val_fraction
    data = arrange(options.source, found, val_fraction=fraction, seed=config.seed)
    warn_notes(data.notes)
    if data.train is None:
        raise ValueError(
            f"--data {options.source}: needs training images, got only images to evaluate; "
            "put training images under train/<class>/."
        )
    count = options.train_rows
    train, others = data.train, None
    warn_notes(fewer("data.train_rows", count, options.source, len(train)))
    if count is not None and count < len(data.train):
        order = _shuffled(config, len(data.train))
        train, others = data.train.subset(order[:count]), data.train.subset(order[count:])
        warn_notes(note for note in untaught(train, data.test, data.classes) if note not in data.notes)
    run = RunData(
        data,
        train,
        others,
        _open_unlabelled(config, found, data, train),
        part=found.parts["train"],
        class_map=None if options.class_map is None else read_class_map(options.class_map, data.classes),
    )
    return run if options.exclude is None else _without_listed(run, found, options.exclude)


def _without_listed(run: RunData, found: Found, path: str) -> RunData:
    """``run`` without the training images that the list at ``path`` names. Rows are chosen before: those that are
    left are the same as without the list, and so are the validation and test images."""
    source = run.source
    rows, elsewhere = excluded_rows(path, source.name, found.parts, source.classes)

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


def _open_unlabelled(config: Config, found: Found, data: ImageData, train: Split) -> UnlabelledImages | None:
    options = config.data
    if options.unlabelled is None:
        return None
    known = {"training": (found.parts["train"], train)}
    if data.val is not None:
        known["validation"] = (
            found.parts["val" if "val" in found.parts and "test" in found.parts else "train"],
            data.val,
        )
    known["test"] = (
        found.parts[next(name for name in ("test", "val", "train") if name in found.parts)],
        data.test,
    )
    unlabelled = open_unlabelled(
        options.unlabelled,
        known=known,
        rows=options.unlabelled_rows,
        seed=config.seed,
        on_fault=options.on_fault,
    )
    warn_notes(unlabelled.notes)
    return unlabelled


def _shuffled(config: Config, num_rows: int) -> Tensor:
    return torch.randperm(num_rows, generator=torch.Generator().manual_seed(config.seed))


def view_size(size: int | None, split: Split, networks: Sequence[Network | None]) -> int | None:
    """Side in pixels of the views of ``split`` for ``networks``. Training, testing and prediction all use it.

    It is ``size`` if given (``data.size``). Otherwise square images in memory keep their size, and each network
    resizes them itself. All other images get the largest input size of the networks. If no network has an input
    size, photographs get 224.
    """
    sizes = [n.input_spec.size for n in networks if n is not None and n.input_spec.size is not None]
    if size is not None:
        return size
    if isinstance(split, ArraySplit) and split.images.shape[2] == split.images.shape[3]:
        return None
    return max(sizes, default=PHOTO if isinstance(split, FileSplit) else None)


def set_input_size(
    network: Network, train: Split, size: int | None, options: ModelConfig, *, channels_last: bool = False
) -> None:
    """Set the input size of a network that is to be trained on ``train``, with ``channels_last`` if given.

    From then on ``network.input_spec.size`` is the side in pixels for training, evaluation and prediction. It is saved
    with the weights. ``size`` is ``data.size``, ``options`` are those of the network; ``ValueError`` if they
    contradict each other, or if the network cannot process such images. A network without an input size gets ``size``, or
    else the size of the training images. One with an input size keeps it, unless ``size`` is given and the network accepts it.
    """
    own = network.input_spec.size
    if own is None:
        found = size or _own_size(train)
        if found is not None:
            resized(network, found)
    elif size is not None and size != own:
        if options.input_size == own:
            raise ValueError(
                f"data.size: needs the same size as input_size, which is {own}, got {size}; set only one of the two, as a network "
                "is evaluated at the size of its training."
            )
        if not _takes(network, size):
            raise ValueError(
                f"data.size: needs {own}, the only size that {network.name} accepts, got {size}; build the network for this size "
                f"with student.input_size={size} (teacher.input_size), or leave data.size out."
            )
        resized(network, size)
    check_takes(network, train, channels_last=channels_last)


def check_takes(network: Network, split: Split, *, channels_last: bool = False) -> None:
    """``ValueError`` if ``network`` cannot process images of ``split`` in the size that an evaluation shows, if it cannot with
    ``channels_last``, or if its state is more than tensors."""
    check_state(network)
    view = eval_view(network.input_spec, whole_size(split))
    height, width = view.whole or (view.size, view.size)
    check_size(network, height, width)
    if channels_last:
        check_layout(network, height, width)


def _own_size(split: Split) -> int | None:
    """The side of images in memory, 224 for photographs; None if not square."""
    if isinstance(split, FileSplit):
        return PHOTO
    assert isinstance(split, ArraySplit)
    height, width = split.images.shape[2:]
    return height if height == width else None


def _takes(network: Network, size: int) -> bool:
    """Whether ``network`` accepts images of this size; tested on one image."""
    try:
        with on_trial(network), torch.no_grad():
            network.net(network.mean.new_zeros(1, 3, size, size))
    except Exception:  # any exception means that it does not
        return False
    return True


def unmixed(config: Config) -> Config:
    """``config`` without mixup and CutMix, whose views have two labels."""
    augment = config.data.augment.model_copy(update={"mixup": 0.0, "cutmix": 0.0})
    return config.model_copy(update={"data": config.data.model_copy(update={"augment": augment})})


def train_loader(
    config: Config,
    train: TrainConfig,
    split: Split,
    networks: Sequence[Network | None],
    device: torch.device,
    *,
    whole: bool = False,
    unlabelled: Split | None = None,
    all_rows: bool = False,
) -> Loader:
    """The training views: the share of this process, or with ``whole`` all of them.

    They are cropped and resized as in an evaluation of the last of ``networks``, the one that is trained. With
    ``unlabelled`` the share ``data.unlabelled_share`` of each batch is unlabelled images, after the rows of ``split``.
    A student without a teacher gets the same batches without them, as they have no training signal. A last batch that is
    too small to train on is left out, unless ``all_rows``.
    """
    size = view_size(config.data.size, split, networks)
    spec = next((n.input_spec for n in reversed(networks) if n is not None), PLAIN)
    batch_size = train.batch_size
    if unlabelled is not None:
        extra = min(max(round(batch_size * config.data.unlabelled_share), 1), batch_size - LEAST)
        if extra < 1:
            raise ValueError(
                f"--unlabelled: needs train.batch_size of at least {LEAST + 1}, got {batch_size}; raise it."
            )
        batch_size -= extra
    augment = Augment(**config.data.augment.model_dump())
    last = not all_rows and drops_last(len(split), min(batch_size, len(split)), least=LEAST)
    loader = _views(
        config,
        split,
        spec,
        batch_size,
        augment,
        size,
        device,
        whole,
        seed=config.seed,
        drop_last=last,
        balanced=train.sampling == "balanced",
    )
    if unlabelled is None or config.method.preset == "none":
        return loader
    if size is None:
        size = _size_beside(split, unlabelled)
    plain = replace(augment, mixup=0.0, cutmix=0.0)
    seed = config.seed + UNLABELLED_SEED
    others = _views(config, unlabelled, spec, extra, plain, size, device, whole, seed=seed, drop_last=True)
    return MixedLoader(loader, others)


def teacher_views(
    config: Config, split: Split, networks: Sequence[Network | None], device: torch.device
) -> Loader:
    """The views of :func:`train_loader`, with every image of ``split`` once an epoch, whatever the batch size and the sampling.
    On them a teacher is fitted or looked at."""
    train = config.train.model_copy(update={"sampling": "uniform"})
    return train_loader(config, train, split, networks, device, whole=True, all_rows=True)


def _size_beside(split: Split, unlabelled: Split) -> int | None:
    """Side in pixels for ``unlabelled`` images in a batch with those of ``split``, which keep their size."""
    assert isinstance(split, ArraySplit)
    height, width = split.images.shape[2:]
    if isinstance(unlabelled, ArraySplit) and unlabelled.images.shape[2:] == (height, width):
        return None
    if height != width:
        raise ValueError(
            f"--unlabelled: needs images of {height}x{width} beside labelled ones of that size, got others; set data.size, "
            "to which both are resized."
        )
    return height


def _views(
    config: Config,
    split: Split,
    spec: InputSpec,
    batch_size: int,
    augment: Augment,
    size: int | None,
    device: torch.device,
    whole: bool,
    *,
    seed: int,
    drop_last: bool,
    balanced: bool = False,
) -> ImageLoader:
    """Shuffled training views of ``split``."""
    rank, world_size = rank_and_size(None if whole else process_group())
    batch_size = min(batch_size, len(split))
    return make_loader(
        split,
        batch_size=batch_size,
        device=device,
        seed=seed,
        augment=augment,
        size=size,
        crop_pct=_crop(spec, split, size),
        interpolation=spec.interpolation,
        shuffle=True,
        drop_last=drop_last,
        num_workers=config.data.workers,
        rank=rank,
        world_size=world_size,
        least=LEAST,
        balanced=balanced,
    )


def eval_loader(
    split: Split, network: Network, train: TrainConfig, device: torch.device, workers: int
) -> Loader:
    """The images of ``split`` for an evaluation of ``network``: its size, its crop, one centre view."""
    view = eval_view(network.input_spec, whole_size(split))
    return make_loader(
        split,
        # small on a CPU, so that the allocator reuses the memory of activations
        batch_size=train.batch_size if device.type == "cpu" else max(train.batch_size, 256),
        device=device,
        size=view.size if view.whole is None else None,
        crop_pct=view.crop_pct,
        interpolation=view.interpolation,
        shuffle=False,
        num_workers=workers,
    )


def _crop(spec: InputSpec, split: Split, size: int | None) -> float:
    """The crop share; 1 for images in memory, which are already cropped."""
    return 1.0 if size is None or isinstance(split, ArraySplit) else spec.crop_pct
