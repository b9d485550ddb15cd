"""Run a network through torch.compile for batches like the first, and uncompiled for all others.

Otherwise the last batch of an epoch, an evaluation or a call without autocast would start a new compilation,
which takes minutes.
"""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from outgrow.models.taps import Seen, Taps
from outgrow.outputs import Outputs

Result = tuple[Tensor, dict[str, Tensor]]
"""Logits and features."""


class Compiled(nn.Module):
    """``network``, compiled at its first batch and used for batches of the same kind.

    A kind is the images' shape, strides, dtype and device, the autocast dtype, whether gradients are enabled, and
    the training or eval mode. Batches of another kind run uncompiled, and so do all if compilation fails. Then
    ``reason`` is the error and ``on_failure`` is called with it; otherwise ``reason`` is None.

    With ``graphs`` (a CUDA device) a call launches all kernels as one CUDA graph. Its outputs are overwritten
    by the next call, so there may be only one call per step.
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
        self._fast: Callable[[Tensor], Result] | None = None

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
        """Whether ``images`` run compiled."""
        return self._fast is not None and self._key == self._kind(images)

    def _kind(self, images: Tensor) -> tuple[Any, ...]:
        device = images.device.type
        amp = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        layout = tuple(images.shape), images.stride(), images.dtype, images.device
        return (*layout, amp, torch.is_grad_enabled(), self.network.model.training)

    def _first(self, images: Tensor) -> Outputs:
        network = self.network
        seen: dict[str, Seen] = {}

        def run(images: Tensor) -> Result:
            outputs = network.bare(images)
            features = {**outputs.features, **{path: value for path, (value, _) in seen.items()}}
            seen.clear()  # a dict that is not empty at the next call would cause a recompilation
            return outputs.logits, features

        try:
            mode = "reduce-overhead" if self.graphs else None
            # with taps the graph must be whole, because hooks are part of it; without taps graph breaks are fine
            fast = torch.compile(run, dynamic=False, fullgraph=bool(network.paths), mode=mode)
            for handle in network.hook(seen, traced=True):  # the graph is guarded on exactly these hooks
                weakref.finalize(self, handle.remove)
            # by default a graph is not guarded on the absence of hooks: one without taps would serve a net with taps
            with torch._dynamo.config.patch(skip_nnmodule_hook_guards=False):
                logits, features = fast(images)
        except Exception as error:  # dynamo, inductor, Triton and the C++ compiler each have their own types
            self.reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            if self.on_failure is not None:
                self.on_failure(self.reason)
            return network(images)
        self._fast = fast
        return Outputs(logits, features)
