"""Shared parts of losses on features: pairing of taps, and adapters between shapes.

    pair_taps       pairs of student and teacher features
    as_map          maps, token sequences and vectors as (images, channels, height, width)
    match_channels  a 1x1 convolution where channels differ
    pool_to_smaller, resize_to
    unit, shares    unit vectors and row weights that are safe at zero
    MapLoss         an image loss on pairs of maps
    RelationLoss    a batch loss on one vector per row

Shapes are checked in :meth:`setup`, so that features that cannot be compared raise before the first step.
"""

import math
from collections.abc import Collection, Sequence
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from outgrow.losses.across import channel_mean, count_of
from outgrow.losses.base import BatchLoss, Fixture, ImageLoss
from outgrow.models.taps import NOT_TAPS, PENULTIMATE
from outgrow.outputs import Outputs, Target, lift

Paths = str | Sequence[str] | None
"""The taps that a loss reads: a path, several in order, or None for a choice by :data:`Default`."""

Default = Literal["all", "last", "middle", "pyramid"]
"""The choice without paths: all taps, the last, or the middle one. ``pyramid``: all, and then the penultimate
features if both networks have them with one row per image."""

MAX_PREFIX = 5
"""Most tokens before the grid: a class token and, as in DINOv2, four registers."""


class Layout(NamedTuple):
    """The meaning of a tapped feature's axes, found in a dry run."""

    kind: Literal["map", "tokens", "vector"]
    prefix: int = 0
    """The number of tokens before the grid."""


def layout_of(shape: Sequence[int]) -> Layout | None:
    """The layout of a feature of this shape, None if it cannot be a map.

    Four axes are (images, channels, height, width). Three are (images, tokens, channels), with a square grid
    after up to five prefix tokens. Two are a vector, that is a map of one position.

    >>> layout_of((8, 64, 7, 7)), layout_of((8, 197, 384))
    (Layout(kind='map', prefix=0), Layout(kind='tokens', prefix=1))
    """
    if len(shape) == 2:
        return Layout("vector")
    if len(shape) == 3:
        prefix = shape[1] - math.isqrt(shape[1]) ** 2
        return Layout("tokens", prefix) if shape[1] and prefix <= MAX_PREFIX else None
    if len(shape) == 4:
        return Layout("map")
    return None


def as_map(
    value: Float[Tensor, "images *axes"], layout: Layout
) -> Float[Tensor, "images channels height width"]:
    """``value`` as a feature map in at least float32, without the tokens before the grid.

    >>> as_map(torch.zeros(2, 17, 12), Layout("tokens", prefix=1)).shape
    torch.Size([2, 12, 4, 4])
    """
    value = lift(value)
    if layout.kind == "vector":
        return value[:, :, None, None]
    if layout.kind == "tokens":
        grid = value[:, layout.prefix :]
        side = math.isqrt(grid.shape[1])
        if side * side != grid.shape[1]:
            raise ValueError(
                f"features: needs a square grid of tokens behind {layout.prefix} others, got {tuple(value.shape)}; "
                "feed square images, or tap a module that returns a map."
            )
        return grid.mT.unflatten(2, (side, side))
    return value


class MapPair(NamedTuple):
    """Two taps that are compared, and their layouts."""

    student_path: str
    teacher_path: str
    student_layout: Layout
    teacher_layout: Layout

    def maps(self, student: Outputs, teacher: Outputs) -> tuple[Tensor, Tensor]:
        return (
            as_map(student.features[self.student_path], self.student_layout),
            as_map(teacher.features[self.teacher_path], self.teacher_layout),
        )


