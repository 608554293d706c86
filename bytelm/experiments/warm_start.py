"""Starts programs from a process that has imported what they need: a fork takes milliseconds, the imports seconds.

multiprocessing's fork server makes the processes. A program is a process like any other: it has its own session, files,
environment and signals, and runs `bytelm` as `__main__`. Its end does not affect the fork server. Only the version of
bytelm and the options of the interpreter are those of the moment at which the first program was started.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerContext
from multiprocessing.reduction import DupFd
from typing import Any, NoReturn

PRELOADED = "bytelm.experiments.preloaded"
DEFAULT = (signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))


def is_possible() -> bool:
    """Whether this system can fork a process that has imported torch: on Linux."""
    return sys.platform == "linux"


def context() -> ForkServerContext:
    """The context of multiprocessing whose processes begin with these imports."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload([PRELOADED])
    return found


class WarmProcess:
    """`python -m bytelm …`, with the part of subprocess.Popen's interface that jobs use.

    Args:
        args: The arguments after `bytelm`.
        output: File descriptor of the file that standard output and standard error are written to.
        passed: A further file descriptor that it inherits.
        variable: Environment variable that tells it the number of this descriptor.

    Attributes:
        pid: Its id, which is also that of its session.
        returncode: Its exit status once it has ended, negative for a signal; None before.
    """

    def __init__(self, args: Sequence[str], output: int, passed: int, variable: str) -> None:
        ignored = [signum for signum in DEFAULT if signal.getsignal(signum) is signal.SIG_IGN]
        files = (_File(output), _File(passed))
        self._process = context().Process(
            target=_run, args=(list(args), *files, variable, dict(os.environ), os.getcwd(), ignored)
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit status; None while it runs."""
        if self.returncode is None:
            self.returncode = self._process.exitcode
        return self.returncode

    def wait(self) -> int:
        """Waits for its end; returns the exit status."""
        self._process.join()
        status = self.poll()
        assert status is not None
        return status


class _File:
    """An open file that is sent to a new process."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (DupFd(self.number),)


def _received(sent: Any) -> int:
    number: int = sent.detach()
    return number


def _run(
    args: list[str],
    output: int,
    passed: int,
    variable: str,
    environment: Mapping[str, str],
    folder: str,
    ignored: Sequence[int],
) -> NoReturn:
    """In the new process: becomes the program."""
    os.setsid()
    for signum in DEFAULT:
        signal.signal(signum, signal.SIG_IGN if signum in ignored else signal.SIG_DFL)
    for number in (1, 2):
        os.dup2(output, number)
    os.close(output)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    os.set_inheritable(passed, True)
    os.environ.clear()
    os.environ.update(environment)
    os.environ[variable] = str(passed)
    os.chdir(folder)
    if folder not in sys.path:
        sys.path.insert(0, folder)  # as `python -m` does
    sys.argv[:] = ["bytelm", *args]
    try:
        runpy.run_module("bytelm", run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # multiprocessing calls its own only
    sys.exit(0)
