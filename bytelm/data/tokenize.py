"""Text to tokens by several processes, which the scripts that make shards share.

Text comes in pieces, each a document or a part of a long one, and goes out as an array of tokens for each, in the same
order and with the same tokens whatever the number of processes.
"""

import multiprocessing
import os
import re
import signal
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bytelm.config.text import dump
from bytelm.data.tokenizer import Tokenizer, load_tokenizer
from bytelm.errors import ConfigError, DataError
from bytelm.system.process import end_worker_with_parent

Tokens = NDArray[np.uint16]
N_TOKENS = 2**16  # that a shard can tell apart
BATCH_CHARACTERS = 2**19  # that a process is handed at once
PIECE_CHARACTERS = 2**20  # of a file that are in memory at once


class Piece(NamedTuple):
    """Text of a document, and whether the document begins with it."""

    text: str
    begins: bool = True


def shard_tokenizer(name: str) -> Tokenizer:
    """A tokenizer whose tokens fit into shards.

    Args:
        name: As for load_tokenizer.

    Raises:
        DataError: It has too many tokens, or none to begin a document with.
    """
    tokenizer = load_tokenizer(name)
    if tokenizer.vocab_size > N_TOKENS:
        raise DataError("tokenizer", name, f"it has {tokenizer.vocab_size} tokens; accepted: up to {N_TOKENS}")
    if tokenizer.end_of_text is None:
        raise DataError("tokenizer", name, "it has no end-of-text token, which documents begin with")
    return tokenizer


def shard_folder(path: str) -> Path:
    """The folder that shards go to, made where it is not there.

    Raises:
        ConfigError: It cannot be made.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError("out", path, f"accepted: a folder that can be written to; {error.strerror}") from error
    return folder


def config_lines(folder: str, tokenizer: Tokenizer) -> str:
    """What a config needs to train on a folder's shards, as YAML."""
    size = tokenizer.vocab_size
    data = {"path": folder, "tokenizer": tokenizer.name, "vocab_size": size}
    config = {"data": {"class_path": "TokenShards", "init_args": data}, "model": {"gpt": {"vocab_size": size}}}
    return dump(config).rstrip()


def text_pieces(file: Path, separator: str | None = None) -> Iterator[Piece]:
    """The documents of a text file, of which a small part is in memory at a time.

    Long documents are cut before the last line end or space of a gap, where GPT-2's tokenizer cuts text, too. Empty
    documents are left out.

    Args:
        file: UTF-8.
        separator: What stands between two documents; without it the file is one.

    Raises:
        DataError: The file cannot be read, or is no UTF-8.
    """
    rest, begins = "", True
    try:
        with file.open(encoding="utf-8", newline="") as opened:  # newline: line ends stay as they are
            while read := opened.read(PIECE_CHARACTERS):
                *documents, rest = (rest + read).split(separator) if separator else [rest + read]
                for document in documents:
                    if document:
                        yield Piece(document, begins)
                    begins = True
                if cut := _last_gap(rest, len(rest) - len(separator or "")):
                    yield Piece(rest[:cut], begins)
                    rest, begins = rest[cut:], False
    except (OSError, UnicodeError) as error:
        raise DataError("path", str(file), f"accepted: text in UTF-8; {error}") from error
    if rest:
        yield Piece(rest, begins)


def _last_gap(text: str, end: int) -> int:
    """Where to cut a text, at `end` at most; 0 where it is short."""
    if end < PIECE_CHARACTERS // 2:
        return 0
    gap = re.compile(r"(?s:.*)[\n ](?=\S)").match(text, 0, end)
    return gap.end() - 1 if gap and gap.end() > 1 else end


def encoded(pieces: Iterable[Piece], tokenizer: Tokenizer, processes: int) -> Generator[Tokens, None, None]:
    """Tokens of each piece, in order, an end-of-text token before those of each document.

    Args:
        pieces: Read a little ahead of what is taken.
        tokenizer: One that load_tokenizer knows by its name.
        processes: How many to encode with; 1 is this one.
    """
    batches = _batches(pieces)
    if processes == 1:
        for batch in batches:
            yield from _encode(tokenizer, batch)
        return
    context = multiprocessing.get_context("spawn")  # a fork would inherit the threads and locks of other libraries
    executor = ProcessPoolExecutor(processes, context, initializer=_begin_worker, initargs=(tokenizer.name,))
    under_way: deque[Future[list[Tokens]]] = deque()
    try:
        for batch in batches:
            under_way.append(executor.submit(_work, batch))
            if len(under_way) > 2 * processes:
                yield from under_way.popleft().result()
        while under_way:
            yield from under_way.popleft().result()
    finally:
        executor.shutdown(cancel_futures=True)


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    batch, size = [], 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encode(tokenizer: Tokenizer, pieces: list[Piece]) -> list[Tokens]:
    tokens = tokenizer.encode_batch([piece.text for piece in pieces])
    begin = [tokenizer.end_of_text]
    return [np.array([*(begin * piece.begins), *one], np.uint16) for piece, one in zip(pieces, tokens, strict=True)]


# In a process of its own

_tokenizer: Tokenizer


def _begin_worker(name: str) -> None:
    global _tokenizer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes, and the first of them ends the others
    end_worker_with_parent()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there are enough processes
    _tokenizer = load_tokenizer(name)


def _work(pieces: list[Piece]) -> list[Tokens]:
    return _encode(_tokenizer, pieces)
