"""Supervisor of a submitted program: starts it with limits, and ends with it all processes that it has started.

    python -I -S supervisor.py FOLDER LIFELINE COMMAND…

It runs as a process between the service and the program, and imports only the standard library. Processes whose parent
has ended become its children (PR_SET_CHILD_SUBREAPER): no descendant of the program can leave the tree below it. It
kills the whole tree, and removes FOLDER, when the program ends, at a SIGTERM, or when the descriptor LIFELINE is closed
because the service has ended.
"""

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

SET_CHILD_SUBREAPER = 36  # of prctl
MOST_OPEN_FILES = 256
MOST_FILE_BYTES = 256 * 2**20  # of one file; more of all files is noticed by the service


def descendants(pid: int) -> list[int]:
    """Returns the ids of the processes below a process; those that have ended and wait to be reaped are left out."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (folder / "stat").read_bytes().rpartition(b")")[2].split()[:2]
        except (OSError, ValueError):
            continue  # it has just ended
        if state not in b"ZX":
            children.setdefault(int(parent), []).append(int(folder.name))
    found = [pid]
    for known in found:  # grows meanwhile
        found += children.get(known, [])
    return found[1:]


def kill_below(pid: int) -> None:
    """Kills all processes below a process, also while they start further ones."""
    while below := descendants(pid):
        # Stopped first: a process that is killed could have started another one that the list does not have.
        send(signal.SIGSTOP, below)
        if set(descendants(pid)) <= set(below):
            send(signal.SIGKILL, below)
            time.sleep(0.001)
        _reap()


def send(signum: int, pids: list[int]) -> None:
    """Sends a signal to processes, of which some may have ended."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signum)


def _reap(wanted: int | None = None) -> int | None:
    """Reaps the children that have ended; returns the exit status of `wanted` if it is one of them."""
    status = None
    with contextlib.suppress(ChildProcessError):  # there are no children
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == wanted:
                code = os.waitstatus_to_exitcode(ended[1])
                status = code if code >= 0 else 128 - code
    return status


def main(folder: str, lifeline: int, command: list[str]) -> int:
    """Runs the program; returns its exit status, or 128 plus the number of the signal that ended it."""
    import resource  # not on Windows, where the service imports this module and accepts no programs

    ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for limit, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, MOST_OPEN_FILES),
        (resource.RLIMIT_FSIZE, MOST_FILE_BYTES),
    ):
        hard = resource.getrlimit(limit)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (most, most))
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
    signal.signal(signal.SIGCHLD, lambda *_: None)  # the default would not wake `select`
    try:
        program = subprocess.Popen(command, cwd=folder, start_new_session=True)
        while (status := _reap(program.pid)) is None:
            ready = select.select([lifeline, woken], [], [])[0]
            if lifeline in ready or asked:
                send(signal.SIGKILL, [program.pid])  # not program.kill(), which could reap it and keep its status
            if woken in ready:
                os.read(woken, 1000)
    finally:
        kill_below(os.getpid())
        shutil.rmtree(folder, ignore_errors=True)
    return status


if __name__ == "__main__":
    os._exit(main(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))  # without Popen's wait for a child that is reaped
