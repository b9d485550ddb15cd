"""What a pass is asked, and what it answers: three sums over the rows, and the gradient."""

from typing import NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor

from outgrow.outputs import Rule

Scale = Float[Tensor, ""] | float


class Scales(NamedTuple):
    """What multiplies each row's losses: the cross-entropy, and ``T^2 KL`` on right and on wrong rows."""

    task: Scale
    easy: Scale
    hard: Scale


class Batch(NamedTuple):
    """The rows of one step. ``weight`` is each row's own beside ``scales``; its type is the one to compute in."""

    student: Float[Tensor, "rows classes"]
    teacher: Float[Tensor, "rows classes"]
    label: Int[Tensor, " rows"]
    wrong: Bool[Tensor, " rows"]
    weight: Float[Tensor, " rows"]
    scales: Scales
    rule: Rule
    temperature: float

    def lifted(self, into: Float[Tensor, "two rows classes"] | None = None) -> "Batch":
        """The same in the type to compute in, copied to ``into`` where that is given."""
        compute = self.weight.dtype
        if into is None:
            return self._replace(student=self.student.to(compute), teacher=self.teacher.to(compute))
        return self._replace(student=into[0].copy_(self.student), teacher=into[1].copy_(self.teacher))

    def rows(self, first: int, last: int) -> "Batch":
        if first == 0 and last >= len(self.label):
            return self
        return Batch._make((*(tensor[first:last] for tensor in self[:5]), *self[5:]))


class Sums(NamedTuple):
    """Over all rows the cross-entropy, over right and over wrong ones their weight times ``KL``, all before
    ``Batch.scales``; and the gradient of the scaled sum (``KL`` times ``T^2``), where it was wanted.

    Numbers from the pass in C, where a tensor of one number would cost as much as one of many.
    """

    task: Scale
    easy: Scale
    hard: Scale
    gradient: Float[Tensor, "rows classes"] | None
