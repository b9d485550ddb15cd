"""The correction of a teacher in a run: fitted on the training views, checked for memorisation, saved."""

import warnings
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from outgrow.classification.data import RunData, eval_loader
from outgrow.data import Loader
from outgrow.knowledge import wrong_rows
from outgrow.machine.files import readable
from outgrow.models import Network
from outgrow.models.structure import has_head
from outgrow.models.taps import PENULTIMATE
from outgrow.outputs import Outputs, Target
from outgrow.teacher import AveragedTeacher, BaseTeacher, BiasCorrection
from outgrow.teacher.correction import memorised
from outgrow.teacher.correction_fit import NAMES
from outgrow.teacher.noise import MAX_CLASSES
from outgrow.training.config import Config, MethodConfig
from outgrow.training.noise import fitted_noise, task_of, wanted_noise
from outgrow.training.processes import is_main
from outgrow.training.record import NoiseRecord
from outgrow.training.task import RunContext, Taught

FEATURE_BYTES = 1 << 30
"""Largest size in bytes of the penultimate features for a correction; beyond it only the logits are used. The probe of a
backbone without a classifier is then fitted on fewer images."""


def fit_correction(
    run: RunContext,
    data: RunData,
    teacher: BaseTeacher,
    network: Network,
    views: Loader,
    *,
    foreign: bool,
    knows_views: bool = True,
    name: str = "correction",
) -> tuple[BiasCorrection, dict[str, float]]:
    """Fit a correction on the training views, note its report and save it. Also returns facts about the views.
    ``name`` is that of its file. Unless the teacher ``knows_views``, it is not asked which labels are wrong.

    A run that continues from a checkpoint takes the map of other classes, or the probe, that it has saved: the checkpoint
    refuses other data and another teacher.
    """
    config, report = run.config, run.report
    saved = kept(run, name)
    if foreign and saved is not None:
        try:
            found = BiasCorrection.load(saved)
        except ValueError as error:
            report.note(f"warning: {error}")
        else:
            report.note(f"teacher: its map to the data's classes is the one in {saved}")
            return found.to(run.device), {}
    outputs, target = _outputs_on_views(run, teacher, views)
    facts = {}
    if not foreign:
        facts["wrong_rate"] = float(wrong_rows(outputs.logits, target).float().mean())
    held_out, source = None, ""
    if not foreign and may_have_trained_on(config):
        held_out, source = _held_out(run, data, teacher, network)
        if isinstance(teacher, AveragedTeacher) and not memorised(
            *_outputs_on_views(run, teacher.teacher, views), held_out
        ):
            held_out = (
                None  # a mean over views is better than the one view of a held-out image, and no memory
            )
    if has_head(network):
        report.note("teacher: fitting a correction of its systematic errors, scored out of fold ...")
    else:
        width = outputs.features[PENULTIMATE].shape[1]
        report.note(f"teacher: fitting a linear probe of its {width} features, scored out of fold ...")
    asked = wanted_noise(config.method) != "none"
    judged = knows_views or asked
    correction = BiasCorrection(data.num_classes, noise=fitted_noise(config.method) if judged else "none")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the report says the same and names the source of the rows
        correction.fit(outputs, target, held_out=held_out if config.teacher.correct == "auto" else None)
    assert correction.report is not None
    if source and correction.report.memory is not None:
        report.note(f"teacher: held-out rows are the {source} images")
    report.note(str(correction.report))
    report.event("correction", **asdict(correction.report))
    if not judged:
        report.note(
            "labels: the teacher is not asked which are wrong, since it does not know the views on which it would judge them"
        )
    if correction.noise_report is not None:
        looks_noisy = len(correction.noise_matrix) > 0
        none = f"labels: none are found to be wrong, since {correction.noise_report.reason}"
        report.note(str(correction.noise_report) if asked or looks_noisy else none)
        report.event("noise", **asdict(correction.noise_report))
    correction.to(run.device)
    if run.out is not None and is_main():
        correction.save(run.out / f"{name}.safetensors")
    return correction, facts


def say_what_is_learnt(run: RunContext, taught: Taught) -> None:
    """What wrong labels that were found mean for the student; a warning where the posterior needs some and has none."""
    method = run.config.method
    asked = wanted_noise(method) != "none"
    if taught.noise is None:
        if asked and taught.record is not None:
            warnings.warn(_no_noise(taught, method), stacklevel=2)
        return
    believes = task_of(method, noisy=True) == "posterior"
    if asked and not believes:
        run.report.note(
            "labels: the distillation does not believe the wrong ones, but the student's own loss still learns the labels as they "
            "are; method.task=posterior changes that"
        )
    if not asked:
        own = (
            "learns the posterior of teacher and label" if believes else "still learns the labels as they are"
        )
        run.report.note(
            "teacher: its correction does not learn the wrong labels, and the student's own loss "
            f"{own} (method.task); `outgrow audit` lists the images whose labels look wrong"
        )


