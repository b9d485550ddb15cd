"""One run from a configuration to a record: the assembly line, in the order of the data flow.

    data -> teacher -> its bias -> student -> objective -> trainer -> record

:mod:`outgrow.classification.prepare` and :mod:`outgrow.classification.teaching` hold the steps.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from outgrow.classification.prepare import (
    eval_loader,
    fit,
    is_main,
    method_of,
    open_run_data,
    process_group,
    set_up,
    student_network,
    train_loader,
    training_rows,
)
from outgrow.classification.scores import Scores, evaluate, num_parameters
from outgrow.classification.teaching import TeacherFacts, cached_teacher, corrected_teacher, make_teacher
from outgrow.data import ImageData, Split
from outgrow.machine.precision import settle
from outgrow.models import Network, save_student
from outgrow.models.structure import feature_paths
from outgrow.models.taps import PENULTIMATE, Taps
from outgrow.objective import Objective
from outgrow.teacher import NoTeacher
from outgrow.teacher.cache import CachedTeacher
from outgrow.training.checkpoint import fingerprint
from outgrow.training.config import Config, build_config
from outgrow.training.progress import Reporter
from outgrow.training.provenance import provenance
from outgrow.training.trainer import Trainer, make_accelerator

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

    ``config`` is a :class:`outgrow.training.config.Config` or a mapping of the fields that differ from the
    defaults. ``teacher`` and ``student`` may be modules of one's own (RGB images in [0, 1] to logits) in
    place of the names in it; they are moved to the device and, the student, trained in place. With
    ``config.out`` the run folder is written: ``config.yaml``, ``record.json``, ``student.safetensors``,
    ``curves.png``, and a checkpoint that ``resume`` goes on from.

    ``ValueError`` for what does not fit together; :class:`outgrow.training.trainer.NonFiniteLoss` if training
    diverges.
    """
    config = settle(config if isinstance(config, Config) else build_config(config or {}))
    if config.data.source.startswith("coco:"):
        from outgrow.detection.run import distill_detector

        return distill_detector(config, teacher=teacher, student=student, resume=resume, reporter=reporter)
    accelerator = make_accelerator(config.train)
    report = (reporter if is_main() else None) or Reporter()
    started = time.time()
    torch.manual_seed(config.seed)
    out = Path(config.out) if config.out else None
    if out is not None and is_main():
        out.mkdir(parents=True, exist_ok=True)
        (out / "config.yaml").write_text(config.to_yaml())

    data = open_run_data(config)
    train, val = training_rows(config, data)
    device = accelerator.device
    teacher_net, teacher_facts = make_teacher(config, data, train, teacher, out, resume, report)
    torch.manual_seed(config.seed)  # whatever the teacher drew, students of a seed start alike
    student_net = student_network(config, data, student)
    rectify, objective = method_of(config)
    for name, reason in objective.inert_under(rectify.rule).items():
        report.note(
            f"warning: the rule {rectify.rule.name!r} changes nothing for the loss {name!r}: {reason}"
        )
    student_model = tapped(student_net, objective)
    objective.process_group = process_group()
    networks = [teacher_net, student_net]
    loader = train_loader(config, config.train, train, networks, device)

    frozen: nn.Module = NoTeacher(data.num_classes)
    correction = None
    if teacher_net is not None:
        views = train_loader(config, config.train, train, networks, device, whole=True)
        frozen, correction = corrected_teacher(
            config, data, teacher_net, objective, views, val, device, teacher_facts, report
        )
    set_up(objective, student_model, frozen, loader, train, device)
    if teacher_net is not None:
        epochs = config.train.epochs
        frozen = cached_teacher(
            config, data, frozen, objective, loader, networks, epochs=epochs, report=report
        )

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
    history = fit(trainer, resume, report, "student")
    scores = last[0] if last else evaluate(student_model, test_loader)  # resumed after the last epoch
    best = max((r for r in history if r.score is not None), key=lambda r: r.score or 0.0)
    record: dict[str, Any] = {
        "metric": "top1",
        "teacher": teacher_facts.values,
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
            "top1_best": best.score,
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
    report.event(
        "result", teacher=record["teacher"].get("top1"), student=scores.top1, metric="top1", out=config.out
    )
    return record


def fill_cache(
    config: Config,
    *,
    epochs: int,
    teacher: nn.Module | None = None,
    student: nn.Module | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Ask the teacher of ``config`` about the views of its first epochs and keep what it says.

    Runs that share teacher, data, views and seed then read it. Its features are kept where
    ``config.teacher.cache_features`` asks for them and the losses read some. Epochs that are there stay as
    they are, so an interrupted filling goes on where it was. ``student`` as for :func:`distill`: which of
    the teacher's taps are compared depends on it. Returns ``folder``, ``epochs``, ``bytes``.
    """
    if config.teacher.cache is None:
        raise ValueError("cache: needs a folder, got none; give --out DIR, or --set teacher.cache=DIR.")
    config, report = settle(config), reporter or Reporter()
    torch.manual_seed(config.seed)
    data = open_run_data(config)
    train, val = training_rows(config, data)
    accelerator = make_accelerator(config.train)
    device = accelerator.device
    network, facts = make_teacher(config, data, train, teacher, None, False, report)
    if network is None:
        raise ValueError("cache: needs a teacher, got none; give --teacher MODEL.")
    _, objective = method_of(config)
    student_net = student_network(config, data, student)
    networks = [network, student_net]
    loader = train_loader(config, config.train, train, networks, device, whole=True)
    frozen, _ = corrected_teacher(config, data, network, objective, loader, val, device, facts, report)
    set_up(objective, tapped(student_net, objective), frozen, loader, train, device)
    cached = cached_teacher(config, data, frozen, objective, loader, networks, epochs=epochs, report=report)
    assert isinstance(cached, CachedTeacher)
    size = cached.cache.bytes_per_epoch()
    with report.bar("teacher", epochs * loader.num_samples) as advance:
        done = 0
        for epoch in range(epochs):
            cached.at(epoch)
            for batch in loader.epoch(epoch):
                with accelerator.autocast():  # as the trainer asks
                    cached(batch.images, index=batch.target.index)
                done += len(batch.images)
                advance(done)
        cached.at(None)
    return {"folder": str(cached.cache.folder), "epochs": epochs, "bytes": epochs * size}


def tapped(student: Network, objective: Objective) -> Taps:
    """``student`` with the features in its outputs that losses may ask for, where one reads features."""
    return Taps(student, (*feature_paths(student), PENULTIMATE) if objective.reads_features else ())


def _compared(test: Split, facts: TeacherFacts, student: Scores) -> dict[str, Any] | None:
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
