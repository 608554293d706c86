"""Files that are written whole or not at all, whenever the power goes."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path, shared: bool = False) -> Iterator[Path]:
    """A path beside `path`, whose file replaces the one at `path` when the block ends without an error.

    Args:
        path: The final path, in a folder that exists.
        shared: Whether several processes may write this file at the same moment, each a whole one. Otherwise the name
            of the unfinished file is always the same, and what a killed process has left is overwritten.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part" if shared else f".{path.name}.part")
    try:
        yield partial
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
        if hasattr(os, "O_DIRECTORY"):
            folder = os.open(path.parent, os.O_DIRECTORY)
            try:
                os.fsync(folder)  # the name too
            finally:
                os.close(folder)
    except BaseException as error:
        # The system's error about a write; the message is to name the file. Without a number it would lose its text.
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)
        partial.unlink(missing_ok=True)
        raise