def _no_noise(taught: Taught, method: MethodConfig) -> str:
    """What it means for the posterior that no noise was fitted."""
    if isinstance(wanted_noise(method), float):
        return (
            "posterior: needs a teacher that was not trained on these labels, got one that has memorised them. It is left as it is, "
            "and the share that you gave is used, so that a label counts twice: by itself, and in what the teacher believes. Take a "
            "teacher of other images, or another rule."
        )
    why = "none that were found" if taught.noise_record is not None else "a teacher that has memorised them"
    return (
        f"posterior: needs labels of which some are wrong, got {why}. The teacher is believed as it is, and the labels too; "
        "choose another rule, or give the share that you know to be wrong: posterior(noise=0.2)."
    )


def noise_record(correction: BiasCorrection, method: MethodConfig) -> NoiseRecord | None:
    """What was found of the labels; None if it was not looked for."""
    report, matrix = correction.noise_report, correction.noise_matrix
    if report is None:
        return None
    rows = tuple(map(tuple, matrix.tolist())) if 0 < len(matrix) <= MAX_CLASSES else None
    return NoiseRecord(
        **asdict(report),
        used=bool(len(matrix)),
        map=NAMES[correction.source],
        task=task_of(method, noisy=len(matrix) > 0),
        matrix=rows,
    )


def kept(run: RunContext, name: str) -> Path | None:
    """The file of an earlier part of this run, if it continues from a checkpoint and has written one."""
    if not run.resume or run.out is None or not (run.out / "checkpoint.pt").is_file():
        return None
    file = run.out / f"{name}.safetensors"
    return file if file.is_file() else None


def may_have_trained_on(config: Config) -> bool:
    """Whether the teacher may have been trained on the training rows with these labels."""
    return not (config.teacher.train and config.teacher.rows == "disjoint")


def _outputs_on_views(run: RunContext, teacher: nn.Module, views: Loader) -> tuple[Outputs, Target]:
    """The teacher's outputs on the training views of the first epochs."""
    passes = run.config.teacher.correct_views
    logits, features, labels, partners, mixes, indices = [], [], [], [], [], []
    keep_features = True
    with run.report.bar("teacher on the training views", passes * views.num_samples) as advance:
        done, full = 0, False
        for epoch in range(passes):
            if full:
                break
            for batch in views.epoch(epoch):
                outputs = teacher(
                    batch.images, index=batch.index
                )  # of an average the image's, else the view's
                feature = outputs.features[PENULTIMATE].flatten(1)
                size = feature.shape[1] * 4
                keep_features &= size * passes * views.num_samples <= FEATURE_BYTES or not outputs.num_classes
                full = not outputs.num_classes and done > 0 and size * (done + len(feature)) > FEATURE_BYTES
                if full:  # the views are shuffled: those of the first batches are a random part
                    break
                logits.append(outputs.logits.float())
                if keep_features:
                    features.append(feature.float())
                target = batch.target
                labels.append(target.label)
                assert target.index is not None
                indices.append(target.index)
                if target.partner is not None and target.mix is not None:
                    partners.append(target.partner)
                    mixes.append(target.mix)
                done += len(target.label)
                advance(done)
    if full:
        run.report.note(
            f"teacher: the probe is fitted on {done:,} of {passes * views.num_samples:,} training views, as the features of more "
            f"take over {readable(FEATURE_BYTES)}"
        )
    mixed = bool(partners)
    target = Target(
        torch.cat(labels),
        index=torch.cat(indices),
        partner=torch.cat(partners) if mixed else None,
        mix=torch.cat(mixes) if mixed else None,
    )
    return Outputs(torch.cat(logits), {PENULTIMATE: torch.cat(features)} if keep_features else {}), target


def _held_out(
    run: RunContext, data: RunData, teacher: BaseTeacher, network: Network
) -> tuple[tuple[Outputs, Target], str]:
    """Rows that the teacher has not been trained on, and their name.

    For a teacher that was trained in this run they are the validation images. For weights from a file the training
    images are not known, so the test images are used. They check the teacher, and select nothing for the student.
    """
    config = run.config
    trusted = data.val is not None and config.teacher.train
    split, name = (data.val, "validation") if trusted and data.val is not None else (data.test, "test")
    loader = eval_loader(split, network, config.train, run.device, config.data.workers)
    logits, labels = [], []
    for batch in loader.epoch(0):
        logits.append(teacher(batch.images).logits)
        labels.append(batch.target.label)
    return (Outputs(torch.cat(logits)), Target(torch.cat(labels))), name
