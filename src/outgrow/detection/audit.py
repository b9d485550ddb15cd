"""The audit of a detector: COCO's numbers on held-out images, and the rows that it gets wrong in training.

The test images are not used.
"""

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from outgrow.detection.boxes import BACKGROUND, Truth
from outgrow.detection.data import DetectionSplit
from outgrow.detection.evaluation import evaluate_detector
from outgrow.detection.families.detector import FrozenDetector
from outgrow.detection.lesson import target_of
from outgrow.detection.loader import make_scene_loader
from outgrow.detection.page import COUNTS, NUMBERS, percent
from outgrow.detection.record import errors_by_class, numbers_of
from outgrow.detection.run_data import RunScenes, open_run_scenes
from outgrow.detection.scores import check_installed
from outgrow.detection.task import FEW, TASK
from outgrow.detection.teacher import make_teacher
from outgrow.models import num_parameters
from outgrow.report.parts import Section
from outgrow.training.audit import (
    Audited,
    AuditedTeacher,
    Counted,
    DetectorAudit,
    Options,
    Verdict,
    rule_effects,
)
from outgrow.training.config import Config
from outgrow.training.record import ErrorsRecord
from outgrow.training.task import RunContext

HELD_OUT = 0.2
"""Share of the training images that is held out if the source has no validation images."""
PROPOSED = 100
"""Most training images whose proposals are classified."""
USELESS = 1.0
"""Box AP in percent below which a detector finds next to nothing."""
NO_ERRORS = 99.0
"""Accuracy on the rows on objects from which on rules have nothing to correct, in percent."""


def audit(run: RunContext, rows: int, options: Options, module: nn.Module | None = None) -> Audited:
    """The audit of the detector of ``run.config``, or of ``module``, on at most ``rows`` images of each kind."""
    check_installed()
    config = run.config
    method = config.method.model_copy(update={"preset": "kd"})
    run = RunContext(config.model_copy(update={"method": method}), run.device, run.report, run.out)
    data = open_run_scenes(run.config)
    if module is None and config.teacher.name and not (config.teacher.weights or config.teacher.pretrained):
        raise ValueError(
            f"--teacher {config.teacher.name}: needs weights, got none; give --teacher-weights FILE, or "
            "--set teacher.pretrained=true for published ones."
        )
    detector = make_teacher(run, data, module)
    assert detector is not None  # the method has a teacher
    teacher = FrozenDetector(detector, data.classes).to(run.device)
    train, held_out, origin, note = choose_images(data, rows, config.seed)

    with run.report.bar("teacher on held-out images", len(held_out)) as advance:
        found = evaluate_detector(
            teacher, data.source, held_out, run.device, workers=config.data.workers, advance=advance
        )
    logits, label = _rows(run, teacher, train)
    objects, background = label > BACKGROUND, label == BACKGROUND
    numbers = DetectorAudit(
        held_out_from=origin,
        pictures=len(held_out),
        numbers=numbers_of(found.scores),
        errors=tuple(
            ErrorsRecord.model_validate(line)
            for line in errors_by_class(replace(data, source=replace(data.source, test=held_out)), found)
        ),
        objects=_counted(logits, label, objects),
        background=_counted(logits, label, background),
        rules=rule_effects(logits[objects], label[objects]) if bool(objects.any()) else (),
    )
    return Audited(
        verdicts=_verdicts(numbers, len(data.train), config, options),
        teacher=AuditedTeacher(
            name=detector.name,
            parameters=num_parameters(detector),
            weights=config.teacher.weights or ("published" if config.teacher.pretrained else "own"),
            classes=len(detector.classes),
            matched="by name",
            sees="images of any size",
        ),
        data=TASK.data_record(run, data, None),
        notes=tuple(text for text in (note, _few(held_out)) if text),
        numbers=numbers,
        section=_section(numbers),
        summary=_summary(numbers),
    )


def choose_images(data: RunScenes, rows: int, seed: int) -> tuple[DetectionSplit, DetectionSplit, str, str]:
    """Training images, held-out images, where the latter are from, and a note. ``ValueError`` for too few images."""
    generator = torch.Generator().manual_seed(seed)
    train, held_out, origin, note = data.train, data.val, "validation", ""
    if held_out is None:
        if len(train) < 2:
            raise ValueError(
                f"audit: needs two training images or more, to hold one out, got {len(train)}; add images."
            )
        order = torch.randperm(len(train), generator=generator)
        count = max(1, int(len(train) * HELD_OUT))
        train, held_out = train.subset(order[count:]), train.subset(order[:count])
        origin = "training"
        note = (
            f"The source has no validation images: {HELD_OUT:.0%} of the training images were held out. The test images were "
            "not used. A teacher that was trained on all training images looks better here than it is."
        )

    def some_of(split: DetectionSplit, most: int) -> DetectionSplit:
        return split.subset(torch.randperm(len(split), generator=generator)[:most].sort().values)

    return some_of(train, min(rows, PROPOSED)), some_of(held_out, rows), origin, note


def _few(held_out: DetectionSplit) -> str:
    return f"Only {len(held_out)} held-out images: AP on them is rough." if len(held_out) < 100 else ""


