"""Keep freed memory in the process while it trains on a CPU: every step needs the same blocks.

By default glibc calls mmap for every large tensor and munmap when it is freed. The kernel then zeroes every
page at its first use, which costs thousands of page faults a step. Here large blocks come from a heap that
is not trimmed. The first part of the heap is on huge pages.

Reference: mallopt(3), madvise(2). https://docs.pytorch.org/tutorials/recipes/recipes/tuning_guide.html
recommends jemalloc for the same reason; that would have to be installed and preloaded.
"""

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

# malloc.h and asm-generic/mman-common.h
M_TRIM_THRESHOLD, M_MMAP_MAX, MADV_HUGEPAGE = -1, -4, 14
PAGE = 4096
DEFAULT_TRIM, DEFAULT_MAPPINGS = 128 * 1024, 65536
"""glibc's defaults, restored at the end."""
HUGE_BYTES = 1 << 30
"""Bytes of address space advised to use huge pages: a ResNet-8x4 at 64 images of 32 x 32 needs 0.9 GB in all.
Memory is taken only when it is used. Pages beyond these bytes are small."""


@contextmanager
def kept_pages(huge: int = HUGE_BYTES) -> Iterator[None]:
    """Inside, freed memory is kept for later allocations; at the end it is returned. No effect without glibc."""
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    block = libc.malloc(huge)
    if block:  # only advice: with huge pages disabled, small ones are used
        start = -(-block // PAGE) * PAGE
        libc.madvise(start, (block + huge - start) // PAGE * PAGE, MADV_HUGEPAGE)
        libc.free(block)
    try:
        yield
    finally:
        libc.mallopt(M_MMAP_MAX, DEFAULT_MAPPINGS)
        libc.mallopt(M_TRIM_THRESHOLD, DEFAULT_TRIM)
        libc.malloc_trim(0)
