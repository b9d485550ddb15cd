"""Contrastive representation distillation: ``crd``."""

import math
from collections.abc import Collection

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from outgrow.data.randomness import keyed_uniform
from outgrow.losses.base import BatchLoss, Fixture, positive
from outgrow.models.taps import PENULTIMATE
from outgrow.outputs import Outputs, Target, lift

UNKNOWN = -1
"""The class of a sample without a label, and the slot of a sample without a memory."""


def crd_loss(
    positive_score: Float[Tensor, " rows"],
    negative_score: Float[Tensor, "rows negatives"],
    *,
    num_samples: int,
) -> Float[Tensor, " rows"]:
    r"""Noise-contrastive estimation: distinguish a sample's own memory from K others, one value per row.

    .. math:: -\log \frac{u}{u + K/M} - \sum_k \log \frac{K/M}{v_k + K/M}

    with :math:`u, v_k` the normalised scores :math:`e^{\cos / \tau} / Z` and M samples. Never zero.

    Reference: Tian, Krishnan, Isola (ICLR 2020), https://arxiv.org/abs/1910.10699, equations 17 to 19.

    >>> crd_loss(torch.tensor([1.0]), torch.tensor([[0.0]]), num_samples=1)
    tensor([0.6931])
    """
    noise = negative_score.shape[1] / num_samples
    # the authors' 1e-7 is not needed: the scores are positive
    return torch.log1p(noise / positive_score) + torch.log1p(negative_score / noise).sum(dim=1)


