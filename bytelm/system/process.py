"""This process: how old it is, how much memory it has used, and that it ends when the one that started it is gone."""

import ctypes
import gc
import os
import signal
import sys
import threading
import time
from datetime import datetime, timezone
from pathlib import Path

IMPORTED_AT = time.monotonic()
ENDING_SECONDS = 30.0  # for what a run does at a SIGTERM: finish a step, write a checkpoint
LIFELINE = "BYTELM_LIFELINE"  # names the file descriptor of a pipe that only the parent can write to


def process_age() -> float:
    """Seconds since this process started; where the system does not tell (/proc), since bytelm was imported."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # starttime, in ticks since boot
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started
    except (OSError, AttributeError):
        return time.monotonic() - IMPORTED_AT


def utc(timestamp: float) -> str:
    """ISO 8601 text of a moment, which sorts as the moments do.

    Args:
        timestamp: Seconds since 1970, as time.time() gives them.
    """
    return datetime.fromtimestamp(timestamp, timezone.utc).isoformat(timespec="milliseconds")


def peak_memory_mb() -> float | None:
    """Largest resident size of this process so far, in MiB; None where the system does not tell."""
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def end_with_parent() -> None:
    """Ends this process when its parent ends, in whatever way, if that gave it a lifeline to hold on to.

    First by a SIGTERM, and if that is not enough by a SIGKILL, which all of its process group gets.
    """
    if (lifeline := os.environ.pop(LIFELINE, None)) is None:  # taken, so that processes of this one do not look for it
        return

    def watch() -> None:
        os.read(int(lifeline), 1)  # nobody writes: this returns when the other end is closed
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(ENDING_SECONDS)
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="lifeline").start()


def release_memory() -> None:
    """Gives memory that was freed back to the system, where the C library can be asked to (glibc).

    Compilation leaves some 130 MB so, which would otherwise count as this process's until it is used again.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
