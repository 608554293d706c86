"""Encoded documents that the packing processes of one machine give each other, as files in a temporary folder.

All ranks pack all documents, and encoding takes nearly all of the time of packing. Therefore each process encodes its
part of a group of documents and takes the others from the other ranks' processes. Every process can encode any
document, with the same tokens: a file that is missing, because its writer has ended or cannot write, costs only time.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[Any]

PATIENCE = 20.0  # seconds; a process that starts late has loaded its tokenizer by then
POLL = 0.001  # seconds
FILES = 32  # that a process keeps; the ranks differ by fewer batches than it writes in the meantime


class Sharing(NamedTuple):
    """The ranks of a machine that encode together.

    Attributes:
        folder: Their folder, of this run alone.
        rank: Number of this one.
        world_size: Their number.
    """

    folder: str
    rank: int
    world_size: int


class SharedTokens:
    """One process's side of the exchange.

    Args:
        sharing: Who takes part.
        patience: Seconds to wait for a file, once; after that, only files that exist are used.
    """

    def __init__(self, sharing: Sharing, patience: float = PATIENCE) -> None:
        self.folder = Path(sharing.folder)
        self.rank = sharing.rank
        self.world_size = sharing.world_size
        self.patience = patience
        self._given: deque[Path] = deque()
        self._gives = True
        with suppress(OSError):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def batches(
        self, name: tuple[int, int], begins: Sequence[int], encode: Callable[[int], list[Tokens]]
    ) -> Iterator[tuple[int, list[Tokens]]]:
        """Yields the batches of a group of documents in order: the number of the first document, and the tokens.

        Args:
            name: File and group.
            begins: The first documents of its batches.
            encode: Encodes the batch that begins with a document.
        """
        turn = sum(name)
        mine = {begin: encode(begin) for i, begin in enumerate(begins) if (turn + i) % self.world_size == self.rank}
        for begin, tokens in mine.items():
            self._give(self._path(name, begin), tokens)
        for begin in begins:
            if begin in mine:
                yield begin, mine.pop(begin)
            else:
                yield begin, self._take(self._path(name, begin)) or encode(begin)

    def _path(self, name: tuple[int, int], begin: int) -> Path:
        return self.folder / "-".join(map(str, (*name, begin)))

    def _give(self, path: Path, tokens: list[Tokens]) -> None:
        if not self._gives:
            return
        part = path.with_name(f"{path.name}.{self.rank}.part")
        try:
            with part.open("wb") as file:
                np.save(file, np.array(list(map(len, tokens))))
                np.save(file, np.concatenate(tokens))
            os.replace(part, path)  # complete, or not there
        except OSError:  # the disk is full, or the run has ended and removed the folder
            self._gives = False
            return
        self._given.append(path)
        if len(self._given) > FILES:
            with suppress(OSError):
                self._given.popleft().unlink()

    def _take(self, path: Path) -> list[Tokens] | None:
        end = time.monotonic() + self.patience
        while True:
            try:
                with path.open("rb") as file:
                    lengths, tokens = np.load(file), np.load(file)
                return np.split(tokens, np.cumsum(lengths)[:-1])
            except OSError:  # not there yet
                if time.monotonic() >= end:
                    self.patience = 0.0
                    return None
            time.sleep(POLL)
