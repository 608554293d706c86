"""Text to tokens with several processes, for the scripts that make shards.

The input is pieces of text, each a document or a part of a long one. The output is an array of tokens for each piece,
in the same order; the tokens do not depend on the number of processes.
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
from bytelm.errors import DataError
from bytelm.system.files import check_folder
from bytelm.system.process import end_worker_with_parent

Tokens = NDArray[np.uint16]
N_TOKENS = 2**16  # the number of different tokens in a shard
BATCH_CHARACTERS = 2**19  # that a process receives at once
PIECE_CHARACTERS = 2**20  # of a file, in memory at once


class Piece(NamedTuple):
    """A piece of a document's text, and whether the document begins with it."""

    text: str
    begins: bool = True


def shard_tokenizer(name: str) -> Tokenizer:
    """Loads a tokenizer whose tokens fit into shards.

    Args:
        name: A name that load_tokenizer accepts.

    Raises:
        DataError: It has too many tokens, or no token that marks the beginning of a document.
    """
    tokenizer = load_tokenizer(name)
    if tokenizer.vocab_size > N_TOKENS:
        raise DataError("tokenizer", name, f"it has {tokenizer.vocab_size} tokens; accepted: up to {N_TOKENS}")
    if tokenizer.end_of_text is None:
        raise DataError("tokenizer", name, "it has no end-of-text token, which documents begin with")
    return tokenizer


def shard_folder(path: str) -> Path:
    """Returns the folder for shards, and creates it if it does not exist.

    Raises:
        FolderError: The folder cannot be created or written to.
    """
    check_folder("out", path)
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def config_lines(folder: str, tokenizer: Tokenizer) -> str:
    """Returns the part of a config that trains on a folder's shards, as YAML."""
    size = tokenizer.vocab_size
    data = {"path": folder, "tokenizer": tokenizer.name, "vocab_size": size}
    config = {"data": {"class_path": "TokenShards", "init_args": data}, "model": {"gpt": {"vocab_size": size}}}
    return dump(config).rstrip()


def text_pieces(file: Path, separator: str | None = None) -> Iterator[Piece]:
    """Yields the documents of a text file; only a small part of the file is in memory at a time.

    Long documents are cut before the last line end or space of a gap, where GPT-2's tokenizer also cuts text. Empty
    documents are left out.

    Args:
        file: UTF-8.
        separator: Text between two documents; without it the file is one document.

    Raises:
        DataError: The file cannot be read, or is not UTF-8.
    """
    rest, begins = "", True
    try:
        with file.open(encoding="utf-8", newline="") as opened:  # newline: line ends are kept
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
    """Returns the position at which to cut a text, at most `end`; 0 if the text is short."""
    if end < PIECE_CHARACTERS // 2:
        return 0
    gap = re.compile(r"(?s:.*)[\n ](?=\S)").match(text, 0, end)
    return gap.end() - 1 if gap and gap.end() > 1 else end


def encoded(pieces: Iterable[Piece], tokenizer: Tokenizer, processes: int) -> Generator[Tokens, None, None]:
    """Yields the tokens of each piece, in order; each document begins with an end-of-text token.

    Args:
        pieces: Pieces of text; read a little ahead of the tokens.
        tokenizer: One that load_tokenizer knows by its name.
        processes: Number of processes that encode; with 1, this process does.
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


# Runs in the worker processes

_tokenizer: Tokenizer


def _begin_worker(name: str) -> None:
    global _tokenizer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all processes receive a Ctrl-C; the first one ends the others
    end_worker_with_parent()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there are enough processes
    _tokenizer = load_tokenizer(name)


def _work(pieces: list[Piece]) -> list[Tokens]:
    return _encode(_tokenizer, pieces)
