"""Which pass a step takes, its rows in blocks, and how the gradient joins the graph."""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from outgrow.knowledge.registry import RULES
from outgrow.losses.kd_fast import eager, native
from outgrow.losses.kd_fast.batch import Batch, Scales, Sums
from outgrow.outputs import Knowledge, Target, lift

Fast = bool | Literal["eager", "compiled"]
"""What an objective's ``fast`` may be."""


def applies(student: Float[Tensor, "rows classes"], knowledge: Knowledge, target: Target) -> bool:
    """Whether the fast path may stand in: one of the library's rules on wrong rows alone, one plain label a row.

    On a CUDA device, where looking at values would stall the step, also no row that may be left out.
    """
    rule, teacher, own = knowledge.rule, knowledge.teacher.logits, knowledge.target
    device = student.device.type
    if not (
        type(rule) in RULES.values()  # known to look at one row at a time
        and device in ("cpu", "cuda")
        and device == teacher.device.type
        and student.numel() > 0
        # rows that the rule rewrites are the wrong ones, and every row has a label
        and (knowledge.corrected is knowledge.wrong or rule.effect != "rewrite")
        and own.partner is None
        and target.partner is None
        and not own.may_ignore
        and not target.may_ignore
    ):
        return False
    if device == "cuda":
        return not knowledge.partial and target.label is own.label
    return (not knowledge.partial or bool(own.valid.all())) and (
        target.label is own.label or torch.equal(target.label, own.label)
    )


def compute_type(student: Tensor, knowledge: Knowledge) -> torch.dtype:
    """What is computed in: float32 at least, and no less than the rows' weights."""
    return torch.promote_types(lift(student[:0]).dtype, knowledge.weight.dtype)


def fused(
    student: Float[Tensor, "rows classes"],
    knowledge: Knowledge,
    *,
    temperature: float,
    scales: Scales,
    fast: Fast = True,
) -> Sums:
    """The sums of cross-entropy and ``T^2 KL``, and the gradient of the two as ``scales`` weigh them.

    On a CPU the scales are numbers; elsewhere they may be tensors there, which nobody waits for.
    """
    wanted = student.requires_grad and torch.is_grad_enabled()
    batch = Batch(
        student.detach(),
        knowledge.teacher.logits,
        knowledge.target.label,
        knowledge.wrong,
        knowledge.weight.to(compute_type(student, knowledge)),
        scales,
        knowledge.rule,
        temperature,
    )
    sums = on_host(batch, wanted, fast) if student.device.type == "cpu" else on_device(batch, wanted, fast)
    square = temperature**2
    return sums._replace(easy=square * sums.easy, hard=square * sums.hard)


def on_device(batch: Batch, wanted: bool, fast: Fast) -> Sums:
    """Whole matrices: shapes do not depend on the data, and nothing waits for the device."""
    sums = (eager.compiled if fast == "compiled" else eager.closed_form)(batch.lifted(), wanted)
    gradient = sums.gradient
    return sums._replace(gradient=None if gradient is None else gradient.to(_kept(batch)))


def on_host(batch: Batch, wanted: bool, fast: Fast) -> Sums:
    """C where there is a compiler and float32 will do, else eager.

    In blocks of rows where they have to be copied first, or a pass needs more than a row of scratch memory.
    """
    if fast == "compiled":
        native.say_if_missing()
    student, (num_rows, classes) = batch.student, batch.student.shape
    if fast != "eager" and native.takes(batch):
        run = native.rows
        elements = student.numel() if native.reads(batch) else native.SHARE * torch.get_num_threads()
    else:
        run, elements = eager.rows, eager.BLOCK
    step, compute = max(1, min(num_rows, elements // classes)), batch.weight.dtype
    gradient = torch.empty(num_rows, classes, dtype=_kept(batch)) if wanted else None
    # copies of all blocks lie in one piece of memory: fresh pages would cost more than the copies
    as_is = student.dtype == batch.teacher.dtype == compute
    memory = None if as_is else torch.empty(3, step, classes, dtype=compute)
    task = easy = hard = 0.0
    for first in range(0, num_rows, step):
        block = batch.rows(first, first + step)
        out = whole = None if gradient is None else gradient[first : first + step]
        if memory is not None:
            copies = memory[:, : len(block.label)]
            block, out = block.lifted(copies[:2]), None if whole is None else copies[2]
        part = run(block, out)
        task, easy, hard = task + float(part.task), easy + float(part.easy), hard + float(part.hard)
        if whole is not None and out is not None and out is not whole:
            whole.copy_(out)
    return Sums(task, easy, hard, gradient)


def _kept(batch: Batch) -> torch.dtype:
    """The type in which the gradient waits for what is upstream. float16 has no room for it: below 6e-8 all is zero, and a
    scaler (``torch.amp.GradScaler``) multiplies too late."""
    return batch.weight.dtype if batch.student.dtype == torch.float16 else batch.student.dtype


def total(
    student: Float[Tensor, "rows classes"],
    gradient: Float[Tensor, "rows classes"] | None,
    task: Float[Tensor, ""],
    kd: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """``task + kd``, whose gradient in ``student`` is the one given."""
    return task + kd if gradient is None else _Closed.apply(student, gradient, task, kd)


class _Closed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, gradient: Tensor, task: Tensor, kd: Tensor) -> Tensor:
        # not saved as a tensor of the graph: backward lets go of it, or the engine would copy it
        ctx.gradient, ctx.dtype = gradient, student.dtype
        return task + kd

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True: the result would silently be a constant
            raise RuntimeError(
                "kd: needs a gradient of first order on the fast path, got create_graph=True; "
                "use Objective(..., fast=False) to differentiate twice."
            )
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            raise RuntimeError(
                "kd: needs one backward pass per forward on the fast path, got a second one; "
                "use Objective(..., fast=False) to go through the graph again."
            )
        # a device is not asked for the number: that would stall the step
        if upstream.device.type != "cpu" or upstream.item() != 1.0:
            gradient.mul_(upstream)
        return gradient.to(ctx.dtype), None, None, None
