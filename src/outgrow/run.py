"""One run from a configuration to a record: the assembly line, in the order of the data flow.

    data -> teacher (loaded, trained or mapped) -> its bias -> student -> objective -> trainer -> record

Each step is a function that takes what the ones before returned.
"""

import json
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from outgrow.anatomy import feature_paths
from outgrow.checkpoint import fingerprint
from outgrow.config import Config, TrainConfig, build_config
from outgrow.correction import BiasCorrection, CorrectedTeacher
from outgrow.data import Augment, FileSplit, ImageData, Loader, Split, make_loader, open_data
from outgrow.features import PENULTIMATE, Taps
from outgrow.knowledge import Rectifier
from outgrow.metrics import Scores, evaluate, num_parameters
from outgrow.models import InputSpec, Network, create_model, load_weights, save_student
from outgrow.objective import Objective
from outgrow.outputs import Outputs, Target
from outgrow.presets import PRESETS, preset
from outgrow.progress import Reporter
from outgrow.provenance import provenance
from outgrow.spec import lookup
from outgrow.teacher import NoTeacher, SelectedClasses, Teacher
from outgrow.trainer import EpochRecord, Trainer, make_accelerator

FEATURE_BYTES = 1 << 30
"""Penultimate features are kept for a correction up to this size; beyond it the logits must do."""
NUM_EXAMPLES = 24


