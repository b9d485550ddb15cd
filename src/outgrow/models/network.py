"""Classifiers that take images in [0, 1] and return logits: the common interface of teachers and students.

    InputSpec   a net's input: size, normalisation, interpolation
    Network     any classifier with its InputSpec

Teacher and student get the same images. Each resizes and normalises its own input.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from outgrow.models.weight_file import first_line

PACKAGE = Path(__file__).resolve().parents[1]
ONE_IMAGE = "more than 1 value per channel"
"""In what torch says of a batch norm that got one image and no running statistics."""


@dataclass(frozen=True)
class InputSpec:
    """The input of a net.

    ``size`` is the side in pixels of its square input, None if it takes any size. ``mean`` and ``std`` are for
    RGB in [0, 1]. ``crop_pct`` is the share of the short side that the centre crop of its published evaluation
    keeps. It is meant for the loader: a network resizes its input but does not crop it.
    """

    size: int | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    crop_pct: float = 1.0

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise ValueError(
                f"InputSpec: size needs a positive number of pixels, got {self.size}; "
                "use None for a net that takes any size."
            )
        three = len(self.mean) == 3 and len(self.std) == 3
        if (
            not three
            or not all(0 <= value <= 1 for value in self.mean)
            or not all(0 < x <= 1 for x in self.std)
        ):
            raise ValueError(
                "InputSpec: needs mean and std with three numbers each (red, green, blue), mean in [0, 1], std in "
                f"(0, 1], got mean {self.mean}, std {self.std}; divide both by 255 if they are for 0..255; use mean 0 and "
                "std 1 for no normalisation."
            )
        if self.interpolation not in ("bilinear", "bicubic"):
            raise ValueError(
                f"InputSpec: interpolation needs bilinear or bicubic, got {self.interpolation!r}; "
                "use the more similar of the two."
            )
        if not 0 < self.crop_pct <= 1:
            raise ValueError(
                f"InputSpec: crop_pct needs a share in (0, 1], got {self.crop_pct}; use 1 for no crop."
            )


class Network(nn.Module):
    """Any classifier ``net`` with its own normalisation and size.

    ``name`` is the argument of :func:`outgrow.create_model`. ``classes`` are the names of the
    ``num_classes`` classes in the order of the logits, None if unknown. With 0 classes ``net`` is a backbone without a
    classifier: it returns features (rows x features), and the network no logits. Feature taps name modules of
    ``network.net``. ``weights`` is the source of the weights: a file, ``published``, ``own`` (the caller's
    net), or None for random weights. ``fresh_head`` is whether its head alone is new. ``guessed`` is whether nothing states its
    mean and std. ``view`` is the preprocessing of a picture in the run that trained it, None if there was none or if the input
    changed since. ``notes`` are messages for the user about how they were loaded.
    The state dict contains only ``net``: mean and std belong to the specification.

    >>> spec = InputSpec(None, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    >>> Network(net, name="toy", num_classes=5, input_spec=spec)(torch.rand(4, 3, 2, 2)).shape
    torch.Size([4, 5])
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        net: nn.Module,
        *,
        name: str,
        num_classes: int,
        input_spec: InputSpec,
        classes: tuple[str, ...] | None = None,
        weights: str | None = "own",
    ) -> None:
        super().__init__()
        if classes is not None and len(classes) != num_classes:
            raise ValueError(
                f"Network {name}: needs one name per class, {num_classes}, got {len(classes)}; "
                "pass classes=None if they are unknown."
            )
        self.net = net
        self.name = name
        self.num_classes = num_classes
        self.classes = classes
        self.weights = weights
        self.fresh_head = False
        self.guessed = False
        self.view: dict[str, Any] | None = None
        self.notes: list[str] = []
        at = next((value.device for value in (*net.parameters(), *net.buffers())), None)
        self.register_buffer("mean", torch.zeros(3, 1, 1, device=at), persistent=False)
        self.register_buffer("std", torch.ones(3, 1, 1, device=at), persistent=False)
        self.set_input_spec(input_spec)

    def set_input_spec(self, input_spec: InputSpec) -> None:
        """Change the input size and normalisation."""
        self.input_spec = input_spec
        self.view = None
        self.mean = self.mean.new_tensor(input_spec.mean).view(3, 1, 1)
        self.std = self.std.new_tensor(input_spec.std).view(3, 1, 1)

    def prepare(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 _ _"]:
        """Resize (if necessary) and normalise RGB ``images`` in [0, 1]: the input of ``net``."""
        _check_images(images, self.name)
        return (fit_size(images, self.input_spec) - self.mean) / self.std

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        """Logits of RGB ``images`` in [0, 1], one row per image.

        Raises ``ValueError`` if the images or the net's outputs have another shape.
        """
        output = self.net(self.prepare(images))
        logits = getattr(
            output, "logits", output
        )  # Hugging Face, and torchvision's nets with auxiliary heads
        if self.num_classes == 0:
            return _no_logits(logits, self.name)
        expected = (images.shape[0], self.num_classes)
        if not isinstance(logits, Tensor) or tuple(logits.shape) != expected:
            got = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                f"Network {self.name}: needs logits of shape rows x classes, {expected[0]} x {expected[1]}, got "
                f"{got}; check num_classes, and wrap a net that returns a tuple, a dictionary or a map so "
                "that it returns only the logits."
            )
        return logits

    def extra_repr(self) -> str:
        return f"name={self.name!r}, num_classes={self.num_classes}, input_spec={self.input_spec}"


