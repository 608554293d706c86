"""The corpora: Shakespeare (downloaded once), PythonSource (on every machine already), Bytes (your own files)."""

import glob
import hashlib
import os
import sysconfig
from pathlib import Path
from typing import Any

import torch

from bytelm.data.bytes import ByteData, Corpus, read_bytes
from bytelm.data.download import DownloadError, download, strip_gutenberg
from bytelm.errors import ConfigError


class Shakespeare(ByteData):
    """The complete works of Shakespeare.

    Looked for as shakespeare.txt in $BYTELM_DATA, then in the cache folder ($XDG_CACHE_HOME/bytelm, or
    ~/.cache/bytelm); if it is in neither, Project Gutenberg's etext 100 is downloaded there.

    Args:
        url: Where the text is downloaded from.
        kwargs: The options of ByteData.
    """

    def __init__(self, url: str = "https://www.gutenberg.org/cache/epub/100/pg100.txt", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.url = url

    def prepare_data(self) -> None:
        # Lightning calls this on one rank of each host.
        if self._find() is not None:
            return
        target = _cache_folder() / "shakespeare.txt"
        try:
            download(self.url, target, transform=strip_gutenberg)
        except DownloadError as error:
            raise ConfigError(
                "data",
                "Shakespeare",
                f"no shakespeare.txt in $BYTELM_DATA or {target.parent}, and the download failed: {error}. Place the "
                f"text at {target}, or set BYTELM_DATA to a folder that has it",
            ) from error

    def read(self) -> Corpus:
        path = self._find()
        if path is None:  # used without a Trainer, which would have called prepare_data
            self.prepare_data()
            path = _cache_folder() / "shakespeare.txt"
        return Corpus("shakespeare", read_bytes(path.read_bytes()))

    def _find(self) -> Path | None:
        folders = [Path(folder) for folder in [os.environ.get("BYTELM_DATA")] if folder]
        candidates = [folder / "shakespeare.txt" for folder in [*folders, _cache_folder()]]
        return next((path for path in candidates if path.is_file()), None)


class PythonSource(ByteData):
    """The source text of Python's standard library: real text that is already on every machine with Python.

    Modules are joined in an order that depends on their names but looks random, so that the last tenth of the corpus
    is of the same kind as the first. The text differs between Python versions; the run record's hash tells.
    """

    def read(self) -> Corpus:
        library = Path(sysconfig.get_path("stdlib"))
        skipped = {"site-packages", "dist-packages", "test", "tests", "__pycache__"}
        names = []
        for folder, subfolders, files in os.walk(library):
            subfolders[:] = set(subfolders) - skipped  # not walked into: site-packages can hold 10^5 files
            names += [Path(folder, file).relative_to(library) for file in files if file.endswith(".py")]
        names.sort(key=lambda name: hashlib.sha256(name.as_posix().encode()).digest())
        return Corpus("python-source", read_bytes(b"".join((library / name).read_bytes() for name in names)))


class Bytes(ByteData):
    """Any files of yours, as bytes.

    Args:
        path: A file, a folder (all files in it, sorted by path), a glob pattern, or a list of these.
        kwargs: The options of ByteData.
    """

    def __init__(self, path: str | list[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.paths = [path] if isinstance(path, str) else path
        if not self.paths:
            raise ConfigError("path", path, "accepted: at least one file, folder or glob")

    def read(self) -> Corpus:
        files = [file for path in self.paths for file in _files(path)]
        name = Path(self.paths[0]).name or self.paths[0]
        if len(files) == 1 and files[0].stat().st_size:
            # Memory-mapped: a corpus larger than memory costs only what is read of it.
            stream = torch.from_file(str(files[0]), size=files[0].stat().st_size, dtype=torch.uint8)
            return Corpus(name, stream)
        return Corpus(name, read_bytes(b"".join(file.read_bytes() for file in files)))


def _files(path: str) -> list[Path]:
    expanded = Path(path).expanduser()
    if expanded.is_file():
        return [expanded]
    found = expanded.rglob("*") if expanded.is_dir() else map(Path, glob.glob(str(expanded), recursive=True))
    files = sorted(file for file in found if file.is_file())
    if not files:
        raise ConfigError("path", path, "accepted: a file, a folder with files in it, or a glob that matches some")
    return files


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bytelm"
