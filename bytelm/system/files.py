"""Files that are written completely or not at all, even if the power fails; hashes of files."""

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from bytelm.errors import FolderError


@contextlib.contextmanager
def replacing(path: Path, shared: bool = False) -> Iterator[Path]:
    """Yields a path beside `path`; its file replaces the one at `path` if the block ends without an error.

    Args:
        path: The final path, in an existing folder.
        shared: Whether several processes may write this file at the same time, each a complete one. Otherwise the name
            of the unfinished file is always the same, and overwrites the remains of a killed process.
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
                os.fsync(folder)  # saves the name too
            finally:
                os.close(folder)
    except BaseException as error:
        # The system's error about a write has no file name; the message must have one. Without its number it would lose
        # its text.
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)
        partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Writes a text in UTF-8 as `replacing` does: completely or not at all.

    Args:
        path: The file, in an existing folder; an existing file is replaced.
        text: Its content.
    """
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def sha256_of(files: Iterable[BinaryIO]) -> str:
    """Returns the SHA-256 of the contents of files, one after the other, as hexadecimal digits.

    Args:
        files: Open files; each is read from its position to its end, in parts of 16 MiB.
    """
    digest = hashlib.sha256()
    for file in files:
        while part := file.read(2**24):
            digest.update(part)
    return digest.hexdigest()


def searched(path: Path) -> str:
    """Returns ` in <working directory>` for a relative path that does not exist, for the message; else nothing."""
    return "" if path.is_absolute() else f" in {Path.cwd()}"


def check_folder(key: str, folder: str | os.PathLike[str]) -> None:
    """Checks that a folder can be written to, or created, before the work whose result it is for. It is not created.

    Args:
        key: The option that names the folder.
        folder: The folder; a URL is not checked.

    Raises:
        FolderError: It cannot.
    """
    if "://" in os.fspath(folder):
        return
    path = Path(folder).absolute()
    existing = next(each for each in (path, *path.parents) if os.path.lexists(each))
    shown = "it" if existing == path else str(existing)
    if not existing.is_dir():
        why = f"{shown} is not a folder"
    elif not os.access(existing, os.W_OK | os.X_OK):
        why = f"{shown} cannot be written to"
    else:
        return
    raise FolderError(key, os.fspath(folder), f"{why}; accepted: a folder that can be created or written to")
