"""The teacher of a classification run, step by step.

make_teacher        a network with weights and its own classes; trained first if configured
freeze_teacher      frozen, with the classes of the student, its bias corrected if that helps out of fold; several mixed
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, cast

import torch
from torch import nn

from outgrow.classification.augmentation import advice, cost_text, costs_much, look_at_augmented
from outgrow.classification.correction import fit_correction, noise_record, say_what_is_learnt
from outgrow.classification.data import RunData, check_takes, eval_loader, teacher_views
from outgrow.classification.mixture import mixed
from outgrow.classification.names import in_data_classes, match_teacher
from outgrow.classification.order import check_order
from outgrow.classification.scores import Scores, evaluate
from outgrow.classification.student import as_network, train_alone
from outgrow.classification.views import averaged, check_views
from outgrow.data import Loader
from outgrow.data.classes import Match
from outgrow.models import Network, create_model, feature_paths, num_parameters, save_student
from outgrow.models.network import resized
from outgrow.models.structure import has_head
from outgrow.models.taps import PENULTIMATE
from outgrow.objective import PRESETS, Objective
from outgrow.spec import lookup
from outgrow.teacher import (
    BaseTeacher,
    CorrectedTeacher,
    NoTeacher,
    Teacher,
)
from outgrow.teacher.inference import InPrecision, compiled, fold_norms
from outgrow.training.config import Config, ModelConfig
from outgrow.training.noise import wanted_noise
from outgrow.training.processes import is_main
from outgrow.training.record import AugmentedRecord, CorrectionRecord, TeacherRecord
from outgrow.training.task import RunContext, Taught

FOLD_IMAGES = 16
"""Number of test images on which a folded teacher is checked. A wrong fold shows on any image."""


def check_teachers(config: Config, objective: Objective) -> None:
    """``ValueError`` for what several teachers cannot do, and what wrong labels need."""
    options = config.teacher
    if config.method.preset != "none":
        check_views(config, objective)
    if wanted_noise(config.method) != "none" and options.correct == "never":
        raise ValueError(
            "posterior: needs a teacher whose bias is corrected together with the noise of the labels, got --correct-teacher "
            "never; leave that out, or choose another rule and method.task=label."
        )
    if not options.others or config.method.preset == "none":
        return
    if options.train:
        raise ValueError(
            "teacher.others: needs teachers that are there, got one that is to be trained (teacher.train); train it first, and "
            "give its file: --teacher-weights RUN/teacher.safetensors."
        )
    for number, other in enumerate(options.others):
        if other.name in ("", "none"):
            raise ValueError(
                f"teacher.others[{number}]: needs the name of a model, got {other.name or 'none'!r}; give it beside the weights: "
                "[{name: timm/resnet50, weights: FILE}]."
            )
    if objective.reads_features:
        raise ValueError(
            "teacher.others: needs losses that read only logits, got an objective that reads the features of one teacher; "
            "choose losses such as kd or dkd, or one teacher."
        )


def make_teacher(run: RunContext, data: RunData, module: nn.Module | None) -> Network | None:
    """The teacher network with its own classes; None for no teacher. ``ValueError`` if it has no weights."""
    config, options = run.config, run.config.teacher
    if options.name in ("", "none") and module is None and config.method.preset != "none":
        raise ValueError(
            "--teacher: needs a model such as timm/resnet50 or cifar/resnet56, got none; "
            "`--preset none` trains the student alone."
        )
    if config.method.preset == "none":
        return None
    network = as_network("teacher", module, data.num_classes, options)
    if network is not None:
        return network
    network = untrained_teacher(run.config, data) if options.train else _with_weights(options, "--teacher")
    for note in network.notes:
        run.report.note(f"teacher: {note}")
    if options.train:
        _train(run, data, network)
    return network


def untrained_teacher(config: Config, data: RunData) -> Network:
    """The initial network of a teacher that is trained here."""
    return _network(config.teacher, data)


def _with_weights(options: ModelConfig, who: str) -> Network:
    """The configured teacher, with weights from a file or published ones. ``who`` names it in an error."""
    own = options.name.startswith(("hf/", "py:"))
    network = _network(options) if options.weights or options.pretrained or own else None
    if network is None or network.weights is None:
        got = "none" if network is None else "only a config.json"
        ways = (
            "give --teacher-weights FILE, or --train-teacher to train it first, or --set teacher.pretrained=true for "
            "published ones."
            if who == "--teacher"
            else "add `weights: FILE`, or `pretrained: true` for published ones."
        )
        raise ValueError(f"{who} {options.name}: needs weights, got {got}; {ways}")
    return network


def _network(options: ModelConfig, data: RunData | None = None) -> Network:
    """The configured network, with a head for the classes of ``data`` if given."""
    return create_model(
        options.name,
        pretrained=options.pretrained and options.weights is None,
        weights=options.weights,
        input_size=options.input_size,
        mean=options.mean,
        std=options.std,
        classes=None if data is None else data.classes,
        aliases=None if data is None else data.aliases,
    )


def _train(run: RunContext, data: RunData, network: Network) -> None:
    """Train the teacher alone, on the rows of the student or on the others."""
    rows = data.train
    if run.config.teacher.rows == "disjoint":
        if data.others is None:
            raise ValueError(
                "teacher.rows=disjoint: needs rows that the student does not train on, got none; "
                "set data.train_rows to fewer than the data have."
            )
        rows = data.others
    run.report.note(f"teacher {network.name} ({num_parameters(network):,} parameters), {len(rows):,} images")
    train_alone(run.config, rows, data, network, out=run.out, resume=run.resume, reporter=run.report)
    network.classes = data.classes
    if run.out is not None and is_main():
        save_student(network, run.out / "teacher.safetensors")


def freeze_teacher(
    run: RunContext, data: RunData, network: Network | None, student: Network, objective: Objective
) -> Taught:
    """The teacher for the student: frozen, with the classes of the student, scored, corrected; of several, their mean."""
    if network is None:
        return Taught(NoTeacher(data.num_classes))
    views = teacher_views(run.config, data.train, [network, student], run.device)
    others = other_teachers(run, student)  # before anything is computed: a file may be missing
    taught = _frozen(run, data, network, views, objective, [network, student])
    if others:
        rest = [
            _frozen(run, data, other, views, objective, [network, student], number)
            for number, other in enumerate(others, start=2)
        ]
        taught = mixed(run, data, [taught, *rest], views, eval_loader_of(run, data, network))
    say_what_is_learnt(run, taught)
    return taught


def other_teachers(run: RunContext, student: Network) -> list[Network]:
    """The networks of ``teacher.others``, with the input size of the student if they have none."""
    found = []
    for number, options in enumerate(run.config.teacher.others, start=2):
        network = _with_weights(options, f"teacher.others[{number - 2}]")
        for note in network.notes:
            run.report.note(f"teacher {number}: {note}")
        if network.input_spec.size is None and student.input_spec.size is not None:
            resized(network, student.input_spec.size)
        found.append(network)
    return found


def eval_loader_of(run: RunContext, data: RunData, network: Network) -> Loader:
    """The test images as ``network`` sees them."""
    return eval_loader(data.test, network, run.config.train, run.device, run.config.data.workers)


def _frozen(
    run: RunContext,
    data: RunData,
    network: Network,
    views: Loader,
    objective: Objective,
    viewers: Sequence[Network],
    number: int = 1,
) -> Taught:
    """One teacher. ``viewers`` are the networks for which ``views`` were made; ``number`` counts the teachers, in notes and in
    the names of files."""
    config = run.config
    corrects = config.teacher.correct == "always" or (
        config.teacher.correct == "auto"
        and (
            lookup(PRESETS, config.method.preset, kind="preset").correct_teacher
            or wanted_noise(config.method) != "none"
        )
    )
    match = match_teacher(network, data)
    foreign = match.foreign
    if foreign and config.teacher.correct == "never":
        raise ValueError(_foreign(network, data, match))
    _note_of_classes(run, network, match)
    check_takes(network, data.test, channels_last=config.train.channels_last)
    test = eval_loader_of(run, data, network)
    teacher = _inference(
        run, network.to(run.device), taps_read(network, objective, corrects or foreign), test, views
    )
    facts = _facts(config, network, number)
    scores, augmented = None, None
    if not foreign:
        if match.columns != tuple(range(network.num_classes)):
            teacher = in_data_classes(teacher, match).to(run.device)
        scores = _score(run, teacher, test, data, network)
        if match.how == "position":
            check_order(scores.predicted, data.test.labels, data.classes, who=f"--teacher {network.name}")
        facts |= _numbers(scores)
        augmented = facts["augmented"] = _augmented(run, teacher, data, scores, viewers)
    if config.teacher.views > 1:
        teacher = averaged(run, data, teacher, [network, *viewers], views)
    if not (corrects or foreign):
        return Taught(teacher, TeacherRecord(**facts), scores=scores)
    name = "correction" if number == 1 else f"correction-{number}"
    knows = augmented is None or not costs_much(augmented)
    correction, fitted = fit_correction(
        run, data, teacher, network, views, foreign=foreign, knows_views=knows, name=name
    )
    facts |= fitted
    corrected = CorrectedTeacher(teacher, correction)
    if foreign or not correction.is_identity:
        after = evaluate(corrected, test)
        facts["top1_corrected"] = after.top1
        how = "corrected" if has_head(network) else "with the linear probe"
        run.report.note(f"teacher, {how}: top-1 {after.top1:.2f} % on the test images")
        if foreign:
            scores = after
            facts |= _numbers(after)
            facts["augmented"] = _augmented(run, corrected, data, after, viewers)
    assert correction.report is not None
    report = CorrectionRecord(**asdict(correction.report), used=not correction.is_identity)
    matrix = correction.noise_matrix if len(correction.noise_matrix) else None
    return Taught(
        corrected,
        TeacherRecord(**facts),
        report,
        scores,
        noise=matrix,
        noise_record=noise_record(correction, config.method),
    )


def taps_read(network: Network, objective: Objective, fits: bool = False) -> tuple[str, ...]:
    """The activations of the teacher that the losses and the correction read."""
    if objective.reads_features:
        return (*feature_paths(network), PENULTIMATE)
    return (PENULTIMATE,) if fits else ()


def _facts(config: Config, network: Network, number: int) -> dict[str, Any]:
    options = config.teacher if number == 1 else config.teacher.others[number - 2]
    trained = number == 1 and config.teacher.train
    return {
        "name": network.name,
        "parameters": num_parameters(network),
        "weights": options.weights
        or ("trained here" if trained else "published" if options.pretrained else "own"),
        "classes": network.num_classes,
    }


def _numbers(scores: Scores) -> dict[str, float | None]:
    return {"top1": scores.top1, "top5": scores.top5, "nll": scores.nll}


def _inference(
    run: RunContext, network: Network, taps: Sequence[str], test: Loader, views: Loader
) -> BaseTeacher:
    """The network as a teacher, folded and compiled as configured. Notes report what was done."""
    config, options, report = run.config, run.config.teacher, run.report
    net = cast(nn.Module, network)
    if options.fold:
        images = next(iter(test.epoch(0))).images[:FOLD_IMAGES]
        net, note = fold_norms(network, images, taps=taps)
        report.note(f"teacher: {note}")
    frozen = Teacher(net, taps=taps)
    teacher: BaseTeacher = frozen
    precision = config.train.precision if options.precision == "as_student" else options.precision
    if options.compile:
        images = next(iter(views.epoch(0))).images
        if config.train.channels_last:
            frozen.to(memory_format=torch.channels_last)
            images = images.contiguous(memory_format=torch.channels_last)
        report.note("teacher: compiling, which can take minutes ...")
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
        with torch.autocast(images.device.type, half, enabled=half is not None):
            teacher, note = compiled(frozen, images)
        report.note(f"teacher: {note}")
    return teacher if options.precision == "as_student" else InPrecision(teacher, options.precision)


def _note_of_classes(run: RunContext, network: Network, match: Match) -> None:
    """Note how the teacher's classes were matched, unless names and order are the same."""
    if not has_head(network):
        run.report.note(
            "teacher: it has no classifier; a linear probe of its features is fitted on the labels, and each training image is "
            "judged by a probe that has not seen its label"
        )
    elif match.foreign:
        run.report.note(
            f"teacher: it has other classes; a map to the student's is fitted on the labels: {match.note}"
        )
    elif match.how == "position":
        run.report.note(f"warning: teacher {network.name}: its classes are matched {match.note}")
    elif match.how == "map":
        run.report.note(f"teacher: classes {match.note}")
    elif match.how == "spelling" or match.columns != tuple(range(network.num_classes)):
        run.report.note(
            f"teacher: {len(match.places)} of its {network.num_classes} classes are the student's, {match.note}"
        )


