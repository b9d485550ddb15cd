"""A classification run on a few batches, to check that the parts fit and to time a step."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from outgrow.classification.data import RunData
from outgrow.classification.names import match_teacher
from outgrow.classification.task import Classification, network_of
from outgrow.classification.teacher import make_teacher, other_teachers, taps_read, untrained_teacher
from outgrow.classification.trust import wanted
from outgrow.data import Split
from outgrow.models import Network
from outgrow.objective import Objective
from outgrow.outputs import Outputs, with_logits
from outgrow.teacher import BaseTeacher, MixedTeacher, NoTeacher, Teacher
from outgrow.training.task import Parts, RunContext, Taught


def first_rows(split: Split, rows: int) -> Split:
    return split.subset(torch.arange(min(rows, len(split))))


class AsIfMapped(BaseTeacher):
    """A teacher whose logits are repeated or cut to the number of classes of the data, or 0 if it has none. It takes as long as the real one, but
    its predictions have no meaning."""

    columns: Tensor

    def __init__(self, teacher: BaseTeacher, num_own: int, num_classes: int) -> None:
        super().__init__()
        self.teacher = teacher
        self.register_buffer("columns", torch.arange(num_classes) % max(num_own, 1))

    def forward(self, images: Float[Tensor, "..."], *, index: Int[Tensor, " rows"] | None = None) -> Outputs:
        outputs = self.teacher(images, index=index)
        own = outputs.logits if outputs.num_classes else outputs.logits.new_zeros(len(images), 1)
        return with_logits(outputs, own[:, self.columns])


class FromCache(BaseTeacher):
    """Random logits in place of those in a cache, at no cost."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, images: Float[Tensor, "..."], *, index: Int[Tensor, " rows"] | None = None) -> Outputs:
        return Outputs(torch.randn(len(images), self.num_classes, device=images.device))


@dataclass
class Rehearsal(Classification):
    """The task on the first ``rows`` of ``data``. The teacher is built, but not trained, scored or corrected. With
    ``cached`` it is not called."""

    data: RunData
    rows: int
    cached: bool = False
    foreign: bool = False
    """Whether the teacher has other classes; set by :meth:`freeze`."""

    def open_data(self, run: RunContext) -> RunData:
        source = self.data.source
        cut = replace(source, train=self.data.train, val=None, test=first_rows(source.test, self.rows))
        train = first_rows(self.data.train, self.rows)
        return replace(self.data, source=cut, train=train, others=None)

    def make_teacher(self, run: RunContext, data: RunData, module: nn.Module | None) -> Network | None:
        if run.config.teacher.train and module is None and run.config.method.preset != "none":
            return untrained_teacher(run.config, data)
        return make_teacher(run, data, module)

    def freeze(
        self,
        run: RunContext,
        data: RunData,
        teacher: nn.Module | None,
        student: nn.Module,
        objective: Objective,
    ) -> Taught:
        if teacher is None:
            return Taught(NoTeacher(data.num_classes))
        network = network_of(teacher)
        self.foreign = match_teacher(network, data).foreign
        if self.foreign and run.config.teacher.correct == "never":
            # raises the same error as the run
            return super().freeze(run, data, teacher, student, objective)
        if self.cached:
            return Taught(FromCache(data.num_classes))
        networks = [network, *other_teachers(run, network_of(student))]
        teachers = [
            AsIfMapped(Teacher(one, taps=taps_read(one, objective)), one.num_classes, data.num_classes)
            for one in networks
        ]
        if len(teachers) == 1:
            return Taught(teachers[0].to(run.device))
        return Taught(MixedTeacher(teachers, [1.0] * len(teachers)).to(run.device))

    def learn_trust(self, run: RunContext, parts: Parts) -> None:
        """On made-up rows: those of the rehearsal may be too few, and the teacher's logits have no meaning."""
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(100, self.data.num_classes, generator=generator)
        for reliability, reads in wanted(parts):
            reliability.fit(reads(logits), logits.argmax(dim=1)).to(run.device)

    def cache(self, run: RunContext, parts: Parts, *, epochs: int) -> BaseTeacher:
        return parts.taught.module