class CRD(BatchLoss):
    """:func:`crd_loss` of the student with the teacher's memory, plus that of the teacher with the student's.

    Both networks' penultimate features are embedded (linear, unit length). They are compared with memories of
    the training samples, found by :attr:`Target.index`. The samples are those given to :meth:`setup`
    (``index``): they have memories, negatives are drawn from them, and M is their number. If :meth:`setup` got
    labels, the negatives of a row are samples of other classes. Otherwise, and for a row without a label, they
    are drawn from all. The constant Z is the mean score of the first batch times the number of samples,
    detached.

    ``temperature`` divides the cosines. The loss reads no logits and declares no temperature. So rules that
    correct logits do not change it, but ``drop`` does. A sample that was not given to :meth:`setup` raises
    ``ValueError`` on a CPU. On other devices that check would need a sync at every step, and the value is NaN
    instead. A row without a label that was not given to :meth:`setup` has no memory, and its value is 0. A row's
    weight scales its own value. Rows of weight zero enter neither the memories nor Z, and features in them that are
    not finite have no effect.

    Reference: Tian, Krishnan, Isola (ICLR 2020), https://arxiv.org/abs/1910.10699.
    """

    zero_at_match = False
    draws = True
    needs_index = True
    reads = frozenset({"features"})
    slot: Tensor | None
    memory_student: Tensor
    memory_teacher: Tensor
    z_student: Tensor
    z_teacher: Tensor
    by_class: Tensor
    class_size: Tensor
    class_start: Tensor
    draw: Tensor

    def __init__(
        self, dim: int = 128, negatives: int = 16384, temperature: float = 0.07, momentum: float = 0.5
    ) -> None:
        super().__init__()
        self.dim, self.negatives, self.momentum = dim, negatives, momentum
        self.contrast_temperature = positive(temperature, what="crd: temperature")
        self.embed_student: nn.Module | None = None
        self.embed_teacher: nn.Module | None = None

    def student_taps(self, features: Collection[str]) -> frozenset[str]:
        return frozenset({PENULTIMATE})

    def teacher_taps(self, features: Collection[str]) -> frozenset[str]:
        return frozenset({PENULTIMATE})

    def setup(self, fixture: Fixture) -> None:
        student = _penultimate(fixture.student, "student")
        teacher = _penultimate(fixture.teacher, "teacher")
        self.embed_student = nn.Linear(student.shape[1], self.dim)
        self.embed_teacher = nn.Linear(teacher.shape[1], self.dim)
        count = fixture.num_shown
        label = torch.full((count,), UNKNOWN) if fixture.label is None else fixture.label.cpu()
        for name in ("memory_student", "memory_teacher"):
            self.register_buffer(name, F.normalize(torch.rand(count, self.dim) * 2 - 1, dim=1))
        for name in ("z_student", "z_teacher"):
            self.register_buffer(name, torch.tensor(-1.0))  # not estimated yet
        # the slot of each sample's memory; UNKNOWN for numbers outside the training set
        slot = None
        if fixture.index is not None:
            slot = torch.full((fixture.num_samples,), UNKNOWN)
            slot[fixture.index.cpu()] = torch.arange(count)
        self.register_buffer("slot", slot)
        # samples sorted by class, those without a label first, so that each class is one block to skip
        known = label[label >= 0].bincount(minlength=1)
        self.register_buffer("by_class", label.clamp(min=UNKNOWN).argsort(stable=True))
        self.register_buffer("class_size", known)
        self.register_buffer("class_start", known.cumsum(0) - known + (label < 0).sum())
        # the seed of the draws, and the batches that have drawn
        self.register_buffer("draw", torch.stack([torch.randint(2**62, ()), torch.tensor(0)]))

    def batch(
        self, student: Outputs, teacher: Outputs, target: Target, weight: Float[Tensor, " rows"]
    ) -> Float[Tensor, ""]:
        if self.embed_student is None or self.embed_teacher is None:
            raise ValueError(
                "crd: needs its memories, got none; call objective.setup(student, teacher, num_samples=...) "
                "with the outputs of one dry run before the first step."
            )
        if target.index is None:
            raise ValueError(
                "crd: needs each sample's number in the training set, got a target without index; "
                "pass Target(label, index=...)."
            )
        feature = _penultimate(student, "student")
        if not len(feature):
            return feature.sum() * 0.0
        takes_part = (weight > 0)[:, None]  # rows that do not are made safe before the maths
        pairs = (
            (self.embed_student, feature),
            (self.embed_teacher, _penultimate(teacher, "teacher")),
        )
        own, other = (
            F.normalize(embed(torch.where(takes_part, lift(value), 0.0)), dim=1) for embed, value in pairs
        )
        slot, known = self._slots(target.index, weight, target.valid)
        drawn = self._draw(slot, target.dominant)
        counts = known & (weight > 0)
        value = self._side(own, self.memory_teacher, drawn, counts, self.z_student) + self._side(
            other, self.memory_student, drawn, counts, self.z_teacher
        )
        self._remember(self.memory_student, own, slot, counts)
        self._remember(self.memory_teacher, other, slot, counts)
        value = torch.where(known | (weight <= 0), value, torch.where(target.valid, math.nan, 0.0))
        return (weight * value).mean()

    def _slots(
        self, index: Int[Tensor, " rows"], weight: Float[Tensor, " rows"], labelled: Bool[Tensor, " rows"]
    ) -> tuple[Int[Tensor, " rows"], Bool[Tensor, " rows"]]:
        """The slot of each row's memory, and whether it has one; slot 0 if it has none."""
        numbers = len(self.memory_student if self.slot is None else self.slot)
        known = (index >= 0) & (index < numbers)
        slot = index.clamp(0, numbers - 1)
        if self.slot is not None:
            slot = self.slot[slot]
            known = known & (slot >= 0)
        lost = ~known & (weight > 0) & labelled
        if index.device.type == "cpu" and lost.any():
            row = int(lost.nonzero()[0])
            raise ValueError(
                f"crd: needs samples that it was set up for, got number {int(index[row])} in row {row}; "
                "give objective.setup(..., num_samples=, index=) the numbers of all training samples."
            )
        return torch.where(known, slot, 0), known

    @torch.no_grad()
    def _draw(self, slot: Int[Tensor, " rows"], label: Int[Tensor, " rows"]) -> Int[Tensor, "rows samples"]:
        """The slots of each row: that of its own memory, then those of its negatives."""
        num, classes = len(self.by_class), len(self.class_size)
        of_a_class = (label >= 0) & (label < classes) & (classes > 1)
        label = label.clamp(0, classes - 1)
        zero = torch.zeros_like(label)
        size = torch.where(of_a_class, self.class_size[label], zero)[:, None]
        start = torch.where(of_a_class, self.class_start[label], zero)[:, None]
        room = num - size
        position = (keyed_uniform(self.draw, slot, self.negatives) * room).long()
        self.draw[1] += 1
        position = torch.minimum(position, room - 1).clamp(min=0)
        position = position + size * (position >= start)
        return torch.cat([slot[:, None], self.by_class[position.clamp(max=num - 1)]], dim=1)

    def _side(
        self, anchor: Tensor, memory: Tensor, drawn: Tensor, counts: Bool[Tensor, " rows"], z: Tensor
    ) -> Float[Tensor, " rows"]:
        # the memories change in place later, so the graph keeps a gathered copy
        cosine = torch.bmm(memory[drawn].to(anchor.dtype), anchor[:, :, None])[:, :, 0]
        score = (cosine / self.contrast_temperature).exp()
        with torch.no_grad():
            mean = (score.mean(dim=1) * counts).sum() / counts.sum()
            z.copy_(torch.where(z > 0, z, torch.nan_to_num(mean * len(memory), nan=-1.0).to(z.dtype)))
            scale = torch.where(z > 0, z, 1.0)  # 1 until a batch has a row that counts, and a memory of it
        score = score / scale
        return crd_loss(score[:, 0], score[:, 1:], num_samples=len(memory))

    @torch.no_grad()
    def _remember(
        self, memory: Tensor, value: Tensor, slot: Int[Tensor, " rows"], counts: Bool[Tensor, " rows"]
    ) -> None:
        old = memory[slot]
        new = F.normalize(self.momentum * old + (1 - self.momentum) * value.to(memory.dtype), dim=1)
        new = torch.where(counts[:, None], new, old)
        # a row that does not count repeats the first row that does, as its own slot may be another row's
        first = counts.long().argmax(dim=0, keepdim=True)
        memory[torch.where(counts, slot, slot[first])] = torch.where(counts[:, None], new, new[first])

    def extra_repr(self) -> str:
        return f"dim={self.dim}, negatives={self.negatives}, temperature={self.contrast_temperature}"


def _penultimate(outputs: Outputs, whose: str) -> Float[Tensor, "rows features"]:
    if PENULTIMATE not in outputs.features:
        raise ValueError(
            f"crd: needs the {whose}'s features[{PENULTIMATE!r}], got {sorted(outputs.features) or 'none'}; "
            f"run the network through outgrow.Taps(model, [{PENULTIMATE!r}])."
        )
    return outputs.features[PENULTIMATE].flatten(1)