def _no_logits(features: object, name: str) -> Float[Tensor, "batch 0"]:
    if not isinstance(features, Tensor) or features.dim() != 2:
        got = f"shape {tuple(features.shape)}" if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(
            f"Network {name}: needs pooled features of shape rows x features from a net without a classifier, got {got}; keep "
            "its global pool, or wrap it."
        )
    return features[:, :0]


def fit_size(images: Float[Tensor, "batch 3 height width"], spec: InputSpec) -> Float[Tensor, "batch 3 _ _"]:
    """``images`` resized to the size of ``spec``; unchanged if they have it or if ``spec`` takes any size."""
    size, mode = spec.size, spec.interpolation
    if size is None or images.shape[-2:] == (size, size):
        return images
    images = F.interpolate(images, size=(size, size), mode=mode, antialias=True)
    return images.clamp(0, 1) if mode == "bicubic" else images  # bicubic overshoots at edges


def resized(network: Network, size: int) -> None:
    """Change the input size of ``network`` to ``size`` x ``size`` pixels."""
    network.set_input_spec(replace(network.input_spec, size=size))


def normalised(
    network: Network, mean: tuple[float, float, float] | None, std: tuple[float, float, float] | None
) -> None:
    """Change the normalisation of ``network``; a ``mean`` or ``std`` of None stays as it is."""
    spec = network.input_spec
    network.set_input_spec(replace(spec, mean=mean or spec.mean, std=std or spec.std))


