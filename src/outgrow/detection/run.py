"""One detection run from a configuration to a record, in the order of the data flow.

scenes -> teacher -> student -> objective -> trainer -> record, tables, pictures
"""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from outgrow.classification.prepare import fit, is_main, method_of, process_group
from outgrow.classification.scores import num_parameters
from outgrow.detection.create import create_detector, save_detector
from outgrow.detection.data import open_coco
from outgrow.detection.detector import Detector, FrozenDetector
from outgrow.detection.lesson import Balanced, Detect
from outgrow.detection.prepare import (
    Found,
    check_losses,
    evaluate_detector,
    frozen_teacher,
    open_run_scenes,
    say_what_is_ignored,
    set_up_detection,
    student_detector,
    teacher_detector,
    train_scenes,
)
from outgrow.detection.record import (
    data_facts,
    detection_facts,
    draw,
    network_facts,
    numbers_of,
    student_facts,
)
from outgrow.detection.scores import check_installed
from outgrow.training.checkpoint import fingerprint
from outgrow.training.config import Config, TrainConfig
from outgrow.training.progress import Reporter
from outgrow.training.provenance import provenance
from outgrow.training.trainer import Trainer, make_accelerator


def distill_detector(
    config: Config,
    *,
    teacher: nn.Module | None = None,
    student: nn.Module | None = None,
    resume: bool = False,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """:func:`outgrow.run.distill` for ``coco:`` data: the same configuration, record and run folder.

    The record's measure is ``ap``, box AP in percent on the test pictures.
    """
    accelerator = make_accelerator(config.train)
    report = (reporter if is_main() else None) or Reporter()
    started = time.time()
    torch.manual_seed(config.seed)
    out = Path(config.out) if config.out else None
    if out is not None and is_main():
        out.mkdir(parents=True, exist_ok=True)
        (out / "config.yaml").write_text(config.to_yaml())
    device, workers = accelerator.device, config.data.workers
    check_installed()
    data, train = open_run_scenes(config)
    say_what_is_ignored(config, report)
    rectify, objective = method_of(config)
    check_losses(objective)
    for name, reason in objective.inert_under(rectify.rule).items():
        report.note(
            f"warning: the rule {rectify.rule.name!r} changes nothing for the loss {name!r}: {reason}"
        )

    # before the teacher, whose training may take hours: what is wrong with the student is said at once
    torch.manual_seed(config.seed)
    pupil = student_detector(config, data, student)
    taught = teacher_detector(config, data, train, teacher, out, resume, report)
    torch.manual_seed(config.seed)
    frozen = frozen_teacher(data, taught).to(device)
    objective.process_group = process_group()
    loader = train_scenes(config, config.train, train, device)
    set_up_detection(objective, pupil, frozen, loader, device)

    shown = data.val or data.test
    before = None if out is None else evaluate_detector(pupil, data, shown, device, workers=workers)
    by_teacher = None
    if isinstance(frozen, FrozenDetector):
        with report.bar("teacher on the test pictures", len(data.test)) as advance:
            by_teacher = evaluate_detector(frozen, data, data.test, device, workers=workers, advance=advance)
        report.note(
            f"teacher {frozen.detector.name}: box AP {by_teacher.ap:.2f} on {len(data.test):,} pictures"
        )
    torch.manual_seed(config.seed)
    last: list[Found] = []

    def score(model: nn.Module) -> float:
        last[:] = [evaluate_detector(model, data, data.test, device, workers=workers)]
        return last[0].ap

    trainer = Trainer(
        student=pupil,
        teacher=frozen,
        rectify=Balanced(rectify),
        objective=objective,
        loader=loader,
        config=config.train,
        ask=Detect(),
        evaluate=score,
        checkpoint=out / "checkpoint.pt" if out else None,
        run=fingerprint(config),
    )
    report.note(
        f"student {pupil.name} ({num_parameters(pupil):,} parameters), {len(train):,} pictures, "
        f"{config.train.epochs} epochs"
    )
    history = fit(trainer, resume, report, "student", metric="ap")
    if not last:  # resumed after the last epoch
        score(pupil)
    found = last[0]
    record: dict[str, Any] = {
        "metric": "ap",
        "teacher": {} if taught is None or by_teacher is None else network_facts(config, taught, by_teacher),
        "correction": None,
        "student": student_facts(pupil, found, history),
        "epochs": [asdict(r) for r in history],
        "compared": None,
        "detection": detection_facts(data, found, by_teacher),
        "data": data_facts(config, data, train),
        "config": config.model_dump(mode="json"),
        **provenance(device, started),
    }
    if out is not None and before is not None and is_main():
        columns = {"student before": before, "student after": found}
        if by_teacher is not None:
            columns = {"teacher": by_teacher, **columns}
        if shown is not data.test:  # what was found there is known already
            columns["student after"] = evaluate_detector(pupil, data, shown, device, workers=workers)
            if by_teacher is not None:
                columns["teacher"] = evaluate_detector(frozen, data, shown, device, workers=workers)
        record["detection"]["pictures"] = draw(out, data, shown, columns)
        _write(out, record, pupil)
    report.event("result", teacher=record["teacher"].get("ap"), student=found.ap, metric="ap", out=config.out)
    return record


def evaluate_detection(
    source: str,
    name: str,
    *,
    weights: str | Path | None = None,
    workers: int = 2,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """COCO's numbers of a detector on the test pictures of ``source``, per class too.

    Without ``weights`` the published ones are asked for. ``ValueError`` where its classes are not the data's.
    """
    report = reporter or Reporter()
    data = open_coco(source)
    detector = create_detector(name, weights=weights, pretrained=weights is None)
    device = make_accelerator(TrainConfig()).device
    frozen = FrozenDetector(detector, data.classes)
    with report.bar(f"{name} on the test pictures", len(data.test)) as advance:
        found = evaluate_detector(frozen, data, data.test, device, workers=workers, advance=advance)
    result = {
        "model": detector.name,
        "weights": None if weights is None else str(weights),
        "data": source,
        "metric": "ap",
        "images": len(data.test),
        "parameters": num_parameters(detector),
        **numbers_of(found),
        "per_class": found.scores.per_class,
    }
    report.event("result", **result)
    return result


def _write(out: Path, record: dict[str, Any], student: Detector) -> None:
    from outgrow.report.curves import draw_curves
    from outgrow.report.run_page import write_run_page

    save_detector(student, out / "student.safetensors")
    draw_curves(record, out / "curves.png")
    write_run_page(out / "index.html", record, None)
    # last: a folder with a record is a finished run
    (out / "record.json").write_text(json.dumps(record, indent=1))
