"""Counter-based random numbers: every draw is a pure function of ``(seed, epoch, sample index, stream)``.

There is no generator and no state. A view of an image is therefore the same at any batch size, with any
number of workers or processes, and after a resume. A teacher's outputs on views can be cached.

The mixer is the finaliser of SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom
number generators", figure 17), applied once per counter. It is written twice: in torch's wrapping int64
for whole batches on any device, and in plain Python integers for workers. A test checks that both give
the same bits.
"""

from collections.abc import Sequence
from enum import IntEnum

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_MIX1 = 0xBF58476D1CE4E5B9
_MIX2 = 0x94D049BB133111EB
_UNIT = 2.0**-24
"""Uniform numbers have 24 bits. These are exact in float32, so they are equal on every device and in Python."""


class Stream(IntEnum):
    """What a draw is for. The numbers determine the views, so append new ones and never renumber."""

    ORDER = 0
    CROP_Y = 1
    CROP_X = 2
    FLIP = 3
    CUTOUT_Y = 4
    CUTOUT_X = 5
    PARTNER = 6
    MIX = 7
    MIX_KIND = 8
    BOX_Y = 9
    BOX_X = 10
    SPLIT = 11
    BALANCE = 12
    SHORT_SIDE = 13
    RANDAUGMENT = 100  # two streams per operation
    RESIZED_CROP = 200  # two streams per attempt, then two for the position


def bits(
    seed: int, epoch: int, index: Int64[Tensor, " n"], streams: Sequence[int]
) -> Int64[Tensor, "streams n"]:
    """64 random bits for each sample in ``index`` and each of ``streams``, on the device of ``index``."""
    sample = _mix(index ^ _signed(_key(seed, epoch)))
    if len(streams) == 1:
        return _mix(sample ^ int(streams[0])).unsqueeze(0)
    return _mix(torch.stack([sample ^ int(stream) for stream in streams]))


def integers(
    seed: int, epoch: int, index: Int64[Tensor, " n"], stream: int, *, high: int
) -> Int64[Tensor, " n"]:
    """An integer in [0, high) for each sample; ``high`` is at most 2**31."""
    return as_integers(bits(seed, epoch, index, [stream]), high=high)[0]


def as_uniform(random: Int64[Tensor, "*shape"]) -> Float32[Tensor, "*shape"]:
    """The upper 24 of 64 random bits as numbers in [0, 1)."""
    return ((random >> 40) & 0xFFFFFF).to(torch.float32) * _UNIT


def as_integers(random: Int64[Tensor, "*shape"], *, high: int) -> Int64[Tensor, "*shape"]:
    """The upper 32 of 64 random bits, scaled to integers in [0, high); the bias is below ``high / 2**32``."""
    assert 0 < high <= 1 << 31, high
    return (((random >> 32) & 0xFFFFFFFF) * high) >> 32


def keyed_uniform(key: Int64[Tensor, "2"], index: Int64[Tensor, " n"], num: int) -> Float32[Tensor, "n num"]:
    """``num`` numbers in [0, 1) for each sample. ``key`` (seed, number of draws so far) is a tensor on the device.

    >>> drawn = keyed_uniform(torch.tensor([5, 2]), torch.tensor([7]), 3)
    >>> drawn[0].tolist() == [uniform_at(5, 2, 7, number) for number in range(3)]
    True
    """
    sample = _mix(index ^ _mix(_mix(key[:1]) ^ key[1:]))
    return as_uniform(_mix(sample[:, None] ^ torch.arange(num, device=index.device)))


def bits_at(seed: int, epoch: int, index: int, stream: int) -> int:
    """:func:`bits` for one sample in plain Python, as an unsigned integer."""
    return _mix_int(_mix_int((index & _MASK) ^ _key(seed, epoch)) ^ int(stream))


def uniform_at(seed: int, epoch: int, index: int, stream: int) -> float:
    """:func:`as_uniform` of :func:`bits` for one sample, in plain Python.

    >>> [round(uniform_at(0, 0, index, Stream.FLIP), 4) for index in range(3)]
    [0.4123, 0.6162, 0.4721]
    >>> as_uniform(bits(0, 0, torch.arange(3), [Stream.FLIP]))
    tensor([[0.4123, 0.6162, 0.4721]])
    """
    return (bits_at(seed, epoch, index, stream) >> 40) * _UNIT


