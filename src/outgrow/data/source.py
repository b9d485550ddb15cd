"""Where images come from: one line of text opens any source.

digits               scikit-learn's 1,797 handwritten digits, no download
folder:PATH          train/<class>/* with val/ or test/; one folder of class folders; or val/ alone
parquet:PATH         train-*.parquet with test-* or validation-*, as on the Hugging Face hub
cifar10:ROOT         torchvision's copy in ROOT, downloaded into it when absent; cifar100:ROOT too
imagenet:ROOT        the ImageNet folders, or its archives, which torchvision unpacks
hf:NAME              a data set of the Hugging Face hub, or a local folder of one
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from outgrow.data.cache import default_cache_dir, usable
from outgrow.data.folder import open_folder
from outgrow.data.hub import open_hub
from outgrow.data.identity import also_in, fingerprint, look_at, look_at_pixels
from outgrow.data.notes import printable, say, some
from outgrow.data.parquet import open_parquet
from outgrow.data.reading import OnFault, Opening
from outgrow.data.splits import (
    ArraySplit,
    FileSplit,
    Found,
    ImageData,
    Part,
    Split,
    check_labels,
    stratified_cut,
)

TEST_FRACTION = 0.2
"""Share of every class set aside as the test set where a source has none of its own."""
_CUT_SEED = 0
"""Seed of cuts that belong to the source (test set, digits): no option moves them."""
_FOLDERS = ("folder", "imagenet", "cifar10", "cifar100")


def open_data(
    spec: str,
    *,
    label: str | None = None,
    val_fraction: float = 0.0,
    seed: int = 0,
    whole: bool = False,
    on_fault: OnFault = "refuse",
    cache_dir: Path | None = None,
) -> ImageData:
    """Open a source of labelled images.

    ``spec`` is ``KIND`` or ``KIND:WHERE``, as listed in :mod:`outgrow.data.source`. ``label``
    chooses the label column of ``parquet:`` and ``hf:``, where there are several. ``val_fraction`` of every
    class of the training images becomes ``val``, the same for the same ``seed``; the test set is never
    touched.

    A source with one held-out set (``test``, or else ``val``) reports on it; with both, ``val`` stays ``val``. A
    source with training images alone has 20 % of every class cut off as its test set, always the same. The
    digits are cut into halves. ``whole``, for evaluation, takes all of a folder of class folders that names
    no split as the test set.

    ``on_fault="skip"`` leaves out images that cannot be decoded, which means to decode all of them once; by
    default the first one that is met is an error.

    Small images of one size are decoded once, into files below ``cache_dir`` (default
    ``$XDG_CACHE_HOME/outgrow``, or ``~/.cache/outgrow``).

    What may make a number another one than was meant is a :class:`outgrow.data.DataWarning`, and one of
    ``ImageData.notes``: files left out, classes spelt in two ways, the same image for training and for testing.

    Raises ValueError: unknown source, missing path, unknown or ambiguous label column, labels out of range,
    fewer than two classes, an empty class folder, a training set that lacks a class, an image that cannot be
    decoded.
    """
    found = find_data(spec, label=label, on_fault=on_fault, cache_dir=cache_dir)
    data = arrange(spec, found, val_fraction=val_fraction, seed=seed, whole=whole)
    say(data.notes)
    return data


def find_data(
    spec: str, *, label: str | None = None, on_fault: OnFault = "refuse", cache_dir: Path | None = None
) -> Found:
    """What a source holds, with its own splits; :func:`arrange` makes a data set of it."""
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
    if kind not in ("digits", "hf"):
        _check_path(kind, spec, path)
    notes: list[str] = []
    cache = None
    if kind in ("folder", "imagenet", "parquet", "hf"):
        cache = usable((cache_dir or default_cache_dir()) / "data", notes)
    opening = Opening(label, on_fault, cache, notes)
    try:
        found = _OPENERS[kind](where, opening)
    except OSError as error:
        reason = f"{error.strerror or error}: {printable(error.filename)}" if error.filename else str(error)
        raise ValueError(
            f"data: needs files and folders that can be read in {spec!r}, got {reason}; change their rights, or restore "
            "them."
        ) from error
    if len(found.classes) < 2:
        raise ValueError(
            f"data: needs at least 2 classes, got {len(found.classes)} ({some(found.classes)}) in {printable(spec)}; give the "
            "folder above the class folders, or add a class."
        )
    return replace(found, notes=tuple(opening.notes), faults=tuple(opening.faults))


def _check_path(kind: str, spec: str, path: Path) -> None:
    if not path.exists():
        hint = "create the folder to download into it" if kind.startswith("cifar") else "check the path"
        raise ValueError(
            f"data: needs an existing path in {spec!r}, got {printable(path.absolute())}, which is absent; {hint}."
        )
    if kind in _FOLDERS and not path.is_dir():
        raise ValueError(
            f"data: needs a folder in {spec!r}, got the file {printable(path.absolute())}; unpack it if it is an archive, or give "
            "the folder that holds it."
        )
    if kind == "parquet" and not path.is_dir() and not path.is_file():
        raise ValueError(
            f"data: needs a folder of shards or one shard in {spec!r}, got {printable(path.absolute())}, which is neither; check "
            "the path."
        )


def arrange(
    spec: str, found: Found, *, val_fraction: float = 0.0, seed: int = 0, whole: bool = False
) -> ImageData:
    """The data set of what was found: which images train, which choose and which report."""
    train, val, test = (
        found.parts[name].split if name in found.parts else None for name in ("train", "val", "test")
    )
    identity, notes = found.fingerprint, list(found.notes)
    if test is None:
        test, val, tested = val, None, "val"
    else:
        tested = "test"
    if test is None and whole and found.flat:
        assert train is not None
        test, train, tested = train, None, "train"
        notes.append(
            f"data: all {len(test):,} images of {printable(spec)} are scored, since it names no split; a run on it trains on "
            f"{1 - TEST_FRACTION:.0%} of them."
        )
    elif test is None:
        assert train is not None
        keep, taken = stratified_cut(train.labels, TEST_FRACTION, seed=_CUT_SEED)
        if not len(taken):
            raise ValueError(
                f"data: needs two or more images of a class to set a test image aside, got {len(train)} of "
                f"{len(found.classes)} classes in {spec!r}; add images, or put these into val/ to evaluate on them."
            )
        if whole:
            notes.append(
                f"data: {len(taken):,} of the {len(train):,} training images of {printable(spec)} are scored, those that a "
                "run on it sets aside."
            )
        train, test, tested = train.subset(keep), train.subset(taken), "train"
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
    duplicates = None
    if train is not None:
        duplicates = _duplicates(found, train, test, tested, notes)
    return ImageData(
        spec,
        found.classes,
        train,
        val,
        test,
        identity,
        duplicates=duplicates,
        faults=found.faults,
        notes=tuple(notes),
    )


def _duplicates(found: Found, train: Split, test: Split, tested: str, notes: list[str]) -> int | None:
    """How many test images the training set holds, too, byte for byte; None where nobody looked."""
    here, there = found.parts[tested], found.parts["train"]
    if here.digests is None or there.digests is None:
        return None
    mine, theirs = here.digests[test.index.numpy()], there.digests[train.index.numpy()]
    if not mine.any() or not theirs.any():
        return None
    rows = also_in(mine, theirs)
    same = [(int(test.index[k]), int(train.index[int(rows[k])])) for k in (rows >= 0).nonzero()[0].tolist()]
    if here.rows is not None and there.rows is not None and isinstance(test, FileSplit):
        # of large files a sample was seen: these few are compared whole
        same = [pair for pair in same if here.rows.read(pair[0]) == there.rows.read(pair[1])]
    if same:
        names = [f"{here.describe(mine)} is {there.describe(theirs)}" for mine, theirs in same[:3]]
        notes.append(
            f"data: {len(same)} of {len(test):,} test images are among the training images, too, byte for byte ({some(names)}"
            f"{', ...' if len(same) > 3 else ''}): the accuracy on them is one of training."
        )
    return len(same)


def _digits(where: str, opening: Opening) -> Found:
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = torch.from_numpy(digits.images * (255 / 16)).round().to(torch.uint8)
    labels = torch.from_numpy(digits.target).to(torch.int64)
    halves = zip(("train", "test"), stratified_cut(labels, 0.5, seed=_CUT_SEED), strict=True)
    splits: dict[str, ArraySplit] = {
        name: ArraySplit.of(grey[rows].unsqueeze(1).repeat(1, 3, 1, 1), labels[rows]) for name, rows in halves
    }
    identity = fingerprint(["digits", *labels.tolist(), int(grey.sum())])
    return Found(tuple("0123456789"), _pixels(splits), identity)


def _pixels(splits: Mapping[str, ArraySplit]) -> dict[str, Part]:
    return {
        name: Part(split, digests=look_at_pixels(np.asarray(split.images))) for name, split in splits.items()
    }


def _folder(where: str, opening: Opening) -> Found:
    return open_folder(Path(where).expanduser(), opening)


def _parquet(where: str, opening: Opening) -> Found:
    return open_parquet(Path(where).expanduser(), opening)


def _cifar(kind_name: str, where: str, opening: Opening) -> Found:
    from torchvision import datasets

    kind, root = getattr(datasets, kind_name), Path(where).expanduser()
    splits: dict[str, ArraySplit] = {}
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
    files = sorted(str(path) for path in (root / kind.base_folder).iterdir() if path.is_file())
    identity = fingerprint([*classes, look_at(files, None).digests.tobytes()])
    return Found(classes, _pixels(splits), identity)


def _imagenet(where: str, opening: Opening) -> Found:
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
    return open_folder(root, opening)


def _hub(where: str, opening: Opening) -> Found:
    return open_hub(where, opening)


_OPENERS: dict[str, Callable[[str, Opening], Found]] = {
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
