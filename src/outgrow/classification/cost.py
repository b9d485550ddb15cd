"""The cost of a network on this machine: bytes, floating-point operations, milliseconds per batch."""

import statistics
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from outgrow.training.record import CostRecord, LatencyRecord

BATCHES = (1, 32)
SECONDS = 0.4
"""Maximum seconds of timing for each batch size, after a warm-up."""
MOST, LEAST = 50, 5
"""Maximum and minimum number of timed passes."""


@torch.no_grad()
def measure_cost(
    network: nn.Module, size: int, device: torch.device, *, batches: Sequence[int] = BATCHES
) -> CostRecord:
    """The cost of ``network`` (RGB in [0, 1] of ``size`` x ``size`` pixels to logits) in eval mode and float32."""
    was_training = network.training
    network.eval()
    try:
        return CostRecord(
            bytes=sum(value.numel() * value.element_size() for value in network.state_dict().values()),
            flops=_flops(network, size, device),
            latency=tuple(_latency(network, batch, size, device) for batch in batches),
        )
    finally:
        network.train(was_training)


def _flops(network: nn.Module, size: int, device: torch.device) -> int | None:
    """For one image; None if the counter does not support the network."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    try:
        with _unfused(), counter:
            network(torch.zeros(1, 3, size, size, device=device))
    except Exception:  # the counter may fail on any operation of a network
        return None
    return int(counter.get_total_flops())


@contextmanager
def _unfused() -> Iterator[None]:
    """Context without the fused attention and recurrence of a CPU. The counter counts such an operation as nothing."""
    from torch.backends import mha, mkldnn
    from torch.nn.attention import SDPBackend, sdpa_kernel

    fast = mha.get_fastpath_enabled()
    mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of options for other hardware, which flags sets too
            with sdpa_kernel(SDPBackend.MATH), mkldnn.flags(enabled=False):
                yield
    finally:
        mha.set_fastpath_enabled(fast)


def _latency(network: nn.Module, batch: int, size: int, device: torch.device) -> LatencyRecord:
    images = torch.zeros(batch, 3, size, size, device=device)
    for _ in range(2):
        network(images)
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(times) < LEAST or (len(times) < MOST and time.perf_counter() < end):
        _wait(device)
        start = time.perf_counter()
        network(images)
        _wait(device)
        times.append(1000 * (time.perf_counter() - start))
    ordered = sorted(times)
    return LatencyRecord(
        batch=batch,
        size=size,
        median=statistics.median(ordered),
        p95=ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))],
        repeats=len(ordered),
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
