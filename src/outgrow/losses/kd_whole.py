"""The pass of :mod:`outgrow.losses.kd_fast` on a device: the same formula on whole matrices.

Every row is treated as if it were corrected, and the right ones take the plain numbers afterwards: shapes
do not depend on the data and nothing waits for the device.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from outgrow.losses.kd_batch import Batch, Scales, Sums, summed
from outgrow.losses.kd_compact import corrected
from outgrow.outputs import IGNORE, Rule


def closed_form(batch: Batch, wanted: bool) -> Sums:
    """The pass on whole matrices; with the gradient where it is ``wanted``."""
    student, teacher, label, wrong, weight, scales, rule, temperature = batch
    compute = weight.dtype
    # rows without a label have weight 0 and point at class 0
    at, valid = label.clamp(0, student.shape[1] - 1)[:, None], (label != IGNORE).to(compute)
    z, s = teacher.to(compute) / temperature, student.to(compute)
    log_t, log_p1, log_p = z.log_softmax(dim=1), s.log_softmax(dim=1), (s / temperature).log_softmax(dim=1)
    t = log_t.exp()
    kl = (t * (log_t - log_p)).sum(dim=1)
    task = -log_p1.gather(1, at)[:, 0] * valid
    top = z.argmax(dim=1, keepdim=True)
    scaled, task_weight = temperature * batch.kd_weight(), scales.task * valid
    of_t, surplus = scaled, None
    if rule.effect == "rewrite":
        places = torch.cat((at, top), dim=1)
        value, surplus, c = corrected(
            rule, temperature, kl, log_t.gather(1, places).T, log_p.gather(1, places).T
        )
        kl = torch.where(wrong, value, kl)
        surplus = torch.where(wrong, scaled * surplus, torch.zeros_like(surplus))
        if c is not None:
            of_t = torch.where(wrong, scaled * c, scaled)
    if not wanted:
        return summed(batch, task, kl, None)
    gradient = log_p1.exp() * task_weight[:, None] + log_p.exp() * scaled[:, None] - t * of_t[:, None]
    classes = torch.arange(student.shape[1], device=student.device)
    of_label = -task_weight if surplus is None else surplus[0] - task_weight
    # compared, not scattered: this fuses with the rest, and needs no atomic additions
    gradient = gradient + torch.where(classes == at, of_label[:, None], torch.zeros_like(of_label[:, None]))
    if surplus is not None:
        gradient = gradient + torch.where(
            classes == top, surplus[1][:, None], torch.zeros_like(surplus[1][:, None])
        )
    return summed(batch, task, kl, gradient.to(student.dtype))


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
        rows = Batch(student, teacher, label, wrong, weight, scales, rule, temperature)
        return closed_form(rows, wanted)

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
