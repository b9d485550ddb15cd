"""A classification run that is tested on held-out training images, for the choice of values by `outgrow tune`."""

import warnings
from dataclasses import replace

from torch import nn

from outgrow.classification.data import RunData, same_set
from outgrow.classification.task import Classification
from outgrow.objective import Objective
from outgrow.training.config import Config
from outgrow.training.task import RunContext, Taught


class HeldOut(Classification):
    """The task with the validation images in place of the test images, which are not scored.

    Data and teacher are those of the first run: all runs need the same data, teacher and losses.
    """

    def __init__(self) -> None:
        self.data: RunData | None = None
        self.taught: Taught | None = None

    def open_data(self, run: RunContext) -> RunData:
        if self.data is None:
            data = super().open_data(run)
            if data.val is None:
                raise ValueError(
                    f"--data {run.config.data.source}: needs a class with two training images or more, to hold one out, got none; "
                    "add images, and set data.val_fraction."
                )
            self.data = replace(data, source=replace(data.source, test=data.val, val=None))
        return self.data

    def freeze(
        self,
        run: RunContext,
        data: RunData,
        teacher: nn.Module | None,
        student: nn.Module,
        objective: Objective,
    ) -> Taught:
        if self.taught is None:
            self.taught = super().freeze(run, data, teacher, student, objective)
            if may_know(run.config, data) and _rests_on_the_labels(self.taught):
                warnings.warn(
                    "tune: needs held-out images that the teacher was not trained on, got images of the training set, which a teacher "
                    "from a file may know by heart. The trials correct it (or weigh it) by the training labels. The run with the best values "
                    "compares it with the test images, and may leave it as it is. Give --correct-teacher always or never, which is "
                    "the same in both, or a source with validation images of its own.",
                    stacklevel=2,
                )
        return replace(self.taught)  # a cache is put around its module


def may_know(config: Config, data: RunData) -> bool:
    """Whether the teacher may have been trained on the held-out images, so that they cannot show what it has memorised.

    The test images would show it. They are not looked at: what they say would be in the choice of the values.
    """
    return config.teacher.correct == "auto" and not config.teacher.train and same_set(data.train, data.test)


def _rests_on_the_labels(taught: Taught) -> bool:
    """Whether the teacher would be another one if it were found to have memorised the training labels."""
    if taught.mixture is not None:
        members = (one.correction for one in taught.mixture.members)
        return taught.mixture.nll is not None or any(one is not None and one.used for one in members)
    found = taught.correction
    if found is None or found.raw is None or found.memory is not None:
        return False
    return found.used or taught.noise is not None