def pair_taps(
    student: Outputs,
    teacher: Outputs,
    student_paths: Paths = None,
    teacher_paths: Paths = None,
    *,
    default: Default = "all",
    what: str = "features",
) -> list[tuple[str, str]]:
    """Pairs of taps in order, from early to late.

    If one network has more taps than the other and no paths are given for it, a subset of its taps is used:
    evenly spaced, and ending with the last. So the blocks of a transformer are paired with the stages of a
    ResNet.

    >>> few = Outputs(torch.zeros(1, 2), {"a": torch.zeros(1, 3), "b": torch.zeros(1, 3)})
    >>> many = Outputs(torch.zeros(1, 2), {name: torch.zeros(1, 3) for name in "123456"})
    >>> pair_taps(few, many)
    [('a', '3'), ('b', '6')]
    """
    own = _chosen(student, student_paths, "student", default, what)
    other = _chosen(teacher, teacher_paths, "teacher", default, what)
    if student_paths is not None:
        number = len(own)
    elif teacher_paths is not None:
        number = len(other)
    else:
        number = min(len(own), len(other))
    own = _spread(own if student_paths is not None or len(own) == number else _tapped(student), number)
    other = _spread(other if teacher_paths is not None or len(other) == number else _tapped(teacher), number)
    if len(own) != len(other):
        raise ValueError(
            f"{what}: needs as many taps of the student as of the teacher, got {', '.join(own)} and "
            f"{', '.join(other)}; name them in pairs, student=[...], teacher=[...]."
        )
    pairs = list(zip(own, other, strict=True))
    if default == "pyramid" and student_paths is None and teacher_paths is None:
        last = student.features.get(PENULTIMATE), teacher.features.get(PENULTIMATE)
        images = len(student.features[own[-1]])
        if all(value is not None and value.dim() == 2 and len(value) == images for value in last):
            pairs.append((PENULTIMATE, PENULTIMATE))
    return pairs


def _tapped(outputs: Outputs) -> list[str]:
    return [name for name in outputs.features if name not in NOT_TAPS]


