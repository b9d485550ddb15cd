"""Activations by module path, as part of what a network says.

    student = Taps(model, ["layer2", PENULTIMATE])
    outputs = student(images)          # Outputs(logits, {"layer2": ..., "penultimate": ...})

Hooks exist only during a forward pass, so nothing stays on anybody's model (a compiled one keeps its own
while it lives: :mod:`outgrow.models.compiled`).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from outgrow.models.structure import bare_net, head_of
from outgrow.outputs import Outputs, as_outputs

PENULTIMATE = "penultimate"
"""The name of the features that the final classifier reads."""
BOX = "box"
"""The name under which a detector says how it would move each row's box (rows x 4)."""
BOX_IOU = "box_iou"
"""How well each row's moved box then overlaps the object that the row was matched to (rows)."""
NOT_TAPS = frozenset({PENULTIMATE, BOX, BOX_IOU})
"""Features that no loss on maps takes unasked."""


Seen = tuple[Tensor, int]
"""An activation and its version: whether something wrote into it since."""


class Taps(nn.Module):
    """``model`` with some of its activations in its outputs.

    ``paths`` are module paths as in ``model.named_modules()`` (of ``model.net`` for a Network), or
    :data:`PENULTIMATE` for the input of the final classifier. Maps come out as (images, channels, height,
    width), also of nets that keep their channels last (Swin). ``ValueError`` for a path that is not there,
    does not return one tensor, is not reached, or whose output a following in-place module overwrites.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> outputs = Taps(net, ["1", PENULTIMATE])(torch.zeros(5, 3))
    >>> {name: tuple(value.shape) for name, value in outputs.features.items()}
    {'1': (5, 4), 'penultimate': (5, 4)}
    """

    def __init__(self, model: nn.Module, paths: Sequence[str] = ()) -> None:
        super().__init__()
        self.model = model
        self.paths = tuple(paths)
        self._modules_at = {path: _module_at(model, path) for path in self.paths}

    def forward(self, images: Float[Tensor, "..."]) -> Outputs:
        if not self.paths:
            return self.bare(images)
        seen: dict[str, Seen] = {}
        handles = self.hook(seen)
        try:
            outputs = self.bare(images)
        finally:
            for handle in handles:
                handle.remove()
        for path in self.paths:
            if path not in seen:
                raise ValueError(
                    f"Taps: needs {path!r} to run in the forward pass, got no output from it; "
                    "`outgrow list features MODEL` prints what can be tapped."
                )
            value, version = seen[path]
            if value._version != version:
                raise ValueError(
                    f"Taps: needs the output of {path!r} as it was, got one that a following module overwrote in "
                    "place; tap that module instead, or build it with inplace=False."
                )
        return Outputs(outputs.logits, {**outputs.features, **{path: seen[path][0] for path in self.paths}})

    def bare(self, images: Float[Tensor, "..."]) -> Outputs:
        """What the model says by itself."""
        return as_outputs(self.model(images), whose=type(self.model).__name__)

    def hook(self, seen: dict[str, Seen], *, traced: bool = False) -> list[RemovableHandle]:
        """Hooks that leave the activations of every pass in ``seen``, or ``traced`` only those of a compiler's."""
        return [self._hook(path, seen, traced) for path in self.paths]

    def _hook(self, path: str, seen: dict[str, Seen], traced: bool) -> RemovableHandle:
        def keep(value: object) -> None:
            if traced and not torch.compiler.is_compiling():
                return
            if isinstance(value, (tuple, list)) and value and isinstance(value[0], Tensor):
                value = value[0]  # transformer blocks return (hidden states, ...)
            if not isinstance(value, Tensor):
                raise ValueError(
                    f"Taps: needs one tensor from {path!r}, got {type(value).__name__}; tap a module inside it."
                )
            if channels_last and value.dim() == 4:
                value = value.movedim(3, 1)  # a view, which shares its version
            seen[path] = value, value._version

        module = self._modules_at[path]
        channels_last = _channels_last(bare_net(self.model)) and not isinstance(module, nn.Conv2d)
        if path == PENULTIMATE:
            return module.register_forward_pre_hook(lambda _, inputs: keep(inputs[0]))
        return module.register_forward_hook(lambda _, __, output: keep(output))


def _channels_last(net: nn.Module) -> bool:
    """Whether the maps of ``net`` are (images, height, width, channels): timm says so of its nets."""
    return getattr(net, "output_fmt", None) == "NHWC" or "torchvision.models.swin" in type(net).__module__


def _module_at(model: nn.Module, path: str) -> nn.Module:
    net = bare_net(model)
    if path == PENULTIMATE:
        return head_of(net)[1]
    try:
        return net.get_submodule(path)
    except AttributeError:
        model = net
        names = [name for name, _ in model.named_modules() if name and name.count(".") <= 1]
        raise ValueError(
            f"Taps: needs a module of {type(model).__name__}, got {path!r}; there are {', '.join(names[:20])}"
            f"{', ...' if len(names) > 20 else ''}."
        ) from None
