"""The corpora: Shakespeare (downloaded once), PythonSource (present on every machine), Bytes (your own files)."""

import glob
import hashlib
import os
import sysconfig
from collections.abc import Iterator
from mmap import ACCESS_COPY, mmap
from pathlib import Path
from typing import Any, BinaryIO, Literal, NoReturn

import numpy as np
import torch
from torch import Tensor

from bytelm.config.messages import note
from bytelm.data.bytes import ByteData, Corpus, read_bytes
from bytelm.data.download import DownloadError, download, kept_hash, strip_gutenberg, strip_gutenberg_lf
from bytelm.data.file_watch import FileWatch, Stamp
from bytelm.errors import ConfigError, DataError
from bytelm.system.files import searched, sha256_of

URL = "https://www.gutenberg.org/cache/epub/100/pg100.txt"
READ_AT_MOST = 2**30  # bytes of a single file; larger ones are mapped
PROBED = 8192  # first bytes of a file, of which none is 0 in text, as git and grep decide
NAMED = 3  # files in a note


class Shakespeare(ByteData):
    """The complete works of Shakespeare.

    Searched for as shakespeare.txt in $BYTELM_DATA, then in the cache folder ($XDG_CACHE_HOME/bytelm, or
    ~/.cache/bytelm). If neither has it, Project Gutenberg's etext 100 is downloaded to the cache folder. A text that is
    found is used as it is, whatever its line ends.

    Args:
        url: Address to download the text from.
        sha256: Required hash of the download; none by default, as Project Gutenberg revises its texts.
        line_ends: `crlf`: the bytes of the challenge's corpus, with the etext's line ends and none added at the end.
            `lf`: Unix line ends, one of them at the end, as bytelm downloaded up to 0.2.0. A text with other line ends
            is rejected. Default: any text that is found, otherwise a download as `crlf`.
        kwargs: The options of ByteData.
    """

    def __init__(
        self,
        url: str = URL,
        sha256: str | None = None,
        line_ends: Literal["crlf", "lf"] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.url = url
        self.line_ends = line_ends
        self.sha256 = sha256
        self._is_told = False  # that a text is there; Lightning calls prepare_data again

    def prepare_data(self) -> None:
        # Lightning calls this on one rank of each host.
        if (found := self._find()) is not None:
            given = {"data.url": self.url != URL, "data.sha256": self.sha256 is not None}
            if options := [key for key, is_given in given.items() if is_given and not self._is_told]:
                note(f"{', '.join(options)}: no effect, because {found} is used, and nothing is downloaded")
            self._is_told = True
            return
        target = _cache_folder() / "shakespeare.txt"
        try:
            transform = strip_gutenberg_lf if self.line_ends == "lf" else strip_gutenberg
            download(self.url, target, transform, sha256=self.sha256)
        except DownloadError as error:
            raise DataError(
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
        text = path.read_bytes()
        if kept_hash(path) not in (None, hashlib.sha256(text).hexdigest()):
            raise DataError(
                "data",
                str(path),
                "it has changed since it was downloaded; delete it to download it again, or delete "
                f"{path.name}.sha256 to train on it as it is",
            )
        found = "crlf" if b"\r\n" in text else "lf"
        if self.line_ends not in (None, found):
            raise DataError(
                "data.line_ends",
                self.line_ends,
                f"{path} has the line ends {found}; leave line_ends out to train on it as it is, or move it away to "
                f"download the text with {self.line_ends}",
            )
        return Corpus("shakespeare", read_bytes(text))

    def _find(self) -> Path | None:
        own = os.environ.get("BYTELM_DATA")
        folders = [Path(own), _cache_folder()] if own else [_cache_folder()]
        try:
            if not folders[0].is_dir() and own:
                raise DataError(
                    "BYTELM_DATA", own, "it is not a directory; set it to one that has shakespeare.txt, or unset it"
                )
            return next((path for folder in folders if (path := folder / "shakespeare.txt").is_file()), None)
        except OSError as error:
            advice = "set BYTELM_DATA to a folder that has shakespeare.txt and can be read"
            raise DataError("data", "Shakespeare", f"{error}; {advice}") from error


class PythonSource(ByteData):
    """The source text of Python's standard library: real text on every machine that has Python.

    Modules are joined in an order that depends on their names but looks random. The last tenth of the corpus is
    therefore of the same kind as the first. The text differs between Python versions; the run record has its hash.
    """

    def read(self) -> Corpus:
        library = Path(sysconfig.get_path("stdlib"))
        skipped = {"site-packages", "dist-packages", "test", "tests", "__pycache__"}
        names = []
        for folder, subfolders, files in os.walk(library, onerror=_raise):
            subfolders[:] = set(subfolders) - skipped  # not searched: site-packages can hold 10^5 files
            names += [Path(folder, file).relative_to(library) for file in files if file.endswith(".py")]
        names.sort(key=lambda name: hashlib.sha256(name.as_posix().encode()).digest())
        return Corpus("python-source", read_bytes(b"".join((library / name).read_bytes() for name in names)))


class Bytes(ByteData):
    """Your own files, as bytes.

    Text is read into memory when the run starts: the files may change afterwards. A single file of more than 1 GiB is
    mapped instead, and a run that detects a change in it ends. If such a file is truncated, SIGBUS may kill the process
    before the change is detected.

    Args:
        path: A file, a folder, a glob pattern, or a list of these. A folder stands for the text files in it and its
            subfolders, sorted by path, without hidden ones (a file or folder whose name starts with a dot) and binary
            ones (a zero byte among the first 8192 bytes), which a note names. A file that is named itself, or that
            matches a glob pattern, may have any bytes.
        kwargs: The options of ByteData.
    """

    _watch: FileWatch | None = None  # of a mapped file

    def __init__(self, path: str | list[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.paths = [path] if isinstance(path, str) else path
        if not self.paths:
            raise ConfigError("path", path, "accepted: at least one file, folder or glob")

    def read(self) -> Corpus:
        files = [file for path in self.paths for file in text_files(path, "data.path")]
        name = Path(self.paths[0]).name or self.paths[0]
        if len(files) > 1:
            return Corpus(name, read_bytes(b"".join(file.read_bytes() for file in files)))
        if files[0].stat().st_size <= READ_AT_MOST:
            return Corpus(name, torch.from_numpy(np.fromfile(files[0], np.uint8)))
        file = files[0].open("rb")
        self._watch = FileWatch(lambda: {files[0]: _stamp(file)}, lambda: _hash(file))
        return Corpus(name, _mapped(file))

    def changed(self) -> str | None:
        return None if self._watch is None else self._watch.changed(self.corpus.sha256)


def text_files(path: str, key: str = "path") -> list[Path]:
    """Returns the files of a path, sorted: the file itself, those in a folder, or those that match a glob pattern.

    Hidden files of a folder are left out, as in a glob pattern; so are binary ones, which a note names.

    Args:
        path: The path.
        key: The option that gives it, for the message.

    Raises:
        DataError: There are no such files.
    """
    expanded = Path(path).expanduser()
    if expanded.is_file():
        return [expanded]
    is_folder = expanded.is_dir()
    found = _walk(expanded) if is_folder else map(Path, glob.glob(str(expanded), recursive=True))
    files = sorted(file for file in found if file.is_file())
    if not files:
        accepted = "accepted: a file, a folder with files in it, or a glob that matches some"
        raise DataError(key, path, f"{_what_it_is(expanded)}; {accepted}")
    return _text_alone(files, path, key) if is_folder else files


def _text_alone(files: list[Path], folder: str, key: str) -> list[Path]:
    """Returns the files of a folder without the binary ones, which a note names.

    Raises:
        DataError: All are binary.
    """
    binary = [file for file in files if _is_binary(file)]
    if not binary:
        return files
    everything = f"{str(folder).rstrip('/')}/**/*"
    if len(binary) == len(files):
        raise DataError(key, folder, f"all of its {len(files)} files are binary; accepted to read them: {everything!r}")
    names = ", ".join(map(str, binary[:NAMED])) + (", …" if len(binary) > NAMED else "")
    count = "1 binary file" if len(binary) == 1 else f"{len(binary)} binary files"
    note(f"{key}: {count} of {folder} left out: {names}; {everything!r} includes all files")
    left_out = {*binary}
    return [file for file in files if file not in left_out]


def _is_binary(file: Path) -> bool:
    with file.open("rb") as opened:
        return b"\0" in opened.read(PROBED)


def _walk(folder: Path) -> Iterator[Path]:
    """Yields everything in a folder that is not hidden; unlike Path.rglob, it does not skip unreadable folders."""
    for parent, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent, name) for name in names if not name.startswith("."))


def _raise(error: OSError) -> NoReturn:
    raise error


def _what_it_is(path: Path) -> str:
    if path.is_dir():
        return "it is a folder without files, or with hidden ones alone"
    if path.exists():
        return "it is neither a file nor a folder"
    if path.is_symlink():
        return "it is a broken link"
    return f"not found{searched(path)}"


def _mapped(file: BinaryIO) -> Tensor:
    """Maps a file into memory: of a corpus larger than memory, only the parts in use take space."""
    return torch.frombuffer(mmap(file.fileno(), 0, access=ACCESS_COPY), dtype=torch.uint8)


def _stamp(file: BinaryIO) -> Stamp:
    found = os.fstat(file.fileno())
    return found.st_size, found.st_mtime_ns


def _hash(file: BinaryIO) -> str:
    file.seek(0)
    return sha256_of([file])


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bytelm"
