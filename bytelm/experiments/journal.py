"""Journal: the file of a study's queue, one JSON object a line, in the format of Optuna's journal.

Optuna's own backend leaves the beginning of a line in the file when a disk fills up or a process is killed while it
writes, and then appends the next line to it, which makes the whole journal unreadable. This one removes an unfinished
line before it appends. Workers take turns by a lock on the file (flock), which the system releases when a process ends.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from optuna.storages.journal import BaseJournalBackend

from bytelm.errors import StorageError, as_storage_error
from bytelm.system.locks import wait_for_lock

BLOCK = 65_536  # bytes that are searched at a time for the end of the last whole line


class Journal(BaseJournalBackend):
    """The journal file, as a backend of Optuna's JournalStorage.

    Args:
        path: The file; it is created if it does not exist.

    Raises:
        StorageError: The file cannot be opened for writing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offsets = [0]  # where each line begins, as far as lines were read
        with as_storage_error(f"{path}: the queue cannot be opened"), open(path, "ab"):
            pass

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Reads complete lines; a line that another process is still writing is left for the next call.

        Args:
            log_number_from: Number of the first line, counted from 0.

        Raises:
            StorageError: The file cannot be read, or a whole line is damaged.
        """
        with as_storage_error(f"{self.path}: the queue cannot be read"), open(self.path, "rb") as file:
            file.seek(self._offsets[log_number_from])
            text = file.read()
        lines = text.split(b"\n")[:-1]  # what follows the last line's end is unfinished, or nothing
        del self._offsets[log_number_from + 1 :]
        for line in lines:
            self._offsets.append(self._offsets[-1] + len(line) + 1)
        for number, line in enumerate(lines, start=log_number_from + 1):
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                entry = None
            if not isinstance(entry, dict) or "op_code" not in entry:
                raise StorageError(
                    f"{self.path}: line {number} is damaged, or the file is not a study's queue; "
                    "repair the file, or use another --storage or --study"
                )
            yield entry

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Appends lines atomically.

        Args:
            logs: An object for each line.

        Raises:
            StorageError: They could not be written, for example because the disk is full.
        """
        text = b"".join(json.dumps(entry, separators=(",", ":")).encode() + b"\n" for entry in logs)
        try:
            with open(self.path, "rb+", buffering=0) as file:
                wait_for_lock(file.fileno())
                _trim(file)
                try:
                    while text:
                        text = text[file.write(text) :]  # a full disk can take only a part of it
                    os.fsync(file.fileno())
                finally:
                    _trim(file)
        except OSError as error:
            raise StorageError(
                f"{self.path}: the queue could not be written ({error.strerror or error}); "
                "the same command continues once this is solved"
            ) from error


def _trim(file: BinaryIO) -> None:
    """Removes an unfinished line at the end of a file, and moves to its end."""
    end = size = file.seek(0, os.SEEK_END)
    while end:
        start = max(end - BLOCK, 0)
        file.seek(start)
        if (newline := file.read(end - start).rfind(b"\n")) >= 0:
            end = start + newline + 1
            break
        end = start
    if end < size:
        file.truncate(end)
    file.seek(end)
