"""Errors that end a run. Each kind has an exit status, which scripts can check.

| status | error | cause |
| --- | --- | --- |
| 1 | Diverged, and all other errors | training failed |
| 2 | ConfigError, UsageError | an invalid value, key, config file or option |
| 3 | DataError | a corpus that is missing, unreadable, too short, or different from the checkpoint's |
| 4 | CheckpointError | a checkpoint that is missing, damaged, unsafe, or of another model |
| 5 | StorageError | a folder that the program writes to cannot be created or written to, or its disk is full |
| 6 | OutOfMemory | the model and its batch do not fit into memory |
| 7 | RankLost | another process of a distributed run died |
| 128 + n | Interrupted | signal n: 129 for SIGHUP, 130 for SIGINT, 143 for SIGTERM |
| 141 | OutputLost | who reads the standard output of `generate`, `validate`, … has stopped reading |
"""

import errno
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class RunError(Exception):
    """Base of errors that end a run with a message instead of a traceback.

    Attributes:
        exit_status: Exit status of the program.
        on_all_ranks: Whether all ranks of a distributed run raise this error together.
    """

    exit_status = 1
    on_all_ranks = False

    def _render_traceback_(self) -> list[str]:
        """The lines that IPython shows in place of a traceback: in a notebook too, the error is one line."""
        return [f"{type(self).__name__}: {self}"]


class ConfigError(RunError, ValueError):
    """An invalid value.

    Args:
        key: The key as the user wrote it, such as `n_heads`.
        value: The given value.
        accepted: The accepted values, or the reason of the rejection.
    """

    exit_status = 2

    def __init__(self, key: str, value: object, accepted: str) -> None:
        super().__init__(f"{key}: {value!r} cannot be used; {accepted}")
        self.key, self.value, self.accepted = key, value, accepted


class UsageError(RunError):
    """A command line or a config that cannot be parsed; the message is the parser's."""

    exit_status = ConfigError.exit_status


class DataError(ConfigError):
    """A corpus that cannot be trained on."""

    exit_status = 3


class CheckpointError(RunError):
    """A checkpoint that cannot be resumed from or scored."""

    exit_status = 4


class StorageError(RunError):
    """A folder that the program writes to cannot be created or written to."""

    exit_status = 5


class FolderError(ConfigError, StorageError):
    """A folder of the user's, the value of a key, that cannot be created or written to."""

    exit_status = StorageError.exit_status


@contextmanager
def as_storage_error(message: str) -> Iterator[None]:
    """Context in which an error of the system is raised as a StorageError.

    Args:
        message: The file or folder, and the work that failed; the system's reason follows.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(f"{message} ({error.strerror or error})") from error


class OutputLost(StorageError):
    """Standard output, which a command is run for, cannot be written to.

    Args:
        error: The system's. A reader that has closed the pipe, as `head` does, has read enough: it is not an error, and
            ends the program as SIGPIPE ends others, without a message.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(f"standard output: it cannot be written ({error.strerror or error})")
        self.is_closed_pipe = error.errno == errno.EPIPE
        if self.is_closed_pipe:
            self.exit_status = CLOSED_PIPE_STATUS


class OutOfMemory(RunError):
    """The memory of the machine or its GPU is too small."""

    exit_status = 6


class RankLost(RunError):
    """Another process of a distributed run died."""

    exit_status = 7


class Diverged(RunError):
    """The loss became NaN or infinite."""

    on_all_ranks = True


class Interrupted(RunError):
    """A signal asked the run to end.

    Args:
        signum: Number of the signal.
        message: The saved state, and how to resume.
        on_all_ranks: Whether all ranks have agreed to end.
    """

    def __init__(self, signum: int, message: str = "", on_all_ranks: bool = False) -> None:
        name = signal.Signals(signum).name
        super().__init__(f"interrupted by {name}{message and ' ' + message}")
        self.signum = signum
        self.exit_status = 128 + signum
        self.on_all_ranks = on_all_ranks


def run_error(error: BaseException | None) -> RunError | None:
    """The RunError that an exception is, was caused by, or is equivalent to, if there is one."""
    # Not one that led to another error: programs expect these, and handle them.
    if isinstance(error, OSError) and error.filename and error.errno in PATH_ERRORS:
        return StorageError(f"{error.filename}: it cannot be used ({error.strerror})")
    while error is not None and not isinstance(error, RunError):
        if _is_out_of_memory(error):
            return OutOfMemory(HOW_TO_SAVE_MEMORY)
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:  # from any file operation
            return StorageError(f"{error.filename or 'a file'}: it cannot be written ({error.strerror})")
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            return ConfigError("a file or folder", error.filename, "accepted: a name of at most 255 bytes")
        error = error.__cause__ or error.__context__
    return error


def reason(error: Exception) -> str:
    """The first line of an exception's message: that of the system error that caused it, or of the first cause."""
    cause: BaseException = error
    while not isinstance(cause, OSError) and (behind := cause.__cause__ or cause.__context__) is not None:
        cause = behind
    text = getattr(cause, "strerror", None) or str(cause).strip() or type(cause).__name__
    return text.splitlines()[0]


def _is_out_of_memory(error: BaseException) -> bool:
    torch = sys.modules.get("torch")  # if torch is not loaded, the error is not one of its kinds
    kinds = MemoryError if torch is None else (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or CPU_IS_OUT_OF_MEMORY in str(error)


CLOSED_PIPE_STATUS = 128 + 13  # what shells show of a program that SIGPIPE has ended
PATH_ERRORS = (errno.ENOTDIR, errno.EEXIST, errno.EACCES)  # a file in place of a folder, or no permission
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # the disk is full, or read-only
CPU_IS_OUT_OF_MEMORY = "can't allocate memory"  # in torch's RuntimeError
HOW_TO_SAVE_MEMORY = (
    "out of memory; lower data.batch_size (and raise trainer.accumulate_grad_batches to keep the tokens of a step), "
    "data.seq_len or the sizes in model.gpt; --trainer.precision bf16-mixed and --trainer.strategy fsdp also help"
)
