"""The check for a loss that is not finite, before the optimizer step."""

import torch
import torch.distributed as dist
from torch import Tensor

from outgrow.outputs import ObjectiveResult
from outgrow.training.lesson import Samples

READ_EVERY = 10
"""Steps between reads of the device's flag."""


class NonFiniteLoss(ArithmeticError):
    """The loss of a step was infinite or NaN. The step was not taken."""


class NonFiniteScores(ValueError):
    """A network gave NaN or infinite logits in an evaluation, which have no score."""


class Guard:
    """Raises :class:`NonFiniteLoss` with the step, its terms and its samples.

    On a CPU it raises at once. On other devices a flag stays on the device: the fused optimiser skips the step
    if it is set, and the host reads it every ``READ_EVERY`` steps. Processes share the flag, so all of them raise.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        *,
        scaled: bool,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self.optimizer, self.scaled, self.group = optimizer, scaled, group
        self.immediate = device.type == "cpu"
        self.waiting: list[tuple[Tensor, ObjectiveResult, Samples, int, int]] = []

    def before_step(self, result: ObjectiveResult, batch: Samples, epoch: int, step: int) -> None:
        """Check ``result`` before the optimiser uses its gradient."""
        bad = ~result.total.detach().isfinite()
        if self.group is not None:
            anywhere = bad.float()
            dist.all_reduce(anywhere, op=dist.ReduceOp.MAX, group=self.group)
            bad = anywhere > 0
        self.waiting.append((bad, result, batch, epoch, step))
        if self.immediate:
            self.read()
            return
        if not self.scaled:  # a GradScaler sets this attribute itself
            self.optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
        if len(self.waiting) >= READ_EVERY:
            self.read()

    def read(self) -> None:
        """Read the flags of the steps since the last read."""
        waiting, self.waiting = self.waiting, []
        if not waiting:
            return
        flags = torch.stack([bad for bad, *_ in waiting]).tolist()
        if any(flags):
            raise NonFiniteLoss(self._describe(*waiting[flags.index(True)][1:]))

    def _describe(self, result: ObjectiveResult, batch: Samples, epoch: int, step: int) -> str:
        """The message of the first process whose loss was not finite."""
        own = None if result.total.isfinite() else _message(result, batch, epoch, step)
        if self.group is None:
            return own or ""
        messages: list[str | None] = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(messages, own, group=self.group)
        return next(text for text in messages if text is not None)


def _message(result: ObjectiveResult, batch: Samples, epoch: int, step: int) -> str:
    terms = ", ".join(f"{name} {value.item():g}" for name, value in result.terms.items())
    index = batch.index
    rows = "" if index is None else f" Its samples: {index.tolist()[:16]}{' ...' if len(index) > 16 else ''}."
    return (
        f"training: needs a finite loss, got {result.total.item()} in epoch {epoch + 1}, step {step + 1} "
        f"({terms}).{rows} The step was not taken. Lower train.lr, set train.clip=1.0, or use "
        "train.precision=fp32; `--resume` continues from the last checkpoint, if there is one."
    )
