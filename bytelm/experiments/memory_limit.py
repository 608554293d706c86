"""Memory limits for runs of configs from others: a size with its unit, and the memory that processes use.

A limit on the address space (RLIMIT_AS) does not work for torch, which reserves many gigabytes that it never uses. The
memory in use is therefore checked ten times a second, and a process that exceeds its limit is killed.
"""

import os
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Union

from jsonargparse.typing import register_type

PROC = Path("/proc")
LOOK_SECONDS = 0.1  # between two checks of the memory in use
SEARCH_SECONDS = 1.0  # between two searches for further processes
COUNTED = (b"RssAnon:", b"RssShmem:")  # without mapped files: libraries and corpora
UNITS = {"MB": 10**6, "GB": 10**9, "MiB": 2**20, "GiB": 2**30}
_SIZE = re.compile(rf"(\d+(?:\.\d+)?)\s*({'|'.join(UNITS)})")


class Size:
    """An amount of memory, such as `4GiB`.

    Args:
        bytes: The amount.
    """

    __slots__ = ("bytes",)

    def __init__(self, bytes: int) -> None:
        self.bytes = bytes

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Size) and self.bytes == other.bytes

    def __hash__(self) -> int:
        return hash(self.bytes)

    def __repr__(self) -> str:
        return f"Size({str(self)!r})"

    def __str__(self) -> str:
        unit = "GiB" if self.bytes >= UNITS["GiB"] else "MiB"
        return f"{round(self.bytes / UNITS[unit], 2):g}{unit}"

    @classmethod
    def parse(cls, text: Union[str, "Size"]) -> "Size":
        """Reads `512MiB`, `4GiB`, `1.5 GB`.

        Raises:
            ValueError: The text is not a size above 0.
        """
        if isinstance(text, Size):
            return text
        match = _SIZE.fullmatch(text.strip()) if isinstance(text, str) else None
        size = int(float(match[1]) * UNITS[match[2]]) if match else 0
        if not size:
            raise ValueError(f"{text!r} is not an amount of memory; accepted: 512MiB, 4GiB, 4GB")
        return cls(size)


register_type(Size, serializer=str, deserializer=Size.parse, deserializer_exceptions=(ValueError,))


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
