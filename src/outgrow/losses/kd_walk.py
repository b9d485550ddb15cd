"""The pass of :mod:`outgrow.losses.kd_fast` on a CPU: rows in blocks that stay in the cache.

Large matrices cost memory traffic, small ones the number of operations. So the buffers of a block lie
side by side, and one operation serves teacher and student, or takes all sums; what is left of a row
afterwards is a handful of numbers. The only large allocation is the gradient.
"""

import threading
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from outgrow.losses.kd_batch import Batch, Sums, summed
from outgrow.losses.kd_compact import SCALING, compact, corrected

BLOCK = 1 << 17
"""Elements walked at a time. Measured: half or twice as many cost about the same, a quarter costs more."""
BUFFERS = 5
MAX_POWER = 8
"""Up to here the student at temperature 1 is a power of the one at T; beyond, an exp is as cheap."""


def walk(batch: Batch, wanted: bool) -> Sums:
    """The pass, block by block; with the gradient (in one piece) where it is ``wanted``."""
    student, teacher, label, wrong, weight, scales, rule, temperature = batch
    gradient = torch.empty_like(student, memory_format=torch.contiguous_format) if wanted else None
    chosen = wrong.nonzero().view(-1) if rule.effect == "rewrite" else label[:0]
    rows, classes = student.shape
    compute = weight.dtype
    # of each row: sums of t, p, p at temperature 1 and t log(t / p), all up to normalisers; its label's logits
    sums = torch.empty(4, rows, dtype=compute)
    of_label = torch.empty(2, rows, dtype=compute)
    step = max(1, min(rows, BLOCK // classes))
    workspace = _workspace(BUFFERS * step * classes, compute)
    scaled = temperature * batch.kd_weight()
    blocks = _blocks(
        step,
        rows,
        (teacher, 0),
        (student, 0),
        (label.view(1, rows, 1), 1),
        (sums, 1),
        (of_label, 1),
        (scaled, 0),
        (gradient, 0),
    )
    tops = []
    for found, (z, s, at, sums_of, label_of, kd_of, out) in zip(
        _wrong_of_blocks(chosen, step, rows), blocks, strict=True
    ):
        buffers = workspace[: BUFFERS * z.numel()].view(BUFFERS, *z.shape)
        top = _measure(z, s, at, found, temperature, buffers, sums_of, label_of)
        tops.append(top)
        if out is not None:
            of_both = kd_of / sums_of[:2]
            if len(found) and type(rule) in SCALING:
                log_t = torch.stack((label_of[0, found], top.shifted[0])) - sums_of[0, found].log()
                c, _ = compact(rule, log_t.exp(), temperature)
                of_both[0, found] *= c
            _blend(buffers, of_both, scales.task / sums_of[2], out)
    log_t, log_p, log_p1 = sums[:3].log().unbind(0)
    task = torch.sub(log_p1, of_label[1], alpha=temperature)
    kl = (sums[3] / sums[0]).add_(log_p).sub_(log_t)
    excess = torch.full_like(task, -float(scales.task))  # the one-hot label of the cross-entropy
    if len(chosen):
        top = tops[0] if len(tops) == 1 else _Top(*(torch.cat(x, -1) for x in zip(*tops, strict=True)))
        both = torch.stack((of_label.index_select(1, chosen), top.shifted), dim=1)
        both -= torch.stack((log_t, log_p)).index_select(1, chosen).unsqueeze_(1)
        value, surplus, _ = corrected(rule, temperature, kl.index_select(0, chosen), both[0], both[1])
        kl.index_copy_(0, chosen, value)
        if gradient is not None:
            surplus *= scaled.index_select(0, chosen)
            excess.index_add_(0, chosen, surplus[0])
            at_top = torch.add(top.at, chosen, alpha=classes)
            gradient.view(-1).index_add_(0, at_top, surplus[1].to(gradient.dtype))
    if gradient is not None:
        gradient.scatter_add_(1, label[:, None], excess[:, None].to(gradient.dtype))
    return summed(batch, task, kl, gradient)


class _Top(NamedTuple):
    """Of wrong rows: the top class, and the shifted logits there, the teacher's first."""

    at: Int[Tensor, " wrong"]
    shifted: Float[Tensor, "2 wrong"]


def _measure(
    teacher: Tensor,
    student: Tensor,
    at: Tensor,
    found: Tensor,
    temperature: float,
    buffers: Tensor,
    sums: Tensor,
    of_label: Tensor,
) -> _Top:
    """Fills ``sums``, ``of_label`` and the first three buffers: t, p, and p at 1, up to normalisers."""
    t_p, p1, shifted = buffers[:2], buffers[2], buffers[3:]
    t, p = t_p.unbind(0)
    of_teacher, of_student = shifted.unbind(0)
    teacher, student = teacher.to(buffers.dtype), student.to(buffers.dtype)
    torch.sub(teacher, teacher.amax(dim=1, keepdim=True), out=of_teacher)
    torch.sub(student, student.amax(dim=1, keepdim=True), out=of_student)
    shifted.mul_(1 / temperature)
    torch.gather(shifted, 2, at.expand(2, -1, 1), out=of_label.unsqueeze(2))
    torch.exp(shifted, out=t_p)
    if len(found):
        candidates = torch.index_select(of_teacher, 0, found, out=p1[: len(found)])
        index = candidates.max(dim=1).indices  # of wrong rows alone: an index costs more than an exp
        flat = torch.add(index, found, alpha=teacher.shape[1])
        top = _Top(index, shifted.view(2, -1).index_select(1, flat))
    else:
        top = _Top(found, of_label[:, :0])
    of_teacher.sub_(of_student).mul_(t)
    if temperature == 1.0:
        p1.copy_(p)
    elif temperature == int(temperature) and temperature <= MAX_POWER:
        _power(p, int(temperature), p1, of_student)
    else:
        torch.mul(of_student, temperature, out=p1).exp_()
    torch.sum(buffers[:4], dim=2, out=sums)
    return top


def _blend(buffers: Tensor, of_both: Tensor, of_p1: Tensor, out: Tensor) -> None:
    """The gradient of a block but for its edited classes: p at 1, p and t, each times its scale."""
    t, p, p1, _, spare = buffers.unbind(0)
    of_t, of_p = of_both.unsqueeze_(2).unbind(0)
    blend = out if out.dtype == buffers.dtype else spare
    torch.mul(p1, of_p1.unsqueeze_(1), out=blend).addcmul_(p, of_p).addcmul_(t, of_t, value=-1)
    if blend is spare:
        out.copy_(blend)


def _blocks(step: int, rows: int, *tensors: tuple[Tensor | None, int]) -> Iterable[tuple[Any, ...]]:
    """Each block of every tensor, along the axis named beside it."""
    if step == rows:
        return [tuple(tensor for tensor, _ in tensors)]
    # one call makes the views of all blocks
    count = -(-rows // step)
    return zip(*([None] * count if x is None else x.split(step, dim) for x, dim in tensors), strict=True)


def _wrong_of_blocks(chosen: Tensor, step: int, rows: int) -> Iterable[Tensor]:
    """The wrong rows of each block, counted from its start."""
    if step == rows:
        return (chosen,)
    counts = torch.bincount(chosen // step, minlength=-(-rows // step))
    return (chosen % step).split(counts.tolist())


_local = threading.local()


def _workspace(size: int, dtype: torch.dtype) -> Tensor:
    """Scratch memory of this thread, kept: fresh pages would cost more than the maths."""
    held: Tensor | None = getattr(_local, "workspace", None)
    if held is None or held.dtype != dtype or held.numel() < size:
        held = torch.empty(size, dtype=dtype)
        if size <= BUFFERS * BLOCK:  # rows longer than a block are not worth keeping
            _local.workspace = held
    return held


def _power(base: Tensor, exponent: int, out: Tensor, spare: Tensor) -> None:
    """``base ** exponent`` by squaring, into ``out``."""
    if exponent == 1:
        out.copy_(base)
        return
    half = exponent // 2
    if half == 1:
        torch.mul(base, base, out=out)
    else:
        _power(base, half, spare, out)
        torch.mul(spare, spare, out=out)
    if exponent % 2:
        out.mul_(base)
