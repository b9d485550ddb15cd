"""The cost of a detector on this machine: bytes, and milliseconds for one image."""

import statistics
import time
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from outgrow.detection.boxes import Detections
from outgrow.detection.data import DetectionSplit
from outgrow.detection.scale import short_side_of
from outgrow.training.record import CostRecord, LatencyRecord

SECONDS = 1.0
"""Most seconds of timing, after a warm-up."""
MOST, LEAST = 50, 5
"""Maximum and minimum number of timed images."""
DECODED = 16
"""Different images; they are timed again if more are needed."""


@runtime_checkable
class Detecting(Protocol):
    """A module that finds boxes in images."""

    def detect(self, images: list[Tensor]) -> list[Detections]: ...


def measure_cost(network: nn.Module, split: DetectionSplit, device: torch.device) -> CostRecord:
    """The cost of ``network`` in float32. The first images of ``split`` are detected one by one, already decoded.

    The time includes resizing and the selection of boxes. The size in the record is the short side, 0 if unknown.
    """
    assert isinstance(network, Detecting)
    shown = [split.image(at).to(device).float() / 255 for at in range(min(DECODED, len(split)))]
    for image in shown[:2]:
        network.detect([image])
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(times) < LEAST or (len(times) < MOST and time.perf_counter() < end):
        image = shown[len(times) % len(shown)]
        _wait(device)
        start = time.perf_counter()
        network.detect([image])
        _wait(device)
        times.append(1000 * (time.perf_counter() - start))
    ordered = sorted(times)
    latency = LatencyRecord(
        batch=1,
        size=short_side_of(network) or 0,
        median=statistics.median(ordered),
        p95=ordered[round(0.95 * (len(ordered) - 1))],
        repeats=len(ordered),
    )
    weights = sum(value.numel() * value.element_size() for value in network.state_dict().values())
    return CostRecord(bytes=weights, flops=None, latency=(latency,))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
