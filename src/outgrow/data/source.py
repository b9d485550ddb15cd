"""Open a data set by one string, and arrange its splits.

What the string may be::

    digits               scikit-learn's 1,797 handwritten digits, no download
    folder:PATH          train/<class>/* with val/ or test/; one folder of class folders; or only val/
    parquet:PATH         train-*.parquet with test-* or validation-*, as on the Hugging Face hub
    cifar10:ROOT         torchvision's copy in ROOT, downloaded to it if absent; cifar100:ROOT likewise
    imagenet:ROOT        the ImageNet folders, or its archives, which torchvision unpacks
    hf:NAME              a data set of the Hugging Face hub, or a local folder of one
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from outgrow.data.cache import default_cache_dir, usable
from outgrow.data.folder import open_folder, open_pictures
from outgrow.data.hub import open_hub
from outgrow.data.identity import also_in, fingerprint, look_at, look_at_pixels
from outgrow.data.notes import printable, some, warn_notes
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
"""Share of every class that becomes the test set if a source has none."""
_CUT_SEED = 0
"""Seed of the cuts that no option changes (that test set, and the halves of the digits)."""
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
    chooses the label column of ``parquet:`` and ``hf:`` if there are several. ``val_fraction`` of every
    class of the training images becomes ``val``; the same ``seed`` gives the same cut. The test set does not
    depend on either.

    The test set is the source's ``test`` split, or its ``val`` split if it has no ``test``. With both, ``val``
    stays ``val``. If a source has only training images, 20 % of every class become the test set, always the
    same ones. The digits are cut into halves. ``whole``, for evaluation, makes all images the test set if the
    source is one folder of class folders without splits.

    ``on_fault="skip"`` leaves out images that cannot be decoded; this decodes all images once. By default an
    image that cannot be decoded raises when it is read.

    Small images of one size are decoded once, to files below ``cache_dir`` (default
    ``$XDG_CACHE_HOME/outgrow``, or ``~/.cache/outgrow``).

    Problems that may change what a result means are warned as :class:`outgrow.data.DataWarning` and listed in
    ``ImageData.notes``: files left out, a class with two spellings, the same image for training and testing.

    Raises ValueError: unknown source, missing path, unknown or ambiguous label column, labels out of range,
    fewer than two classes, an empty class folder, a training set that lacks a class, an image that cannot be
    decoded.
    """
    found = find_data(spec, label=label, on_fault=on_fault, cache_dir=cache_dir)
    data = arrange(spec, found, val_fraction=val_fraction, seed=seed, whole=whole)
    warn_notes(data.notes)
    return data


def find_data(
    spec: str,
    *,
    label: str | None = None,
    labelled: bool = True,
    on_fault: OnFault = "refuse",
    cache_dir: Path | None = None,
) -> Found:
    """Read a source with its own splits; :func:`arrange` makes an :class:`ImageData` of the result."""
    kind, _, where = spec.partition(":")
    if kind in ("coco", "yolo", "voc"):
        raise ValueError(
            f"data: needs images with one label each, got boxes ({spec!r}); use it with a detector in distill or "
            "evaluate: --model or --student fasterrcnn:BACKBONE."
        )
    if kind not in _OPENERS:
        near = difflib.get_close_matches(kind, _OPENERS, n=1)
        hint = f"did you mean {near[0]}?" if near else "for a folder of images use folder:PATH."
        raise ValueError(f"data: needs one of {', '.join(_OPENERS)}, got {spec!r}; {hint}")
    if bool(where) == (kind == "digits"):
        needed = "digits without a path" if kind == "digits" else f"{kind}:WHERE"
        raise ValueError(f"data: needs {needed}, got {spec!r}; for example {_EXAMPLES[kind]}.")
    if label is not None and kind not in ("parquet", "hf"):
        raise ValueError(
            f"data: needs a source with label columns (parquet:, hf:) for label, got label={label!r} with "
            f"{spec!r}; leave label out."
        )
    notes: list[str] = []
    cache = None
    if kind in ("folder", "imagenet", "parquet", "hf"):
        cache = usable((cache_dir or default_cache_dir()) / "data", notes)
    opening = Opening(label, on_fault, cache, notes, labelled=labelled)
    try:
        if kind not in ("digits", "hf"):
            _check_path(kind, spec, Path(where).expanduser())
        found = _OPENERS[kind](where, opening)
    except OSError as error:
        reason = f"{error.strerror or error}: {printable(error.filename)}" if error.filename else str(error)
        raise ValueError(
            f"data: needs readable files and folders in {spec!r}, got {reason}; change their permissions, or restore "
            "them."
        ) from error
    if not labelled:
        found = _without_labels(found, opening)
    elif len(found.classes) < 2:
        raise ValueError(
            f"data: needs at least 2 classes, got {len(found.classes)} ({some(found.classes)}) in {printable(spec)}; name the "
            "folder above the class folders, or add a class."
        )
    return replace(found, notes=tuple(opening.notes), faults=tuple(opening.faults))


def _without_labels(found: Found, opening: Opening) -> Found:
    """``found`` with no class names, and :data:`outgrow.UNLABELLED` for every label."""
    parts = {
        name: replace(part, split=replace(part.split, labels=opening.no_labels(len(part.split))))  # type: ignore[type-var]
        for name, part in found.parts.items()
    }
    return replace(found, classes=(), parts=parts)


