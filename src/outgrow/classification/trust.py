"""What a run must learn of its teacher before rows can be weighed by how reliable it is."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from outgrow.classification.data import teacher_views, unmixed
from outgrow.data import Loader
from outgrow.knowledge import Reliability, wrong_rows
from outgrow.models import Network
from outgrow.outputs import Outputs, Target
from outgrow.teacher import BaseTeacher
from outgrow.teacher.counts import has_memorised
from outgrow.training.task import Parts, RunContext


def wanted(parts: Parts) -> Iterator[tuple[Reliability, Callable[[Tensor], Tensor]]]:
    """What is to be fitted: the reliability of the rectifier, and those of losses. Each with a function from the teacher's logits
    to those that it will read."""
    if isinstance(parts.rectify.trust, Reliability):
        yield parts.rectify.trust, Tensor.clone
    for term in parts.objective.terms.values():
        reliability = getattr(term.loss, "reliability", None)
        if isinstance(reliability, Reliability):
            yield reliability, getattr(term.loss, "transform", None) or Tensor.clone


def fit_reliability(run: RunContext, parts: Parts, teacher: Network | None, student: Network) -> None:
    """Fit every reliability on the teacher's beliefs about the labelled views, which have not seen those labels.

    A note warns of a teacher that has memorised them: it is then trusted too much on rows that it does not know.
    """
    if parts.teacher is None:
        parts.rectify.trust = None  # there is nobody to trust
        return
    found = list(wanted(parts))
    if not found:
        return
    module, noise = parts.taught.module.to(run.device), parts.taught.noise
    trust = parts.rectify.trust
    # images without labels are never blended, so neither are those that speak for them alone; a loss reads labelled rows too
    for_unlabelled = all(one is trust and one.rows == "unlabelled" for one, _ in found)
    config = unmixed(run.config) if for_unlabelled else run.config
    views = teacher_views(config, parts.data.train, [teacher, student], run.device)
    outputs, target = _beliefs(run, module, views)
    for reliability, reads in found:
        reliability.fit(reads(outputs.logits), target, noise=noise).to(run.device)
    run.report.note(f"teacher: {found[0][0]}")
    record, rows = parts.taught.record, len(target.label)
    top1 = None if record is None else record.top1_corrected or record.top1
    if top1 is None:
        return
    right = rows - int(wrong_rows(outputs.logits, target).sum())
    tested = len(parts.data.test)
    chance = float(target.label.bincount().max()) / rows
    if has_memorised(right, rows, round(top1 / 100 * tested), tested, chance):
        run.report.note(
            f"warning: the teacher is right on {right / rows:.1%} of the labelled views but on {top1 / 100:.1%} of the test images: "
            "it has memorised the former, so all rows are trusted too much; use images that it was not trained on"
        )


def _beliefs(run: RunContext, teacher: BaseTeacher, views: Loader) -> tuple[Outputs, Target]:
    """The logits of ``teacher`` on the labelled views of the first epoch, each from a correction without its label."""
    logits, labels, indices, partners, mixes = [], [], [], [], []
    with run.report.bar("teacher on the labelled views", views.num_samples) as advance:
        done = 0
        for batch in views.epoch(0):
            target = batch.target
            logits.append(teacher(batch.images, index=target.index).logits.float())
            labels.append(target.label)
            indices.append(
                torch.arange(done, done + len(target.label)) if target.index is None else target.index
            )
            if target.partner is not None and target.mix is not None:
                partners.append(target.partner)
                mixes.append(target.mix)
            done += len(batch.images)
            advance(done)
    mixed = bool(partners)
    return Outputs(torch.cat(logits)), Target(
        torch.cat(labels),
        index=torch.cat(indices),
        partner=torch.cat(partners) if mixed else None,
        mix=torch.cat(mixes) if mixed else None,
    )
