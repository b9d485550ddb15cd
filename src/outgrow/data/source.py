"""Where images come from: one line of text opens any source.

digits               scikit-learn's 1,797 handwritten digits, no download
folder:PATH          train/<class>/* with val/ or test/; one folder of class folders; or val/ alone
parquet:PATH         train-*.parquet with test-* or validation-*, as on the Hugging Face hub
cifar10:ROOT         torchvision's copy in ROOT, downloaded into it when absent; cifar100:ROOT too
imagenet:ROOT        the ImageNet folders, or its archives, which torchvision unpacks
hf:NAME              a data set of the Hugging Face hub, or a local folder of one
"""

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from outgrow.data.cache import CacheFile, cached_split, default_cache_dir, file_facts, fingerprint
from outgrow.data.folder import open_folder
from outgrow.data.parquet import SPLITS, choose_label, open_parquet
from outgrow.data.splits import ArraySplit, Found, ImageData, Split, check_labels, stratified_cut

TEST_FRACTION = 0.2
"""Share of every class set aside as the test set where a source has none of its own."""
_CUT_SEED = 0
"""Seed of cuts that belong to the source (test set, digits): no option moves them."""


def open_data(
    spec: str,
    *,
    label: str | None = None,
    val_fraction: float = 0.0,
    seed: int = 0,
    cache_dir: Path | None = None,
) -> ImageData:
    """Open a source of labelled images.

    ``spec`` is ``KIND`` or ``KIND:WHERE``, as listed in :mod:`outgrow.data.source`. ``label``
    chooses the label column of ``parquet:`` and ``hf:``; by default it is the first whose name
    contains "label". ``val_fraction`` of every class of the training images becomes ``val``, the
    same for the same ``seed``; the test set is never touched.

    A source with one held-out set (``test``, or else ``val`` or ``validation``) reports on it; with
    both, ``val`` stays ``val``. A source with training images alone has 20 % of every class cut
    off as its test set, always the same. The digits are cut into halves.

    Small images of one size are decoded once, into files below ``cache_dir`` (default
    ``$XDG_CACHE_HOME/outgrow``, or ``~/.cache/outgrow``).

    Raises ValueError: unknown source, missing path, unknown label column, labels out of range, an
    empty class folder, splits with different classes, an image that cannot be decoded.
    """
    kind, _, where = spec.partition(":")
    if kind == "coco":
        raise ValueError(
            f"data: needs images with one label each, got boxes ({spec!r}); distill and evaluate take detectors for "
            "them: --model or --student fasterrcnn:BACKBONE."
        )
    if kind not in _OPENERS:
        near = difflib.get_close_matches(kind, _OPENERS, n=1)
        hint = f"did you mean {near[0]}?" if near else "for a folder of images write folder:PATH."
        raise ValueError(f"data: needs one of {', '.join(_OPENERS)}, got {spec!r}; {hint}")
    if bool(where) == (kind == "digits"):
        wanted = "digits alone" if kind == "digits" else f"{kind}:WHERE"
        raise ValueError(f"data: needs {wanted}, got {spec!r}; write for example {_EXAMPLES[kind]}.")
    if label is not None and kind not in ("parquet", "hf"):
        raise ValueError(
            f"data: needs a source with label columns (parquet:, hf:) to choose one, got label={label!r} with "
            f"{spec!r}; leave label out."
        )
    path = Path(where).expanduser()
    if kind not in ("digits", "hf") and not path.exists():
        hint = "create the folder to download into it" if kind.startswith("cifar") else "check the path"
        raise ValueError(
            f"data: needs an existing path in {spec!r}, got {path.absolute()}, which is absent; {hint}."
        )
    found = _OPENERS[kind](where, label, (cache_dir or default_cache_dir()) / "data")
    return _arrange(spec, found, val_fraction=val_fraction, seed=seed)