def _score(run: RunContext, teacher: BaseTeacher, test: Loader, data: RunData, network: Network) -> Scores:
    with run.report.bar("teacher on the test images", len(data.test)) as advance:
        scores = evaluate(teacher, test, progress=advance)
    run.report.note(f"teacher {network.name}: top-1 {scores.top1:.2f} % on {len(data.test):,} test images")
    return scores


def _augmented(
    run: RunContext, teacher: BaseTeacher, data: RunData, scores: Scores, viewers: Sequence[Network]
) -> AugmentedRecord | None:
    """The teacher on augmented views, with a warning where they take much of what it knows."""
    found = look_at_augmented(run, teacher, data.test, scores.predicted, viewers, "test")
    if found is not None and costs_much(found):
        text, rest = cost_text(found), advice(found, run.config.data.augment)
        run.report.note(f"warning: {text[0].lower()}{text[1:]} {rest}")
    return found


def _foreign(network: Network, data: RunData, match: Match) -> str:
    if not has_head(network):
        return (
            f"--teacher {network.name}: needs a classifier, got a backbone without one (num_classes 0) and --correct-teacher "
            "never; leave that out, so that a linear probe of its features is fitted on the labels, or train a teacher from it "
            "(--train-teacher)."
        )
    return (
        f"--teacher {network.name}: needs the data's {data.num_classes} classes, got a model with {network.num_classes} "
        f"classes: {match.note}. Either fit a map from the teacher's outputs (--correct-teacher auto; the teacher is not trained), or "
        "train a teacher for the data's classes (--train-teacher, from these weights), or say which of its classes are which of the "
        "data's (--set data.class_map=FILE)."
    )
