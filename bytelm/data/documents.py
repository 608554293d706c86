"""Documents: texts in files of Parquet, JSON lines or plain text, group by group.

A group is a part of a file that is read at once: a row group of Parquet, a thousand lines of JSON, or a whole text
file. It has a number by which it can be read again: the row group's, the position of its first line, or 0.

This module and packing.py import no torch: the process that packs documents starts faster without it.
"""

import glob
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from bytelm.errors import ConfigError, DataError
from bytelm.system.files import searched

PARQUET = (".parquet",)
JSON_LINES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
TEXT = (".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".py")
KINDS = (PARQUET, JSON_LINES, TEXT)
COLUMN = "text"  # default of the column of Parquet, or the key of the JSON objects, that has the text
LINES = 1024  # of JSON in a group
ACCEPTED = "accepted: a file, a folder or a glob pattern with files of Parquet, JSON lines or text"
INSTALL = 'pip install "bytelm[tokens]" installs it'


def document_files(place: str, key: str) -> list[Path]:
    """Returns the files of a place, sorted.

    Args:
        place: A file; a folder, of which the files of Parquet are taken, also those in its subfolders (if there are
            none, those of JSON lines; if there are none, those of text), except hidden ones; or a glob pattern. A file
            with another ending is text.
        key: Key of the config, for the message.

    Raises:
        DataError: There are no such files.
    """
    path = Path(place).expanduser()
    if path.is_file():
        return [path]
    if not path.is_dir():
        found = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
        if not found:
            raise DataError(key, place, f"not found{searched(path)}; {ACCEPTED}")
        return found
    inside = sorted(file for file in path.rglob("*") if not _is_hidden(file.relative_to(path)) and file.is_file())
    for kind in KINDS:
        if found := [file for file in inside if file.name.endswith(kind)]:
            return found
    endings = ", ".join(ending for kind in KINDS for ending in kind)
    raise DataError(key, place, f"no file in it ends in {endings}; {ACCEPTED}")


def check_column(files: Iterable[Path], column: str, key: str) -> None:
    """Rejects the name of a column where no file has columns.

    Args:
        files: The files.
        column: The name.
        key: The option that gives it, for the message.

    Raises:
        ConfigError: It would have no effect.
    """
    if column != COLUMN and not any(file.name.endswith((*PARQUET, *JSON_LINES)) for file in files):
        raise ConfigError(key, column, "all files are text, which has no columns; accepted: leave it out")


def _is_hidden(file: Path) -> bool:
    return any(part.startswith(".") for part in file.parts)


def named(files: Sequence[Path | str]) -> str:
    """Some files for a message: the first one, and `…` if there are others."""
    return str(files[0]) if len(files) == 1 else f"{files[0]}, …"


def groups(file: Path, column: str, first: int = 0) -> Iterator[tuple[int, list[str]]]:
    """Yields the groups of a file, from one of them on: its number and its documents.

    Args:
        file: The file.
        column: Column of Parquet, or key of the JSON objects, that has the text.
        first: Number of the first group.

    Raises:
        DataError: The file cannot be read, or has no such column.
    """
    try:
        if file.name.endswith(PARQUET):
            yield from _parquet(file, column, first)
        elif file.name.endswith(JSON_LINES):
            yield from _json_lines(file, column, first)
        else:
            with file.open(encoding="utf-8", newline="") as opened:  # newline: line ends are kept
                yield 0, [opened.read()]
    except (OSError, EOFError, zlib.error, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError("data", str(file), f"it cannot be read: {error}") from error


def group(file: Path, column: str, number: int) -> list[str]:
    """Returns the documents of one group; see `groups`."""
    return next(texts for _, texts in groups(file, column, number))


def text_bytes(file: Path, column: str) -> int:
    """Returns about the number of bytes of a file's texts, without reading them.

    Raises:
        DataError: The file cannot be read, or has no such column.
    """
    if not file.name.endswith(PARQUET):
        return file.stat().st_size * (4 if file.name.endswith(".gz") else 1)
    metadata = _open_parquet(file, column).metadata
    index = metadata.schema.names.index(column)
    chunks = (metadata.row_group(number).column(index) for number in range(metadata.num_row_groups))
    return max(sum(chunk.total_uncompressed_size for chunk in chunks) - 4 * metadata.num_rows, 1)


def _open_parquet(file: Path, column: str) -> Any:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise DataError("data", str(file), f"it needs pyarrow, which is not installed; {INSTALL}") from error
    try:
        opened = parquet.ParquetFile(file)
    except (OSError, ValueError) as error:
        raise DataError("data", str(file), f"it cannot be read as Parquet: {error}") from error
    if column not in opened.schema_arrow.names:
        raise DataError(
            "data.column", column, f"accepted: the columns of {file}: {', '.join(opened.schema_arrow.names)}"
        )
    return opened


def _parquet(file: Path, column: str, first: int) -> Iterator[tuple[int, list[str]]]:
    with _open_parquet(file, column) as opened:
        for number in range(first, opened.num_row_groups):
            texts = opened.read_row_group(number, columns=[column]).column(column).to_pylist()
            for text in texts:
                if not isinstance(text, str):
                    raise DataError("data.column", column, f"{file} has {text!r:.50} there; accepted: texts")
            yield number, texts


def _json_lines(file: Path, column: str, first: int) -> Iterator[tuple[int, list[str]]]:
    with _open(file) as opened:
        opened.seek(first)
        number, texts = first, []
        for line in opened:
            if line.strip():
                texts.append(_text(line, column, lambda: f"line {_lines(file, opened.tell())} of {file}"))
            if len(texts) == LINES:
                yield number, texts
                number, texts = opened.tell(), []
        if texts:
            yield number, texts


def _open(file: Path) -> IO[bytes]:
    return gzip.open(file) if file.name.endswith(".gz") else file.open("rb")  # type: ignore[return-value]


def _lines(file: Path, end: int) -> int:
    """The number of lines that end at or before a position, which is the end of a line or of the file."""
    with _open(file) as opened:
        found = 0
        for line in opened:
            found += 1
            end -= len(line)
            if end <= 0:
                break
    return found


def _text(line: bytes, column: str, place: Callable[[], str]) -> str:
    try:
        found = json.loads(line)
    except ValueError as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise DataError("data", place(), f"it is not JSON: {reason}") from error
    text = found.get(column) if isinstance(found, dict) else None
    if not isinstance(text, str):
        if isinstance(found, dict) and column in found:
            raise DataError("data.column", column, f"{place()} has {text!r:.50} there; accepted: texts")
        known = ", ".join(found) if isinstance(found, dict) else "none"
        raise DataError("data.column", column, f"{place()} has no text there; its keys: {known}")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # one half of a pair of escapes, such as \ud800, is no character
        raise DataError("data", place(), f"its text is not Unicode: {error}; accepted: pairs of surrogates") from error
    return text
