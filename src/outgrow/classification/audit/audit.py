"""An audit from a configuration to its numbers, in the order of the data flow.

    data -> the rows that are looked at -> teacher -> normalisations -> answers -> correction -> rules -> labels -> verdicts

The test images are never looked at.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from outgrow.classification.audit.label_errors import INSTALL, find_label_errors, installed
from outgrow.classification.audit.measure import (
    LEAST_TO_FIT,
    Seen,
    before_after,
    fit_correction,
    look,
)
from outgrow.classification.audit.normalisation import USUAL, try_normalisations
from outgrow.classification.audit.page import Shown, page_section
from outgrow.classification.audit.verdicts import Case, verdicts
from outgrow.classification.augmentation import costs_much, look_at_augmented
from outgrow.classification.data import (
    RunData,
    check_takes,
    eval_loader,
    open_run_data,
    same_set,
    teacher_views,
    unmixed,
)
from outgrow.classification.names import in_data_classes, logits_in_data_classes, match_teacher
from outgrow.classification.order import check_order
from outgrow.classification.task import TASK
from outgrow.classification.teacher import make_teacher
from outgrow.data import Loader, Split
from outgrow.data.classes import Match
from outgrow.data.exclusion import naming
from outgrow.data.splits import stratified_cut
from outgrow.models import Network, num_parameters
from outgrow.models.network import describe_input, resized
from outgrow.models.structure import has_head
from outgrow.models.taps import PENULTIMATE
from outgrow.outputs import warn_if_probabilities
from outgrow.teacher import BaseTeacher, BiasCorrection, Teacher
from outgrow.teacher.counts import LEVEL, above, apart, has_memorised
from outgrow.teacher.inference import fold_norms
from outgrow.training.audit import (
    Audited,
    AuditedTeacher,
    BeliefRecord,
    ClassifierAudit,
    LabelErrorRecord,
    LabelErrorsRecord,
    NormalisationRecord,
    Options,
    WrongRecord,
    rule_effects,
)
from outgrow.training.config import Config
from outgrow.training.task import RunContext

HELD_OUT = 0.2
"""Share of every class of the training images that is held out where a source has no validation images."""
NORMALISED = 400
"""Images that each normalisation is tried on."""
FOLD_IMAGES = 16
WRONG_CLASSES, WRONG_EACH = 8, 3
"""Classes and images of each that the page shows of what the teacher gets wrong."""
TOP = 3
"""Classes of a belief that are kept, besides the label's own."""


@dataclass(frozen=True)
class Rows:
    """What is looked at: a part of the training rows, and rows that the correction is not fitted on."""

    train: Split
    held_out: Split
    held_out_from: str
    note: str


def audit(run: RunContext, rows: int, options: Options, module: nn.Module | None = None) -> Audited:
    """Everything about the teacher that ``run.config`` names, or about ``module``, on at most ``rows`` rows of a kind."""
    asked, config = run.config, _measured(run.config)
    run = RunContext(config, run.device, run.report, run.out)
    data = open_run_data(config)
    chosen = choose_rows(data, rows, config)
    network = _network(run, data, module)
    check_takes(network, data.train)
    match = match_teacher(network, data)
    notes = [chosen.note, _few(chosen)]

    normalisations = _normalisations(run, chosen, network, match, data)
    teacher = _teacher(run, chosen, network, match)
    looking = Looking(run, teacher, network, data.num_classes)
    training = looking.at_views(chosen.train, "teacher on the training views")
    held_out = looking.at_plain(chosen.held_out, "teacher on held-out images")
    warn_if_probabilities(training.logits, whose="teacher")
    order = _order(match, held_out, data, network)
    run.report.note("teacher: looking for what is systematic in its errors, out of fold ...")
    correction = _correction(training, data)

    mapped = match.foreign
    after = None if correction is None or (correction.is_identity and not mapped) else correction
    if mapped and after is None:
        raise ValueError(
            f"audit: needs {LEAST_TO_FIT} training images or more to map a teacher's {network.num_classes} classes to the "
            f"data's {data.num_classes}, got {len(training)}; add labelled images, or take a teacher with these classes."
        )
    trained = before_after(
        None if mapped else training,
        None if after is None else training.corrected(after, fitted=True),
        data.classes,
    )
    held = before_after(
        None if mapped else held_out,
        None if after is None else held_out.corrected(after, fitted=False),
        data.classes,
    )
    augmented = None
    if not mapped:
        predicted = held_out.logits.argmax(1)
        augmented = look_at_augmented(run, teacher, chosen.held_out, predicted, [network], "held-out")
    unknown = augmented is not None and costs_much(augmented)
    memorised, memory_p = (False, None) if mapped else _memory(training, held_out)
    believed = training if after is None else training.corrected(after, fitted=True)
    numbers = ClassifierAudit(
        held_out_from=chosen.held_out_from,
        training=trained,
        held_out=held,
        memorised=memorised,
        memory_p=memory_p,
        augmented=augmented,
        correction=_correction_text(correction, unknown),
        noise=None if unknown else _noise(correction),
        normalisations=normalisations,
        rules=rule_effects(believed.logits, believed.label),
        rules_raw=None if mapped or after is None else rule_effects(training.logits, training.label),
        wrong=_wrong(held_out, after, mapped, chosen.held_out, data),
        label_errors=_label_errors(
            run, data, chosen, looking, believed, after, _why_not(normalisations, memorised, unknown)
        ),
    )
    case = Case(
        numbers=numbers,
        teacher=network.name,
        mapped=mapped,
        probed=not has_head(network),
        train_rows=len(data.train),
        num_classes=data.num_classes,
        order=order,
        config=asked,
        options=options,
        folder=None if run.out is None else str(run.out),
    )
    found = verdicts(case)
    shown = Shown(chosen.held_out, chosen.train, data.classes, mapped)
    return Audited(
        verdicts=found,
        teacher=AuditedTeacher(
            name=network.name,
            parameters=num_parameters(network),
            weights=_weights(config, module),
            classes=network.num_classes,
            matched=match.note
            if not mapped
            else "by a map from the labels"
            if has_head(network)
            else "by a linear probe",
            sees=describe_input(network.input_spec),
        ),
        data=TASK.data_record(run, data, None),
        notes=tuple(note for note in notes if note),
        numbers=numbers,
        section=page_section(numbers, shown),
        summary=_summary(numbers),
    )


