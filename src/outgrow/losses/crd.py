"""Contrastive representation distillation: ``crd``."""

from collections.abc import Collection

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from outgrow.losses.base import BatchLoss, Fixture, positive
from outgrow.models.taps import PENULTIMATE
from outgrow.outputs import Outputs, Target, lift


def crd_loss(
    positive_score: Float[Tensor, " rows"],
    negative_score: Float[Tensor, "rows negatives"],
    *,
    num_samples: int,
) -> Float[Tensor, " rows"]:
    r"""Noise-contrastive estimation: tell a sample's own memory from K others, one value a row.

    .. math:: -\log \frac{u}{u + K/M} - \sum_k \log \frac{K/M}{v_k + K/M}

    with :math:`u, v_k` the normalised scores :math:`e^{\cos / \tau} / Z` and M samples. It is never
    zero.

    Reference: Tian, Krishnan, Isola (ICLR 2020), https://arxiv.org/abs/1910.10699, equations 17 to 19.

    >>> crd_loss(torch.tensor([1.0]), torch.tensor([[0.0]]), num_samples=1)
    tensor([0.6931])
    """
    noise = negative_score.shape[1] / num_samples
    # the authors' 1e-7 is not needed: the scores are positive
    return torch.log1p(noise / positive_score) + torch.log1p(negative_score / noise).sum(dim=1)


class CRD(BatchLoss):
    """:func:`crd_loss` from student to the teacher's memory and back, with both memories.

    Both networks' penultimate features are embedded (linear, unit length) and compared with memories
    of all training samples by :attr:`Target.index`. Negatives are drawn among samples of other
    classes where :meth:`setup` was given the labels, otherwise among all. The constant Z is the mean
    score of the first batch times the number of samples, and detached. ``temperature`` divides the
    cosines; it is no softening of logits, so the loss declares no temperature and reads no logits:
    rules that correct logits are inert for it, ``drop`` is not.

    A row's weight scales its own value; rows of weight zero do not enter the memories.

    Reference: Tian, Krishnan, Isola (ICLR 2020), https://arxiv.org/abs/1910.10699.
    """

    zero_at_match = False
    draws = True
    needs_index = True
    reads = frozenset({"features"})
    memory_student: Tensor
    memory_teacher: Tensor
    z_student: Tensor
    z_teacher: Tensor
    by_class: Tensor
    class_size: Tensor
    class_start: Tensor

    def __init__(
        self, dim: int = 128, negatives: int = 16384, temperature: float = 0.07, momentum: float = 0.5
    ) -> None:
        super().__init__()
        self.dim, self.negatives, self.momentum = dim, negatives, momentum
        self.contrast_temperature = positive(temperature, what="crd: temperature")
        self.embed_student: nn.Module | None = None
        self.embed_teacher: nn.Module | None = None

    def teacher_taps(self, features: Collection[str]) -> frozenset[str]:
        return frozenset({PENULTIMATE})

    def setup(self, fixture: Fixture) -> None:
        student = _penultimate(fixture.student, "student")
        teacher = _penultimate(fixture.teacher, "teacher")
        self.embed_student = nn.Linear(student.shape[1], self.dim)
        self.embed_teacher = nn.Linear(teacher.shape[1], self.dim)
        size = (fixture.num_samples, self.dim)
        for name in ("memory_student", "memory_teacher"):
            self.register_buffer(name, F.normalize(torch.rand(size) * 2 - 1, dim=1))
        for name in ("z_student", "z_teacher"):
            self.register_buffer(name, torch.tensor(-1.0))  # not estimated yet
        by_class = (
            torch.arange(fixture.num_samples)
            if fixture.label is None
            else fixture.label.cpu().argsort(stable=True)
        )
        counts = torch.zeros(1, dtype=torch.long) if fixture.label is None else fixture.label.cpu().bincount()
        self.register_buffer("by_class", by_class)
        self.register_buffer("class_size", counts)
        self.register_buffer("class_start", counts.cumsum(0) - counts)

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
        own = F.normalize(self.embed_student(lift(feature)), dim=1)
        other = F.normalize(self.embed_teacher(lift(_penultimate(teacher, "teacher"))), dim=1)
        drawn = self._draw(target)
        value = self._side(own, self.memory_teacher, drawn, self.z_student) + self._side(
            other, self.memory_student, drawn, self.z_teacher
        )
        self._remember(self.memory_student, own, target.index, weight)
        self._remember(self.memory_teacher, other, target.index, weight)
        return (weight * value).mean()

    @torch.no_grad()
    def _draw(self, target: Target) -> Int[Tensor, "rows samples"]:
        """Each row's own sample, then its negatives."""
        assert target.index is not None
        rows, num = len(target.index), len(self.by_class)
        if len(self.class_size) > 1:
            label = target.dominant.clamp(min=0)
            size, start = self.class_size[label], self.class_start[label]
        else:
            size = start = torch.zeros_like(target.index)
        room = (num - size)[:, None]
        position = (torch.rand(rows, self.negatives, device=target.index.device) * room).long()
        position = torch.minimum(position, room - 1).clamp(min=0)
        position = position + size[:, None] * (position >= start[:, None])
        return torch.cat([target.index[:, None], self.by_class[position.clamp(max=num - 1)]], dim=1)

    def _side(self, anchor: Tensor, memory: Tensor, drawn: Tensor, z: Tensor) -> Float[Tensor, " rows"]:
        # The memories change in place after this, so what the graph keeps is the gathered copy.
        cosine = torch.bmm(memory[drawn].to(anchor.dtype), anchor[:, :, None])[:, :, 0]
        score = (cosine / self.contrast_temperature).exp()
        with torch.no_grad():
            z.copy_(torch.where(z > 0, z, (score.mean() * len(memory)).to(z.dtype)))
            scale = z.clone()
        score = score / scale
        return crd_loss(score[:, 0], score[:, 1:], num_samples=len(memory))

    @torch.no_grad()
    def _remember(self, memory: Tensor, value: Tensor, index: Tensor, weight: Tensor) -> None:
        old = memory[index]
        new = F.normalize(self.momentum * old + (1 - self.momentum) * value.to(memory.dtype), dim=1)
        memory[index] = torch.where((weight > 0)[:, None], new, old)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, negatives={self.negatives}, temperature={self.contrast_temperature}"


def _penultimate(outputs: Outputs, whose: str) -> Float[Tensor, "rows features"]:
    if PENULTIMATE not in outputs.features:
        raise ValueError(
            f"crd: needs the {whose}'s features[{PENULTIMATE!r}], got {sorted(outputs.features) or 'none'}; "
            f"run the network through outgrow.Taps(model, [{PENULTIMATE!r}])."
        )
    return outputs.features[PENULTIMATE].flatten(1)
