"""The key `base` of a config file: the files that it extends.

    base: 32-rope-d80-ff256.yaml
    model: {gpt: {embedding: ScaledEmbedding}}

A file with a base means the same as passing its bases and then the file, each with `--config`: mappings are merged, and
a class that replaces another keeps the options that both have. Paths are relative to the file that names them; a path
that is not a file may be the name of a shipped config (shipped.py). If a file has several bases, the later ones take
precedence. A file that is a base of several others is applied once, before them. A run saves the resolved config, which
has no base.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bytelm.config import shipped
from bytelm.config.text import BadText, read

KEY = "base"
ACCEPTED = "accepted: a YAML file, by its path relative to this file, a shipped config, or a list of these"


class BaseFiles:
    """Applies the bases of one `--config`, and the bases of these.

    Args:
        apply: Applies a config file, given by its absolute path.
    """

    def __init__(self, apply: Callable[[str], None]) -> None:
        self._apply = apply
        self._start = os.getcwd()
        self._open: list[str] = []  # absolute paths: the file on the command line, one of its bases, …
        self._applied: set[str] = set()

    @contextmanager
    def opened(self, path: str) -> Iterator[None]:
        """Context in which the bases of a file are applied.

        Args:
            path: Path of the file, relative to the working directory.
        """
        path = _absolute(path)
        self._open.append(path)
        try:
            yield
            self._applied.add(path)
        finally:
            self._open.pop()

    @property
    def current(self) -> str | None:
        """Absolute path of the file that is being read; None while a config is read from text."""
        return self._open[-1] if self._open else None

    @property
    def in_base(self) -> bool:
        """Whether the file that is being read is a base."""
        return len(self._open) > 1

    def name(self, path: str) -> str:
        """A file's path for messages: relative to the program's working directory if the file is inside it."""
        short = os.path.relpath(_absolute(path), self._start)
        return path if short.startswith("..") else short

    def apply(self, base: Any) -> None:
        """Applies the bases of the file that is being read.

        Args:
            base: Value of the key `base`.

        Raises:
            BadText: A base is not a file, or is based on this file.
        """
        for path in paths_of(base, Path(self._open[-1]).parent if self._open else Path.cwd()):
            if path in self._open:
                cycle = [*self._open[self._open.index(path) :], path]
                raise BadText(f"{KEY}: {' -> '.join(map(self.name, cycle))} is a cycle; remove one of them")
            if path not in self._applied:
                self._apply(path)


def paths_of(base: Any, folder: Path) -> list[str]:
    """Returns the absolute paths that a `base` names.

    Args:
        base: Value of the key.
        folder: Folder of the file that contains the key.

    Raises:
        BadText: The value is not a path or a list of paths, or a path is neither a file nor a shipped config.
    """
    names = base if isinstance(base, list) else [base]
    if not names or not all(isinstance(name, str) and name for name in names):
        raise BadText(f"{KEY}: {base!r} is not accepted; {ACCEPTED}")
    return [_path_of(name, folder) for name in names]


def _path_of(name: str, folder: Path) -> str:
    path = _absolute(str(folder / os.path.expanduser(name)))
    if "\0" not in name and os.path.isfile(path):
        return path
    if (config := shipped.find(name)) is not None:
        return _absolute(str(config))
    raise BadText(f"{KEY}: {name!r}: there is no file {path!r} and {shipped.missing(name)}; {ACCEPTED}")


def files_of(config: str | Path) -> list[Path]:
    """Returns a config file and its bases, in the order in which they are applied.

    Raises:
        OSError: One of them cannot be read.
        UnicodeDecodeError: One of them is not UTF-8.
        BadText: One of them is not a config, or its bases are invalid.
    """
    found: list[Path] = []

    def apply(path: str) -> None:
        with files.opened(path):
            content = read(Path(path).read_text(encoding="utf-8"))
            if KEY in content:
                files.apply(content[KEY])
            found.append(Path(path))

    files = BaseFiles(apply)
    apply(str(config))
    return found


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))
