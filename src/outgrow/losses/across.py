"""What losses need of the other processes of a step: all rows, or a mean over them.

    whole_batch     outputs, target and weights of all processes, in the order of their ranks
    channel_mean    the mean of each channel over the maps of all processes

Gradients are averaged over the processes afterwards, as DistributedDataParallel does. Both have the gradient
under which that average is the gradient of one process with the whole batch. Shares may be uneven or empty.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor

from outgrow.outputs import Outputs, Target


def whole_batch(
    student: Outputs,
    teacher: Outputs,
    target: Target,
    weight: Float[Tensor, " rows"],
    group: dist.ProcessGroup,
    *,
    logits: bool,
    student_taps: Collection[str],
    teacher_taps: Collection[str],
) -> tuple[Outputs, Outputs, Target, Float[Tensor, " all"]]:
    """The rows of all processes: a loss that relates rows gives each process the same value for them.

    Only what the loss reads is sent: ``logits`` says whether it reads any, the taps name its features.
    """
    sent: dict[str, Tensor] = {"weight": weight, "label": target.label}
    for name in ("index", "partner", "mix"):
        value = getattr(target, name)
        if value is not None:
            sent[name] = value
    if target.image is not None:
        sent["image"], sent["images"] = target.image, _images(target.image, student.features)
    for whose, outputs, taps in (("student", student, student_taps), ("teacher", teacher, teacher_taps)):
        if logits:
            sent[f"{whose} logits"] = outputs.logits
        sent |= {f"{whose} {name}": outputs.features[name] for name in taps if name in outputs.features}
    parts = dict(zip(sent, _gather(list(sent.values()), group), strict=True))
    whole = {name: torch.cat(values) for name, values in parts.items()}
    image = None
    if target.image is not None:
        before = whole["images"].cumsum(0) - whole["images"]
        image = torch.cat([own + first for own, first in zip(parts["image"], before, strict=True)])
    return (
        _outputs("student", student, whole),
        _outputs("teacher", teacher, whole),
        replace(
            target,
            label=whole["label"],
            index=whole.get("index"),
            partner=whole.get("partner"),
            mix=whole.get("mix"),
            image=image,
        ),
        whole["weight"],
    )


def _outputs(whose: str, own: Outputs, whole: Mapping[str, Tensor]) -> Outputs:
    features = {name: whole[f"{whose} {name}"] for name in own.features if f"{whose} {name}" in whole}
    # logits that nobody reads still say how many rows there are
    unread = own.logits.new_zeros(()).expand(len(whole["weight"]), own.num_classes)
    return Outputs(whole.get(f"{whose} logits", unread), features)


def _images(image: Tensor, features: Mapping[str, Tensor]) -> Tensor:
    """How many images this process has: what its feature maps say, or its rows."""
    maps = [len(value) for value in features.values() if value.dim() == 4]
    if maps:
        return image.new_tensor([maps[0]])
    return image.max()[None] + 1 if len(image) else image.new_zeros(1)


def _gather(values: Sequence[Shaped[Tensor, "..."]], group: dist.ProcessGroup) -> list[tuple[Tensor, ...]]:
    """For each value those of all processes, along the first axis."""
    own = torch.tensor([len(value) for value in values], device=values[0].device)
    sizes = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(sizes, own, group=group)
    lengths = zip(*(size.tolist() for size in sizes), strict=True)
    return [_Gather.apply(value, each, group) for value, each in zip(values, lengths, strict=True)]


class _Gather(torch.autograd.Function):
    """Every process computes the same from all rows, so each has the whole gradient of its own: no process
    is asked on the way back. Averaging divides it by their number, so it is multiplied by that first."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, lengths: tuple[int, ...], group: dist.ProcessGroup
    ) -> tuple[Tensor, ...]:
        ctx.rank, ctx.processes = dist.get_rank(group), len(lengths)
        padded = value.new_zeros(max(lengths), *value.shape[1:])
        padded[: len(value)] = value
        parts = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(parts, padded, group=group)
        return tuple(part[:length] for part, length in zip(parts, lengths, strict=True))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[ctx.rank] * ctx.processes, None, None


def channel_mean(
    maps: Float[Tensor, "images channels height width"], group: dist.ProcessGroup | None
) -> Float[Tensor, "1 channels 1 1"]:
    """The mean over images and positions, over those of all processes where there is a group; 0 where there
    are none."""
    if group is None:
        return maps.mean(dim=(0, 2, 3), keepdim=True)
    count = count_of(maps, group)
    total: Tensor = _Sum.apply(maps.sum(dim=(0, 2, 3), keepdim=True), group)
    return total / count.clamp_min(1)


def count_of(maps: Float[Tensor, "images channels height width"], group: dist.ProcessGroup) -> Tensor:
    """How many values a channel has, over all processes."""
    count = maps.new_tensor(maps.numel() // maps.shape[1])
    return summed(count, group)


@torch.no_grad()
def summed(value: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The sum over all processes, without a gradient; ``value`` itself without a group."""
    if group is None:
        return value
    value = value.clone()
    dist.all_reduce(value, group=group)
    return value


class _Sum(torch.autograd.Function):
    """Each process's loss depends on the sum: the gradients of all of them belong to what entered it."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return summed(value, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return summed(gradient.contiguous(), ctx.group), None
