"""Small disks for tests: separate file systems, which can be filled and made read-only. They need root."""

import os
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest


class Disk:
    """A file system in memory.

    Args:
        path: Folder that it is mounted on.
    """

    def __init__(self, path):
        self.path = Path(path)

    def fill(self, leave=0):
        """Fills it except for this number of bytes (in whole pages)."""
        free = os.statvfs(self.path)
        size = free.f_bavail * free.f_frsize - leave
        self.path.joinpath("filling").write_bytes(b"\0" * max(size, 0))

    def empty(self):
        """Removes the file of `fill`."""
        self.path.joinpath("filling").unlink()

    def read_only(self):
        """Makes it read-only, also for root."""
        subprocess.run(["mount", "-o", "remount,ro", str(self.path)], check=True)


@contextmanager
def small_disk(path, size="1m"):
    """Mounts a disk; skips the test where that cannot be done.

    Args:
        path: Folder to mount it on; it is made.
        size: As for mount.
    """
    Path(path).mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], check=True, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs root, to mount a small disk")
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)
