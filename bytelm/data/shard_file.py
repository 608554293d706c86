"""Shard files: tokens on disk, in the formats that nanoGPT and llm.c write.

* nanoGPT (`train.bin`, `val.bin`): 16-bit tokens and nothing else.
* llm.c and modded-nanogpt (`fineweb_train_000001.bin`): a header of 256 32-bit integers, then the tokens. The header
  holds a magic number, a version, the number of tokens, and zeros. The magic number determines the width of the tokens:
  16 bits (GPT-2) or 32 bits (LLaMA-3).

All numbers are little-endian. The 253 zeros distinguish a header from tokens: no text has 506 tokens 0 ("!" for GPT-2)
in a row. Files that only resemble shards (32-bit tokens without a header, llm.c's evaluation files) are rejected.

A shard is read with `pread`, one crop at a time. It is not mapped into memory: if another program truncates a mapped
file, the next access kills the process with SIGBUS, without a message or a checkpoint; `pread` returns fewer bytes.
"""

import errno
import os
import re
from collections.abc import Iterable
from io import FileIO
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bytelm.errors import DataError
from bytelm.system.files import replacing

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

Split = Literal["train", "val"]
Tokens = NDArray[np.uint16] | NDArray[np.uint32]

HEADER = 256  # 32-bit integers
HEADER_BYTES = 4 * HEADER
INTEGER = np.dtype("<i4")
TOKEN, WIDE_TOKEN = np.dtype("<u2"), np.dtype("<u4")


class Format(NamedTuple):
    """Properties of a magic number."""

    name: str
    version: int
    dtype: np.dtype[Any]


MAGIC = 20240520
FORMATS = {
    MAGIC: Format("16-bit tokens (GPT-2)", 1, TOKEN),
    20240801: Format("32-bit tokens (LLaMA-3)", 7, WIDE_TOKEN),
}
EVALUATION_MAGIC = 20240522  # its header has one more number, the size of the longest example
OTHER_FILES = {
    EVALUATION_MAGIC: "questions of an evaluation (HellaSwag, MMLU); the command `evaluate` asks such questions",
    20240326: "the weights of a network; the command `import` reads those of nanoGPT and Hugging Face",
    20240327: "a network's state, for debugging",
    20240328: "a tokenizer",
}

COMPARED = 8192  # bytes at the beginning of a file that distinguish 16-bit tokens from wider ones
FEWEST = 256  # bytes; in fewer, a pattern may be a coincidence
LARGEST_HIGH_HALF = 3  # of 32-bit tokens in vocabularies of up to 2**18

# How a file's name determines its split: by a whole word; `medieval_train.bin` does not contain the word `val`.
WORDS: dict[Split, re.Pattern[str]] = {
    "train": re.compile(r"(?<![a-z])train(ing)?(?![a-z])", re.IGNORECASE),
    "val": re.compile(r"(?<![a-z])val(id(ation)?)?(?![a-z])", re.IGNORECASE),
}


