"""Detection on a few images, for a quick check of a run: whether its parts fit, and how long a step takes."""

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import nn

from outgrow.detection.data import DetectionSplit
from outgrow.detection.families.create import create_detector
from outgrow.detection.families.detector import Detector, NoDetector
from outgrow.detection.run_data import RunScenes
from outgrow.detection.student import check_name
from outgrow.detection.task import Detection
from outgrow.detection.teacher import freeze, make_teacher
from outgrow.objective import Objective
from outgrow.training.task import RunContext, Taught


def _first_images(split: DetectionSplit, rows: int) -> DetectionSplit:
    return split.subset(torch.arange(min(rows, len(split))))


@dataclass
class Rehearsal(Detection):
    """The task on the first ``rows`` images of ``data``. The teacher is created, but neither trained nor scored."""

    data: RunScenes
    rows: int

    def open_data(self, run: RunContext) -> RunScenes:
        train = _first_images(self.data.train, self.rows)
        cut = replace(self.data.source, train=train, val=None, test=_first_images(self.data.test, self.rows))
        pictures = self.data.unlabelled
        if pictures is not None:
            pictures = replace(pictures, split=_first_images(pictures.split, self.rows))
        return RunScenes(cut, train, pictures)

    def make_teacher(self, run: RunContext, data: RunScenes, module: nn.Module | None) -> Detector | None:
        options = run.config.teacher
        if module is not None or run.config.method.preset == "none" or not options.train:
            return make_teacher(run, data, module)
        check_name("--teacher", options.name)
        return create_detector(
            options.name,
            data.classes,
            weights=options.weights,
            pretrained=options.pretrained,
            input_size=options.input_size,
            mean=options.mean,
            std=options.std,
        )

    def freeze(
        self,
        run: RunContext,
        data: RunScenes,
        teacher: nn.Module | None,
        student: nn.Module,
        objective: Objective,
    ) -> Taught:
        if not isinstance(teacher, Detector):
            return Taught(NoDetector(data.num_classes + 1))
        return Taught(freeze(run, data.classes, teacher, cast(Detector, student), objective))
