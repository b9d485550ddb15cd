"""A row is an image. Both networks get the same views."""

from dataclasses import dataclass

import torch
from torch import nn

from outgrow.classification.data import LEAST
from outgrow.data import Batch
from outgrow.training.lesson import Lesson, without_rows


@dataclass(frozen=True)
class Classify:
    """Both networks' outputs for the images of a batch."""

    channels_last: bool = False
    fixed_shape = True
    apart = None
    least = LEAST

    def __call__(self, student: nn.Module, teacher: nn.Module, batch: Batch) -> Lesson:
        images = batch.images
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        if not len(images):
            return self._idle(student, teacher, batch)
        return Lesson(student(images), teacher(images, index=batch.index), batch.target)

    def _idle(self, student: nn.Module, teacher: nn.Module, batch: Batch) -> Lesson:
        """Run blank images in place of an empty batch, which many networks cannot reshape. A network with synchronised
        batch norms gets the empty batch, so that blank images do not enter the statistics."""
        images = batch.images
        if not any(isinstance(module, nn.SyncBatchNorm) for module in student.modules()):
            images = images.new_zeros(LEAST, *images.shape[1:])
        return without_rows(Lesson(student(images), teacher(images), batch.target))