class Shard:
    """The tokens of a file, read on access: `shard[start:stop]` is an array of them.

    The file stays open: if another file gets its name, the shard still reads the one that was opened.

    Args:
        path: A file in one of the formats above.

    Attributes:
        path: The file.
        size: Size of the file in bytes, including its header.
        dtype: Type of the tokens, uint16 or uint32.

    Raises:
        DataError: The file cannot be read, is empty, or is not a complete file in one of these formats.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._file = _open(self.path)
        except OSError as error:
            raise DataError("data", str(path), _unreadable(error)) from error
        self.size, _ = self.stamp()
        start = self.read(0, min(self.size, max(COMPARED, HEADER_BYTES)))
        header = np.frombuffer(start[: min(len(start) // 4, HEADER) * 4], INTEGER)
        if has_header := _is_header(header):
            reason = _bad_header(self.size, header)
        else:
            reason = _bad_tokens(self.size, start)
        if reason:
            raise DataError("data", str(path), reason)
        self.dtype = FORMATS[int(header[0])].dtype if has_header else TOKEN
        self._offset = HEADER_BYTES if has_header else 0
        self._n_tokens = (self.size - self._offset) // self.dtype.itemsize

    def __len__(self) -> int:
        return self._n_tokens

    def __getitem__(self, where: slice) -> Tokens:
        start, stop, step = where.indices(self._n_tokens)
        itemsize = self.dtype.itemsize
        data = self.read(self._offset + start * itemsize, max(stop - start, 0) * itemsize)
        return np.frombuffer(data, self.dtype)[::step]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path,)  # a copy for another process opens the file itself

    def __del__(self) -> None:
        if file := getattr(self, "_file", None):
            file.close()

    def read(self, offset: int, n_bytes: int) -> bytes:
        """Reads bytes of the file.

        Args:
            offset: Position of the first byte.
            n_bytes: Number of bytes.

        Raises:
            DataError: The file cannot be read, or has become shorter since it was opened.
        """
        data = b""
        try:
            while len(data) < n_bytes:  # usually once; a system reads at most 2 GB at a time
                more = _read_at(self._file, n_bytes - len(data), offset + len(data))
                if not more:
                    raise DataError("data", str(self.path), "it was cut short while it was in use")
                data = data + more if data else more
        except OSError as error:
            raise DataError("data", str(self.path), _unreadable(error)) from error
        return data

    def stamp(self) -> tuple[int, int]:
        """Returns the size in bytes and the time of the last change in nanoseconds; writing changes them."""
        found = os.fstat(self._file.fileno())
        return found.st_size, found.st_mtime_ns


def write_shard(path: str | Path, tokens: ArrayLike) -> None:
    """Writes a shard in llm.c's 16-bit format, completely or not at all.

    Args:
        path: The file, in an existing folder; an existing file is replaced.
        tokens: Integers from 0 to 65535, (n,), fewer than 2**31.

    Raises:
        DataError: There are no tokens, or a token is out of range.
    """
    numbers = np.asarray(tokens)
    if not numbers.size:
        raise DataError("data", str(path), "there are no tokens to write")
    for number in (numbers.min(), numbers.max()):
        if not 0 <= number <= np.iinfo(TOKEN).max:
            raise DataError("data", str(path), f"token {number} does not fit; accepted: 0 to {np.iinfo(TOKEN).max}")
    header = np.zeros(HEADER, INTEGER)
    header[:3] = MAGIC, FORMATS[MAGIC].version, len(numbers)
    with replacing(Path(path)) as partial, open(partial, "wb") as file:
        header.tofile(file)
        numbers.astype(TOKEN, copy=False).tofile(file)


def find_shards(folder: Path, split: Split) -> list[Path]:
    """Returns the shards of a split in a folder, sorted: `.bin` files whose names contain the split's name as a word.

    Args:
        folder: The folder, searched without its subfolders.
        split: `train` or `val`; in file names, `training`, `valid` and `validation` count too.

    Raises:
        DataError: A name contains the words of both splits.
    """
    found = sorted(path for path in folder.glob("*.bin") if WORDS[split].search(path.stem))
    for path in found:
        if all(word.search(path.stem) for word in WORDS.values()):
            accepted = (
                "its name has both `train` and `val`; accepted: one of them, or files named in data.train, data.val"
            )
            raise DataError("data.path", str(path), accepted)
    return found


def check_disjoint(train: Iterable[Path], val: Iterable[Path]) -> None:
    """Checks that no file is both for training and for validation.

    Raises:
        DataError: One is.
    """
    trained = {file.resolve() for file in train}
    for file in val:
        if file.resolve() in trained:
            raise DataError("data.val", str(file), "it is also a file for training; accepted: other files")


def _open(path: Path) -> FileIO:
    try:
        return open(path, "rb", buffering=0)
    except OSError as error:
        if error.errno != errno.EMFILE or resource is None:
            raise
        # There are more shards than the usual limit of 1,024 files: it is raised to the system's maximum for this
        # process.
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        return open(path, "rb", buffering=0)


def _read_at(file: FileIO, n_bytes: int, offset: int) -> bytes:
    if hasattr(os, "pread"):  # without seek: forked processes share a file's position
        return os.pread(file.fileno(), n_bytes, offset)
    file.seek(offset)  # Windows
    return file.read(n_bytes)


def _unreadable(error: OSError) -> str:
    return f"it cannot be read: {error.strerror or error}"


def _is_header(numbers: NDArray[np.int32]) -> bool:
    if len(numbers) < HEADER:
        return False
    return not numbers[4 if numbers[0] == EVALUATION_MAGIC else 3 :].any()


def _bad_tokens(size: int, start: bytes) -> str | None:
    """Returns the reason why a file without a header is rejected; None if it is accepted."""
    if size == 0:
        return "it is empty; accepted: at least one token"
    if start.startswith(b"\x93NUMPY"):
        return "it is a .npy file; accepted: tokens alone, as `array.astype(numpy.uint16).tofile(path)` writes them"
    if size % TOKEN.itemsize:
        return f"it has {size} bytes, an odd number; accepted: tokens of 2 bytes each"
    pairs = np.frombuffer(start[: len(start) // 8 * 8], TOKEN).reshape(-1, 2)
    low, high = pairs.T
    # The high halves of 32-bit tokens are 0, or 1 in a vocabulary of 100,000; in text they are arbitrary tokens.
    if len(start) >= FEWEST and size % 4 == 0 and high.max() <= LARGEST_HIGH_HALF < low.max():
        width = 64 if size % 8 == 0 and not low[1::2].any() else 32
        return (
            f"it looks like {width}-bit tokens without a header: every second 16-bit number is at most {high.max()}; "
            "accepted: 16-bit tokens (`array.astype(numpy.uint16).tofile(path)`, if all are below 65,536), or llm.c's "
            "format with a header"
        )
    return None


def _bad_header(size: int, header: NDArray[np.int32]) -> str | None:
    """Returns the reason why a file with a header is rejected; None if it is accepted."""
    magic, version, n_tokens = header[:3].tolist()
    accepted = "accepted: " + ", ".join(f"{number} for {known.name}" for number, known in FORMATS.items())
    if magic in OTHER_FILES:
        return f"its magic number is {magic}: in llm.c, {OTHER_FILES[magic]}; {accepted}"
    if magic not in FORMATS:
        return f"its magic number is {magic}; {accepted}, or no header (nanoGPT)"
    form = FORMATS[magic]
    if version != form.version:
        return f"it is version {version} of {form.name}; accepted: {form.version}"
    if n_tokens <= 0:
        return f"its header announces {n_tokens} tokens; accepted: at least one"
    announced = HEADER_BYTES + n_tokens * form.dtype.itemsize
    if size != announced:
        which = "it is cut short" if size < announced else "it is longer than its header announces"
        return f"{which}: {size} bytes; accepted: {announced}, the header and {n_tokens} tokens"
    return None