def _check_path(kind: str, spec: str, path: Path) -> None:
    if not path.exists():
        hint = "create the folder to download into it" if kind.startswith("cifar") else "check the path"
        raise ValueError(
            f"data: needs an existing path in {spec!r}, got {printable(path.absolute())}, which does not exist; {hint}."
        )
    if kind in _FOLDERS and not path.is_dir():
        raise ValueError(
            f"data: needs a folder in {spec!r}, got the file {printable(path.absolute())}; unpack it if it is an archive, or name "
            "its folder."
        )
    if kind == "parquet" and not path.is_dir() and not path.is_file():
        raise ValueError(
            f"data: needs a folder of shards or one shard in {spec!r}, got {printable(path.absolute())}, which is neither; check "
            "the path."
        )


def arrange(
    spec: str, found: Found, *, val_fraction: float = 0.0, seed: int = 0, whole: bool = False
) -> ImageData:
    """Assign the images of a source to ``train``, ``val`` and ``test``."""
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
            f"data: all {len(test):,} images of {printable(spec)} are evaluated, because it has no splits; a run on it trains "
            f"on {1 - TEST_FRACTION:.0%} of them."
        )
    elif test is None:
        assert train is not None
        keep, taken = stratified_cut(train.labels, TEST_FRACTION, seed=_CUT_SEED)
        if not len(taken):
            raise ValueError(
                f"data: needs two or more images of a class to make a test set, got {len(train)} images of "
                f"{len(found.classes)} classes in {spec!r}; add images, or move them to val/ to evaluate on them."
            )
        if whole:
            notes.append(
                f"data: {len(taken):,} of the {len(train):,} training images of {printable(spec)} are evaluated: the test set "
                "of a run on it."
            )
        train, test, tested = train.subset(keep), train.subset(taken), "train"
    if val_fraction:
        if train is None or val is not None:
            got = "no training images" if train is None else "a validation set"
            raise ValueError(
                f"data: needs a source with training images and without a validation set for val_fraction={val_fraction}, "
                f"got {got} in {spec!r}; set val_fraction to 0."
            )
        keep, taken = stratified_cut(train.labels, val_fraction, seed=seed)
        # of classes with one image each none is taken, and no set of validation images is not an empty one
        train, val = train.subset(keep), train.subset(taken) if len(taken) else None
        identity = fingerprint([identity, val_fraction, seed])
    duplicates = None
    if train is not None:
        notes += untaught(train, test, found.classes)
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


def untaught(train: Split, test: Split, classes: Sequence[str]) -> list[str]:
    """A note if classes of the test images have no training image."""
    lacking = sorted(set(test.labels.tolist()) - set(train.labels.tolist()))
    if not lacking or not classes:
        return []
    return [
        f"data: {len(lacking)} of {len(classes)} classes have test images but no training images "
        f"({some([classes[label] for label in lacking])}): no label teaches them, and each of their test images counts."
    ]


def _duplicates(found: Found, train: Split, test: Split, tested: str, notes: list[str]) -> int | None:
    """How many test images are in the training set too, byte for byte; None if the images were not compared."""
    here, there = found.parts[tested], found.parts["train"]
    if here.digests is None or there.digests is None:
        return None
    mine, theirs = here.digests[test.index.numpy()], there.digests[train.index.numpy()]
    if not mine.any() or not theirs.any():
        return None
    rows = also_in(mine, theirs)
    same = [(int(test.index[k]), int(train.index[int(rows[k])])) for k in (rows >= 0).nonzero()[0].tolist()]
    if here.rows is not None and there.rows is not None and isinstance(test, FileSplit):
        # the digest of a large file covers only some blocks, so compare these files completely
        same = [pair for pair in same if here.rows.read(pair[0]) == there.rows.read(pair[1])]
    if same:
        names = [f"{here.describe(mine)} is {there.describe(theirs)}" for mine, theirs in same[:3]]
        notes.append(
            f"data: {len(same)} of {len(test):,} test images are among the training images too, byte for byte ({some(names)}"
            f"{', ...' if len(same) > 3 else ''}): the accuracy on them is training accuracy."
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
    return (open_folder if opening.labelled else open_pictures)(Path(where).expanduser(), opening)


def _parquet(where: str, opening: Opening) -> Found:
    return open_parquet(Path(where).expanduser(), opening)


def _cifar(kind_name: str, where: str, opening: Opening) -> Found:
    from torchvision import datasets

    kind, root = getattr(datasets, kind_name), Path(where).expanduser()
    splits: dict[str, ArraySplit] = {}
    for name, train in (("train", True), ("test", False)):
        try:
            data = kind(root, train=train, download=False)
        except RuntimeError:  # absent or incomplete; torchvision does not report which
            try:
                data = kind(root, train=train, download=True)
            except Exception as error:  # URLError, timeouts, a wrong checksum
                raise ValueError(
                    f"data: needs {kind.base_folder} in {root}, got no such folder, and the download failed ({error}); "
                    f"copy the extracted archive there, or go online."
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
            "devkit, got none of them; download ImageNet with an account and copy it there."
        )
    # Classes are in torchvision's order: sorted wnids. Names are the wnids, because words repeat ("crane").
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