@torch.no_grad()
def _rows(run: RunContext, teacher: FrozenDetector, split: DetectionSplit) -> tuple[Tensor, Tensor]:
    """Logits and labels of the teacher's own rows, chosen as in training."""
    proposer = copy.deepcopy(teacher.detector).train()
    for part in proposer.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()  # its statistics are those of its training
    back = torch.zeros(teacher.detector.num_classes, dtype=torch.long, device=run.device)
    back[teacher.columns] = torch.arange(len(teacher.columns), device=run.device)
    loader = make_scene_loader(
        split, batch_size=1, device=run.device, shuffle=False, num_workers=run.config.data.workers
    )
    logits, label, done = [], [], 0
    with (
        torch.random.fork_rng(devices=[]),
        run.report.bar("teacher on the proposals of training images", len(split)) as advance,
    ):
        torch.manual_seed(run.config.seed)
        for scenes in loader.epoch(0):
            own = [Truth(t.boxes, teacher.columns[t.label], t.crowd, t.index) for t in scenes.truth]
            proposals = proposer(scenes.images, own).proposals
            proposals = proposals.in_classes(back)
            logits.append(teacher(scenes.images, proposals).logits.float().cpu())
            label.append(target_of(proposals, scenes.truth).label.cpu())
            done += 1
            advance(done)
    return torch.cat(logits), torch.cat(label)


def _counted(logits: Tensor, label: Tensor, where: Tensor) -> Counted | None:
    rows = int(where.sum())
    return Counted.of(int((logits.argmax(1) == label)[where].sum()), rows) if rows else None


def _verdicts(
    numbers: DetectorAudit, annotated: int, config: Config, options: Options
) -> tuple[Verdict, ...]:
    """The first one is the one to act on. A teacher that finds nothing has nothing to say of more pictures."""
    main = _verdict(numbers, config, options)
    if main.kind == "below_majority" or annotated > FEW or config.data.unlabelled is not None:
        return (main,)
    few = Verdict(
        kind="few_labels",
        text="All pictures have annotations, and they are few: the teacher can only tell you about pictures whose boxes you drew.",
        reason=f"{annotated:,} pictures to train on. More of the same kind, even without annotations, let the teacher say something "
        "new.",
        command=f"outgrow distill {options(config)}{_student(config)} --preset kd --unlabelled SRC --out runs/first",
    )
    return main, few


def _student(config: Config) -> str:
    return "" if config.student.name else " --student fasterrcnn:BACKBONE"


def _verdict(numbers: DetectorAudit, config: Config, options: Options) -> Verdict:
    ap = max(numbers.numbers.get("ap") or 0.0, 0.0)
    student = _student(config)
    best = f"box AP {ap:.1f} on {numbers.pictures:,} held-out images"
    if ap < USELESS:
        alone = options(config.model_copy(update={"teacher": type(config.teacher)()}))
        return Verdict(
            kind="below_majority",
            text=f"The teacher finds next to nothing: {best}.",
            reason="Check its weights, its classes and the input size. A student is better without it.",
            command=f"outgrow distill {alone}{student} --preset none --out runs/alone",
        )
    if numbers.objects is not None and numbers.objects.accuracy >= NO_ERRORS:
        return Verdict(
            kind="nothing_to_correct",
            text=f"Right on {numbers.objects.accuracy:.1f} % of the rows on objects: no rule for rows can matter here.",
            reason=f"The teacher has {best}. A rule only changes rows that the teacher gets wrong. What can matter is the weight of "
            "the distillation term.",
            command=f"outgrow distill {options(config)}{student} --preset kd --out runs/first",
        )
    wrong = (
        "no row on an object"
        if numbers.objects is None
        else f"{100 - numbers.objects.accuracy:.1f} % of the rows on objects"
    )
    return Verdict(
        kind="usable",
        text=f"The teacher has {best}, and is wrong on {wrong}.",
        reason="Rules have rows to work on. Whether they help, and whether a student needs this teacher, only a comparison shows.",
        command=f"outgrow compare {options(config)}{student} --methods none,kd --rules pair --seeds 3 --out runs/compare",
    )


def _section(numbers: DetectorAudit) -> Section:
    context = {
        "numbers": numbers,
        "coco": [(NUMBERS.get(key, key), percent(value)) for key, value in numbers.numbers.items()],
        "counts": tuple(COUNTS.values()),
        "errors": [
            (line.name, tuple(getattr(line, count) for count in COUNTS), percent(line.ap))
            for line in numbers.errors
        ],
        "temperatures": [one.temperature for one in numbers.rules[0].at] if numbers.rules else [],
    }
    return Section("outgrow.detection/audit.html", context)


def _summary(numbers: DetectorAudit) -> tuple[str, ...]:
    ap, ap50 = (percent(numbers.numbers.get(key)) for key in ("ap", "ap50"))
    lines = [f"held-out images: box AP {ap}, AP50 {ap50} on {numbers.pictures:,}"]
    for name, one in (("objects", numbers.objects), ("background", numbers.background)):
        if one is not None:
            lines.append(f"rows on {name} of training images: right on {one}")
    return tuple(lines)
