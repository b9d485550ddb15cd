"""A frozen network is inference: less work for the same answers, or the reason why not.

    fold_norms        batch norms folded into the convolutions before them
    InPrecision       a teacher that speaks in a precision of its own
    compiled          a teacher through torch.compile, where there is a compiler

Each is checked on real images when it is made; what does not hold there is not used, and a note says so.
"""

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from outgrow.models.compiled import Compiled
from outgrow.models.taps import Taps
from outgrow.outputs import Outputs
from outgrow.teacher.teacher import BaseTeacher, Teacher

FOLD_TOLERANCE = 1e-4
"""Of the largest value of an output. Measured: 3e-7 to 1e-6 (ResNet-56, ResNet-32x4, WRN-40-2)."""

COMPILE_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
"""Of the largest logit, by the precision compiled for: a compiler keeps some sums in float32 that eager
rounds, so in bfloat16 the two differ by as much as either differs from float32 (at most 2 % for a
ResNet-56 on 3072 images)."""

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


def fold_norms(
    network: nn.Module, images: Float[Tensor, "batch ..."], *, taps: Sequence[str] = ()
) -> tuple[nn.Module, str]:
    """A frozen copy of ``network`` without the batch norms that can go, and a note on what was done.

    A pair is folded where a forward pass shows that the convolution's output goes into that batch norm and
    nowhere else, and that neither runs twice. Activations at ``taps`` (as in :class:`Taps`) are kept: a
    tapped convolution stays, a tapped batch norm still returns what it did. Watching the operations of a
    real pass needs no symbolic trace, which control flow stops, and sees tied or recomputed weights.
    Logits and taps on ``images`` must then agree within ``FOLD_TOLERANCE`` in float32; where they do not,
    and where there is nothing to fold, ``network`` itself comes back.

    ``images`` are on the device of ``network``, which is not touched; ``ValueError`` is what Taps raises.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2)).eval()
    >>> folded, note = fold_norms(net, torch.zeros(1, 3, 3, 3))
    >>> note, folded[1]
    ('1 of 1 batch norms folded', Identity())
    """
    try:
        folded = copy.deepcopy(network).eval().requires_grad_(False)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        return network, f"no batch norms folded: the net cannot be copied ({error})"
    norms = [m for m in folded.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return network, "no batch norms to fold"
    with torch.no_grad(), _true_float32():
        before = Taps(folded, taps)
        watch = _Watch()
        with watch:
            said = before(images)
        pairs = _pairs(folded, watch, keep=(said.logits, *said.features.values()))
        if not pairs:
            return (
                network,
                f"0 of {len(norms)} batch norms folded: none follows a convolution that feeds it alone",
            )
        for layer, norm in pairs:
            _replace(folded, layer, _fused(layer, norm))
            _replace(folded, norm, _rest_of(norm))
        off = _distance(Taps(folded, taps)(images), said)
    if not off <= FOLD_TOLERANCE:  # nor where it is NaN
        return network, (
            f"no batch norms folded: the outputs would be off by {off:.1e} of the largest, over {FOLD_TOLERANCE:.0e}"
        )
    return folded.eval().requires_grad_(False), f"{len(pairs)} of {len(norms)} batch norms folded"


class InPrecision(BaseTeacher):
    """``teacher`` in ``precision`` whatever the student trains in."""

    def __init__(self, teacher: nn.Module, precision: Literal["fp32", "bf16"]) -> None:
        super().__init__()
        self.teacher, self.precision = teacher, precision

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "..."], *, index: Int[Tensor, " rows"] | None = None) -> Outputs:
        # a nested autocast wins over the run's; float32 is the absence of one
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return self.teacher(images, index=index)


class CompiledTeacher(BaseTeacher):
    """``teacher``, through ``fast`` for the batches that it takes."""

    def __init__(self, teacher: Teacher, fast: Compiled) -> None:
        super().__init__()
        self.teacher = teacher
        self._fast = (fast,)  # not a submodule, or the weights would be listed twice

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "..."], *, index: Int[Tensor, " rows"] | None = None) -> Outputs:
        (fast,) = self._fast
        return fast(images) if fast.takes(images) else self.teacher(images, index=index)