def _measured(config: Config) -> Config:
    """``config`` for a method with a teacher, without blended views, which have two labels, and unlabelled images:
    what is measured. What is said is about the configuration as it was asked."""
    method = config.method.model_copy(update={"preset": "outgrow"})
    data = unmixed(config).data.model_copy(update={"unlabelled": None})
    return config.model_copy(update={"data": data, "method": method})


def choose_rows(data: RunData, rows: int, config: Config) -> Rows:
    """At most ``rows`` training and ``rows`` held-out rows: the source's validation images, those that
    ``data.val_fraction`` has cut off, or a part of the training rows. ``ValueError`` where nothing can be held out."""
    train, held, note, origin = data.train, data.val, "", "validation"
    if held is None:
        keep, taken = stratified_cut(train.labels, HELD_OUT, seed=config.seed)
        if not len(taken):
            raise ValueError(
                f"audit: needs two training images or more of a class, to hold one out, got {len(train)} images of "
                f"{data.num_classes} classes; add images."
            )
        train, held = train.subset(keep), train.subset(taken)
        note = (
            f"The source has no validation images: {HELD_OUT:.0%} of the training images were held out. The test images were "
            "not looked at."
        )
    if same_set(train, held):
        origin = "training"
        note += (
            " The held-out rows are training images of the source. A teacher that was trained on all of them knows both parts, "
            "and looks better than it is."
        )
    generator = torch.Generator().manual_seed(config.seed)

    def some_of(split: Split) -> Split:
        if len(split) <= rows:
            return split
        return split.subset(torch.randperm(len(split), generator=generator)[:rows].sort().values)

    return Rows(some_of(train), some_of(held), origin, note.strip())


def _network(run: RunContext, data: RunData, module: nn.Module | None) -> Network:
    network = make_teacher(run, data, module)
    assert network is not None  # the method has a teacher
    if network.input_spec.size is None and run.config.data.size is not None:
        resized(network, run.config.data.size)
    return network.to(run.device).eval()


def _few(chosen: Rows) -> str:
    count = len(chosen.held_out)
    return (
        f"Only {count} held-out images: numbers on them are rough, as their intervals show."
        if count < 100
        else ""
    )


def _normalisations(run: RunContext, chosen: Rows, network: Network, match: Match, data: RunData) -> tuple:
    """On held-out images first, then training images, seen as in an evaluation."""
    # a random sample: folders are sorted by class, and a net that always names the first class would win
    generator = torch.Generator().manual_seed(run.config.seed)
    wanted: list[Split] = []
    for split in (chosen.held_out, chosen.train):
        count = min(len(split), NORMALISED - sum(map(len, wanted)))
        if count:
            wanted.append(split.subset(torch.randperm(len(split), generator=generator)[:count]))

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for split in wanted:
            loader = eval_loader(split, network, run.config.train, run.device, run.config.data.workers)
            for batch in loader.epoch(0):
                yield batch.images, batch.target.label

    total = sum(map(len, wanted)) * (len(USUAL) + 1)
    with run.report.bar("teacher under other normalisations", total) as advance:
        return try_normalisations(
            network, batches(), logits_in_data_classes(match), data.num_classes, advance
        )


