"""A private fast path of ``kd``: cross-entropy and rectified KL in one pass, gradient in closed form.

A correction that changes two logits of a row is three numbers: the belief is ``q = c t`` but for the
label, ``q_a = u``, and the top class, ``q_b = v``. With ``A = sum t log t`` and ``C = sum t log p``

    KL(q || p) = c (A - t_a log t_a - t_b log t_b) - c (C - t_a log p_a - t_b log p_b)
                 + c log c (1 - t_a - t_b) + u log(u / p_a) + v log(v / p_b)

and the gradient of ``T^2 KL`` in the student's logits is ``T (p - q)``, so the corrected matrix is never
built. Rows are walked in blocks that stay in the cache; the only large allocation is the gradient.
The value subtracts: it is good to rounding of ``T^2 (|A| + |C|)``, not of a KL near zero.

:func:`outgrow.losses.kd.kd_loss` on :func:`outgrow.corrected_logits` is the reference, and what is used
wherever :func:`applies` says no.
"""

import math
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from outgrow.knowledge.boost import Boost
from outgrow.knowledge.drop import Drop
from outgrow.knowledge.identity import Identity
from outgrow.knowledge.lead import Lead
from outgrow.knowledge.pair import Pair
from outgrow.knowledge.swap import Swap
from outgrow.outputs import Knowledge, Rule

BLOCK = 1 << 17
"""Elements walked at a time: four buffers of them fit two megabytes of cache. Measured."""
MAX_POWER = 8
"""Up to here the student at temperature 1 is a power of the one at T; beyond, an exp is as cheap."""


class Compact(NamedTuple):
    """What to believe of wrong rows: ``q = c t``, but ``u`` for the label and ``v`` for the top class."""

    c: Float[Tensor, " wrong"]
    u: Float[Tensor, " wrong"]
    v: Float[Tensor, " wrong"]


def _pair(rule: Rule, t_a: Tensor, t_b: Tensor, temperature: float) -> Compact:
    m = t_a + t_b
    return Compact(torch.ones_like(m), m * (1 + t_a) / (1 + m), m * t_b / (1 + m))


def _swap(rule: Rule, t_a: Tensor, t_b: Tensor, temperature: float) -> Compact:
    return Compact(torch.ones_like(t_a), t_b, t_a)


def _lead(rule: Rule, t_a: Tensor, t_b: Tensor, temperature: float) -> Compact:
    assert isinstance(rule, Lead)
    c = (1 - rule.margin) / (1 - t_a + t_b)
    return Compact(c, c * t_a + (1 - c), c * t_b)


def _boost(rule: Rule, t_a: Tensor, t_b: Tensor, temperature: float) -> Compact:
    assert isinstance(rule, Boost)
    raised = t_a * math.exp(rule.delta / temperature)
    c = 1 / (1 - t_a + raised)
    return Compact(c, c * raised, c * t_b)


COMPACT: dict[type, Callable[[Rule, Tensor, Tensor, float], Compact]] = {
    Pair: _pair,
    Swap: _swap,
    Lead: _lead,
    Boost: _boost,
}


SCALING = (Lead, Boost)
"""The rules whose ``c`` is not 1."""


def applies(student: Float[Tensor, "rows classes"], knowledge: Knowledge) -> bool:
    """Whether the fast path may stand in: CPU, a compact rule on wrong rows alone, plain labels."""
    rule, teacher = knowledge.rule, knowledge.teacher.logits
    return (
        (type(rule) in COMPACT or type(rule) in (Identity, Drop))
        and student.device.type == teacher.device.type == "cpu"
        and student.numel() > 0
        and knowledge.target.partner is None
        # rows that the rule rewrites are the wrong ones, and every row has a label
        and (knowledge.corrected is knowledge.wrong or rule.effect != "rewrite")
        and not knowledge.target.may_ignore
        and (not knowledge.partial or bool(knowledge.target.valid.all()))
    )


class Rows(NamedTuple):
    """``total`` has the graph; the per-row losses are for statistics."""

    total: Float[Tensor, ""]
    task: Float[Tensor, " rows"]
    kd: Float[Tensor, " rows"]


