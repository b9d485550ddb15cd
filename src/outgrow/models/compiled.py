"""A network through torch.compile for batches like the first; all others are answered as before.

A compiler would start again, for minutes, at the last batch of an epoch, in evaluation or outside of autocast.
"""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from outgrow.models.taps import Seen, Taps
from outgrow.outputs import Outputs

Said = tuple[Tensor, dict[str, Tensor]]


class Compiled(nn.Module):
    """``network``, compiled at its first batch; itself for batches of another kind and where that fails.

    A kind is shape, layout, type and device of the images, autocast, whether gradients are wanted, and
    the mode (training or evaluation). ``reason`` is why it is not compiled, None where it is or is not yet;
    ``on_failure`` is told. With ``graphs`` (a CUDA device) a call launches all kernels as one CUDA graph, and
    what it returned lives until the next call: for one call a step.
    """

    def __init__(
        self, network: Taps, *, graphs: bool = False, on_failure: Callable[[str], None] | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.graphs = graphs
        self.on_failure = on_failure
        self.reason: str | None = None
        self._key: tuple[Any, ...] | None = None
        self._fast: Callable[[Tensor], Said] | None = None

    def forward(self, images: Float[Tensor, "batch ..."]) -> Outputs:
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()
        if self._key is None:
            self._key = self._kind(images)
            return self._first(images)
        if self._fast is None or not self.takes(images):
            return self.network(images)
        return Outputs(*self._fast(images))

    def takes(self, images: Float[Tensor, "batch ..."]) -> bool:
        """Whether it is compiled, for batches like ``images``."""
        return self._fast is not None and self._key == self._kind(images)

    def _kind(self, images: Tensor) -> tuple[Any, ...]:
        device = images.device.type
        amp = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        layout = tuple(images.shape), images.stride(), images.dtype, images.device
        return (*layout, amp, torch.is_grad_enabled(), self.network.model.training)

    def _first(self, images: Tensor) -> Outputs:
        network = self.network
        seen: dict[str, Seen] = {}

        def run(images: Tensor) -> Said:
            outputs = network.bare(images)
            features = {**outputs.features, **{path: value for path, (value, _) in seen.items()}}
            seen.clear()  # as it was found, or the next call would start another compilation
            return outputs.logits, features

        try:
            mode = "reduce-overhead" if self.graphs else None
            # taps are traced with the rest; without them, what cannot be traced may stand between two graphs
            fast = torch.compile(run, dynamic=False, fullgraph=bool(network.paths), mode=mode)
            for handle in network.hook(seen, traced=True):  # a graph is for a net with just these hooks
                weakref.finalize(self, handle.remove)
            logits, features = fast(images)
        except Exception as error:  # dynamo, inductor, Triton and the host's compiler each have their own
            self.reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            if self.on_failure is not None:
                self.on_failure(self.reason)
            return network(images)
        self._fast = fast
        return Outputs(logits, features)
