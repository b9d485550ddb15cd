"""Faster inference of a frozen teacher.

    fold_norms        fold batch norms into the convolutions before them
    InPrecision       run the teacher in a precision other than the student's
    compiled          run the teacher through torch.compile, where there is a compiler

Folding and compiling are checked on real images. If the outputs differ by too much, the network is left
as it is. The returned note has the reason.
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
"""Relative to the largest value of an output. Measured: 3e-7 to 1e-6 (ResNet-56, ResNet-32x4, WRN-40-2)."""

COMPILE_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
"""Relative to the largest logit, by dtype of the logits. A compiler keeps some sums in float32 that eager mode
rounds. In bfloat16 the two therefore differ by as much as each differs from float32 (at most 2 % for a
ResNet-56 on 3072 images)."""

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


def fold_norms(
    network: nn.Module, images: Float[Tensor, "batch ..."], *, taps: Sequence[str] = ()
) -> tuple[nn.Module, str]:
    """A frozen copy of ``network`` with batch norms folded into convolutions, and a note on what was done.

    A forward pass on ``images`` is recorded. A batch norm is folded if the convolution's output goes into it
    and nowhere else, and if each of the two runs once. Activations at ``taps`` (as in :class:`Taps`) do not
    change: a tapped convolution is not folded, and a tapped batch norm returns the same values as before.
    Unlike a symbolic trace, recording works with control flow and detects tied or recomputed weights.

    The logits and taps on ``images`` must then agree within ``FOLD_TOLERANCE`` in float32. If they do not, or
    if there is nothing to fold, ``network`` is returned. ``network`` is not changed. ``images`` are on its
    device. ``ValueError`` as in Taps.

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
            expected = before(images)
        pairs = _pairs(folded, watch, keep=(expected.logits, *expected.features.values()))
        if not pairs:
            return (
                network,
                f"0 of {len(norms)} batch norms folded: none follows a convolution that feeds it alone",
            )
        for layer, norm in pairs:
            _replace(folded, layer, _fused(layer, norm))
            _replace(folded, norm, _rest_of(norm))
        off = _distance(Taps(folded, taps)(images), expected)
    if not off <= FOLD_TOLERANCE:  # true for NaN, too
        return network, (
            f"no batch norms folded: the outputs would be off by {off:.1e} of the largest, over {FOLD_TOLERANCE:.0e}"
        )
    return folded.eval().requires_grad_(False), f"{len(pairs)} of {len(norms)} batch norms folded"


class InPrecision(BaseTeacher):
    """``teacher`` in ``precision``, independent of the precision of training."""

    def __init__(self, teacher: nn.Module, precision: Literal["fp32", "bf16"]) -> None:
        super().__init__()
        self.teacher, self.precision = teacher, precision

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "..."], *, index: Int[Tensor, " rows"] | None = None) -> Outputs:
        # the inner autocast overrides that of the run; float32 means that it is disabled
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return self.teacher(images, index=index)


class CompiledTeacher(BaseTeacher):
    """``teacher``, computed by ``fast`` for the batches that ``fast`` supports."""

    def __init__(self, teacher: Teacher, fast: Compiled) -> None:
        super().__init__()
        self.teacher = teacher
        self._fast = (fast,)  # not a submodule, or the weights would be listed twice

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "..."], *, index: Int[Tensor, " rows"] | None = None) -> Outputs:
        (fast,) = self._fast
        return fast(images) if fast.takes(images) else self.teacher(images, index=index)


def compiled(teacher: Teacher, images: Float[Tensor, "batch ..."]) -> tuple[BaseTeacher, str]:
    """``teacher`` through torch.compile, and a note. If that fails, ``teacher`` and a note with the reason.

    It fails without a compiler (a C++ compiler on a CPU, Triton on a GPU), and if the compiled outputs on
    ``images`` differ by more than rounding. Call it under the autocast of training, with ``images`` of the
    shape and memory format of the training batches.
    """
    fast = Compiled(teacher.network)
    with torch.no_grad():
        eager, ours = teacher(images), fast(images)
    if fast.reason is not None:
        return teacher, f"not compiled: {fast.reason}"
    off, allowed = _distance(ours, eager), COMPILE_TOLERANCE.get(eager.logits.dtype, 1e-3)
    if not off <= allowed:
        return (
            teacher,
            f"not compiled: its outputs would be off by {off:.1e} of the largest, over {allowed:.0e}",
        )
    return CompiledTeacher(teacher, fast), "compiled"


class _Watch(TorchDispatchMode):
    """Records all operations of a forward pass and the tensors they read. It keeps these alive: ids stay unique."""

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
    """Pairs of a convolution and the batch norm that is the only reader of its output."""
    layers = {id(m.weight): m for m in net.modules() if isinstance(m, Convolution)}
    norms = {id(m.running_mean): m for m in net.modules() if _foldable(m)}
    kept = {id(value) for value in keep}
    made: dict[int, Convolution] = {}
    found: list[tuple[Convolution, nn.Module]] = []
    for name, read, result in watch.steps:
        ids = [id(value) for value in read]
        # a standardised weight is a new tensor, so that convolution is not found here
        if "convolution" in name and ids[1] in layers and watch.reads[ids[1]] == 1:
            if watch.reads[id(result)] == 1 and id(result) not in kept:
                made[id(result)] = layers[ids[1]]
        elif "batch_norm" in name and ids[0] in made:
            mean = next((i for i in ids if i in norms), None)
            if mean is not None and watch.reads[mean] == 1:
                found.append((made[ids[0]], norms[mean]))
    return found


def _foldable(module: nn.Module) -> bool:
    """Whether it is a batch norm with statistics and with no other parts than :func:`_rest_of` handles."""
    plain = type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    known = plain or (type(module).__name__ == "BatchNormAct2d" and hasattr(module, "act"))
    return known and getattr(module, "running_mean", None) is not None


def _rest_of(norm: Any) -> nn.Module:
    """What is left of a batch norm once it is folded: nothing, or timm's dropout and activation."""
    if type(norm).__name__ == "BatchNormAct2d":
        return nn.Sequential(norm.drop, norm.act)
    return nn.Identity()


def _fused(layer: Any, norm: Any) -> nn.Module:
    """Both in one layer of ``layer``'s type. Folded in double on the CPU: every machine gets the same weights."""
    one = fuse_conv_bn_eval(copy.deepcopy(layer).cpu().double(), copy.deepcopy(norm).cpu().double())
    return one.to(layer.weight.device, layer.weight.dtype)


def _replace(net: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Replace ``old`` by ``new`` in ``net``, under all its names."""
    for parent in list(net.modules()):
        for name, child in list(parent._modules.items()):
            if child is old:
                setattr(parent, name, new)


def _distance(ours: Outputs, theirs: Outputs) -> float:
    """The largest difference of any output, as a fraction of its largest value."""
    pairs = [(ours.logits, theirs.logits)]
    pairs += [(ours.features[name], value) for name, value in theirs.features.items()]
    pairs = [(a, b) for a, b in pairs if b.numel()]  # a net without a classifier has no logits
    scale = [b.float().abs().max().clamp(min=1e-12) for _, b in pairs]
    return float(
        torch.stack(
            [(a.float() - b.float()).abs().max() / s for (a, b), s in zip(pairs, scale, strict=True)]
        ).max()
    )


def _true_float32() -> Any:
    """cuDNN without TF32, whose rounding is larger than the tolerance."""
    cudnn = torch.backends.cudnn
    return cudnn.flags(
        enabled=cudnn.enabled, benchmark=False, deterministic=cudnn.deterministic, allow_tf32=False
    )
