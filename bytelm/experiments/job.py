"""Job: one run as a process of its own, which is ended at its limit, and leaves a record whatever became of it.

A run that fails, hangs or is killed by the system takes nothing else with it. When this process ends, in whatever way,
the run does too, and leaves a last.ckpt to go on from.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bytelm.errors import CheckpointError, ConfigError, DataError, StorageError
from bytelm.runs import record
from bytelm.runs.folder import RUNS, lock, newest_run
from bytelm.runs.record import Record, Status
from bytelm.system.process import ENDING_SECONDS, Lifeline

LOG = "log.txt"
ERROR = "bytelm: error: "  # begins the line that says why a program has ended
REFUSALS = (ConfigError.exit_status, DataError.exit_status, CheckpointError.exit_status)


@dataclass
class Outcome:
    """What became of a run.

    Attributes:
        status: completed, error, timeout, diverged, interrupted; or refused, which leaves no folder.
        reason: Why it was not completed.
        folder: Where its record is.
        record: What record.json says.
    """

    status: str
    reason: str | None = None
    folder: Path | None = None
    record: Record = field(default_factory=lambda: Record())


class Job:
    """Starts a run, or goes on with one that was cut. To be used in a `with` block, or closed.

    Until it is closed nobody else can start the run, so that what came of it can be put on record first.

    Args:
        options: What follows `python -m bytelm fit`.
        experiment: Its folder in runs/, which is no other run's. Its output is written there, to log.txt.
        timeout: Seconds after which it is ended; None for no such limit.

    Attributes:
        log: Its output.

    Raises:
        StorageError: Another process is at work on it.
    """

    def __init__(self, options: Sequence[str], experiment: str, timeout: float | None = None) -> None:
        self.folder = Path(RUNS, experiment)
        self.timeout = timeout
        self._started = time.time()
        self._clock = time.monotonic()
        self._ended_by: Status | None = None
        self._kill_at = float("inf")
        self._result: Outcome | None = None
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log = self.folder / LOG
        command = [sys.executable, "-m", "bytelm", "fit", *options, "--experiment", experiment, "--ckpt_path", "last"]
        self._log = open(self.log, "ab")  # noqa: SIM115 (closed by close)
        if not lock(self._log.fileno()):  # the run inherits the lock with the file
            self._log.close()
            raise StorageError(f"{self.folder}: another process is at work on this run")
        self._log_start = self._log.tell()
        self._earlier_run = newest_run(self.folder)
        self._earlier_record = self._read_record()
        self._lifeline = Lifeline()
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            pass_fds=[self._lifeline.descriptor],
            env={**os.environ, **self._lifeline.environment},
            start_new_session=True,  # a Ctrl-C is for this process, and the run's processes are a group
        )
        self._lifeline.started()

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the run: one that has not ended is told to."""
        if not self._log.closed:
            self._log.close()
            self._lifeline.cut()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._clock

    def end(self, status: Status = "interrupted") -> None:
        """Asks the run to end; `poll` insists if it does not.

        Args:
            status: What its record will say.
        """
        if self._ended_by is None:
            self._ended_by = status
            self._kill_at = time.monotonic() + ENDING_SECONDS
            self._signal(signal.SIGTERM)

    def poll(self) -> Outcome | None:
        """Sees to the limit; returns the outcome when the run has ended."""
        if self._result is None and self.process.poll() is None:
            if self.timeout is not None and self.elapsed > self.timeout:
                self.end("timeout")
            if time.monotonic() > self._kill_at:
                self._signal(signal.SIGKILL)
            return None
        if self._result is None:
            self._signal(signal.SIGKILL)  # what the run may have left of its own processes
            self._result = self._outcome(self.process.returncode)
        return self._result

    def wait(self, interval: float = 0.2) -> Outcome:
        """Waits for the end."""
        while (outcome := self.poll()) is None:
            time.sleep(interval)
        return outcome

    def tail(self, size: int = 4000) -> str:
        """The last characters of what the run has printed, without what a progress bar has overwritten."""
        return tail(self.log, size, self._log_start)

    def _signal(self, signum: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signum)

    def _read_record(self) -> tuple[Record | None, int]:
        """The record of the newest run, and when it was written; None where there is none, or a damaged one."""
        run = newest_run(self.folder)
        if run is None or not (run / record.FILE).exists():
            return None, 0
        with contextlib.suppress(StorageError):
            return record.read(run), (run / record.FILE).stat().st_mtime_ns
        return None, 0

    def _outcome(self, exit_status: int) -> Outcome:
        run = newest_run(self.folder)
        errors = [line for line in self.tail().splitlines() if line.startswith(ERROR)]
        message = errors[-1].removeprefix(ERROR) if errors else None
        if exit_status in REFUSALS and run is None and self._ended_by is None:
            self.log.unlink()
            with contextlib.suppress(OSError):
                self.folder.rmdir()
            return Outcome("refused", message or f"ended with exit status {exit_status}")

        left, written_at = self._read_record()
        earlier, earlier_written_at = self._earlier_record
        final = record.of_process(
            left=None if written_at == earlier_written_at else left,
            earlier=earlier if run == self._earlier_run else None,  # one that began anew is another run
            exit_status=exit_status,
            message=message,
            asked=self._ended_by,
            timeout=self.timeout,
            started_at=self._started,
            seconds=self.elapsed,
        )
        if run is None:
            run = self.folder / "version_0"
        final["run"] = str(run)
        if final != left:
            record.write(run, final)
        return Outcome(final["status"], final["reason"], run, final)


def tail(log: Path, size: int = 4000, start: int = 0) -> str:
    """The end of a run's log, without what a progress bar has overwritten."""
    if not log.exists():
        return ""
    with open(log, "rb") as file:
        file.seek(max(start, log.stat().st_size - 4 * size))
        text = file.read().decode(errors="replace")
    return "\n".join(line.rpartition("\r")[2] for line in text.replace("\r\n", "\n").split("\n"))[-size:]
