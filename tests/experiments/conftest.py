"""What tests of many runs need to know of processes."""

import subprocess
import time
from pathlib import Path

import pytest

from bytelm.runs.folder import lock


@pytest.fixture
def at_work():
    """Locks a file as a process that is at work does; returns the process."""
    processes = []

    def at_work(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as file:
            assert lock(file.fileno())
            processes.append(subprocess.Popen(["sleep", "600"], stdout=file))
        return processes[-1]

    yield at_work
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture
def until():
    """Waits until something is so, and returns what it is."""

    def until(condition, seconds=20.0):
        end = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < end, f"not so after {seconds:g} s"
            time.sleep(0.01)
        return found

    return until


@pytest.fixture
def alive():
    """Tells whether a process lives; one that only waits to be reaped does not."""

    def alive(pid):
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        except OSError:
            return False

    return alive