def distill(
    config: Config | Mapping[str, Any] | None = None,
    *,
    teacher: nn.Module | None = None,
    student: nn.Module | None = None,
    resume: bool = False,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Distil a teacher into a student as ``config`` says and return the record of the run.

    ``config`` is a :class:`outgrow.config.Config` or a mapping of the fields that differ from the
    defaults. ``teacher`` and ``student`` may be modules of one's own (RGB images in [0, 1] to logits) in
    place of the names in it; they are moved to the device and, the student, trained in place. With
    ``config.out`` the run folder is written: ``config.yaml``, ``record.json``, ``student.safetensors``,
    ``curves.png``, and a checkpoint that ``resume`` goes on from.

    ``ValueError`` for what does not fit together; :class:`outgrow.trainer.NonFiniteLoss` if training
    diverges.
    """
    config = config if isinstance(config, Config) else build_config(config or {})
    accelerator = make_accelerator(config.train)
    report = (reporter if is_main() else None) or Reporter()
    started = time.time()
    torch.manual_seed(config.seed)
    out = Path(config.out) if config.out else None
    if out is not None and is_main():
        out.mkdir(parents=True, exist_ok=True)
        (out / "config.yaml").write_text(config.to_yaml())

    data = open_run_data(config)
    train, val = _rows(config, data)
    device = accelerator.device
    teacher_net, teacher_facts = _teacher(config, data, train, teacher, out, resume, report)
    torch.manual_seed(config.seed)  # whatever the teacher drew, students of a seed start alike
    student_net = _student(config, data, student)
    rectify, objective = _method(config)
    taps = (*feature_paths(student_net), PENULTIMATE) if objective.reads_features else ()
    student_model = Taps(student_net, taps)
    objective.process_group = process_group()
    networks = [teacher_net, student_net]
    loader = _train_loader(config, config.train, train, networks, device)

    frozen: nn.Module = NoTeacher(data.num_classes)
    correction = None
    if teacher_net is not None:
        views = _train_loader(config, config.train, train, networks, device, whole=True)
        frozen, correction = _corrected(
            config, data, teacher_net, objective, views, val, device, teacher_facts, report
        )
    _set_up(objective, student_model, frozen, loader, train, device)

    test_loader = eval_loader(data.test, student_net, config.train, device, config.data.workers)
    torch.manual_seed(config.seed)
    last: list[Scores] = []

    def score(model: nn.Module) -> float:
        last[:] = [evaluate(model, test_loader)]
        return last[0].top1

    trainer = Trainer(
        student=student_model,
        teacher=frozen,
        rectify=rectify,
        objective=objective,
        loader=loader,
        config=config.train,
        evaluate=score,
        checkpoint=out / "checkpoint.pt" if out else None,
        run=fingerprint(config),
    )
    report.note(
        f"student {student_net.name} ({num_parameters(student_net):,} parameters), "
        f"{len(train):,} images, {config.train.epochs} epochs"
    )
    history = _fit(trainer, resume, report, "student")
    scores = last[0] if last else evaluate(student_model, test_loader)  # resumed after the last epoch
    best = max((r for r in history if r.top1 is not None), key=lambda r: r.top1 or 0.0)
    record: dict[str, Any] = {
        "teacher": _public(teacher_facts),
        "correction": None
        if correction is None
        else {**asdict(correction.report), "used": not correction.is_identity}
        if correction.report
        else None,
        "student": {
            "name": student_net.name,
            "parameters": num_parameters(student_net),
            "top1": scores.top1,
            "top5": scores.top5,
            "nll": scores.nll,
            "top1_best": best.top1,
            "epoch_best": best.epoch,
        },
        "epochs": [asdict(r) for r in history],
        "compared": _compared(data.test, teacher_facts, scores),
        "data": _data_facts(config, data, train, val),
        "config": config.model_dump(mode="json"),
        **provenance(device, started),
    }
    if out is not None and is_main():
        _write(out, record, student_net, data.test)
    report.event("result", teacher=record["teacher"].get("top1"), student=scores.top1, out=config.out)
    return record


def open_run_data(config: Config) -> ImageData:
    """The data of a run; there must be something to train on."""
    data = open_data(
        config.data.source, label=config.data.label, val_fraction=config.data.val_fraction, seed=config.seed
    )
    if data.train is None:
        raise ValueError(
            f"--data {config.data.source}: needs images to train on, got only images to evaluate; "
            "put them under train/<class>/."
        )
    return data


def eval_loader(
    split: Split, network: Network, train: TrainConfig, device: torch.device, workers: int
) -> Loader:
    """Images as ``network`` wants to be evaluated on them: its size, its crop, one centre view."""
    spec = network.input_spec
    # encoded photographs have many sizes and must be brought to one; decoded small images have one
    size = (spec.size or 224) if isinstance(split, FileSplit) else None
    return make_loader(
        split,
        # small on a CPU: activations that fit the allocator's pools are not mapped anew for every layer
        batch_size=train.batch_size if device.type == "cpu" else max(train.batch_size, 256),
        device=device,
        size=size,
        crop_pct=spec.crop_pct if size is not None else 1.0,
        interpolation=spec.interpolation,
        shuffle=False,
        num_workers=workers,
    )


def process_group() -> dist.ProcessGroup | None:
    """All processes of a distributed run; None in a run of one."""
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return dist.group.WORLD if several else None


def is_main() -> bool:
    """Whether this process writes files."""
    return process_group() is None or dist.get_rank() == 0


@dataclass
class _TeacherFacts:
    """What the record says of the teacher, and its scores on the test images for the comparison."""

    values: dict[str, Any]
    scores: Scores | None = None
    seen: bool = False
    """Whether it may have been trained on the training rows with these labels."""


def _rows(config: Config, data: ImageData) -> tuple[Split, Split | None]:
    """The student's training rows."""
    assert data.train is not None
    wanted = config.data.train_rows
    if wanted is None or wanted >= len(data.train):
        return data.train, data.val
    return data.train.subset(_shuffled(config, data.train)[:wanted]), data.val


def _shuffled(config: Config, split: Split) -> Tensor:
    return torch.randperm(len(split), generator=torch.Generator().manual_seed(config.seed))


def _network(name: str, module: nn.Module | None, num_classes: int) -> Network | None:
    """A module of the caller's own as a Network that sees plain [0, 1] images."""
    if module is None or isinstance(module, Network):
        return module
    plain = InputSpec(None, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return Network(module, name=name, num_classes=num_classes, input_spec=plain)


def _teacher(
    config: Config,
    data: ImageData,
    train: Split,
    module: nn.Module | None,
    out: Path | None,
    resume: bool,
    report: Reporter,
) -> tuple[Network | None, _TeacherFacts]:
    """The teacher network in whatever classes it has, and facts about it; None for no teacher."""
    facts = _TeacherFacts({})
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
    network = _network("teacher", module, data.num_classes)
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


def other_rows(config: Config, data: ImageData) -> Split:
    """The training rows that the student of ``config`` does not see."""
    assert data.train is not None
    wanted = config.data.train_rows
    if wanted is None or wanted >= len(data.train):
        raise ValueError(
            "teacher.rows=disjoint: needs rows that the student does not train on, got none; "
            "set data.train_rows to fewer than there are."
        )
    return data.train.subset(_shuffled(config, data.train)[wanted:])


def train_alone(
    config: Config,
    train: TrainConfig,
    rows: Split,
    data: ImageData,
    network: Network,
    *,
    out: Path | None = None,
    resume: bool = False,
    reporter: Reporter | None = None,
) -> list[EpochRecord]:
    """Train ``network`` on ``rows`` without a teacher, through the same loop."""
    device = make_accelerator(train).device
    test = eval_loader(data.test, network, train, device, config.data.workers)
    checkpoint = out / "teacher.pt" if out is not None else None
    trainer = Trainer(
        student=Taps(network),
        teacher=NoTeacher(data.num_classes),
        rectify=Rectifier("identity"),
        objective=Objective({}),
        loader=_train_loader(config, train, rows, [network], device),
        config=train,
        evaluate=lambda model: evaluate(model, test).top1,
        checkpoint=checkpoint,
        run=fingerprint(config),
    )
    return _fit(
        trainer, resume and checkpoint is not None and checkpoint.is_file(), reporter or Reporter(), "teacher"
    )


def _student(config: Config, data: ImageData, module: nn.Module | None) -> Network:
    network = _network("student", module, data.num_classes)
    if network is None:
        if not config.student.name:
            raise ValueError(
                "--student: needs a model such as cifar/resnet8 or timm/mobilenetv3_small_100, got none; "
                "`outgrow list models` has all names."
            )
        network = create_model(
            config.student.name,
            data.num_classes,
            pretrained=config.student.pretrained and config.student.weights is None,
            weights=config.student.weights,
            input_size=config.student.input_size,
        )
    if network.num_classes != data.num_classes:
        raise ValueError(
            f"--student {network.name}: needs {data.num_classes} classes, got {network.num_classes}; "
            "build it for the classes of the data."
        )
    network.classes = data.classes
    return network


def _method(config: Config) -> tuple[Rectifier, Objective]:
    method = config.method
    return preset(
        method.preset,
        temperature=method.temperature,
        loss=method.loss,
        rule=method.rule,
        schedule=method.schedule,
        weight=method.weight,
        task_weight=method.task_weight,
        normalize=method.normalize,
    )


def _train_loader(
    config: Config,
    train: TrainConfig,
    split: Split,
    networks: Sequence[Network | None],
    device: torch.device,
    *,
    whole: bool = False,
) -> Loader:
    """The training views: this process's share of them, or all for a pass that every process makes alike."""
    group = None if whole else process_group()
    wanted = [n.input_spec.size for n in networks if n is not None and n.input_spec.size is not None]
    size = config.data.size or (max(wanted, default=224) if isinstance(split, FileSplit) else None)
    return make_loader(
        split,
        batch_size=min(train.batch_size, len(split)),
        device=device,
        seed=config.seed,
        augment=Augment(**config.data.augment.model_dump()),
        size=size,
        shuffle=True,
        drop_last=True,
        num_workers=config.data.workers,
        rank=0 if group is None else dist.get_rank(group),
        world_size=1 if group is None else dist.get_world_size(group),
    )


def _corrected(
    config: Config,
    data: ImageData,
    network: Network,
    objective: Objective,
    loader: Loader,
    val: Split | None,
    device: torch.device,
    facts: _TeacherFacts,
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
    teacher: nn.Module = Teacher(network, taps=taps).to(device)
    if columns is not None and columns != list(range(network.num_classes)):
        report.note(
            f"teacher: {len(columns)} of its {network.num_classes} classes are the student's, by name"
        )
        teacher = SelectedClasses(teacher, columns).to(device)
    test = eval_loader(data.test, network, config.train, device, config.data.workers)
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


def _set_up(
    objective: Objective,
    student: Taps,
    teacher: nn.Module,
    loader: Loader,
    train: Split,
    device: torch.device,
) -> None:
    """Connectors and memories, from one dry run on a batch."""
    if not objective.reads_features:
        return
    batch = next(loader.epoch(0))
    student.to(device).eval()
    teacher.to(device)
    with torch.no_grad():
        student_out, teacher_out = student(batch.images), teacher(batch.images, index=batch.target.index)
    label = torch.full((loader.num_indices,), 0, dtype=torch.long)
    label[train.index] = train.labels
    objective.setup(student_out, teacher_out, num_samples=loader.num_indices, label=label)


def _fit(trainer: Trainer, resume: bool, report: Reporter, who: str) -> list[EpochRecord]:
    total = trainer.config.epochs * trainer.loader.num_samples

    with report.bar(who, total) as advance:
        trainer.on_step = lambda epoch, done: advance(epoch * trainer.loader.num_samples + done)
        trainer.on_epoch = lambda record: report.event("epoch", network=who, **asdict(record))
        return trainer.fit(resume=resume)


def _public(facts: _TeacherFacts) -> dict[str, Any]:
    return facts.values


def _compared(test: Split, facts: _TeacherFacts, student: Scores) -> dict[str, Any] | None:
    """Who is right where, and the first images that the teacher gets wrong and the student right."""
    if facts.scores is None:
        return None
    t, s = facts.scores.right, student.right
    only_student = (~t & s).nonzero()[:, 0]
    return {
        "both_right": int((t & s).sum()),
        "only_teacher": int((t & ~s).sum()),
        "only_student": len(only_student),
        "neither": int((~t & ~s).sum()),
        "examples": [
            {
                "position": i,
                "label": int(test.labels[i]),
                "teacher": int(facts.scores.predicted[i]),
                "student": int(student.predicted[i]),
            }
            for i in only_student[:NUM_EXAMPLES].tolist()
        ],
    }


def _data_facts(config: Config, data: ImageData, train: Split, val: Split | None) -> dict[str, Any]:
    return {
        "source": config.data.source,
        "fingerprint": data.fingerprint,
        "classes": list(data.classes),
        "train": len(train),
        "val": 0 if val is None else len(val),
        "test": len(data.test),
    }


def _write(out: Path, record: dict[str, Any], student: Network, test: Split) -> None:
    from outgrow.report.curves import draw_curves
    from outgrow.report.run_page import write_run_page

    save_student(student, out / "student.safetensors")
    draw_curves(record, out / "curves.png")
    write_run_page(out / "index.html", record, test)
    # last: a folder with a record is a finished run
    (out / "record.json").write_text(json.dumps(record, indent=1))