def _teacher(run: RunContext, chosen: Rows, network: Network, match: Match) -> BaseTeacher:
    """Frozen, in the student's classes where it has them."""
    net: nn.Module = network
    if run.config.teacher.fold:
        loader = eval_loader(chosen.held_out, network, run.config.train, run.device, 0)
        images = next(iter(loader.epoch(0))).images[:FOLD_IMAGES]
        net, note = fold_norms(network, images, taps=(PENULTIMATE,))
        run.report.note(f"teacher: {note}")
    teacher: BaseTeacher = Teacher(net, taps=(PENULTIMATE,))
    return in_data_classes(teacher, match).to(run.device)


@dataclass(frozen=True)
class Looking:
    """The teacher's answers, on augmented views as in training and on plain images as in an evaluation."""

    run: RunContext
    teacher: BaseTeacher
    network: Network
    num_classes: int

    def at_views(self, split: Split, name: str) -> Seen:
        config = self.run.config
        loader = teacher_views(config, split, [self.network], self.run.device)
        return self._at(loader, len(split), name)

    def at_plain(self, split: Split, name: str) -> Seen:
        config = self.run.config
        loader = eval_loader(split, self.network, config.train, self.run.device, config.data.workers)
        return self._at(loader, len(split), name)

    def _at(self, loader: Loader, total: int, name: str) -> Seen:
        with self.run.report.bar(name, total) as advance:
            seen = look(self.teacher, loader, advance, self.num_classes)
        told = seen.logits if seen.outputs.num_classes else seen.outputs.features[PENULTIMATE]
        bad = ~told.amax(1).isfinite() | told.isnan().any(1)
        if bool(bad.any()):
            raise ValueError(
                f"audit: needs finite logits, got NaN or infinity for {int(bad.sum())} of {len(seen)} images; check the "
                "teacher's file of weights and its normalisation."
            )
        return seen


def _order(match: Match, held_out: Seen, data: RunData, network: Network) -> str | None:
    """What is wrong with the order of the classes, where they are taken by position."""
    if match.how != "position":
        return None
    try:
        check_order(held_out.logits.argmax(1), held_out.label, data.classes, who=f"--teacher {network.name}")
    except ValueError as error:
        return str(error)
    return None


def _correction(training: Seen, data: RunData) -> BiasCorrection | None:
    return None if len(training) < LEAST_TO_FIT else fit_correction(training, data.num_classes)


def _correction_text(correction: BiasCorrection | None, unknown: bool) -> str:
    """What was chosen, and why. ``unknown``: the teacher does not know the views on which it was fitted."""
    if correction is None or correction.report is None:
        return f"None was fitted: it needs {LEAST_TO_FIT} training images or more."
    if unknown:
        return f"{correction.report.reason} The teacher does not know the views on which it was fitted, so nothing is said of the labels."
    noise = _noise(correction)
    labels = "" if noise is None else f" {100 * noise:.1f} % of the labels are thought wrong."
    return correction.report.reason + labels


def _noise(correction: BiasCorrection | None) -> float | None:
    """The share of labels that are thought wrong, if the correction has found noise."""
    if correction is None or correction.noise_report is None or not len(correction.noise_matrix):
        return None
    return correction.noise_report.wrong


def _memory(training: Seen, held_out: Seen) -> tuple[bool, float]:
    counts = (training.right, len(training), held_out.right, len(held_out))
    chance = float(torch.bincount(training.label).max()) / len(training)
    return has_memorised(*counts, chance=chance), apart(*counts)


def _beliefs(probability: Tensor, label: int, classes: tuple[str, ...]) -> tuple[BeliefRecord, ...]:
    """The first classes, and the label's own where it is not among them."""
    top = probability.topk(min(TOP, len(classes))).indices.tolist()
    return tuple(
        BeliefRecord(name=classes[at], probability=float(probability[at]))
        for at in dict.fromkeys([*top, label])
    )


def _wrong(
    held_out: Seen, correction: BiasCorrection | None, mapped: bool, split: Split, data: RunData
) -> tuple[WrongRecord, ...]:
    """Held-out images that the teacher gets wrong, surest first, of the classes with most of them."""
    after = None if correction is None else held_out.corrected(correction, fitted=False).logits.softmax(1)
    before = None if mapped else held_out.logits.softmax(1)
    judged = cast(Tensor, after if mapped else before)
    wrong = (judged.argmax(1) != held_out.label).nonzero()[:, 0]
    counts = torch.bincount(held_out.label[wrong], minlength=data.num_classes)
    found: list[WrongRecord] = []
    for label in counts.argsort(descending=True, stable=True)[:WRONG_CLASSES].tolist():
        rows = wrong[held_out.label[wrong] == label]
        surest = rows[judged[rows].amax(1).argsort(descending=True, stable=True)]
        found += [
            WrongRecord(
                position=row,
                name=_file(split, row),
                label=data.classes[label],
                before=None if before is None else _beliefs(before[row], label, data.classes),
                after=None if after is None else _beliefs(after[row], label, data.classes),
            )
            for row in surest[:WRONG_EACH].tolist()
        ]
    return tuple(found)


