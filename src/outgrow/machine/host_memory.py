"""Freed memory stays with the process while it trains on a CPU, as a step needs the same blocks every time.

glibc maps every large tensor anew and gives it back when it dies. The kernel then clears each page at its
first touch: thousands of page faults a step. Here large blocks come from one heap that is not trimmed, its
first part on huge pages.

Reference: mallopt(3), madvise(2); https://docs.pytorch.org/tutorials/recipes/recipes/tuning_guide.html
recommends jemalloc for the same reason, which would be one more thing to install and to preload.
"""

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

# malloc.h and asm-generic/mman-common.h
M_TRIM_THRESHOLD, M_MMAP_MAX, MADV_HUGEPAGE = -1, -4, 14
PAGE = 4096
DEFAULT_TRIM, DEFAULT_MAPPINGS = 128 * 1024, 65536
"""glibc's own, to return to."""
HUGE_BYTES = 1 << 30
"""Address space advised to be on huge pages: a ResNet-8x4 at 64 images of 32 x 32 needs 0.9 GB in all.
Nothing is taken before it is touched; beyond it pages are small."""


@contextmanager
def kept_pages(huge: int = HUGE_BYTES) -> Iterator[None]:
    """Inside, freed memory is kept for the next allocation; at the end it goes back. Only with glibc; elsewhere
    nothing happens."""
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
    if block:  # an advice: where huge pages are switched off, small ones it is
        start = -(-block // PAGE) * PAGE
        libc.madvise(start, (block + huge - start) // PAGE * PAGE, MADV_HUGEPAGE)
        libc.free(block)
    try:
        yield
    finally:
        libc.mallopt(M_MMAP_MAX, DEFAULT_MAPPINGS)
        libc.mallopt(M_TRIM_THRESHOLD, DEFAULT_TRIM)
        libc.malloc_trim(0)