def _chosen(outputs: Outputs, paths: Paths, whose: str, default: Default, what: str) -> list[str]:
    if paths is None:
        tapped = _tapped(outputs)
        chosen = {"last": tapped[-1:], "middle": tapped[len(tapped) // 2 :][:1]}.get(default, tapped)
    else:
        chosen = [paths] if isinstance(paths, str) else list(paths)
    missing = [path for path in chosen if path not in outputs.features]
    if missing or not chosen:
        raise ValueError(
            f"{what}: needs {', '.join(map(repr, missing)) or 'a feature'} of the {whose}, got "
            f"{', '.join(outputs.features) or 'none'}; tap it with outgrow.Taps(model, [path])."
        )
    return chosen


def _spread(paths: list[str], number: int) -> list[str]:
    """``number`` of ``paths``, evenly spaced, ending with the last; all of them if there are no more."""
    if len(paths) <= number:
        return paths
    return [paths[-(-(i + 1) * len(paths) // number) - 1] for i in range(number)]


def pair_maps(
    fixture: Fixture,
    student_paths: Paths,
    teacher_paths: Paths,
    *,
    default: Default,
    positions: int,
    what: str,
) -> list[MapPair]:
    """:func:`pair_taps`, with a check that each pair is two maps of the same images.

    ``positions`` is the number of positions that a map needs at least.
    """
    pairs = []
    for own, other in pair_taps(
        fixture.student, fixture.teacher, student_paths, teacher_paths, default=default, what=what
    ):
        a, b = fixture.student.features[own], fixture.teacher.features[other]
        got = f"{tuple(a.shape)} from the student's {own!r} and {tuple(b.shape)} from the teacher's {other!r}"
        a_layout, b_layout = layout_of(a.shape), layout_of(b.shape)
        if a_layout is None or b_layout is None:
            raise ValueError(
                f"{what}: needs maps (images, channels, height, width) or tokens (images, tokens, channels) with a "
                f"square grid, got {got}; tap other modules."
            )
        if len(a) != len(b):
            raise ValueError(
                f"{what}: needs maps of the same images, got {got}; tap both networks where the first axis "
                "is the image, and run both on one batch."
            )
        pair = MapPair(own, other, a_layout, b_layout)
        if any(m.shape[2] * m.shape[3] < positions for m in pair.maps(fixture.student, fixture.teacher)):
            raise ValueError(
                f"{what}: needs maps of at least {positions} positions, got {got}; tap an earlier stage, before "
                "the pooling."
            )
        pairs.append(pair)
    return pairs


def match_channels(student: int, teacher: int) -> nn.Module:
    """A 1x1 convolution from the student's channels to the teacher's; the identity if they agree."""
    return nn.Identity() if student == teacher else nn.Conv2d(student, teacher, kernel_size=1)


class BatchNorm(nn.BatchNorm2d):
    """Batch norm for connectors: a batch with one value a channel (one image, pooled) has no variance,
    so the running statistics stand in instead of an error at the end of an epoch.

    Under several processes the statistics are those of all their images, on a CPU too, where torch's
    SyncBatchNorm does not work.
    """

    process_group: dist.ProcessGroup | None = None

    def forward(self, input: Tensor) -> Tensor:
        if self.training and self.process_group is not None:
            return self._together(input, self.process_group)
        if self.training and input.numel() == input.shape[1]:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(input)

    def _together(self, input: Tensor, group: dist.ProcessGroup) -> Tensor:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        count = count_of(input, group)
        several = count > 1
        mean = channel_mean(input, group)
        variance = channel_mean((input - mean).square(), group)
        with torch.no_grad():
            unbiased = variance * count / (count - 1).clamp_min(1)
            for running, now in ((self.running_mean, mean), (self.running_var, unbiased)):
                moved = running.lerp(now.flatten().to(running.dtype), self.momentum)
                running.copy_(torch.where(several, moved, running))
            self.num_batches_tracked += several
        mean = torch.where(several, mean, self.running_mean[:, None, None])
        variance = torch.where(several, variance, self.running_var[:, None, None])
        scale = self.weight[:, None, None] / (variance + self.eps).sqrt()
        return (input - mean) * scale + self.bias[:, None, None]


def pool_to_smaller(
    student: Float[Tensor, "images channels height width"],
    teacher: Float[Tensor, "images channels2 height2 width2"],
) -> tuple[Float[Tensor, "images channels height3 width3"], Float[Tensor, "images channels2 height3 width3"]]:
    """Both maps at the smaller height and the smaller width, by adaptive average pooling.

    >>> a, b = pool_to_smaller(torch.ones(1, 2, 8, 8), torch.ones(1, 3, 4, 4))
    >>> a.shape[2:], b.shape[2:]
    (torch.Size([4, 4]), torch.Size([4, 4]))
    """
    size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    return _pool(student, size), _pool(teacher, size)


def _pool(value: Tensor, size: tuple[int, int]) -> Tensor:
    return value if value.shape[2:] == size else F.adaptive_avg_pool2d(value, size)


def resize_to(
    student: Float[Tensor, "images channels height width"],
    teacher: Float[Tensor, "images channels2 height2 width2"],
) -> Float[Tensor, "images channels height2 width2"]:
    """The student's map at the teacher's size, by bilinear interpolation."""
    if student.shape[2:] == teacher.shape[2:]:
        return student
    return F.interpolate(student, size=teacher.shape[2:], mode="bilinear", align_corners=False)


def unit(value: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    """``value`` divided by its length along the last axis; zeros stay zeros, with a zero gradient.

    >>> unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    largest = value.detach().abs().amax(dim=-1, keepdim=True)
    # replaced before the division; the square root of the smallest number keeps gradients finite
    alive = largest > torch.finfo(value.dtype).tiny ** 0.5
    value = value / torch.where(alive, largest, torch.ones_like(largest))
    value = torch.where(alive, value, torch.zeros_like(value))
    size = value.square().sum(dim=-1, keepdim=True)
    return value / torch.where(alive, size, torch.ones_like(size)).sqrt()


def product(a: Float[Tensor, "*batch n k"], b: Float[Tensor, "*batch k m"]) -> Float[Tensor, "*batch n m"]:
    """``a @ b`` in the precision of its inputs, also under autocast."""
    with torch.autocast(a.device.type, enabled=False):
        return a @ b


def shares(weight: Float[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """Row weights divided by their sum; zeros if all are zero."""
    total = weight.sum()
    return weight / torch.where(total > 0, total, torch.ones_like(total))


class MapLoss(ImageLoss):
    """An image loss on pairs of feature maps.

    ``student`` and ``teacher`` are paths of tapped modules, one or several in order; without them
    :attr:`default` chooses. :meth:`setup` pairs the taps and calls :meth:`build` for trainable parts. Each step
    calls :meth:`compare` with the pairs of maps, in at least float32.
    """

    default: Default = "all"
    positions: int = 1
    """The number of positions that a map needs at least."""
    parts: str = "its taps paired"

    def __init__(self, student: Paths = None, teacher: Paths = None) -> None:
        super().__init__()
        self.student_paths, self.teacher_paths = student, teacher
        self.pairs: list[MapPair] = []

    @property
    def what(self) -> str:
        return type(self).__name__.lower()

    def setup(self, fixture: Fixture) -> None:
        self.pairs = pair_maps(
            fixture,
            self.student_paths,
            self.teacher_paths,
            default=self.default,
            positions=self.positions,
            what=self.what,
        )
        self.build([pair.maps(fixture.student, fixture.teacher) for pair in self.pairs])

    def teacher_taps(self, features: Collection[str]) -> frozenset[str]:
        return frozenset(pair.teacher_path for pair in self.pairs)

    def prefer_taps(self, names: Sequence[str]) -> None:
        if self.student_paths is self.teacher_paths is None:
            self.student_paths = self.teacher_paths = names

    def build(self, stages: list[tuple[Tensor, Tensor]]) -> None:
        """Build adapters for ``stages``, the pairs of maps of the dry run. Most losses have none."""

    def stages(self, student: Outputs, teacher: Outputs) -> list[tuple[Tensor, Tensor]]:
        """The pairs of maps. ``ValueError`` before :meth:`setup`."""
        if not self.pairs:
            raise ValueError(
                f"{self.what}: needs {self.parts}, got none; call objective.setup(student, teacher, num_samples=...) "
                "with the outputs of one dry run before the first step."
            )
        return [pair.maps(student, teacher) for pair in self.pairs]

    def images(self, student: Outputs, teacher: Outputs, target: Target) -> Float[Tensor, " images"]:
        stages = self.stages(student, teacher)
        if not len(stages[0][0]) and self.process_group is None:  # else other processes may wait for this one
            return torch.stack([own.flatten(1).sum(dim=1) for own, _ in stages]).sum(dim=0)
        return self.compare(stages, target)

    def compare(self, stages: list[tuple[Tensor, Tensor]], target: Target) -> Float[Tensor, " images"]:
        raise NotImplementedError


class RelationLoss(BatchLoss):
    """A batch loss on one vector per row, by default the penultimate features.

    ``student`` and ``teacher`` name other taps, which are flattened. A row's share is its weight divided by the
    sum of all weights. The weight of a pair of rows is the product of their shares, and that of a triple
    likewise. The sum is multiplied by the mean weight. Rows of weight zero are set to zeros first, so that
    non-finite features in them have no effect.
    """

    reads = frozenset({"features"})

    def __init__(self, student: str | None = None, teacher: str | None = None) -> None:
        super().__init__()
        self.student_path = PENULTIMATE if student is None else student
        self.teacher_path = PENULTIMATE if teacher is None else teacher

    def student_taps(self, features: Collection[str]) -> frozenset[str]:
        return frozenset({self.student_path})

    def teacher_taps(self, features: Collection[str]) -> frozenset[str]:
        return frozenset({self.teacher_path})

    def setup(self, fixture: Fixture) -> None:
        own = self._vectors(fixture.student, self.student_path, "student")
        other = self._vectors(fixture.teacher, self.teacher_path, "teacher")
        rows = len(fixture.student.logits)
        if not len(own) == len(other) == rows:
            raise ValueError(
                f"{type(self).__name__.lower()}: needs one vector for each of {rows} rows, got {tuple(own.shape)} from "
                f"the student's {self.student_path!r} and {tuple(other.shape)} from the teacher's "
                f"{self.teacher_path!r}; tap both where the first axis is the row of the logits."
            )

    def _vectors(self, outputs: Outputs, path: str, whose: str) -> Float[Tensor, "rows features"]:
        if path not in outputs.features:
            raise ValueError(
                f"{type(self).__name__.lower()}: needs the {whose}'s features[{path!r}], got "
                f"{sorted(outputs.features) or 'none'}; run the network through outgrow.Taps(model, [{path!r}])."
            )
        return lift(outputs.features[path]).flatten(1)

    def batch(
        self, student: Outputs, teacher: Outputs, target: Target, weight: Float[Tensor, " rows"]
    ) -> Float[Tensor, ""]:
        own = self._vectors(student, self.student_path, "student")
        other = self._vectors(teacher, self.teacher_path, "teacher")
        if not len(own):
            return own.sum() * 0.0
        counts = (weight > 0)[:, None]
        own = torch.where(counts, own, torch.zeros_like(own))
        other = torch.where(counts, other, torch.zeros_like(other))
        return self.relate(own, other, weight.to(own.dtype))

    def relate(
        self,
        student: Float[Tensor, "rows features"],
        teacher: Float[Tensor, "rows features2"],
        weight: Float[Tensor, " rows"],
    ) -> Float[Tensor, ""]:
        raise NotImplementedError
