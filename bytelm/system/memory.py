"""Memory of this process: its use, and the release of freed memory."""

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def peak_memory_mb() -> float | None:
    """Returns the largest resident size of this process so far, in MiB; None if the system does not report it."""
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def memory_mb() -> float | None:
    """Returns the resident size of this process, in MiB; None if the system does not report it (only Linux does)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def peak_device_memory_mb() -> float:
    """Returns the largest memory of this process's tensors on its GPU so far, in MiB."""
    import torch

    return round(torch.cuda.max_memory_allocated() / 2**20, 1)


@contextmanager
def limited_memory(n_bytes: int) -> Iterator[None]:
    """Context in which allocations fail that increase this process's memory by more than this amount; only on Linux.

    Args:
        n_bytes: Maximum increase, in addresses.
    """
    if sys.platform != "linux":
        yield
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + n_bytes
    highest = [each for each in (soft, hard) if each != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([limit, *highest]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def release_memory() -> None:
    """Returns freed memory to the system, if the C library supports it (glibc).

    Compilation leaves about 130 MB of freed memory, which would otherwise count as this process's until it is reused.
    """
    gc.collect()
    trim_heap()


def trim_heap() -> None:
    """Returns the memory of freed tensors to the system, like release_memory, in milliseconds."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
