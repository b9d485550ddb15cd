"""A trainer run to its end, with progress told to a reporter."""

from dataclasses import asdict

from outgrow.training.meter import EpochRecord
from outgrow.training.progress import Reporter
from outgrow.training.trainer import Trainer


def fit(
    trainer: Trainer, report: Reporter, who: str, *, metric: str, resume: bool = False
) -> list[EpochRecord]:
    """Train to the end; ``report`` gets a bar and an event an epoch, for ``who`` (student or teacher)."""
    total = trainer.config.epochs * trainer.loader.num_samples
    if trainer.compiles:
        report.note(f"{who}: compiles at its first step, which can take minutes ...")
    with report.bar(who, total) as advance:
        trainer.on_step = lambda epoch, done: advance(epoch * trainer.loader.num_samples + done)
        trainer.on_epoch = lambda record: report.event("epoch", network=who, **asdict(record), metric=metric)
        return trainer.fit(resume=resume)
