"""Several teachers in a run: their weights, fitted on the training views, and the record of each."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from outgrow.classification.correction import kept, may_have_trained_on
from outgrow.classification.data import RunData
from outgrow.classification.scores import Scores, evaluate, finite
from outgrow.data import Loader
from outgrow.outputs import Outputs, Target
from outgrow.teacher import MixedTeacher, Mixture
from outgrow.teacher.correction import memorised
from outgrow.training.processes import is_main
from outgrow.training.record import MemberRecord, MixtureRecord, NoiseRecord, TeacherRecord
from outgrow.training.task import RunContext, Taught


def mixed(run: RunContext, data: RunData, members: Sequence[Taught], views: Loader, test: Loader) -> Taught:
    """The teachers as one, scored on the test images."""
    noise, noise_record = _noise(run, members)
    mixture = _fitted(run, data, members, views, noise).to(run.device)
    teacher = MixedTeacher([one.module for one in members], mixture)
    scores: Scores = evaluate(teacher, test)
    run.report.note(f"teachers together: top-1 {scores.top1:.2f} % on the test images")
    records = [one.record for one in members if one.record is not None]
    weights = mixture.weights[-1].tolist()
    report = mixture.report
    together = TeacherRecord(
        name=" + ".join(record.name for record in records),
        parameters=sum(record.parameters for record in records),
        weights=" + ".join(record.weights for record in records),
        classes=data.num_classes,
        top1=scores.top1,
        top5=scores.top5,
        nll=scores.nll,
    )
    found = MixtureRecord(
        members=tuple(
            MemberRecord(
                **record.model_dump(exclude_unset=True),
                weight=weights[number],
                nll_alone=None if report is None else finite(report.alone[number]),
                correction=one.correction,
            )
            for number, (one, record) in enumerate(zip(members, records, strict=True))
        ),
        nll=None if report is None else finite(report.nll),
        num_images=None if report is None else report.num_images,
    )
    return Taught(
        teacher,
        together,
        scores=scores,
        mixture=found,
        noise=noise,
        noise_record=noise_record,
    )


def _noise(run: RunContext, members: Sequence[Taught]) -> tuple[Tensor | None, NoiseRecord | None]:
    """Which labels are wrong, by the teacher under which the given ones are likeliest, out of fold, of those that were asked.
    How labels come about does not depend on a teacher, so its answer holds beside all of them."""
    asked = [
        (one.correction.chosen.nll, number, one)
        for number, one in enumerate(members)
        if one.correction is not None and one.noise_record is not None
    ]
    if not asked:
        return None, None
    _, _, judge = min(asked)
    assert judge.noise_record is not None
    assert judge.record is not None
    name = judge.record.name
    if judge.noise is not None:
        run.report.note(
            f"labels: of the teachers, {name} makes them likeliest, so its share of wrong ones is taken"
        )
    return judge.noise, judge.noise_record.model_copy(update={"judge": name})


def _fitted(
    run: RunContext, data: RunData, members: Sequence[Taught], views: Loader, noise: Tensor | None
) -> Mixture:
    """The weights: fitted, or those of the checkpoint from which this run continues."""
    saved = kept(run, "mixture")
    if saved is not None:
        try:
            found = Mixture.load(saved)
        except ValueError as error:
            run.report.note(f"warning: {error}")
        else:
            run.report.note(f"teachers: their weights are those in {saved}")
            return found
    beliefs, target = _beliefs(run, members, views)
    seen = beliefs
    if run.config.teacher.views > 1:
        # a mean over views is better than the one view of a test image, and no memory
        seen, _ = _beliefs(run, members, views, by_image=False)
    if names := _memorised(run, members, seen, target):
        warnings.warn(
            f"teacher.others: needs teachers that were not trained on the training images, got {' and '.join(names)}, right on "
            "far more of them than on other images. Their likelihood there says nothing, so all teachers have equal weights; "
            "mix teachers that were trained on other images.",
            stacklevel=2,
        )
        return Mixture.of([1.0] * len(members))
    mixture = Mixture(len(members)).fit(beliefs, target, noise=noise)
    assert mixture.report is not None
    for number, one in enumerate(members, start=1):
        assert one.record is not None
        run.report.note(f"teacher {number} is {one.record.name}")
    run.report.note(str(mixture.report))
    if run.out is not None and is_main():
        mixture.save(run.out / "mixture.safetensors")
    return mixture


@torch.no_grad()
def _beliefs(
    run: RunContext, members: Sequence[Taught], views: Loader, *, by_image: bool = True
) -> tuple[list[Outputs], Target]:
    """The logits of all teachers on the same training views, each corrected by a map that has not seen the label. Without
    ``by_image`` as of images that nobody has seen."""
    passes = run.config.teacher.correct_views  # 1 where beliefs are those in images
    logits: list[list[Tensor]] = [[] for _ in members]
    targets: list[Target] = []
    done = 0
    with run.report.bar("teachers on the training views", passes * views.num_samples) as advance:
        for epoch in range(passes):
            for batch in views.epoch(epoch):
                index = batch.index if by_image else None
                for one, kept_logits in zip(members, logits, strict=True):
                    kept_logits.append(one.module(batch.images, index=index).logits.float())
                targets.append(batch.target)
                done += len(batch.images)
                advance(done)
    return [Outputs(torch.cat(one)) for one in logits], joined(targets)


def joined(targets: Sequence[Target]) -> Target:
    """The targets of several batches as one."""

    def column(name: str) -> Tensor | None:
        values = [getattr(target, name) for target in targets]
        return None if any(value is None for value in values) else torch.cat(values)

    return Target(
        torch.cat([target.label for target in targets]),
        index=column("index"),
        partner=column("partner"),
        mix=column("mix"),
    )


def _memorised(
    run: RunContext, members: Sequence[Taught], beliefs: Sequence[Outputs], target: Target
) -> list[str]:
    """The teachers that are much better on the training views than on the test images. They are only compared there; nothing
    of the student is selected on them. A teacher with other classes cannot be checked in this way."""
    if run.config.teacher.correct != "auto" or not may_have_trained_on(run.config):
        return []
    names = []
    for one, believed in zip(members, beliefs, strict=True):
        if one.scores is None or one.record is None:
            continue
        if one.correction is not None:  # it was compared as it is, before its correction
            if one.correction.memory is not None:
                names.append(one.record.name)
            continue
        held_out = (
            Outputs(one.scores.logits.to(believed.logits.device)),
            Target(one.scores.label.to(target.label.device)),
        )
        if memorised(believed, target, held_out):
            names.append(one.record.name)
    return names
