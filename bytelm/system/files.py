"""Files that are written whole or not at all, whenever the power goes."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path`, whose file takes the place of that at `path` when the block ends without an error."""
    partial = path.with_name(f".{path.name}.part")
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
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
