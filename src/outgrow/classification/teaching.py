"""The teacher of a run: loaded or trained, brought to the student's classes, its bias taken out.

make_teacher         a network with weights, in whatever classes it has
corrected_teacher    what the student listens to
"""

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from outgrow.classification.prepare import (
    as_network,
    eval_loader,
    is_main,
    other_rows,
    process_group,
    train_alone,
)
from outgrow.classification.scores import Scores, evaluate, num_parameters
from outgrow.data import ImageData, Loader, Split
from outgrow.losses.adapters import MapLoss, RelationLoss
from outgrow.losses.crd import CRD
from outgrow.models import Network, create_model, load_weights, save_student
from outgrow.models.structure import feature_paths
from outgrow.models.taps import PENULTIMATE
from outgrow.objective import Objective
from outgrow.objective.presets import PRESETS
from outgrow.outputs import Outputs, Target
from outgrow.spec import lookup
from outgrow.teacher import SelectedClasses, Teacher
from outgrow.teacher.cache import CachedTeacher, TeacherCache, digest, readable
from outgrow.teacher.correction import BiasCorrection, CorrectedTeacher
from outgrow.teacher.inference import InPrecision, compiled, fold_norms
from outgrow.training.config import Config
from outgrow.training.progress import Reporter

FEATURE_BYTES = 1 << 30
"""Penultimate features are kept for a correction up to this size; beyond it the logits must do."""
FOLD_IMAGES = 16
"""Test images that a folded teacher is compared on; a wrong fold is wrong by far on any of them."""


@dataclass
class TeacherFacts:
    """What the record says of the teacher, and its scores on the test images for the comparison."""

    values: dict[str, Any]
    scores: Scores | None = None
    seen: bool = False
    """Whether it may have been trained on the training rows with these labels."""


def make_teacher(
    config: Config,
    data: ImageData,
    train: Split,
    module: nn.Module | None,
    out: Path | None,
    resume: bool,
    report: Reporter,
) -> tuple[Network | None, TeacherFacts]:
    """The teacher network in whatever classes it has, and facts about it; None for no teacher."""
    facts = TeacherFacts({})
    if config.teacher.name in ("", "none") and module is None:
        if config.method.preset != "none":
            raise ValueError(
                "--teacher: needs a model such as timm/resnet50 or cifar/resnet56, got none; "
                "`--preset none` trains the student alone."
            )
        return None, facts
    if config.method.preset == "none":
        return None, facts
    options = config.teacher
    network = as_network("teacher", module, data.num_classes)
    if network is None:
        trained_here = options.train
        network = create_model(
            options.name,
            data.num_classes if trained_here else None,
            pretrained=options.pretrained and options.weights is None,
            weights=None if trained_here else options.weights,
            input_size=options.input_size,
        )
        if trained_here:
            if options.weights:
                load_weights(network, options.weights, role="student")
            _train_teacher(config, data, train, network, out, resume, report)
        elif not options.weights and not options.pretrained and not options.name.startswith(("hf/", "py:")):
            raise ValueError(
                f"--teacher {options.name}: needs weights, got none; give --teacher-weights FILE, or --train-teacher to "
                "train it first, or --set teacher.pretrained=true for published ones."
            )
    facts.seen = not (options.train and options.rows == "disjoint")
    facts.values = {
        "name": network.name,
        "parameters": num_parameters(network),
        "weights": options.weights
        or ("trained here" if options.train else "published" if options.pretrained else "own"),
        "classes": network.num_classes,
    }
    return network, facts


def _train_teacher(
    config: Config,
    data: ImageData,
    train: Split,
    network: Network,
    out: Path | None,
    resume: bool,
    report: Reporter,
) -> None:
    """Train the teacher alone, on the student's rows or on the others."""
    rows = other_rows(config, data) if config.teacher.rows == "disjoint" else train
    report.note(f"teacher {network.name} ({num_parameters(network):,} parameters), {len(rows):,} images")
    train_alone(config, config.teacher_train, rows, data, network, out=out, resume=resume, reporter=report)
    if out is not None and is_main():
        network.classes = data.classes
        save_student(network, out / "teacher.safetensors")