def integer_at(seed: int, epoch: int, index: int, stream: int, *, high: int) -> int:
    """:func:`integers` for one sample in plain Python."""
    return ((bits_at(seed, epoch, index, stream) >> 32) * high) >> 32


def epoch_order(num: int, seed: int, epoch: int) -> Int64[Tensor, " num"]:
    """The order of ``num`` samples in an epoch: a permutation, always computed on the CPU."""
    return bits(seed, epoch, torch.arange(num), [Stream.ORDER])[0].argsort(stable=True)


def balanced_order(labels: Int64[Tensor, " num"], seed: int, epoch: int) -> Int64[Tensor, " num"]:
    """Positions for an epoch of ``len(labels)`` draws in which all classes come equally often, up to one draw.

    The draws of all epochs go to the classes in turn. Each class runs through passes over its own samples, shuffled anew for
    each pass, from one epoch to the next. So no sample of a class is drawn twice before all others of it were drawn once.
    """
    members = [(labels == label).nonzero()[:, 0] for label in labels.unique().tolist()]
    num, turns = len(labels), len(members)
    drawn = []
    for place, samples in enumerate(members):
        first, last = (-(-(number * num - place) // turns) for number in (epoch, epoch + 1))
        drawn.append(_drawn(samples, seed, first, last - first))
    return torch.cat(drawn)[epoch_order(num, seed, epoch)]


def grouped_batches(
    order: Int64[Tensor, " num"], group: Int64[Tensor, " num"], batch_size: int
) -> Int64[Tensor, " num"]:
    """``order`` rearranged so that each batch of ``batch_size`` has samples of one group; ``group`` is by position.

    A sample waits until its group has a batch. The samples that are left at the end, fewer than ``batch_size`` of each
    group, come last, group by group: with two groups at most one batch is mixed.

    >>> grouped_batches(torch.tensor([4, 2, 0, 3, 1, 5]), torch.tensor([0, 0, 1, 1, 0, 1]), 2).tolist()
    [4, 0, 2, 3, 1, 5]
    """
    of = group[order]
    key = torch.empty_like(of)
    for number, name in enumerate(of.unique().tolist()):
        places = (of == name).nonzero()[:, 0]
        whole = len(places) // batch_size * batch_size
        full = places[:whole].view(-1, batch_size)
        key[full] = full[:, -1:].expand_as(full)  # a batch is complete with its last sample
        key[places[whole:]] = len(order) + number
    return order[key.argsort(stable=True)]


def _drawn(samples: Int64[Tensor, " all"], seed: int, start: int, num: int) -> Int64[Tensor, " num"]:
    """Draws ``start`` to ``start + num`` of the endless sequence of shuffled passes over ``samples``."""
    first, last = start // len(samples), (start + num - 1) // len(samples)
    passes = [
        samples[bits(seed, number, samples, [Stream.BALANCE])[0].argsort(stable=True)]
        for number in range(first, last + 1)
    ]
    skipped = start - first * len(samples)
    return torch.cat(passes)[skipped : skipped + num]


def _key(seed: int, epoch: int) -> int:
    return _mix_int(_mix_int(seed & _MASK) ^ (epoch & _MASK))


def _mix_int(value: int) -> int:
    value = (value + _GAMMA) & _MASK
    value = ((value ^ (value >> 30)) * _MIX1) & _MASK
    value = ((value ^ (value >> 27)) * _MIX2) & _MASK
    return value ^ (value >> 31)


def _mix(value: Tensor) -> Tensor:
    # int64 multiplication wraps as uint64 does. Only >> differs: it copies the sign bit, so the result is masked.
    value = value + _signed(_GAMMA)
    value = value.bitwise_xor_(_shift(value, 30)).mul_(_signed(_MIX1))
    value = value.bitwise_xor_(_shift(value, 27)).mul_(_signed(_MIX2))
    return value.bitwise_xor_(_shift(value, 31))


def _shift(value: Tensor, by: int) -> Tensor:
    return (value >> by).bitwise_and_((1 << (64 - by)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
