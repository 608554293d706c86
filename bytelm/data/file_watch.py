"""FileWatch: tells whether files were written to while a run reads them."""

from collections.abc import Callable, Mapping
from pathlib import Path

from bytelm.config.messages import note

Stamp = tuple[int, int]
"""Size in bytes and time of the last change in nanoseconds, of an open file."""


class FileWatch:
    """Compares files with what they were when the watch was made.

    Sizes and times cost a system call a file. Contents are read only where one of these differs.

    Args:
        stamps: Returns the stamp of each file.
        digest: Reads the files and returns their hash.
    """

    def __init__(self, stamps: Callable[[], Mapping[Path, Stamp]], digest: Callable[[], str]) -> None:
        self._stamps_of = stamps
        self._digest = digest
        self._stamps = stamps()

    def changed(self, sha256: str) -> str | None:
        """What has changed; None if nothing has.

        A file that was written to and has the same size and hash is noted once, and accepted.

        Args:
            sha256: What `digest` returned when the files were as the run's record says.
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