def fused(
    student: Float[Tensor, "rows classes"],
    knowledge: Knowledge,
    label: Int[Tensor, " rows"],
    *,
    temperature: float,
    task_weight: Float[Tensor, " rows"],
    kd_weight: Float[Tensor, " rows"],
) -> Rows:
    """``sum task_weight * CE + sum kd_weight * T^2 KL``, and both losses row by row."""
    total, task, kd = _Fused.apply(student, knowledge, label, temperature, task_weight, kd_weight)
    return Rows(total, task, kd)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        knowledge: Knowledge,
        label: Tensor,
        temperature: float,
        task_weight: Tensor,
        kd_weight: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        teacher = knowledge.teacher.logits
        compute = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
        task_weight, kd_weight = task_weight.to(compute), kd_weight.to(compute)
        gradient = torch.empty_like(student) if ctx.needs_input_grad[0] else None
        walk = _Walk(student, knowledge, label, temperature, compute)
        walk.over_blocks(task_weight, kd_weight, gradient)
        task, kd = walk.losses()
        if gradient is not None:
            walk.edit(gradient, task_weight, kd_weight)
        # not saved as a tensor of the graph: backward lets go of it, or the engine would copy it
        ctx.gradient = gradient
        total = torch.dot(task_weight, task) + torch.dot(kd_weight, kd)
        ctx.mark_non_differentiable(task, kd)
        return total, task, kd

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
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
        if upstream.item() != 1.0:
            gradient.mul_(upstream)
        return gradient, None, None, None, None, None


