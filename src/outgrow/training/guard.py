"""The one check for a loss that is not finite, before it moves the student."""

import torch
from torch import Tensor

from outgrow.outputs import ObjectiveResult
from outgrow.training.lesson import Samples

READ_EVERY = 10
"""Steps between reads of the device's flag."""


class NonFiniteLoss(ArithmeticError):
    """The loss of a step was infinite or NaN; the step was not taken."""


class Guard:
    """Raises :class:`NonFiniteLoss` with the step, its terms and its samples.

    On a CPU it does so at once. Elsewhere the flag stays on the device: the fused optimiser skips the step
    by it, and the host reads it every ``READ_EVERY`` steps.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device, *, scaled: bool) -> None:
        self.optimizer, self.scaled = optimizer, scaled
        self.at_once = device.type == "cpu"
        self.waiting: list[tuple[Tensor, ObjectiveResult, Samples, int, int]] = []

    def before_step(self, result: ObjectiveResult, batch: Samples, epoch: int, step: int) -> None:
        """Check ``result`` before the optimiser uses its gradient."""
        bad = ~result.total.detach().isfinite()
        self.waiting.append((bad, result, batch, epoch, step))
        if self.at_once:
            self.read()
            return
        if not self.scaled:  # a GradScaler sets this attribute of torch's itself
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
            _, result, batch, epoch, step = waiting[flags.index(True)]
            terms = ", ".join(f"{name} {value.item():g}" for name, value in result.terms.items())
            index = batch.index
            rows = (
                ""
                if index is None
                else f" Its samples: {index.tolist()[:16]}{' ...' if len(index) > 16 else ''}."
            )
            raise NonFiniteLoss(
                f"training: needs a finite loss, got {result.total.item()} in epoch {epoch + 1}, step {step + 1} "
                f"({terms}).{rows} The step was not taken. Lower train.lr, set train.clip=1.0, or use "
                "train.precision=fp32; `--resume` continues from the last whole epoch."
            )