def corrected_teacher(
    config: Config,
    data: ImageData,
    network: Network,
    objective: Objective,
    loader: Loader,
    val: Split | None,
    device: torch.device,
    facts: TeacherFacts,
    report: Reporter,
) -> tuple[nn.Module, BiasCorrection | None]:
    """The teacher in the student's classes, corrected where asked for and where it is measured to help."""
    asked = config.teacher.correct
    wanted = asked == "always" or (
        asked == "auto" and lookup(PRESETS, config.method.preset, kind="preset").correct_teacher
    )
    columns = class_columns(network, data)
    foreign = columns is None
    if foreign and asked == "never":
        raise ValueError(_foreign(network, data))
    taps = (*feature_paths(network), PENULTIMATE) if objective.reads_features else ()
    taps = taps or ((PENULTIMATE,) if wanted or foreign else ())
    test = eval_loader(data.test, network, config.train, device, config.data.workers)
    teacher = _frozen(config, network.to(device), taps, test, loader, report)
    if columns is not None and columns != list(range(network.num_classes)):
        report.note(
            f"teacher: {len(columns)} of its {network.num_classes} classes are the student's, by name"
        )
        teacher = SelectedClasses(teacher, columns).to(device)
    if not foreign:
        with report.bar("teacher on the test images", len(data.test)) as advance:
            facts.scores = evaluate(teacher, test, progress=advance)
        facts.values |= {"top1": facts.scores.top1, "top5": facts.scores.top5, "nll": facts.scores.nll}
        report.note(
            f"teacher {network.name}: top-1 {facts.scores.top1:.2f} % on {len(data.test):,} test images"
        )
    if not (wanted or foreign):
        return teacher, None
    outputs, target = _pass(teacher, loader, config.teacher.correct_views, network, device, report)
    right = float((outputs.logits.argmax(1) == target.label).float().mean()) if not foreign else None
    if right is not None:
        facts.values["wrong_rate"] = 1 - right
    held_out, source = (
        (None, "") if foreign or not facts.seen else _held_out(data, val, config, teacher, network, device)
    )
    report.note("teacher: looking for what is systematic in its errors, out of fold ...")
    correction = BiasCorrection(data.num_classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the report says the same, and where the rows came from
        correction.fit(outputs, target, held_out=held_out if asked == "auto" else None)
    assert correction.report is not None
    if source and correction.report.reason.startswith("the teacher is right"):
        report.note(f"teacher: held-out rows are the {source} images")
    report.note(str(correction.report))
    report.event("correction", **asdict(correction.report))
    correction.to(device)
    if config.out and is_main():
        correction.save(Path(config.out) / "correction.safetensors")
    corrected = CorrectedTeacher(teacher, correction)
    if foreign or not correction.is_identity:
        scores = evaluate(corrected, test)
        facts.values["top1_corrected"] = scores.top1
        report.note(f"teacher, corrected: top-1 {scores.top1:.2f} % on the test images")
        if foreign:
            facts.scores = scores
            facts.values |= {"top1": scores.top1, "top5": scores.top5, "nll": scores.nll}
    return corrected, correction


def _frozen(
    config: Config, network: Network, taps: Sequence[str], test: Loader, loader: Loader, report: Reporter
) -> nn.Module:
    """The network as a teacher, as fast as the configuration allows; what was done and what not is noted."""
    options, net = config.teacher, cast(nn.Module, network)
    if options.fold:
        images = next(iter(test.epoch(0))).images[:FOLD_IMAGES]
        net, note = fold_norms(network, images, taps=taps)
        report.note(f"teacher: {note}")
    frozen = Teacher(net, taps=taps)
    teacher: nn.Module = frozen
    precision = config.train.precision if options.precision == "as_student" else options.precision
    if options.compile:
        images = next(iter(loader.epoch(0))).images
        if config.train.channels_last:
            frozen.to(memory_format=torch.channels_last)
            images = images.contiguous(memory_format=torch.channels_last)
        report.note("teacher: compiling, which can take minutes ...")
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
        with torch.autocast(images.device.type, half, enabled=half is not None):
            teacher, note = compiled(frozen, images)
        report.note(f"teacher: {note}")
    return teacher if options.precision == "as_student" else InPrecision(teacher, options.precision)


def cached_teacher(
    config: Config,
    data: ImageData,
    teacher: nn.Module,
    objective: Objective,
    loader: Loader,
    networks: Sequence[Network | None],
    *,
    epochs: int,
    report: Reporter,
) -> nn.Module:
    """``teacher`` behind the cache that the configuration names, if it names one.

    ``objective`` is set up, so that it is known which features it reads. What is kept of ``epochs`` epochs
    and how much that is are noted before any of it is computed; ``ValueError`` where the disk is too small.
    """
    options = config.teacher
    if options.cache is None:
        if options.cache_features:
            report.note("warning: teacher.cache_features is ignored without a folder, teacher.cache")
        return teacher
    if objective.reads_features and not options.cache_features:
        raise ValueError(
            "teacher.cache keeps logits, and this objective reads features; set teacher.cache_features=true to keep "
            "those too, leave the cache out, or choose losses that read logits alone."
        )
    wanted = [n.input_spec for n in networks if n is not None]
    correction = teacher.correction.source if isinstance(teacher, CorrectedTeacher) else "none"
    facts = {
        "teacher": f"{wanted[0]} {digest(teacher)} {correction}",
        "data": data.fingerprint,
        "views": f"{config.data.augment.model_dump_json()} size {config.data.size or [spec.size for spec in wanted]} "
        f"seed {config.seed}",
        "precision": config.train.precision if options.precision == "as_student" else options.precision,
    }
    cache = TeacherCache(
        options.cache,
        facts,
        num_indices=loader.num_indices,
        num_classes=data.num_classes,
        features=_features_read(teacher, objective, loader),
    )
    # several processes would write one file: they read what one has written
    write = process_group() is None
    total, missing = epochs * cache.bytes_per_epoch(), cache.bytes_missing(epochs)
    report.note(
        f"cache: {cache.contents} in {cache.folder}: {readable(cache.bytes_per_epoch())} an epoch, {readable(total)} for "
        f"{epochs} epochs, of which {readable(missing)} {'to be written' if write else 'not there'}"
    )
    if write:
        cache.check_room(epochs)
    return CachedTeacher(teacher, cache, write=write)


def _features_read(teacher: nn.Module, objective: Objective, loader: Loader) -> dict[str, tuple[int, ...]]:
    """The teacher's taps that the losses of a run read in each step, and the shape of each for one image."""
    if not objective.reads_features:
        return {}
    batch = next(loader.epoch(0))
    features = teacher(batch.images, index=batch.target.index).features
    read: set[str] = set()
    for term in objective.terms.values():
        loss = term.loss
        if isinstance(loss, MapLoss):
            read |= {pair.teacher_path for pair in loss.pairs}
        elif isinstance(loss, RelationLoss):
            read.add(loss.teacher_path)
        elif isinstance(loss, CRD):
            read.add(PENULTIMATE)
        elif "features" in getattr(loss, "reads", ()):
            read |= set(features)  # it may read any
    for name in read:
        if len(features[name]) != len(batch.images):
            raise ValueError(
                f"teacher.cache_features: needs one feature an image, got {tuple(features[name].shape)} from {name!r} for "
                f"{len(batch.images)} images; tap another module, or leave teacher.cache out."
            )
    return {name: tuple(value.shape[1:]) for name, value in features.items() if name in read}


def _pass(
    teacher: nn.Module, loader: Loader, views: int, network: Network, device: torch.device, report: Reporter
) -> tuple[Outputs, Target]:
    """The teacher's outputs on the training views of the first epochs."""
    logits, features, labels, partners, mixes, indices = [], [], [], [], [], []
    keep_features = True
    with report.bar("teacher on the training views", views * loader.num_samples) as advance:
        done = 0
        for epoch in range(views):
            for batch in loader.epoch(epoch):
                outputs = teacher(batch.images)
                logits.append(outputs.logits.float())
                feature = outputs.features[PENULTIMATE].flatten(1)
                keep_features &= feature.shape[1] * 4 * views * loader.num_samples <= FEATURE_BYTES
                if keep_features:
                    features.append(feature.float())
                target = batch.target
                labels.append(target.label)
                indices.append(target.index if target.index is not None else target.label)
                if target.partner is not None and target.mix is not None:
                    partners.append(target.partner)
                    mixes.append(target.mix)
                done += len(target.label)
                advance(done)
    mixed = bool(partners)
    target = Target(
        torch.cat(labels),
        index=torch.cat(indices),
        partner=torch.cat(partners) if mixed else None,
        mix=torch.cat(mixes) if mixed else None,
    )
    return Outputs(torch.cat(logits), {PENULTIMATE: torch.cat(features)} if keep_features else {}), target


def _held_out(
    data: ImageData,
    val: Split | None,
    config: Config,
    teacher: nn.Module,
    network: Network,
    device: torch.device,
) -> tuple[tuple[Outputs, Target], str]:
    """Rows that the teacher has certainly not been trained on.

    A part that this run kept back from a teacher that this run trained; otherwise, since nobody knows what
    a file of weights was trained on, the test images: they check the teacher, and choose nothing of the
    student.
    """
    trusted = val is not None and config.teacher.train
    split, name = (val, "validation") if trusted and val is not None else (data.test, "test")
    loader = eval_loader(split, network, config.train, device, config.data.workers)
    logits, labels = [], []
    for batch in loader.epoch(0):
        logits.append(teacher(batch.images).logits)
        labels.append(batch.target.label)
    return (Outputs(torch.cat(logits)), Target(torch.cat(labels))), name


def class_columns(network: Network, data: ImageData) -> list[int] | None:
    """Where the data's classes stand among the teacher's, by name; by order where the teacher's have no
    names and are as many; None if they are not there."""
    if network.classes is None:
        return list(range(data.num_classes)) if network.num_classes == data.num_classes else None
    place = {name: i for i, name in enumerate(network.classes)}
    if all(name in place for name in data.classes):
        return [place[name] for name in data.classes]
    # the same number under other names: the file's names are then another spelling
    return list(range(data.num_classes)) if network.num_classes == data.num_classes else None


def _foreign(network: Network, data: ImageData) -> str:
    return (
        f"--teacher {network.name}: needs the data's {data.num_classes} classes, got {network.num_classes} others; either "
        "map them from the teacher's outputs (--correct-teacher auto: no teacher training), or train a teacher for them "
        "(--train-teacher, from these weights)."
    )
