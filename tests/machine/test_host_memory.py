"""Freed memory is kept inside and given back after, and nothing is computed otherwise."""

import platform
import subprocess
import sys

import pytest
import torch

from outgrow.machine.host_memory import kept_pages

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")


SCRIPT = """
import resource
import torch
from outgrow.machine.host_memory import kept_pages
big = lambda: [torch.full((1 << 25,), 1.0) for _ in range(2)]
def count():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        big()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
out = count()
with kept_pages():
    big()
    inside = count()
print(out, inside)
"""


@glibc
def test_inside_the_same_blocks_are_used_again():
    """128 MiB blocks: outside glibc maps each anew (32,768 pages, or huge ones); inside nothing is touched first."""
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    outside, inside = map(int, run.stdout.split())
    assert inside < max(outside / 10, 50)
    assert outside > 100


@glibc
def test_memory_goes_back_at_the_end():
    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    with kept_pages():
        torch.full((1 << 26,), 1.0)  # 256 MiB
        inside = resident()
    assert resident() < inside - (200 << 20)


def test_elsewhere_nothing_happens(monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    with kept_pages():
        assert torch.ones(3).sum() == 3
