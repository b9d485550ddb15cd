"""Curriculum temperature: ``ctkd``."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from outgrow.losses.base import RowLoss, positive
from outgrow.losses.kd import divergence, softened
from outgrow.outputs import Outputs, Target, lift

RAMP = 10 / 240
"""The share of training in which ``strength`` grows from 0 to 1: the paper's 10 of 240 epochs."""


def ctkd_loss(
    student: Float[Tensor, "rows classes"],
    teacher: Float[Tensor, "rows classes"],
    logit: Float[Tensor, ""],
    *,
    start: float = 1.0,
    range: float = 20.0,
    strength: float = 1.0,
) -> Float[Tensor, " rows"]:
    r"""KL divergence at a learnt temperature that is trained to maximise it.

    .. math:: T^2\ KL\big(\sigma(z / T) \,\|\, \sigma(s / T)\big), \quad T = start + range \cdot \sigma(\theta)

    The gradient in :math:`\theta` (``logit``) is multiplied by ``-strength``. So the optimiser minimises the
    loss in the student and maximises it in the temperature, including the factor :math:`T^2`. The value does
    not depend on ``strength``. Zero where the two distributions agree.

    Reference: Li et al. (AAAI 2023), https://arxiv.org/abs/2211.16231, "Adversarial
    Distillation" and "Curriculum Temperature".

    >>> ctkd_loss(torch.zeros(1, 2), torch.tensor([[0.0, 4.0]]), torch.tensor(1.0))
    tensor([1.9837])
    """
    temperature = start + range * _Reverse.apply(logit, strength).sigmoid()
    log_p = softened(lift(student), temperature).log_softmax(dim=1)
    log_t = softened(lift(teacher), temperature).log_softmax(dim=1)
    return temperature**2 * divergence(log_t, log_p)


class _Reverse(torch.autograd.Function):
    """The identity, with the gradient multiplied by ``-strength``."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * gradient, None


class CTKD(RowLoss):
    """:func:`ctkd_loss` with one learnable ``logit`` for all rows.

    Declares no temperature, as it changes in training. :meth:`at` sets ``strength``; without a call it is 1.
    """

    def __init__(self, start: float = 1.0, range: float = 20.0) -> None:
        super().__init__()
        self.start = positive(start, what="ctkd: start")
        self.range = positive(range, what="ctkd: range")
        self.logit = nn.Parameter(torch.ones(()))  # 1 as in the authors' code: the first temperature is 15.6
        self.strength = 1.0

    def at(self, progress: float) -> None:
        self.strength = 0.5 - 0.5 * math.cos(math.pi * min(progress / RAMP, 1.0))

    def rows(self, student: Outputs, teacher: Outputs, target: Target) -> Float[Tensor, " rows"]:
        return ctkd_loss(
            student.logits,
            teacher.logits,
            self.logit,
            start=self.start,
            range=self.range,
            strength=self.strength,
        )

    def extra_repr(self) -> str:
        return f"start={self.start}, range={self.range}"