def _file(split: Split, position: int) -> str:
    """Class folder and file of a photograph; the row's number of another image."""
    describe = getattr(getattr(split, "source", None), "describe", None)
    row = int(split.index[position])
    return f"row {row}" if describe is None else "/".join(str(describe(row)).split("/")[-2:])


def _why_not(normalisations: tuple[NormalisationRecord, ...], memorised: bool, unknown: bool) -> str:
    """Why labels are not searched for errors; empty if they are."""
    if any(one.better for one in normalisations):
        return "Not searched: the normalisation is wrong, and so are the teacher's answers."
    if unknown:
        return "Not searched: the teacher does not know the augmented views of the images on which it would judge their labels."
    if memorised:
        return "Not searched: the teacher has memorised the labels, also the wrong ones."
    return "" if installed() else f"Not searched: this needs cleanlab, which is not installed; {INSTALL}."


def _label_errors(
    run: RunContext,
    data: RunData,
    chosen: Rows,
    looking: Looking,
    believed: Seen,
    correction: BiasCorrection | None,
    why_not: str,
) -> LabelErrorsRecord:
    """Candidates among the training rows of the audit: mean belief of the training view and the plain image."""
    assert data.part is not None
    column, names = naming(run.config.data.source, data.part)
    chance = float(torch.bincount(believed.label).max()) / len(believed)
    if not why_not and above(believed.right, len(believed), chance) >= LEVEL:
        why_not = "Not searched: the teacher is no better than always naming the most frequent class."
    if why_not:
        return LabelErrorsRecord(found=None, rows=len(believed), column=column, how=why_not)
    plain = looking.at_plain(chosen.train, "teacher on plain training images")
    plain = plain if correction is None else plain.corrected(correction, fitted=True)
    label, index = believed.label, believed.index
    place = {number: at for at, number in enumerate(chosen.train.index.tolist())}
    # training views are shuffled, plain images are in their order
    same = torch.tensor([place[number] for number in index.tolist()])
    probability = (believed.logits.softmax(1) + plain.logits.softmax(1)[same]) / 2
    candidates = []
    for row in find_label_errors(label, probability):
        sure, other = probability[row].max(0)
        candidates.append(
            LabelErrorRecord(
                position=place[int(index[row])],
                name=names(int(index[row])),
                label=data.classes[int(label[row])],
                suggested=data.classes[int(other)],
                confidence=float(sure),
            )
        )
    how = (
        "Each image was judged by the teacher with a correction that was fitted without the image's fold (one of five), so "
        "its own label had no influence."
        if correction is not None
        else "Images were judged by the teacher as it is, since nothing was corrected."
    )
    return LabelErrorsRecord(
        found=len(candidates),
        rows=len(label),
        column=column,
        how=f"{how} Whether the teacher itself was trained on these labels is not known. If it was, wrong labels that it has "
        "learned are missed. The candidates are those of cleanlab whose own label is very unlikely.",
        candidates=tuple(candidates),
    )


def _weights(config: Config, module: nn.Module | None) -> str:
    options = config.teacher
    if module is not None:
        return "own"
    return options.weights or ("published" if options.pretrained else "own")


def _summary(numbers: ClassifierAudit) -> tuple[str, ...]:
    """Numbers for the terminal."""
    lines = []
    for name, side in (("training views", numbers.training), ("held-out images", numbers.held_out)):
        for state, one in (("as it is", side.raw), ("corrected", side.corrected)):
            if one is not None:
                lines.append(
                    f"{name}, {state}: right on {one.top1}, majority {one.majority:.1f} %, calibration error {one.ece:.1f}"
                )
    lines.append(f"correction: {numbers.correction}")
    lines.append(f"memorised: {'yes' if numbers.memorised else 'not shown'}")
    tried = ", ".join(f"{one.name} {one.top1.accuracy:.1f} %" for one in numbers.normalisations)
    lines.append(f"normalisations: {tried}")
    moved = ", ".join(f"{one.name} {one.changed:.1f} %" for one in numbers.rules if one.name != "identity")
    lines.append(f"rows that rules change: {moved}")
    errors = numbers.label_errors
    found = errors.how if errors.found is None else f"{errors.found:,} of {errors.rows:,}"
    lines.append(f"labels that look wrong: {found}")
    return tuple(lines)
