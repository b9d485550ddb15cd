"""The teacher: frozen, always in eval mode, without gradients."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from outgrow.models.taps import Taps
from outgrow.outputs import Outputs, lift, with_logits


class BaseTeacher(nn.Module):
    """The base class of teachers, called as ``teacher(images, *, index=None) -> Outputs``, without gradients.

    ``images`` are RGB in [0, 1]. ``index`` is each sample's number in the training set. A teacher that wraps
    another one has it as ``self.teacher``.
    """

    def at(self, epoch: int | None) -> None:
        """Announce that the next images are those of ``epoch``; None ends the epoch. Only a cache uses this."""
        inner = getattr(self, "teacher", None)
        if isinstance(inner, BaseTeacher):
            inner.at(epoch)

    @property
    def gives_logits(self) -> bool:
        """Whether its logits say anything. Where they do not, it is neither right nor wrong."""
        inner = getattr(self, "teacher", None)
        return not isinstance(inner, BaseTeacher) or inner.gives_logits


class Teacher(BaseTeacher):
    """``model`` as a teacher, called as ``teacher(images) -> Outputs``.

    Its parameters are frozen and its batch norm statistics do not change. It stays in eval mode even if
    ``train()`` is called on it, on a parent module or on ``model``. ``taps`` are module paths of ``model``
    whose activations are added to the outputs. ``index`` (the samples' numbers in the training set) is
    ignored here; teachers with a correction fitted out of fold need it.

    >>> teacher = Teacher(nn.Linear(3, 2)).train()
    >>> teacher.training, teacher(torch.zeros(1, 3)).logits.requires_grad
    (False, False)
    """

    def __init__(self, model: nn.Module, *, taps: Sequence[str] = ()) -> None:
        super().__init__()
        self.network = Taps(model, taps).requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "Teacher":
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "..."], *, index: Int[Tensor, " rows"] | None = None) -> Outputs:
        if any(module.training for module in self.network.modules()):
            self.eval()
        return self.network(images)


class NoTeacher(BaseTeacher):
    """A teacher whose logits are all zero, so that every row counts as right.

    With an objective without distillation terms, the same loop then trains the student alone.
    """

    gives_logits = False

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, images: Float[Tensor, "..."], *, index: Int[Tensor, " rows"] | None = None) -> Outputs:
        return Outputs(images.new_zeros(len(images), self.num_classes))


class SelectedClasses(BaseTeacher):
    """``teacher`` with the classes ``columns`` only, in that order: those that the student has too."""

    columns: Tensor

    def __init__(self, teacher: nn.Module, columns: Sequence[int]) -> None:
        super().__init__()
        self.teacher = teacher
        self.register_buffer("columns", torch.tensor(list(columns)))

    def forward(self, images: Float[Tensor, "..."], *, index: Int[Tensor, " rows"] | None = None) -> Outputs:
        outputs = self.teacher(images, index=index)
        return with_logits(outputs, outputs.logits[:, self.columns])


class GroupedClasses(BaseTeacher):
    """``teacher`` with one class for each of ``groups``, the numbers of the classes that form it.

    The probability of a group is the sum of the probabilities of its classes, out of all groups. So its logit is the
    logarithm of the sum of the exponentials of their logits; a group of one keeps its logit. A loss softens these logits
    by its temperature: classes are summed first.
    """

    members: Tensor
    sizes: Tensor

    def __init__(self, teacher: nn.Module, groups: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.teacher = teacher
        self.groups = tuple(map(tuple, groups))
        # in the state, so that teachers with other groups have another digest
        self.register_buffer("members", torch.tensor([place for group in groups for place in group]))
        self.register_buffer("sizes", torch.tensor([len(group) for group in groups]))

    def forward(self, images: Float[Tensor, "..."], *, index: Int[Tensor, " rows"] | None = None) -> Outputs:
        outputs = self.teacher(images, index=index)
        return with_logits(outputs, grouped(outputs.logits, self.groups))


def grouped(
    logits: Float[Tensor, "rows classes"], groups: Sequence[Sequence[int]]
) -> Float[Tensor, "rows groups"]:
    """One logit for each group of classes: the logarithm of the sum of the exponentials of theirs.

    >>> grouped(torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log(), [[3], [0, 2]]).exp()
    tensor([[0.4000, 0.4000]])
    """
    result = lift(logits)[:, [group[0] for group in groups]]
    for number, group in enumerate(groups):
        if len(group) > 1:
            result[:, number] = lift(logits[:, list(group)]).logsumexp(dim=1)
    return result
