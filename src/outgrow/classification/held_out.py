"""A classification run that is tested on held-out training images, for the choice of values by `outgrow tune`."""

from dataclasses import replace

from torch import nn

from outgrow.classification.data import RunData
from outgrow.classification.task import Classification
from outgrow.objective import Objective
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
                    f"--data {run.config.data.source}: needs training images to hold out, got none; set data.val_fraction."
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
        return replace(self.taught)  # a cache is put around its module