def check_channels(network: Network) -> None:
    """``ValueError`` if the net does not take images with three channels.

    One image is tried if the first convolution has another number. A net may change the channels before it.
    """
    first = next((module for module in network.net.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None or first.in_channels in (0, 3):  # 0: not known before the first batch
        return
    side = network.input_spec.size or 64
    try:
        with on_trial(network), torch.no_grad():
            network.net(first.weight.new_zeros(1, 3, side, side))
    except Exception as error:
        if "channel" not in str(error):
            return
        raise ValueError(
            f"{network.name}: needs a net for images with 3 channels, got one for {first.in_channels}; build it with 3, as "
            "greyscale images are converted to RGB."
        ) from error


@contextmanager
def on_trial(network: Network) -> Iterator[None]:
    """Context in which ``network`` is in eval mode. Then modes, buffers and the CPU's random numbers are as before.

    A net may build some of its modules meanwhile. One of ``torch.compile`` runs uncompiled.
    """
    modes = [(module, module.training) for module in network.modules()]
    held = [
        (module, name, value, value.clone())
        for module in network.net.modules()
        for name, value in module.named_buffers(recurse=False)
        if not is_lazy(value)
    ]
    net = network.net
    network.net = getattr(net, "_orig_mod", net)
    try:
        with torch.random.fork_rng(devices=()):
            network.eval()
            yield
    finally:
        network.net = net
        for module, mode in modes:
            module.training = mode
        for module, name, value, before in held:
            if getattr(module, name) is not value:
                setattr(module, name, value)
            if not torch.equal(value, before):
                value.copy_(before)


def check_size(network: Network, height: int, width: int) -> None:
    """``ValueError`` if ``network`` cannot process images of this size, with what it raised and where.

    One image is tried; two if it needs more than one, as a batch norm without running statistics does.
    """
    side = network.input_spec.size
    size = f"{height} x {width}" if side is None else f"{side} x {side}"  # of what the net gets
    image = network.mean.new_zeros(1, 3, height, width)
    try:
        with on_trial(network), torch.no_grad():
            try:
                network(image)
            except ValueError as error:
                if ONE_IMAGE not in str(error):
                    raise
                network(image.expand(2, -1, -1, -1))
    except (ValueError, MemoryError, torch.OutOfMemoryError):  # the network's own words
        raise
    except Exception as error:
        if _moves_images(error):
            return
        raise ValueError(
            f"{network.name}: needs a net that takes images of {size}, got {type(error).__name__}: {first_line(error)}"
            f"{_place(error)}; set data.size to the size that it was built for, or correct it."
        ) from error


def check_state(network: Network) -> None:
    """``ValueError`` if the state dict has what is no tensor: it cannot be written, hashed or averaged."""
    strange = [key for key, value in network.state_dict().items() if not isinstance(value, Tensor)]
    if strange:
        raise ValueError(
            f"{network.name}: needs a net whose state dict has tensors alone, got {strange[0]!r}, which is none; return a tensor "
            "from get_extra_state, and pass the net before it is quantized."
        )


def check_layout(network: Network, height: int, width: int) -> None:
    """``ValueError`` if ``network``, which processes images of this size, cannot process them with channels last."""
    image = network.mean.new_zeros(2, 3, height, width)
    try:
        with on_trial(network), torch.no_grad():
            network(image.contiguous(memory_format=torch.channels_last))
    except RuntimeError as error:
        if "view size is not compatible" not in str(error):  # check_size speaks of all else
            return
        raise ValueError(
            f"train.channels_last: needs a net that takes maps with channels last, got {network.name}, which calls .view on "
            f"them{_place(error)}; call .reshape or .flatten instead, or leave channels_last out "
            "(--set train.channels_last=false, teacher_train.channels_last=false)."
        ) from error


def _moves_images(error: BaseException) -> bool:
    """Whether the net has moved the images to a GPU, to which a run moves the net only later."""
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("same device", "torch.cuda.")
    )


def _place(error: BaseException) -> str:
    """Where in a file of the user's ``error`` was raised; empty if it is in none."""
    files = [(Path(frame.filename), frame) for frame in traceback.extract_tb(error.__traceback__)]
    own = [
        frame for file, frame in files if "site-packages" not in file.parts and PACKAGE not in file.parents
    ]
    return f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""


def describe_input(spec: InputSpec) -> str:
    """A net's input for messages.

    >>> describe_input(InputSpec(224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
    'input size 224 pixels, mean 0.5 0.5 0.5, std 0.5 0.5 0.5'
    """
    size = "of any size" if spec.size is None else f"size {spec.size} pixels"
    mean, std = (" ".join(f"{value:.4g}" for value in values) for values in (spec.mean, spec.std))
    return f"input {size}, mean {mean}, std {std}"


def _check_images(images: Tensor, name: str) -> None:
    if images.dim() != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(
            f"Network {name}: needs floating-point RGB images in [0, 1] of shape batch x 3 x height x width, got "
            f"{images.dtype} of shape {tuple(images.shape)}; divide uint8 by 255 and put the channels second."
        )