class _Walk:
    """The matrices, block by block; what is left of each row afterwards is a few numbers."""

    def __init__(
        self, student: Tensor, knowledge: Knowledge, label: Tensor, temperature: float, compute: torch.dtype
    ) -> None:
        self.student, self.teacher = student, knowledge.teacher.logits
        self.rule, self.temperature, self.compute = knowledge.rule, temperature, compute
        self.label = label
        self.at = label[:, None]
        rows = len(student)
        # rows of numbers: sums of exp, sums of t log t and t log p up to normalisers, shifted label logits
        self.numbers = torch.empty(7, rows, dtype=compute)
        self.sum_t, self.self_dot, self.cross_dot, self.sum_p, self.sum_p1, self.label_t, self.label_p = (
            self.numbers
        )
        self.chosen = knowledge.wrong.nonzero()[:, 0] if self.rule.effect == "rewrite" else label[:0]
        self.top = torch.empty_like(self.chosen)
        self.top_t = torch.empty(len(self.chosen), dtype=compute)
        self.top_p = torch.empty(len(self.chosen), dtype=compute)

    def over_blocks(self, task_weight: Tensor, kd_weight: Tensor, gradient: Tensor | None) -> None:
        rows, classes = self.student.shape
        step = max(1, min(rows, BLOCK // classes))
        buffers = _workspace(4 * step * classes, self.compute).view(4, step, classes)
        starts = list(range(0, rows, step))
        # where each block's wrong rows begin among all of them
        bounds = (
            torch.searchsorted(self.chosen, torch.tensor([*starts, rows])).tolist()
            if len(self.chosen)
            else None
        )
        for number, start in enumerate(starts):
            part = slice(start, min(start + step, rows))
            found = slice(0, 0) if bounds is None else slice(bounds[number], bounds[number + 1])
            self._block(part, found, task_weight, kd_weight, gradient, buffers[:, : part.stop - start])

    def _block(
        self,
        part: slice,
        found: slice,
        task_weight: Tensor,
        kd_weight: Tensor,
        gradient: Tensor | None,
        buffers: Tensor,
    ) -> None:
        shifted, t, p, p1 = buffers
        at, temperature = self.at[part], self.temperature
        local = self.chosen[found] - part.start
        # teacher: exp((z - max) / T), its sum, and the sum of t log t
        teacher = self.teacher[part].to(self.compute)
        torch.sub(teacher, teacher.amax(dim=1, keepdim=True), out=shifted).mul_(1 / temperature)
        torch.exp(shifted, out=t)
        sum_t = torch.sum(t, dim=1, out=self.sum_t[part])
        torch.linalg.vecdot(t, shifted, out=self.self_dot[part])
        torch.gather(shifted, 1, at, out=self.label_t[part].unsqueeze_(1))
        if len(local):
            torch.max(shifted[local], dim=1, out=(self.top_t[found], self.top[found]))
        # student at T, and the sum of t log p
        student = self.student[part].to(self.compute)
        torch.sub(student, student.amax(dim=1, keepdim=True), out=shifted).mul_(1 / temperature)
        torch.linalg.vecdot(t, shifted, out=self.cross_dot[part])
        torch.gather(shifted, 1, at, out=self.label_p[part].unsqueeze_(1))
        if len(local):
            self.top_p[found] = shifted[local, self.top[found]]
        torch.exp(shifted, out=p)
        sum_p = torch.sum(p, dim=1, out=self.sum_p[part])
        # student at 1
        if temperature == 1.0:
            p1 = p
        elif temperature == int(temperature) and temperature <= MAX_POWER:
            _power(p, int(temperature), p1, shifted)
        else:
            torch.mul(shifted, temperature, out=p1).exp_()
        sum_p1 = torch.sum(p1, dim=1, out=self.sum_p1[part])
        if gradient is None:
            return
        weight = kd_weight[part] * temperature
        q_weight = weight / sum_t
        if len(local) and type(self.rule) in SCALING:
            q_weight[local] *= self._compact(found).c
        gradient = gradient[part]
        out = gradient if gradient.dtype == self.compute else shifted
        torch.mul(p1, (task_weight[part] / sum_p1).unsqueeze_(1), out=out)
        out.addcmul_(p, (weight / sum_p).unsqueeze_(1))
        out.addcmul_(t, q_weight.unsqueeze_(1), value=-1)
        if out is not gradient:
            gradient.copy_(out)

    def losses(self) -> tuple[Tensor, Tensor]:
        """Cross-entropy and ``T^2 KL``, row by row; also what the two edited classes have too much of."""
        log_t, log_p = self.sum_t.log(), self.sum_p.log()
        entropy = self.self_dot / self.sum_t - log_t
        cross = self.cross_dot / self.sum_t - log_p
        value = entropy - cross
        task = self.sum_p1.log() - self.temperature * self.label_p
        if len(self.chosen):
            rows, log_rows = self.chosen, log_t[self.chosen]
            log_ta, log_tb = self.label_t[rows] - log_rows, self.top_t - log_rows
            log_pa, log_pb = self.label_p[rows] - log_p[rows], self.top_p - log_p[rows]
            t_a, t_b = log_ta.exp(), log_tb.exp()
            q = COMPACT[type(self.rule)](self.rule, t_a, t_b, self.temperature)
            self.surplus = (q.c * t_a - q.u, q.c * t_b - q.v)
            rest = entropy[rows] - cross[rows] - t_a * (log_ta - log_pa) - t_b * (log_tb - log_pb)
            value[rows] = (
                q.c * rest
                + torch.xlogy(q.c, q.c) * (1 - t_a - t_b)
                + torch.xlogy(q.u, q.u)
                - q.u * log_pa
                + torch.xlogy(q.v, q.v)
                - q.v * log_pb
            )
        return task, value * self.temperature**2

    def edit(self, gradient: Tensor, task_weight: Tensor, kd_weight: Tensor) -> None:
        """The one-hot label of the cross-entropy, and the two classes of each corrected row."""
        gradient.scatter_add_(1, self.at, -task_weight[:, None].to(gradient.dtype))
        if len(self.chosen):
            rows, label = self.chosen, self.label[self.chosen]
            scale = kd_weight[rows] * self.temperature
            of_label, of_top = self.surplus
            gradient[rows, label] += (scale * of_label).to(gradient.dtype)
            gradient[rows, self.top] += (scale * of_top).to(gradient.dtype)

    def _shares(self, found: slice) -> tuple[Tensor, Tensor]:
        """The teacher's probabilities of label and top class on wrong rows."""
        rows = self.chosen[found]
        log_t = self.sum_t[rows].log()
        return (self.label_t[rows] - log_t).exp(), (self.top_t[found] - log_t).exp()

    def _compact(self, found: slice) -> Compact:
        return COMPACT[type(self.rule)](self.rule, *self._shares(found), self.temperature)


_local = threading.local()


def _workspace(size: int, dtype: torch.dtype) -> Tensor:
    """Scratch memory of this thread, kept: fresh pages would cost more than the maths."""
    held: Tensor | None = getattr(_local, "workspace", None)
    if held is None or held.dtype != dtype or held.numel() < size:
        held = torch.empty(size, dtype=dtype)
        if size <= 4 * BLOCK:  # rows longer than a block are not worth keeping
            _local.workspace = held
    return held[:size]


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