def _arrange(spec: str, found: Found, *, val_fraction: float, seed: int) -> ImageData:
    train, val, test = (found.splits.get(name) for name in ("train", "val", "test"))
    identity = found.fingerprint
    if test is None:
        test, val = val, None
    if test is None:
        assert train is not None
        keep, taken = stratified_cut(train.labels, TEST_FRACTION, seed=_CUT_SEED)
        if not len(taken):
            raise ValueError(
                f"data: needs two or more images of a class to set a test image aside, got {len(train)} of "
                f"{len(found.classes)} classes in {spec!r}; add images, or put these into val/ to evaluate on them."
            )
        train, test = train.subset(keep), train.subset(taken)
    if val_fraction:
        if train is None or val is not None:
            got = "no training images" if train is None else "a validation set of the source's own"
            raise ValueError(
                f"data: needs training images and no other validation set to cut val_fraction={val_fraction} "
                f"from, got {got} in {spec!r}; set val_fraction to 0."
            )
        keep, taken = stratified_cut(train.labels, val_fraction, seed=seed)
        train, val = train.subset(keep), train.subset(taken)
        identity = fingerprint([identity, val_fraction, seed])
    return ImageData(spec, found.classes, train, val, test, identity)


def _digits(where: str, label: str | None, cache_dir: Path) -> Found:
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = torch.from_numpy(digits.images * (255 / 16)).round().to(torch.uint8)
    labels = torch.from_numpy(digits.target).to(torch.int64)
    halves = zip(("train", "test"), stratified_cut(labels, 0.5, seed=_CUT_SEED), strict=True)
    splits: dict[str, Split] = {
        name: ArraySplit.of(grey[rows].unsqueeze(1).repeat(1, 3, 1, 1), labels[rows]) for name, rows in halves
    }
    return Found(tuple("0123456789"), splits, fingerprint(["digits", *labels.tolist(), int(grey.sum())]))


def _folder(where: str, label: str | None, cache_dir: Path) -> Found:
    return open_folder(Path(where).expanduser(), cache_dir=cache_dir)


def _parquet(where: str, label: str | None, cache_dir: Path) -> Found:
    return open_parquet(Path(where).expanduser(), label=label, cache_dir=cache_dir)


def _cifar(kind_name: str, where: str, label: str | None, cache_dir: Path) -> Found:
    from torchvision import datasets

    kind, root = getattr(datasets, kind_name), Path(where).expanduser()
    splits: dict[str, Split] = {}
    for name, train in (("train", True), ("test", False)):
        try:
            data = kind(root, train=train, download=False)
        except RuntimeError:  # absent or incomplete: torchvision says no more than that
            try:
                data = kind(root, train=train, download=True)
            except Exception as error:  # URLError, timeouts, a wrong checksum
                raise ValueError(
                    f"data: needs {kind.base_folder} in {root}, got neither that nor a download ({error}); copy "
                    f"the extracted archive there, or go online."
                ) from error
        labels = torch.tensor(data.targets)
        check_labels(labels, len(data.classes), where=f"{root} ({name})")
        splits[name] = ArraySplit.of(torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(), labels)
        classes = tuple(data.classes)
    files = sorted(path for path in (root / kind.base_folder).iterdir() if path.is_file())
    return Found(classes, splits, fingerprint([*classes, *file_facts(files)]))


def _imagenet(where: str, label: str | None, cache_dir: Path) -> Found:
    root = Path(where).expanduser()
    for split in ("train", "val"):
        if not (root / split).is_dir() and (root / f"ILSVRC2012_img_{split}.tar").is_file():
            from torchvision.datasets import ImageNet

            ImageNet(root, split=split)  # unpacks the archive into the folders read below
    if not (root / "train").is_dir() and not (root / "val").is_dir():
        raise ValueError(
            f"data: needs train/<wnid>/ or val/<wnid>/ in {root}, or the archives ILSVRC2012_img_*.tar and the "
            "devkit, got none of them; ImageNet cannot be downloaded without an account: copy it there."
        )
    # torchvision's class order is that of the sorted wnids. Names are the wnids: its words repeat ("crane").
    return open_folder(root, cache_dir=cache_dir)