def compiled(teacher: Teacher, images: Float[Tensor, "batch ..."]) -> tuple[BaseTeacher, str]:
    """``teacher`` through torch.compile, and a note; ``teacher`` itself where that does not work here.

    Called under the autocast and with ``images`` of the shape and layout of the training's batches. Without
    a compiler (a C++ compiler on a CPU, Triton on a GPU), or where the compiled net's outputs on ``images``
    differ by more than rounding, the note has the reason.
    """
    fast = Compiled(teacher.network)
    with torch.no_grad():
        eager, said = teacher(images), fast(images)
    if fast.reason is not None:
        return teacher, f"not compiled: {fast.reason}"
    off, allowed = _distance(said, eager), COMPILE_TOLERANCE.get(eager.logits.dtype, 1e-3)
    if not off <= allowed:
        return (
            teacher,
            f"not compiled: its outputs would be off by {off:.1e} of the largest, over {allowed:.0e}",
        )
    return CompiledTeacher(teacher, fast), "compiled"


class _Watch(TorchDispatchMode):
    """All operations of a forward pass with the tensors they read, which live on here so that ids hold."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[str, list[Tensor], object]] = []
        self.reads: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        read = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        self.steps.append((str(func), read, result))
        self.reads.update(map(id, read))
        return result


def _pairs(net: nn.Module, watch: _Watch, keep: Sequence[Tensor]) -> list[tuple[Convolution, nn.Module]]:
    """Convolutions and the batch norms that alone read them, as the watched pass shows."""
    layers = {id(m.weight): m for m in net.modules() if isinstance(m, Convolution)}
    norms = {id(m.running_mean): m for m in net.modules() if _foldable(m)}
    kept = {id(value) for value in keep}
    made: dict[int, Convolution] = {}
    found: list[tuple[Convolution, nn.Module]] = []
    for name, read, result in watch.steps:
        ids = [id(value) for value in read]
        # a weight that is standardised first is another tensor by then, and not found here
        if "convolution" in name and ids[1] in layers and watch.reads[ids[1]] == 1:
            if watch.reads[id(result)] == 1 and id(result) not in kept:
                made[id(result)] = layers[ids[1]]
        elif "batch_norm" in name and ids[0] in made:
            mean = next((i for i in ids if i in norms), None)
            if mean is not None and watch.reads[mean] == 1:
                found.append((made[ids[0]], norms[mean]))
    return found


def _foldable(module: nn.Module) -> bool:
    """A batch norm with statistics, and nothing else in it that :func:`_rest_of` does not know."""
    plain = type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    known = plain or (type(module).__name__ == "BatchNormAct2d" and hasattr(module, "act"))
    return known and getattr(module, "running_mean", None) is not None


def _rest_of(norm: Any) -> nn.Module:
    """What is left of a batch norm once it is folded: nothing, or timm's dropout and activation."""
    if type(norm).__name__ == "BatchNormAct2d":
        return nn.Sequential(norm.drop, norm.act)
    return nn.Identity()


def _fused(layer: Any, norm: Any) -> nn.Module:
    """Both in one layer like ``layer``; in double on the host, so that every machine rounds to the same weights."""
    one = fuse_conv_bn_eval(copy.deepcopy(layer).cpu().double(), copy.deepcopy(norm).cpu().double())
    return one.to(layer.weight.device, layer.weight.dtype)


def _replace(net: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """``new`` wherever ``net`` holds ``old``, under all its names."""
    for parent in list(net.modules()):
        for name, child in list(parent._modules.items()):
            if child is old:
                setattr(parent, name, new)


def _distance(ours: Outputs, theirs: Outputs) -> float:
    """The largest difference of any output, as a fraction of its largest value."""
    pairs = [(ours.logits, theirs.logits)]
    pairs += [(ours.features[name], value) for name, value in theirs.features.items()]
    scale = [b.float().abs().max().clamp(min=1e-12) for _, b in pairs]
    return float(
        torch.stack(
            [(a.float() - b.float()).abs().max() / s for (a, b), s in zip(pairs, scale, strict=True)]
        ).max()
    )


def _true_float32() -> Any:
    """cuDNN without TF32, whose rounding would hide what is compared."""
    cudnn = torch.backends.cudnn
    return cudnn.flags(
        enabled=cudnn.enabled, benchmark=False, deterministic=cudnn.deterministic, allow_tf32=False
    )
