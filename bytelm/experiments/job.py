"""Job: one run as a separate process, which is ended at its limits and always has a record.

A run that fails, hangs or is killed by the system does not affect other runs. When this process ends for any reason,
the run ends too, and its last.ckpt can be resumed.
"""

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bytelm.errors import CheckpointError, ConfigError, DataError, StorageError, as_storage_error
from bytelm.experiments import warm_start
from bytelm.experiments.memory_limit import MemoryWatch
from bytelm.experiments.warm_start import WarmProcess
from bytelm.runs import record
from bytelm.runs.folder import RUNS, newest_run
from bytelm.runs.record import Record, Status
from bytelm.system.locks import lock
from bytelm.system.process import ENDING_SECONDS, LIFELINE, Lifeline
from bytelm.units import Size

if TYPE_CHECKING:
    from typing_extensions import Self

LOG = "log.txt"
ERROR = "bytelm: error: "  # beginning of the line with the reason of a program's end
REJECTIONS = (ConfigError.exit_status, DataError.exit_status, CheckpointError.exit_status)


class RunIsTaken(StorageError):
    """Another process works on the run."""


@dataclass
class Outcome:
    """How a run ended.

    Attributes:
        status: completed, error, timeout, diverged, interrupted, pruned; or rejected, without a folder.
        reason: Why it was not completed.
        folder: The folder with its record.
        record: The contents of record.json.
        exit_status: Exit status of its process; None if it had no process.
    """

    status: str
    reason: str | None = None
    folder: Path | None = None
    record: Record = field(default_factory=lambda: Record())
    exit_status: int | None = None


