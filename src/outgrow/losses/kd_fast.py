"""A private fast path of ``kd``: cross-entropy and rectified KL in one pass, gradient in closed form.

The corrected matrix is never built: a correction is three numbers a row
(:mod:`outgrow.losses.kd_compact`), and the gradient of ``T^2 KL`` in the student's logits is ``T (p - q)``.

On a CPU rows are walked one by one in C where there is a compiler and logits are float32
(:mod:`outgrow.losses.kd_native`), else in blocks that stay in the cache (:mod:`outgrow.losses.kd_walk`); on a CUDA device the same formula
runs on whole matrices (:mod:`outgrow.losses.kd_whole`).

The value subtracts: it is good to rounding of ``T^2 (sum t |log t| + sum t |log p|)``, not of a KL near
zero. :func:`outgrow.losses.kd.kd_loss` on :func:`outgrow.corrected_logits` is the reference, and what is
used wherever :func:`applies` says no.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from outgrow.knowledge.drop import Drop
from outgrow.knowledge.identity import Identity
from outgrow.losses import kd_native, kd_whole
from outgrow.losses.kd_batch import Batch, Scales, Sums
from outgrow.losses.kd_compact import COMPACT
from outgrow.losses.kd_walk import walk
from outgrow.outputs import Knowledge, Target, lift


def applies(student: Float[Tensor, "rows classes"], knowledge: Knowledge, target: Target) -> bool:
    """Whether the fast path may stand in: a compact rule on wrong rows alone, one plain label a row.

    On a CUDA device, where looking at values would stall the step, also no row that may be left out.
    """
    rule, teacher, own = knowledge.rule, knowledge.teacher.logits, knowledge.target
    device = student.device.type
    if not (
        (type(rule) in COMPACT or type(rule) in (Identity, Drop))
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


Way = Literal["walk", "native", "whole"]


Fast = bool | Literal["eager", "compiled"]
"""What an objective's ``fast`` may be."""


def way(batch: Batch, *, native: bool) -> Way:
    """Which of the three passes suits these rows."""
    if batch.student.device.type != "cpu":
        return "whole"
    return "native" if native and kd_native.takes(batch) else "walk"


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
    weight = knowledge.weight.to(compute_type(student, knowledge))
    batch = Batch(
        student.detach(),
        knowledge.teacher.logits,
        knowledge.target.label,
        knowledge.wrong,
        weight,
        scales,
        knowledge.rule,
        temperature,
    )
    on_host = student.device.type == "cpu"
    if fast == "compiled" and on_host:
        kd_native.say_if_missing()
    chosen = way(batch, native=fast != "eager")
    if chosen == "whole":
        by_rows = kd_whole.compiled if fast == "compiled" else kd_whole.closed_form
    else:
        by_rows = kd_native.rows if chosen == "native" else walk
    sums = by_rows(batch, wanted)
    square = temperature**2
    return sums._replace(easy=square * sums.easy, hard=square * sums.hard)


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
        ctx.gradient = gradient
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
        return gradient, None, None, None
