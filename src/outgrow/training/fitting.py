"""Run a trainer to the end, with progress reports and checkpoints."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from outgrow import __version__
from outgrow.models.sources import net_identity
from outgrow.training.checkpoint import Checkpoint, Identity
from outgrow.training.config import Config
from outgrow.training.meter import EpochRecord
from outgrow.training.processes import process_group
from outgrow.training.progress import Reporter
from outgrow.training.trainer import Trainer


def teacher_checkpoint(
    out: Path, config: Config, data_fingerprint: str, report: Reporter | None = None
) -> Checkpoint:
    """The checkpoint of the training of a run's teacher. It does not depend on the student or the method."""
    facts = machine_facts(data_fingerprint)
    if config.teacher.name.startswith("py:"):
        facts["teacher.name"] = net_identity(config.teacher.name)
    identity = Identity(config, facts, ("data", "teacher", "teacher_train", "seed"))
    return Checkpoint(out / "teacher.pt", identity, (report or Reporter()).note)


def student_checkpoint(out: Path, config: Config, facts: Mapping[str, str], report: Reporter) -> Checkpoint:
    """The checkpoint of the training of a run's student; ``facts`` are those of the data and of the teacher."""
    return Checkpoint(out / "checkpoint.pt", Identity(config, facts), report.note)


def machine_facts(data_fingerprint: str) -> dict[str, str]:
    """What a training depends on besides its configuration."""
    group = process_group()
    return {
        "data": data_fingerprint,
        "version": __version__,
        "threads": str(torch.get_num_threads()),
        "processes": str(1 if group is None else dist.get_world_size(group)),
    }


def shared_by(trainer: Trainer) -> str:
    """A note with the number of processes, and in what the results differ from those of one process."""
    apart = [trainer.make_lesson.apart] if trainer.make_lesson.apart else []
    modules = list(trainer.student.modules())
    norms = [m for m in modules if isinstance(m, _BatchNorm) and not isinstance(m, nn.SyncBatchNorm)]
    if norms:
        apart.append(
            "each process's batch norms use its own share (on GPUs torch.nn.SyncBatchNorm shares them)"
        )
    if any(isinstance(m, _DropoutNd) and m.p > 0 for m in modules):
        apart.append("each process's dropout draws its own numbers")
    end = f", except that {' and '.join(apart)}" if apart else ""
    return f"{dist.get_world_size()} processes share each batch. The results equal those of one process{end}"


def fit(
    trainer: Trainer, report: Reporter, who: str, *, metric: str, resume: bool = False
) -> list[EpochRecord]:
    """Train to the end; ``report`` gets a bar and one event per epoch, for ``who`` (student or teacher)."""
    # the callbacks hold none of the trainer: in a cycle the processes of its loader, of which the garbage collector would find
    # the queues first, would not hear that they should end, and PyTorch waits five seconds for each
    epochs, samples = trainer.config.epochs, trainer.loader.num_samples
    if trainer.compiles:
        report.note(f"{who}: compiling in the first step, which can take minutes ...")
    if process_group() is not None:
        report.note(f"{who}: {shared_by(trainer)}")
    with report.bar(who, epochs * samples) as advance:
        trainer.on_step = lambda epoch, done: advance(epoch * samples + done)
        trainer.on_epoch = lambda record: report.event(
            "epoch", network=who, epochs=epochs, **asdict(record), metric=metric
        )
        trainer.on_resume = lambda history: report.resumed(who, history, metric)
        return trainer.fit(resume=resume)
