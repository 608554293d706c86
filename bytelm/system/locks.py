"""Locks of files, by which processes take turns and know of each other; the system releases those of a dead process."""

import os
import time
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def lock(file: int, shared: bool = False) -> bool:
    """Locks a file until this process and its children have closed all descriptors of it.

    Args:
        file: Its descriptor.
        shared: Whether other processes can also hold a shared lock.

    Returns:
        Whether the file is locked by no other process; true if the system has no locks.
    """
    if fcntl is None:
        return True
    for seconds in (0.05, 0.0):  # twice, because another process may be checking whether it is free
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.0 if shared else seconds)
        except OSError:
            return True  # a file system without locks
    return False


def wait_for_lock(file: int) -> None:
    """Locks a file once no other process has it locked; see `lock`."""
    while not lock(file):  # waits a little
        pass


def is_free(file: Path) -> bool:
    """Whether no process has locked a file; true for a missing file."""
    try:
        descriptor = os.open(file, os.O_RDONLY)  # also works on a read-only disk
    except FileNotFoundError:
        return True
    try:
        return lock(descriptor, shared=True)  # two processes that ask at the same time must not see each other as a run
    finally:
        os.close(descriptor)
