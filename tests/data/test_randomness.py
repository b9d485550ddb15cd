import itertools

import pytest
import torch

from outgrow.data.randomness import (
    Stream,
    as_uniform,
    bits,
    bits_at,
    epoch_order,
    integer_at,
    integers,
    uniform_at,
)

COUNTERS = list(itertools.product((0, 1, 2**63 + 5, -7), (0, 3, 299), (0, 1, 49_999, 2**40), (0, 2, 221)))


def uniform(seed: int, epoch: int, index: torch.Tensor, stream: int) -> torch.Tensor:
    return as_uniform(bits(seed, epoch, index, [stream]))[0]


@pytest.mark.parametrize(("seed", "epoch", "index", "stream"), COUNTERS)
def test_tensor_and_python_draw_the_same(seed: int, epoch: int, index: int, stream: int) -> None:
    where = torch.tensor([index])
    signed = bits(seed, epoch, where, [stream]).item()
    assert signed % 2**64 == bits_at(seed, epoch, index, stream)
    assert uniform(seed, epoch, where, stream).item() == uniform_at(seed, epoch, index, stream)
    for high in (1, 2, 9, 50_000, 2**31):
        drawn = integers(seed, epoch, where, stream, high=high).item()
        assert drawn == integer_at(seed, epoch, index, stream, high=high)
        assert 0 <= drawn < high


def test_the_mixer_is_splitmix64() -> None:
    # the published sequence of seed 0: the first output is the mix of 0
    from outgrow.data.randomness import _mix_int

    assert _mix_int(0) == 0xE220A8397B1DCDAF
    assert _mix_int(0x9E3779B97F4A7C15) == 0x6E789E6AA1B965F4


def test_a_draw_does_not_depend_on_its_neighbours() -> None:
    index = torch.arange(100)
    whole = bits(3, 4, index, [1, 2, 3])
    assert torch.equal(whole[:, 17:30], bits(3, 4, index[17:30], [1, 2, 3]))
    assert torch.equal(whole[1:2], bits(3, 4, index, [2]))


def _chi_square(drawn: torch.Tensor, cells: int) -> float:
    expected = len(drawn) / cells
    return float(((torch.bincount(drawn, minlength=cells) - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("stream", [Stream.CROP_Y, Stream.FLIP, Stream.PARTNER, Stream.RESIZED_CROP])
def test_uniformity(stream: Stream) -> None:
    index = torch.arange(100_000)
    for cells in (2, 9, 100):
        chi = _chi_square(integers(0, 0, index, stream, high=cells), cells)
        # five standard deviations of a chi-square variable around its mean
        assert abs(chi - (cells - 1)) < 5 * (2 * (cells - 1)) ** 0.5
    u = uniform(0, 0, index, stream)
    assert 0 <= u.min() < 1e-4
    assert 1 - 1e-4 < u.max() < 1
    assert abs(u.mean() - 0.5) < 0.005
    assert abs(u.var() - 1 / 12) < 0.002


def test_every_bit_is_balanced() -> None:
    drawn = bits(1, 2, torch.arange(20_000), [0])[0]
    share = torch.stack([((drawn >> k) & 1).double().mean() for k in range(64)])
    assert (share - 0.5).abs().max() < 0.02


def test_streams_epochs_and_seeds_are_independent() -> None:
    index = torch.arange(50_000)
    draws = [
        uniform(seed, epoch, index + shift, stream)
        for seed, epoch, shift, stream in [
            (0, 0, 0, 1),
            (0, 0, 0, 2),
            (0, 1, 0, 1),
            (1, 0, 0, 1),
            (0, 0, 1, 1),
        ]
    ]
    correlation = torch.corrcoef(torch.stack(draws)) - torch.eye(len(draws))
    assert correlation.abs().max() < 5 / 50_000**0.5
    for one, other in itertools.combinations(draws, 2):
        joint = (one * 10).long() * 10 + (other * 10).long()
        assert abs(_chi_square(joint, 100) - 99) < 5 * 198**0.5


def test_streams_do_not_share_numbers() -> None:
    from outgrow.data.geometry import _ATTEMPTS
    from outgrow.data.randaugment import NUM_OPERATIONS

    assert len(set(Stream)) == len(Stream.__members__)
    assert Stream.RANDAUGMENT + 2 * NUM_OPERATIONS <= Stream.RESIZED_CROP
    assert max(Stream) + 2 * _ATTEMPTS + 2 < 2**31


def test_epoch_order() -> None:
    order = epoch_order(1000, 0, 0)
    assert torch.equal(order.sort().values, torch.arange(1000))
    assert torch.equal(order, epoch_order(1000, 0, 0))
    assert not torch.equal(order, epoch_order(1000, 0, 1))
    assert not torch.equal(order, epoch_order(1000, 1, 0))
    assert len(epoch_order(0, 0, 0)) == 0
    # no sample is fond of a place: the first place over many epochs
    first = torch.stack([epoch_order(10, 0, epoch)[0] for epoch in range(2000)])
    assert abs(_chi_square(first, 10) - 9) < 5 * 18**0.5


@pytest.mark.gpu
def test_bits_on_a_gpu_are_those_of_the_cpu() -> None:
    index = torch.arange(10_000)
    streams = [0, 5, 221]
    assert torch.equal(bits(1, 2, index, streams), bits(1, 2, index.cuda(), streams).cpu())
    assert torch.equal(uniform(1, 2, index, 3), uniform(1, 2, index.cuda(), 3).cpu())
