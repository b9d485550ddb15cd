"""An exponential moving average of a network's weights, which is evaluated and saved in their place."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """The average of all parameters and buffers of ``network``, updated after each step.

    ``decay`` is that of many steps. At step n it is at most (1 + n) / (10 + n), so that the initial weights do not
    dominate a short training. Whole numbers, such as the step count of a batch norm, are copied.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network, self.decay = network, decay
        self.values = {name: value.detach().clone() for name, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Add the current weights, after ``steps`` steps."""
        now = self.network.state_dict()
        names = [name for name, value in now.items() if value.is_floating_point()]
        average = get_ema_multi_avg_fn(min(self.decay, (1 + steps) / (10 + steps)))
        average([self.values[name] for name in names], [now[name] for name in names], steps)
        for name in now.keys() - set(names):
            self.values[name].copy_(now[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Context in which the network has the average as its weights."""
        own = {name: value.clone() for name, value in self.network.state_dict().items()}
        self.apply()
        try:
            yield
        finally:
            self.network.load_state_dict(own)

    def apply(self) -> None:
        """Make the average the weights of the network."""
        self.network.load_state_dict(self.values)

    def state_dict(self) -> dict[str, Tensor]:
        return self.values

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, value in state.items():
            self.values[name].copy_(value)
