"""Multi-scale training: a step in which the detectors resize their input to another size than their own."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform


@contextmanager
def resized(student: nn.Module, teacher: nn.Module, short_side: int | None) -> Iterator[None]:
    """Within it, ``student`` resizes the short side of its input to ``short_side`` pixels; None leaves its own size.

    The teacher's size changes by the same factor, so that equal sizes stay equal. So does the limit of the long side.

    ``ValueError`` for a student that does not resize its input to a short side.
    """
    if short_side is None:
        yield
        return
    own = _transforms(student)
    if not own:
        raise ValueError(
            f"data.short_sides: needs a detector that resizes images to a short side, got {type(student).__name__}; leave "
            "it out."
        )
    factor = short_side / own[0].min_size[-1]
    before = [(one, one.min_size, one.max_size) for one in (*own, *_transforms(teacher))]
    try:
        for one, sides, longest in before:
            one.min_size = (round(sides[-1] * factor),)
            one.max_size = round(longest * factor)
        yield
    finally:
        for one, sides, longest in before:
            one.min_size, one.max_size = sides, longest


def short_side_of(detector: nn.Module) -> int | None:
    """The short side to which ``detector`` resizes images; None if it does not."""
    found = _transforms(detector)
    return found[0].min_size[-1] if found else None


def _transforms(detector: nn.Module) -> list[GeneralizedRCNNTransform]:
    """The resizing layers of a detector, also if it is wrapped. SSD's have one fixed size and are left out."""
    return [
        module
        for module in detector.modules()
        if isinstance(module, GeneralizedRCNNTransform) and module.fixed_size is None
    ]
