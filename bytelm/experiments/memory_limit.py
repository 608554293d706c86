"""Memory limits for runs of configs from others: a size with its unit, and the memory that processes use.

A limit on the address space (RLIMIT_AS) does not work for torch, which reserves many gigabytes that it never uses. The
memory in use is therefore checked ten times a second, and a process that exceeds its limit is killed.
"""

import os
import time
from collections.abc import Iterable
from pathlib import Path

from bytelm.units import Size

PROC = Path("/proc")
LOOK_SECONDS = 0.1  # between two checks of the memory in use
SEARCH_SECONDS = 1.0  # between two searches for further processes
COUNTED = (b"RssAnon:", b"RssShmem:")  # without mapped files: libraries and corpora


def can_be_watched() -> bool:
    """Whether this system reports the memory of processes (Linux)."""
    return (PROC / "self" / "status").exists()


def machine_memory() -> Size:
    """The memory of this machine, or of the container (cgroup) that this process is in, if that is less."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            sizes.append(int(Path(file).read_text()))
        except (OSError, ValueError):
            continue  # there is none, or it is `max`
    return Size(min(sizes))


def memory_of(pids: Iterable[int]) -> int:
    """Memory of processes in bytes; processes that have ended use none."""
    total = 0
    for pid in pids:
        try:
            lines = (PROC / str(pid) / "status").read_bytes().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(COUNTED))
    return total


class MemoryWatch:
    """Watches the memory of all processes of a session.

    Args:
        session: Id of the process that started the session (setsid).
        limit: Limit of all of them together.
    """

    def __init__(self, session: int, limit: Size) -> None:
        self.limit = limit
        self._session = session
        self._pids = [session]
        self._next_look = 0.0
        self._next_search = 0.0

    def is_exceeded(self) -> bool:
        """Whether the limit is exceeded; False between two checks."""
        now = time.monotonic()
        if now < self._next_look:
            return False
        self._next_look = now + LOOK_SECONDS
        if now >= self._next_search:
            self._next_search = now + SEARCH_SECONDS
            self._pids = _processes_of(self._session)
        return memory_of(self._pids) > self.limit.bytes


def _processes_of(session: int) -> list[int]:
    found = []
    for folder in PROC.glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            continue  # it has just ended
        if int(fields[3]) == session:
            found.append(int(folder.name))
    return found
