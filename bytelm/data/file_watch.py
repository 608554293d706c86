"""FileWatch: detects whether files are written to while a run reads them."""

from collections.abc import Callable, Mapping
from pathlib import Path

from bytelm.config.messages import note

Stamp = tuple[int, int]
"""Size in bytes and time of the last change in nanoseconds, of an open file."""


class FileWatch:
    """Compares files with their state when the watch was created.

    Sizes and times cost one system call per file. The contents are read only if a size or time has changed.

    Args:
        stamps: Returns the stamp of each file.
        digest: Reads the files and returns their hash.
    """

    def __init__(self, stamps: Callable[[], Mapping[Path, Stamp]], digest: Callable[[], str]) -> None:
        self._stamps_of = stamps
        self._digest = digest
        self._stamps = stamps()

    def changed(self, sha256: str) -> str | None:
        """Returns what has changed; None if nothing has.

        A file that was written to but has the same size and hash is noted once, and accepted.

        Args:
            sha256: The result of `digest` when the files were in the state of the run's record.
        """
        stamps = self._stamps_of()
        if stamps == self._stamps:
            return None
        file = next(file for file in stamps if stamps[file] != self._stamps[file])
        size, before = stamps[file][0], self._stamps[file][0]
        if size != before:
            return f"{file} has {size} bytes, and had {before}"
        if (found := self._digest()) != sha256:
            return f"{file} was written to: the sha256 is {found[:12]}…, and was {sha256[:12]}…"
        note(f"{file} was written to during the run; its size and the data's sha256 are the same")
        self._stamps = stamps
        return None
