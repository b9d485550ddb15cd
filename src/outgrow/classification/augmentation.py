"""What the augmentation takes from a teacher: how often it is right on augmented views of images, and on the same images as they are.

A student learns from a teacher's answers on views. A teacher that was trained without an augmentation may know nothing of
what the augmentation makes of an image.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from outgrow.classification.data import teacher_views
from outgrow.data import Split
from outgrow.models import Network
from outgrow.teacher import BaseTeacher
from outgrow.teacher.counts import LEVEL, paired
from outgrow.training.config import AugmentConfig
from outgrow.training.record import AloneRecord, AugmentedRecord
from outgrow.training.task import RunContext

IMAGES = 256
"""Images that are looked at: a third of the accuracy is far more than their sampling error."""
COSTLY = 1 / 3
"""Share of what a teacher knows, its accuracy above that of always naming the most frequent class, from which on a loss is said.
On CIFAR-100 padding and flips take a tenth at most of four teachers (about 130 to 220 of 256 images right)."""
NOTICEABLE = 0.1
"""Share from which on an augmentation by itself is one of those to turn off, where all together are costly."""
OFF: dict[str, object] = {
    "crop_padding": 0,
    "flip": False,
    "cutout": 0,
    "randaugment": 0.0,
    "resized_crop": None,
}
"""What turns each augmentation of one image off. Mixing of images is no question here: it has two labels."""


def in_use(augment: AugmentConfig) -> dict[str, object]:
    """The augmentations of one image that are on, by name. A resized crop replaces padding.

    >>> in_use(AugmentConfig(crop_padding=0))
    {'flip': True}
    """
    on = {name: getattr(augment, name) for name, off in OFF.items() if getattr(augment, name) != off}
    if "resized_crop" in on:
        on.pop("crop_padding", None)
    return on


@torch.no_grad()
def look_at_augmented(
    run: RunContext,
    teacher: BaseTeacher,
    split: Split,
    predicted: Int[Tensor, " images"],
    viewers: Sequence[Network | None],
    whose: str,
) -> AugmentedRecord | None:
    """The teacher on one view of up to :data:`IMAGES` images of ``split``, which it should not have been trained on.

    ``predicted``: its classes for all of ``split`` as in an evaluation. ``viewers``: the networks for which training views are
    made. ``whose``: what the images are called. None if nothing is augmented. Where much is lost, each augmentation is tried
    alone.
    """
    on = in_use(run.config.data.augment)
    if not on or not len(split):
        return None
    generator = torch.Generator().manual_seed(run.config.seed)
    rows = torch.randperm(len(split), generator=generator)[:IMAGES].sort().values
    some, before, label = split.subset(rows), predicted.cpu()[rows], split.labels[rows]
    plain = before == label

    def right(changes: Mapping[str, object]) -> Tensor:
        augment = run.config.data.augment.model_copy(update={"mixup": 0.0, "cutmix": 0.0, **changes})
        return _right_on_views(run, teacher, some, augment, viewers)

    views = right({})
    found = AugmentedRecord(
        whose=whose,
        images=len(some),
        majority=int(torch.bincount(label).max()),
        plain=int(plain.sum()),
        views=int(views.sum()),
        p=paired(int((views & ~plain).sum()), int((plain & ~views).sum())),
    )
    if not costs_much(found):
        return found
    alone = [
        AloneRecord(
            name=name,
            setting=name if value is True else f"{name}={value}",
            right=int(right({**OFF, name: value}).sum()),
        )
        for name, value in (on.items() if len(on) > 1 else ())
    ]
    return found.model_copy(update={"alone": tuple(alone), "unchanged": int(right(OFF).sum())})


def _right_on_views(
    run: RunContext,
    teacher: BaseTeacher,
    split: Split,
    augment: AugmentConfig,
    viewers: Sequence[Network | None],
) -> Tensor:
    """For each image of ``split``, whether the teacher is right on its view of the first epoch."""
    config = run.config.model_copy(update={"data": run.config.data.model_copy(update={"augment": augment})})
    loader = teacher_views(config, split, viewers, run.device)
    place = {number: at for at, number in enumerate(split.index.tolist())}
    found = torch.zeros(len(split), dtype=torch.bool)
    for batch in loader.epoch(0):
        assert batch.target.index is not None
        at = torch.tensor([place[number] for number in batch.target.index.tolist()])
        found[at] = (teacher(batch.images).logits.argmax(1) == batch.target.label).cpu()
    return found


def costs_much(found: AugmentedRecord) -> bool:
    """Whether the views lose a third or more of what the teacher knows of the same images, and not by chance."""
    return _loses(found, found.views, COSTLY) and found.p < LEVEL


def _loses(found: AugmentedRecord, right: int, share: float) -> bool:
    """Whether ``right`` is by that share of what the teacher knows below the images as they are."""
    known = found.plain - found.majority
    return known > 0 and found.plain - right >= share * known


def _size_costs(found: AugmentedRecord) -> bool:
    return found.unchanged is not None and _loses(found, found.unchanged, COSTLY)


def cost_text(found: AugmentedRecord, who: str = "The teacher") -> str:
    """The finding in words: the numbers, and what each augmentation does alone. ``who`` begins the sentence."""

    def percent(right: int) -> str:
        return f"{100 * right / found.images:.1f} %"

    text = (
        f"{who} is right on {percent(found.views)} of augmented views of {found.images:,} {found.whose} images, and on "
        f"{percent(found.plain)} of the same images as they are. A student learns from its answers on such views."
    )
    if found.alone:
        each = ", ".join(f"{percent(one.right)} with {one.setting}" for one in found.alone)
        text += f" One augmentation at a time: {each}."
    if _size_costs(found):
        text += f" Without any it is {percent(found.unchanged or 0)}: the views have another size than an evaluation of this teacher."
    return text


def weaker(found: AugmentedRecord, augment: AugmentConfig) -> dict[str, object]:
    """The settings that turn off what by itself takes a tenth or more, or everything if nothing does. Empty where the size is the cause.

    With a resized crop goes the padding that it has replaced: without the crop it would be in use, and nobody has looked at it.
    """
    if _size_costs(found):
        return {}
    alone = [one.name for one in found.alone if _loses(found, one.right, NOTICEABLE)]
    settings = {name: OFF[name] for name in alone or in_use(augment)}
    if "resized_crop" in settings and augment.crop_padding:
        settings["crop_padding"] = OFF["crop_padding"]
    return settings


def advice(found: AugmentedRecord, augment: AugmentConfig) -> str:
    """What to do, as the end of a warning."""
    settings = weaker(found, augment)
    if not settings:
        return "Set data.size to the size that the teacher was trained on."
    words = " ".join(
        f"--set data.augment.{name}={'null' if value is None else str(value).lower()}"
        for name, value in settings.items()
    )
    return f"Weaken the augmentation, or turn it off: {words}"
