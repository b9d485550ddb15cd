"""A row is an image: both networks look at the same views."""

from dataclasses import dataclass

import torch
from torch import nn

from outgrow.data import Batch
from outgrow.training.lesson import Lesson


@dataclass(frozen=True)
class Classify:
    """Both networks' outputs for the images of a batch."""

    channels_last: bool = False
    fixed_shape = True

    def __call__(self, student: nn.Module, teacher: nn.Module, batch: Batch) -> Lesson:
        images = batch.images
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return Lesson(student(images), teacher(images, index=batch.index), batch.target)
