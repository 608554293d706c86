"""What the system knows of this process: how old it is, how much memory it has used."""

import os
import sys
import time
from pathlib import Path

IMPORTED_AT = time.monotonic()


def process_age() -> float:
    """Seconds since this process started; where the system does not tell (/proc), since bytelm was imported."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # starttime, in ticks since boot
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started
    except (OSError, AttributeError):
        return time.monotonic() - IMPORTED_AT


def peak_memory_mb() -> float | None:
    """Largest resident size of this process so far, in MiB; None where the system does not tell."""
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)
