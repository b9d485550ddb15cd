"""Return activations, selected by module path, with a network's logits.

    student = Taps(model, ["layer2", PENULTIMATE])
    outputs = student(images)          # Outputs(logits, {"layer2": ..., "penultimate": ...})

Hooks are registered only during a forward pass, so the model is unchanged afterwards. The exception is a
compiled network, which keeps its hooks (:mod:`outgrow.models.compiled`).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from outgrow.models.structure import bare_net, has_head, head_of
from outgrow.outputs import Outputs, as_outputs, with_logits

PENULTIMATE = "penultimate"
"""The name of the input of the final classifier, or of the output of a net without one."""
BOX = "box"
"""The name of a detector's box regression output for each row (rows x 4)."""
BOX_IOU = "box_iou"
"""The IoU of each row's refined box with the object that the row was matched to (rows)."""
OBJECTS = "objects"
"""The annotated boxes of each image of a detector (images x objects x 4: left, top, right, bottom), as shares of its maps.
Images with fewer objects have empty boxes."""
OBJECTNESS = "objectness"
"""A detector's logit of there being an object, for each anchor of each image (images x anchors)."""
NOT_TAPS = frozenset({PENULTIMATE, BOX, BOX_IOU, OBJECTS, OBJECTNESS})
"""Features that losses on maps do not use unless named."""


Seen = tuple[Tensor, int]
"""An activation and its version counter, which shows whether it was modified in place since."""


class Taps(nn.Module):
    """``model`` with selected activations in its outputs.

    ``paths`` are module paths as in ``model.named_modules()`` (of ``model.net`` for a Network), or
    :data:`PENULTIMATE` for the input of the final classifier. A net without one (``num_classes`` 0) has rows of no
    logits, and its output is there. Maps are returned as (images, channels, height,
    width), also for nets with channels last (Swin). ``ValueError`` for a path that does not exist, does not
    return one tensor, is not run, or whose output a following in-place module overwrites.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> outputs = Taps(net, ["1", PENULTIMATE])(torch.zeros(5, 3))
    >>> {name: tuple(value.shape) for name, value in outputs.features.items()}
    {'1': (5, 4), 'penultimate': (5, 4)}
    """

    def __init__(self, model: nn.Module, paths: Sequence[str] = ()) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise ValueError(
                f"Taps: needs a torch.nn.Module, got {type(model).__name__}; wrap a function in a module."
            )
        if isinstance(paths, str):
            raise ValueError(f"Taps: needs a list of paths, got {paths!r}; pass [{paths!r}].")
        self.model = model
        self.paths = tuple(paths)
        self._has_head = has_head(model)
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
                    "`outgrow list features MODEL` lists useful paths."
                )
            value, version = seen[path]
            if _version(value) != version:
                raise ValueError(
                    f"Taps: needs the output of {path!r} unchanged, got one that a following module overwrote in "
                    "place; tap that module instead, or build it with inplace=False."
                )
        return Outputs(outputs.logits, {**outputs.features, **{path: seen[path][0] for path in self.paths}})

    def bare(self, images: Float[Tensor, "..."]) -> Outputs:
        """The model's outputs without the taps."""
        outputs = as_outputs(self.model(images), whose=type(self.model).__name__)
        return outputs if self._has_head else with_logits(outputs, outputs.logits[:, :0])

    def hook(self, seen: dict[str, Seen], *, traced: bool = False) -> list[RemovableHandle]:
        """Register hooks that store activations in ``seen``; with ``traced`` only while torch.compile traces."""
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
                value = value.movedim(3, 1)  # a view, which shares the version counter
            seen[path] = value, _version(value)

        module = self._modules_at[path]
        channels_last = _channels_last(bare_net(self.model)) and not isinstance(module, nn.Conv2d)
        if path == PENULTIMATE and self._has_head:
            return module.register_forward_pre_hook(lambda _, inputs: keep(inputs[0]))
        return module.register_forward_hook(lambda _, __, output: keep(output))


def _version(value: Tensor) -> int:
    """How often ``value`` was modified in place; 0 under ``torch.inference_mode``, where nobody counts."""
    # to ask while compiling would break the graph
    counted = torch.compiler.is_compiling() or not value.is_inference()
    return value._version if counted else 0


def _channels_last(net: nn.Module) -> bool:
    """Whether the maps of ``net`` are (images, height, width, channels), by timm's ``output_fmt`` or the class."""
    return getattr(net, "output_fmt", None) == "NHWC" or "torchvision.models.swin" in type(net).__module__


def _module_at(model: nn.Module, path: str) -> nn.Module:
    net = bare_net(model)
    if path == PENULTIMATE:
        return head_of(model)[1] if has_head(model) else net
    try:
        return net.get_submodule(path)
    except AttributeError:
        model = net
        names = [name for name, _ in model.named_modules() if name and name.count(".") <= 1]
        raise ValueError(
            f"Taps: needs a module path of {type(model).__name__}, got {path!r}; use one of {', '.join(names[:20])}"
            f"{', ...' if len(names) > 20 else ''}."
        ) from None
