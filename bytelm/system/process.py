"""This process: its age, its rank, the signals that end it, and its end when the parent process ends."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime, timezone
from functools import cache
from multiprocessing.connection import wait

IMPORTED_AT = time.monotonic()
CPU_SECONDS_BEFORE = time.process_time()
ENDING_SECONDS = 30.0  # time for the work of a run at a SIGTERM: finish a step, write a checkpoint
LIFELINE = "BYTELM_LIFELINE"  # names the file descriptor of a pipe that only the parent can write to


def begin_program() -> None:
    """Makes the age of this program count from now: in a fork, and at each run of a program that trains several times.

    A worker of multiprocessing's `forkserver`, or the kernel of a notebook, may have waited for hours before.
    """
    global IMPORTED_AT, CPU_SECONDS_BEFORE
    IMPORTED_AT, CPU_SECONDS_BEFORE = time.monotonic(), 0.0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=begin_program)


def process_age() -> float:
    """Returns the seconds since this program started, including the start of Python and earlier imports, or was forked.

    The system knows only when the process started, and a process may have been another program before: bash runs the
    last command of `bash -c 'sleep 20 && python …'` in its own process. Therefore the time before the import of this
    module counts only as far as the CPU was busy, which it is not during a sleep.
    """
    return time.monotonic() - IMPORTED_AT + CPU_SECONDS_BEFORE


def utc(timestamp: float) -> str:
    """Returns the ISO 8601 text of a time; the order of texts is the order of times.

    Args:
        timestamp: Seconds since 1970, as time.time() gives them.
    """
    return datetime.fromtimestamp(timestamp, timezone.utc).isoformat(timespec="milliseconds")


def is_rank_zero() -> bool:
    """Returns whether this process is rank 0, which prints. Before Lightning, which knows the rank, is loaded: True."""
    lightning = sys.modules.get("lightning_utilities.core.rank_zero")
    return lightning is None or not getattr(lightning.rank_zero_only, "rank", 0)


def ending_signals() -> tuple[signal.Signals, ...]:
    """Returns the signals that ask this program to end.

    SIGHUP, which a closed terminal sends, is one of them unless it is ignored, as under `nohup`.
    """
    hangup = getattr(signal, "SIGHUP", None)  # not on Windows
    if hangup is None or signal.getsignal(hangup) is signal.SIG_IGN:
        return signal.SIGTERM, signal.SIGINT
    return signal.SIGTERM, signal.SIGINT, hangup


class Lifeline:
    """Ends a child process when this process ends, for any reason.

    Attributes:
        descriptor: The child's end, a file descriptor that it has to inherit.
        environment: Environment variables that tell the child about it.
    """

    def __init__(self) -> None:
        self.descriptor, self._kept = os.pipe()
        self.environment = {LIFELINE: str(self.descriptor)}

    def started(self) -> None:
        """Closes this process's copy of the child's end, after the child has its own."""
        os.close(self.descriptor)

    def cut(self) -> None:
        """Closes the lifeline: a child that still runs is asked to end."""
        os.close(self._kept)


def end_with_parent() -> None:
    """Ends this process when its parent ends, for any reason, if the parent has given it a Lifeline.

    It receives a SIGTERM; if it does not end, its process group receives a SIGKILL.
    """
    if (lifeline := os.environ.pop(LIFELINE, None)) is not None:  # removed: this process's children do not have it
        _when_closed(int(lifeline), _end_by_signals)


def end_worker_with_parent() -> None:
    """Ends this worker of multiprocessing, which has nothing to finish, as soon as its parent ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "not a process of multiprocessing"
    _when_closed(parent.sentinel, lambda: os._exit(1))


def _when_closed(descriptor: int, end: Callable[[], None]) -> None:
    """Calls a function, in a thread, when the other end of a pipe is closed. No process writes to these pipes."""

    def watch() -> None:
        wait([descriptor])
        end()

    threading.Thread(target=watch, daemon=True, name="lifeline").start()


@cache  # once: a registration cannot be taken back
def default_signals_in_children() -> None:
    """Restores the system's signal handling in processes that a library forks from this one (such as a pool's workers).

    With the program's handlers, which raise, a worker that its pool ends with SIGTERM would print a traceback or hang.
    """

    def reset() -> None:
        for signum in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            owner = str(getattr(signal.getsignal(signum), "__module__", ""))
            if owner.startswith(("bytelm.", "lightning.")):  # Lightning's handlers call the previous ones
                signal.signal(signum, signal.SIG_DFL)

    if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
        os.register_at_fork(after_in_child=reset)


def _end_by_signals() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(ENDING_SECONDS)
    os.killpg(os.getpgrp(), signal.SIGKILL)
