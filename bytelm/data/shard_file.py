"""Shards: files of tokens as 16-bit numbers, in the two formats that people have.

* nanoGPT's (`train.bin`, `val.bin`): the tokens and nothing else.
* llm.c's and modded-nanogpt's (`fineweb_train_000001.bin`): a header of 256 32-bit integers, which are a magic number,
  a version, the number of tokens and zeros; then the tokens.

All numbers are little-endian. The 253 zeros tell the two apart: no text has 506 tokens 0 ("!" for GPT-2) in a row.
"""

import os
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bytelm.errors import DataError
from bytelm.system.files import replacing

MAGIC, VERSION = 20240520, 1
LLAMA_MAGIC = 20240801
HEADER = 256  # 32-bit integers
HEADER_BYTES = 4 * HEADER
TOKEN, INTEGER = np.dtype("<u2"), np.dtype("<i4")


def read_shard(path: str | Path) -> NDArray[np.uint16]:
    """The tokens of a shard, read from the file as they are used.

    Args:
        path: A file of either format.

    Returns:
        A read-only memory map, uint16, (n,).

    Raises:
        DataError: It cannot be read, is empty, or is not, or not all of, a file of these formats.
    """
    try:
        size = os.path.getsize(path)
        header = np.fromfile(path, INTEGER, HEADER)
        is_raw = len(header) < HEADER or header[3:].any()
        offset = 0 if is_raw else HEADER_BYTES
        reason = _odd_size(size) if is_raw else _bad_header(size, header)
        if reason is None:
            return np.memmap(path, TOKEN, "r", offset)
    except OSError as error:
        reason = f"it cannot be read: {error.strerror or error}"
    raise DataError("data", str(path), reason)


def write_shard(path: str | Path, tokens: ArrayLike) -> None:
    """Writes a shard in llm.c's format, whole or not at all.

    Args:
        path: Where to, in a folder that exists; a file there is replaced.
        tokens: Whole numbers from 0 to 65535, (n,), fewer than 2**31.

    Raises:
        DataError: There are no tokens, or one is out of range.
    """
    numbers = np.asarray(tokens)
    if not numbers.size:
        raise DataError("data", str(path), "there are no tokens to write")
    for number in (numbers.min(), numbers.max()):
        if not 0 <= number <= np.iinfo(TOKEN).max:
            raise DataError("data", str(path), f"token {number} does not fit; accepted: 0 to {np.iinfo(TOKEN).max}")
    header = np.zeros(HEADER, INTEGER)
    header[:3] = MAGIC, VERSION, len(numbers)
    with replacing(Path(path)) as partial, open(partial, "wb") as file:
        header.tofile(file)
        numbers.astype(TOKEN, copy=False).tofile(file)


def _odd_size(size: int) -> str | None:
    if size == 0:
        return "it is empty; accepted: at least one token"
    if size % TOKEN.itemsize:
        return f"it has {size} bytes, an odd number; accepted: tokens of 2 bytes each"
    return None


def _bad_header(size: int, header: NDArray[np.int32]) -> str | None:
    magic, version, n_tokens = header[:3].tolist()
    if magic == LLAMA_MAGIC:
        return f"its magic number, {magic}, is that of 32-bit LLaMA tokens; accepted: {MAGIC}, 16-bit GPT-2 tokens"
    if magic != MAGIC:
        return f"its magic number is {magic}; accepted: {MAGIC} (llm.c's GPT-2 tokens), or no header at all (nanoGPT's)"
    if version != VERSION:
        return f"it is of version {version}; accepted: {VERSION}"
    if n_tokens <= 0:
        return f"its header tells of {n_tokens} tokens; accepted: at least one"
    told = HEADER_BYTES + n_tokens * TOKEN.itemsize
    if size != told:
        which = "it is cut short" if size < told else "there is more in it than its header tells"
        return f"{which}: {size} bytes; accepted: {told}, of {n_tokens} tokens and the header"
    return None
