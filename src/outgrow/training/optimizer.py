"""The optimiser of a run, and its learning rate as a function of progress."""

import math

import torch
from torch import nn

from outgrow.models.structure import layer_depths
from outgrow.models.taps import Taps
from outgrow.training.config import TrainConfig


def make_optimizer(config: TrainConfig, student: nn.Module, objective: nn.Module) -> torch.optim.Optimizer:
    """SGD or AdamW, fused, over the learnable parameters of student and objective.

    The memories of the objective are buffers: they get no gradient and no weight decay. The first group of parameters
    has the learning rate ``config.lr``.
    """
    parameters = parameter_groups(config, student, objective)
    # the fused form can skip a step by a flag on the device, without a device sync
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
            fused=True,
        )
    return torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True)


def parameter_groups(
    config: TrainConfig, student: nn.Module, objective: nn.Module
) -> list[dict[str, object]]:
    """Parameters with their peak learning rates; all in one group unless ``head_lr`` or ``layer_decay`` is set."""
    own, rest = ([p for p in module.parameters() if p.requires_grad] for module in (student, objective))
    if config.head_lr is None and config.layer_decay is None:
        return [{"params": own + rest, "lr": config.lr}]
    depths = layer_depths(student.model if isinstance(student, Taps) else student)
    top, decay = max(depths.values()), config.layer_decay or 1.0
    rates = {depth: config.lr * decay ** (top - depth) for depth in range(top)}
    rates[top] = config.head_lr or config.lr
    groups = [{"params": [p for p in own if depths[p] == depth], "lr": rate} for depth, rate in rates.items()]
    return [{"params": rest, "lr": config.lr}, *(group for group in groups if group["params"])]


def lr_factor(config: TrainConfig, progress: float) -> float:
    """The factor of the learning rate at ``progress`` in [0, 1].

    >>> [round(lr_factor(TrainConfig(lr_schedule="step"), p), 4) for p in (0.0, 0.63, 0.8, 0.9)]
    [1.0, 0.1, 0.01, 0.001]
    """
    if config.warmup and progress < config.warmup:
        return max(progress / config.warmup, 1e-3)  # a first step of exactly zero would be wasted
    if config.lr_schedule == "step":
        return config.lr_decay ** sum(progress >= at for at in config.milestones)
    rest = (progress - config.warmup) / (1 - config.warmup)
    if config.lr_schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(rest, 1.0)))
    if config.lr_schedule == "one_cycle":
        # up over the first 30 %, down to a thousandth: torch's OneCycleLR in shape
        up = 0.3
        if rest < up:
            return 0.04 + 0.96 * 0.5 * (1 - math.cos(math.pi * rest / up))
        return 1e-3 + (1 - 1e-3) * 0.5 * (1 + math.cos(math.pi * min((rest - up) / (1 - up), 1.0)))
    return 1.0
