"""The pass in PyTorch's own operations.

The rule itself says what wrong rows believe, so no formula of a rule stands here.
"""

import functools
import math
import threading
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from outgrow.losses.kd_fast.batch import Batch, Scales, Sums
from outgrow.outputs import IGNORE, Rule

BLOCK = 1 << 17
"""Elements that are taken at a time on a CPU, so that they stay in the cache."""
Scratch = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
_local = threading.local()


def rows(batch: Batch, out: Tensor | None) -> Sums:
    """:func:`closed_form` in memory that this thread keeps: fresh pages would cost more than the maths. The gradient goes to
    ``out`` where that is given.
    """
    size = batch.student.numel()
    held: Tensor | None = getattr(_local, "scratch", None)
    if held is None or held.dtype != batch.weight.dtype or held.shape[1] < size:
        with torch.inference_mode(False):  # a later step may train
            held = torch.empty(4, size, dtype=batch.weight.dtype)
        if size <= BLOCK:  # rows longer than a block are not worth keeping
            _local.scratch = held
    a, b, c, d = held[:, :size].view(4, *batch.student.shape).unbind()
    return closed_form(batch, out is not None, (a, b, c, d if out is None else out))


def closed_form(batch: Batch, wanted: bool, scratch: Scratch = (None,) * 4) -> Sums:
    """All rows at once; with the gradient, in the last of ``scratch``, where it is ``wanted``."""
    student, teacher, label, wrong, weight, scales, rule, temperature = batch
    a, b, c, d = scratch
    looks, valid = _may_look(label), None
    if not looks:  # a row without a label has weight 0; it points at class 0
        valid, label = label != IGNORE, label.clamp(0, student.shape[1] - 1)
    at, scale = label[:, None], 1 / temperature
    soft = torch.mul(teacher, scale, out=a)
    if rule.effect == "rewrite":
        if not looks:
            soft = torch.where(wrong[:, None], rule(teacher, label, temperature=temperature) * scale, soft)
        elif len(at_wrong := wrong.nonzero()[:, 0]):
            some, own = teacher.index_select(0, at_wrong), label.index_select(0, at_wrong)
            soft.index_copy_(0, at_wrong, rule(some, own, temperature=temperature).mul_(scale))
    log_q = torch.log_softmax(soft, 1, out=b)
    q = torch.exp(log_q, out=a)
    log_p = torch.log_softmax(torch.mul(student, scale, out=c), 1, out=d)
    terms = log_q.sub_(log_p).mul_(q)
    if temperature in (
        2.0,
        4.0,
    ):  # at temperature 1 the student is a power of this: cheaper than one more exp
        of_label = temperature * log_p.gather(1, at)
        p1 = torch.mul(p := log_p.exp_(), p, out=c)
        total = (p1 if temperature == 2.0 else p1.mul_(p1)).sum(dim=1, keepdim=True)
        p1, of_label = p1.div_(total), of_label - total.log()
    else:
        log_p1, p = torch.log_softmax(student, 1, out=c), log_p.exp_()
        of_label = log_p1.gather(1, at)
        p1 = log_p1.exp_()
    excess = p.sub_(q)  # the gradient but for its scale
    # a class that the teacher rules out counts for nothing (0 log 0), but a NaN must be seen
    kl = (terms.nansum(dim=1) + 0 * excess.sum(dim=1)) * weight
    # a device is given no row of weight 0, and a stride of 0 is one weight for all
    if looks and weight.stride(0) and not math.isfinite(kl.sum()):
        left_out = (weight == 0).nonzero()[:, 0]  # 0 times the infinite value of far logits is NaN
        kl.index_fill_(0, left_out, 0.0)
        excess.index_fill_(0, left_out, 0.0)
    task, hard = -of_label[:, 0], kl * wrong
    if valid is not None:
        task = task * valid
    sums = Sums(task.sum(), (kl - hard).sum(), hard.sum(), None)
    if not wanted:
        return sums
    scaled = temperature * torch.where(wrong, weight * scales.hard, weight * scales.easy)
    of_task = p1.scatter_(1, at, of_label.exp() - 1)
    if valid is not None:
        of_task = of_task * valid[:, None]
    return sums._replace(gradient=excess.mul_(scaled[:, None]).add_(of_task.mul_(scales.task)))


def _may_look(tensor: Tensor) -> bool:
    """Whether shapes may depend on values: on a device that would stall the step."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def compiled(batch: Batch, wanted: bool) -> Sums:
    """:func:`closed_form` under ``torch.compile``; as it is where that fails, which is said once."""
    call = _compiled(batch.rule, batch.temperature, wanted)  # type: ignore[arg-type]  # rules here are frozen
    return call(*batch[:6])


@functools.cache
def _compiled(rule: Rule, temperature: float, wanted: bool) -> Callable[..., Sums]:
    # constants of the graph, not inputs that it would be guarded on
    def plain(
        student: Tensor, teacher: Tensor, label: Tensor, wrong: Tensor, weight: Tensor, scales: Scales
    ) -> Sums:
        batch = Batch(student, teacher, label, wrong, weight, scales, rule, temperature)
        return closed_form(batch, wanted)

    fused, works = torch.compile(plain, fullgraph=True), True

    def call(*tensors: Any) -> Sums:
        nonlocal works
        if works:
            try:
                return fused(*tensors)
            except Exception as error:  # no Triton, no compiler, an unknown device: many kinds
                works = False
                warnings.warn(
                    f"kd: fast='compiled' needs torch.compile to work on {tensors[0].device.type}, got "
                    f"{type(error).__name__}: {str(error)[:200]}; goes on without.",
                    stacklevel=2,
                )
        return plain(*tensors)

    return call