class RunProcess(ABC):
    """A run as a process. Until it is closed, no other process can work in its folder. Base of Job and ProgramJob.

    Args:
        folder: The run's folder. The process's output is written there, to log.txt; it inherits the file's lock.
        timeout: Time limit in seconds; None for no limit.
        kind: What is started, for messages: `run`.

    Attributes:
        log: The file with its output.

    Raises:
        RunIsTaken: Another process works on the run.
        StorageError: The folder cannot be used.
    """

    ending_seconds = ENDING_SECONDS  # from the request to end to the kill

    def __init__(self, folder: Path, timeout: float | None, kind: str = "run") -> None:
        self.folder = folder
        self.timeout = timeout
        self.log = folder / LOG
        self._started = time.time()
        self._clock = time.monotonic()
        self._ended_by: Status | None = None
        self._end_reason: str | None = None
        self._kill_at = math.inf
        with as_storage_error(f"{folder}: the {kind} cannot be started"):
            folder.mkdir(parents=True, exist_ok=True)
            self._log = open(self.log, "ab")  # noqa: SIM115 (closed by close)
        if not lock(self._log.fileno()):
            self._log.close()
            raise RunIsTaken(f"{folder}: another process works on this run")
        self._lifeline = Lifeline()

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Releases the run; a process that has not ended is asked to end."""
        if not self._log.closed:
            self._log.close()
            self._lifeline.cut()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._clock

    def end(self, status: Status = "interrupted", reason: str | None = None) -> None:
        """Asks the process to end; it is killed if it does not.

        Args:
            status: The status that is recorded.
            reason: The reason that is recorded.
        """
        if self._ended_by is None:
            self._ended_by, self._end_reason = status, reason
            self._kill_at = time.monotonic() + self.ending_seconds
            self._ask_to_end()

    @abstractmethod
    def _ask_to_end(self) -> None: ...


class Job(RunProcess):
    """Starts a run, or resumes an interrupted one. Use it in a `with` block, or close it.

    Until it is closed, no other process can start the run; its outcome can be recorded first.

    Args:
        options: The options of `python -m bytelm fit`.
        experiment: Its folder in runs/, which no other run uses. Its output is written there, to log.txt.
        timeout: Time limit in seconds; None for no limit.
        memory_limit: Memory limit of all its processes together; None for no limit.
        is_open: Tells, once no other process can work on the run, whether it has yet to end.
        is_warm: Whether its process is a fork of one that has imported what runs need (warm_start.py), where possible.

    Raises:
        RunIsTaken: Another process works on it, or has ended it.
        StorageError: Its folder cannot be used.
    """

    def __init__(
        self,
        options: Sequence[str],
        experiment: str,
        timeout: float | None = None,
        memory_limit: Size | None = None,
        is_open: Callable[[], bool] = lambda: True,
        is_warm: bool = False,
    ) -> None:
        super().__init__(Path(RUNS, experiment), timeout)
        self._result: Outcome | None = None
        arguments = ["fit", *options, "--experiment", experiment, "--ckpt_path", "last"]
        if not is_open():
            self._lifeline.started()
            self.close()
            raise RunIsTaken(f"{self.folder}: another process has ended this run")
        self._log_start = self._log.tell()
        self._earlier_run = newest_run(self.folder)
        self._earlier_record = self._read_record()
        self.process: subprocess.Popen[bytes] | WarmProcess
        if is_warm and warm_start.is_possible():
            log, lifeline = self._log.fileno(), self._lifeline.descriptor
            self.process = WarmProcess(arguments, log, lifeline, LIFELINE)
        else:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "bytelm", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                pass_fds=[self._lifeline.descriptor],
                env={**os.environ, **self._lifeline.environment},
                start_new_session=True,  # a Ctrl-C is for this process, and the run's processes are a group
            )
        self._lifeline.started()
        self._memory = None if memory_limit is None else MemoryWatch(self.process.pid, memory_limit)

    def _ask_to_end(self) -> None:
        self._signal(signal.SIGTERM)

    def poll(self) -> Outcome | None:
        """Enforces the limits; returns the outcome once the run has ended."""
        if self._result is not None:
            return self._result
        if (exit_status := self.process.poll()) is None:
            if self.timeout is not None and self.elapsed > self.timeout and self._ended_by is None:
                self.end("timeout", f"not done after {self.timeout:g} s")
            if self._memory is not None and self._memory.is_exceeded():
                self._end_by_memory(self._memory.limit)
            if time.monotonic() > self._kill_at:
                self._signal(signal.SIGKILL)
            return None
        self._signal(signal.SIGKILL)  # for processes that the run may have left
        self._result = self._outcome(exit_status)
        return self._result

    def wait(self, interval: float = 0.1) -> Outcome:
        """Waits for the end."""
        while (outcome := self.poll()) is None:
            time.sleep(interval)
        return outcome

    def tail(self, size: int = 4000) -> str:
        """The last characters of the run's output, without text that a progress bar has overwritten."""
        return tail(self.log, size, self._log_start)

    def _end_by_memory(self, limit: Size) -> None:
        """Kills the run at once, because finishing a step and a checkpoint would need more memory."""
        self._ended_by, self._end_reason = "error", f"it used more than {limit} of memory, the limit of a run here"
        self._kill_at = 0.0

    def _signal(self, signum: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signum)

    def _read_record(self) -> tuple[Record | None, int]:
        """The record of the newest run and its time of writing; None if it is missing or damaged."""
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
        if exit_status in REJECTIONS and run is None and self._ended_by is None:
            self.log.unlink()
            with contextlib.suppress(OSError):
                self.folder.rmdir()
            return Outcome("rejected", message or f"ended with exit status {exit_status}", exit_status=exit_status)

        left, written_at = self._read_record()
        earlier, earlier_written_at = self._earlier_record
        final = record.of_process(
            left=None if written_at == earlier_written_at else left,
            earlier=earlier if run == self._earlier_run else None,  # a run that started again is another run
            exit_status=exit_status,
            message=message,
            asked=self._ended_by,
            why=self._end_reason,
            started_at=self._started,
            seconds=self.elapsed,
        )
        if run is None:
            run = self.folder / "version_0"
        final["run"] = str(run)
        if final != left:
            try:
                with as_storage_error(f"{self.folder}: its record cannot be written"):
                    record.write(run, final)
            except StorageError:
                if exit_status != StorageError.exit_status:  # else the run has said more about it
                    raise
        return Outcome(final["status"], final["reason"], run, final, exit_status)


def tail(log: Path, size: int = 4000, start: int = 0) -> str:
    """The end of a run's log, without text that a progress bar has overwritten."""
    if not log.exists():
        return ""
    with open(log, "rb") as file:
        file.seek(max(start, log.stat().st_size - 4 * size))
        text = file.read().decode(errors="replace")
    return "\n".join(line.rpartition("\r")[2] for line in text.replace("\r\n", "\n").split("\n"))[-size:]
