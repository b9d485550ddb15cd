"""What a family of detectors declares, so that :mod:`outgrow.detection.families.create` can build, load and name its members."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from outgrow.detection.families.detector import Detector


@dataclass(frozen=True)
class Family:
    """A family of detectors, which are named ``NAME:BACKBONE?KEY=VALUE&...``.

    ``shape`` is a frozen dataclass of the keys and their defaults, with a class attribute ``family``. ``build`` makes
    torchvision's net from the backbone's name, the shape, the arguments for timm, the number of outputs, and whether
    to download the backbone's weights. ``wrap`` makes the detector from a net, its shape, name and classes.

    The other fields say what a file of weights holds. ``heads`` is the start of the names of layers that no backbone
    has, and ``class_layers`` the start of those with rows for each class. ``outputs`` reads the number of these
    classes, 0 if there are none. ``by_class`` says whether such a layer has all rows of a class together, or all
    classes of an anchor. ``unseen`` are the keys on which no weight's shape depends, but the meaning of the weights.
    ``frozen`` are the parts whose batch norms are frozen if the backbone has weights. ``least`` is the smallest number
    of images that the net takes in training mode.
    """

    name: str
    shape: type[Any]
    build: Callable[[str, Any, dict[str, Any], int, bool], Any]
    wrap: Callable[[Any, Any, str, tuple[str, ...]], Detector]
    heads: str
    class_layers: str
    outputs: Callable[[Mapping[str, Tensor]], int]
    by_class: bool = False
    unseen: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ("backbone",)
    least: int = 1

    @property
    def prefix(self) -> str:
        return f"{self.name}:"

    def in_order(self, layer: Tensor, outputs: int, rows: Tensor) -> Tensor:
        """The weights of a class layer for the classes ``rows``."""
        if self.by_class:
            return layer.unflatten(0, (outputs, -1))[rows].flatten(0, 1)
        return layer.unflatten(0, (-1, outputs))[:, rows].flatten(0, 1)