@dataclass(frozen=True)
class HubImages:
    """The encoded images of one split of a data set that the ``datasets`` library holds."""

    dataset: Any
    column: str
    name: str

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, row: int) -> bytes:
        value = self.dataset[row][self.column]
        return value["bytes"] if value["bytes"] is not None else Path(value["path"]).read_bytes()

    def describe(self, row: int) -> str:
        return f"row {row} of {self.name} ({self.dataset[row][self.column]['path']})"

    def stream(self) -> Iterator[bytes]:
        return (self.read(row) for row in range(len(self)))


def _hub(where: str, label: str | None, cache_dir: Path) -> Found:
    import datasets

    local = Path(where).expanduser()
    try:
        saved = (local / "dataset_dict.json").is_file() or (local / "dataset_info.json").is_file()
        opened = datasets.load_from_disk(str(local)) if saved else datasets.load_dataset(where)
    except Exception as error:  # not found, offline, gated, several configurations: the library says which
        raise ValueError(
            f"data: needs a data set of the hub or a local folder of one, got {where!r}, which cannot be loaded "
            f"({error}); check the name, go online, or give the folder."
        ) from error
    if isinstance(opened, datasets.Dataset):
        opened = {"train": opened}
    named = {SPLITS[name]: data for name, data in opened.items() if name in SPLITS}
    if not named:
        raise ValueError(
            f"data: needs a split train, test or validation in {where!r}, got {', '.join(opened)}; rename one."
        )
    splits: dict[str, Split] = {}
    facts: list[object] = []
    classes: tuple[str, ...] | None = None
    for split, data in named.items():
        column = next(
            (name for name, kind in data.features.items() if isinstance(kind, datasets.Image)), None
        )
        if column is None:
            raise ValueError(
                f"data: needs a column of images in {where!r}, got {', '.join(data.column_names)}; cast one to "
                "datasets.Image."
            )
        chosen = choose_label(data.column_names, label, where=where)
        values = data[chosen][:]
        if not values or not all(isinstance(value, int) for value in values):
            raise ValueError(
                f"data: needs an integer in every row of column {chosen!r} of {where} ({split}), got "
                f"{data.features[chosen]}; choose another label column or cast it with class_encode_column."
            )
        labels = torch.tensor(values)
        names = getattr(data.features[chosen], "names", None)
        classes = classes or tuple(names or (str(number) for number in range(int(labels.max()) + 1)))
        check_labels(labels, len(classes), where=f"column {chosen!r} of {where} ({split})")
        identity = [
            split,
            column,
            len(data),
            *file_facts(Path(file["filename"]) for file in data.cache_files),
        ]
        facts += [chosen, *identity]
        images = HubImages(
            data.cast_column(column, datasets.Image(decode=False)), column, f"{where} ({split})"
        )
        stem = f"{local.name}-{split}-{fingerprint([where, column])[:8]}"
        cache = CacheFile(cache_dir, stem, fingerprint(identity))
        splits[split] = cached_split(
            images.stream, labels, describe=images.describe, encoded=images, cache=cache
        )
    assert classes is not None
    return Found(classes, splits, fingerprint([*classes, *facts]))


_OPENERS: dict[str, Callable[[str, str | None, Path], Found]] = {
    "digits": _digits,
    "folder": _folder,
    "parquet": _parquet,
    "cifar10": partial(_cifar, "CIFAR10"),
    "cifar100": partial(_cifar, "CIFAR100"),
    "imagenet": _imagenet,
    "hf": _hub,
}
_EXAMPLES = {
    "digits": "digits",
    "folder": "folder:photos",
    "parquet": "parquet:data/cifar100",
    "cifar10": "cifar10:data",
    "cifar100": "cifar100:data",
    "imagenet": "imagenet:/data/imagenet",
    "hf": "hf:uoft-cs/cifar100",
}
