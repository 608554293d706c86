"""Batches of packed rows: for training from a process that works ahead, and for evaluation."""

import os
import pickle
import queue
import shutil
import subprocess
import sys
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bytelm.data.documents import named
from bytelm.data.pack_worker import Block, Job, blocks
from bytelm.data.packing import Tokens
from bytelm.data.tokenizer import Tokenizer
from bytelm.errors import DataError

AHEAD = 4  # batches of all ranks that are ready in advance
PLACE = ("start", "place", "buffer")  # keys of the state: the first row of a block, and the packer's place before it
KEPT = 2  # batches of all ranks that a position may go back


class Ahead:
    """Blocks of a job that another process makes in advance.

    Args:
        job: The job.
        state: The place of its first block; None: the beginning.
        n_blocks: Blocks that are ready in advance.
    """

    def __init__(self, job: Job, state: dict[str, Any] | None, n_blocks: int) -> None:
        # The import path of this process, which may have been changed after it started.
        path = os.pathsep.join(place or os.getcwd() for place in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bytelm.data.pack_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
        )
        assert self._process.stdin is not None
        with suppress(BrokenPipeError), self._process.stdin as given:  # if it has ended, `_read` says so
            pickle.dump((job, state), given)
        self._ready: queue.Queue[Any] = queue.Queue(n_blocks)
        ended = threading.Event()
        arguments = (self._process, self._ready, ended)
        threading.Thread(target=_read, args=arguments, daemon=True, name="packed-rows").start()
        self.end = weakref.finalize(self, _end, self._process, ended)

    def __iter__(self) -> Iterator[Block]:
        return self

    def __next__(self) -> Block:
        """Returns the next block.

        Raises:
            DataError: The documents or the tokenizer cannot be read.
            RuntimeError: The process has failed.
        """
        kind, *content = self._ready.get()
        if kind == "block":
            place, rows = content
            return place, rows
        self.end()
        if kind == "end":
            raise StopIteration
        if kind == "data":
            error = DataError.__new__(DataError)  # the text is the whole message
            error.args = (content[0],)
            raise error
        raise RuntimeError(f"the process that packs documents has failed: {content[0]}")


def _read(process: Any, ready: "queue.Queue[Any]", ended: threading.Event) -> None:
    """Puts a process's messages into a queue, in a thread, until one of both ends."""
    kind = "block"
    while kind == "block":
        try:
            message = pickle.load(process.stdout)
        except (EOFError, OSError, ValueError, pickle.UnpicklingError):
            message = ("failed", f"it ended with status {process.wait()}")
        kind = message[0]
        while not ended.is_set():
            try:
                ready.put(message, timeout=1)
                break
            except queue.Full:
                continue
        if ended.is_set():
            return


def _end(process: Any, ended: threading.Event) -> None:
    ended.set()
    process.kill()
    process.wait()
    process.stdout.close()


class PackedLoader:
    """Endless batches of one rank's packed rows; the position can be saved.

    All ranks pack the same rows; together they take the next ones, and rank r uses the r-th part of each batch's rows.
    Those of one machine encode the documents together (shared_tokens.py).
    `batch_size` can be set between two batches; no row is skipped or taken twice.

    Args:
        job: The rows.
        batch_size: Rows of one batch of one rank.
        tokenizer: The job's tokenizer.
        rank: This rank.
        world_size: Number of ranks.
        ahead: Whether another process works ahead; otherwise each batch is packed when it is due.
        pin_memory: Whether batches are in pinned memory, which a GPU can read directly.
    """

    def __init__(
        self,
        job: Job,
        batch_size: int,
        tokenizer: Tokenizer,
        rank: int = 0,
        world_size: int = 1,
        ahead: bool = True,
        pin_memory: bool = False,
    ) -> None:
        self.job = job
        self.batch_size = batch_size
        self.tokenizer = tokenizer
        self.rank = rank
        self.world_size = world_size
        self.ahead = ahead
        self.pin_memory = pin_memory
        self.position = 0  # rows that all ranks together have taken
        self._loaded: dict[str, Any] = {"start": 0}  # the place where the first block begins
        self._kept: deque[tuple[int, Block]] = deque()  # blocks with the number of their first row
        self._next = 0  # first row of the next block
        self._source: Iterator[Block] | None = None
        if job.sharing is not None and job.sharing.rank == 0:
            weakref.finalize(self, shutil.rmtree, job.sharing.folder, ignore_errors=True)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            n_rows = self.batch_size * self.world_size
            first = self.position + self.rank * self.batch_size
            rows = self._rows(first, first + self.batch_size)
            self.position += n_rows
            while self._kept and self._end_of_first() < self.position - KEPT * n_rows:
                self._kept.popleft()
            yield as_batch(rows, self.pin_memory)

    def state_dict(self) -> dict[str, Any]:
        """Lightning stores this state in checkpoints: the position, and the packer's place at or before it."""
        for start, (place, _) in reversed(self._kept):
            if start <= self.position:
                buffer = place["buffer"].flatten().tolist()  # checkpoints hold no tensors of data
                return {"position": self.position, "start": start, "place": place["place"], "buffer": buffer}
        return {**self._loaded, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes at a checkpoint's position."""
        position = state["position"]
        first = self._kept[0][0] if self._kept else self._next
        if not first <= position <= max(self.position, first):
            self.close()
            self._loaded = {"start": 0, **{key: value for key, value in state.items() if key in PLACE}}
        self.position = position

    def close(self) -> None:
        """Ends the process that works ahead; the next batch starts another one."""
        self._loaded = {key: value for key, value in self.state_dict().items() if key in PLACE}
        self._kept.clear()
        if isinstance(self._source, Ahead):
            self._source.end()
        self._source = None

    def _begin(self) -> Iterator[Block]:
        self._next = self._loaded["start"]
        place = None
        if "place" in self._loaded:
            place = {"place": self._loaded["place"], "buffer": np.reshape(self._loaded["buffer"], (-1, 3))}
        if not self.ahead:
            return blocks(self.job, place, self.tokenizer)
        return Ahead(self.job, place, -(-AHEAD * self.batch_size * self.world_size // self.job.block_rows))

    def _rows(self, first: int, end: int) -> list[Tokens]:
        if self._source is None:
            self._source = self._begin()
        while self._next < self.position + self.batch_size * self.world_size:
            block = next(self._source)
            self._kept.append((self._next, block))
            self._next += len(block[1])
        parts = (rows[max(first - start, 0) : max(end - start, 0)] for start, (_, rows) in self._kept)
        return [part for part in parts if len(part)]

    def _end_of_first(self) -> int:
        start, (_, rows) = self._kept[0]
        return start + len(rows)


class PackedEval:
    """Yields packed rows once, divided over the ranks as by eval_shares.

    Args:
        job: The rows, of one pass.
        batch_size: Maximum number of rows of a batch.
        tokenizer: The job's tokenizer.
        rank: This rank.
        world_size: Number of ranks.
        ahead: Whether another process packs the rows, up to the job's maximum, while this one trains.
    """

    def __init__(
        self, job: Job, batch_size: int, tokenizer: Tokenizer, rank: int = 0, world_size: int = 1, ahead: bool = True
    ) -> None:
        self.rank = rank
        self.world_size = world_size
        self._job = job
        self._source: Iterator[Block] = Ahead(job, None, 0) if ahead else blocks(job, None, tokenizer)
        self._rows: Tokens | None = None
        n_rows = len(self.rows) if job.most is None else job.most
        # The number of batches is known before the rows. If there are fewer rows, batches have fewer of them.
        self._n_batches = -(-n_rows // (batch_size * world_size))

    @property
    def rows(self) -> Tokens:
        """The rows of all ranks, (n, T + 1).

        Raises:
            DataError: The documents cannot be read, or are too short for a row.
        """
        if self._rows is None:
            found = [rows for _, rows in self._source]
            if not found:
                some = named(self._job.files)
                accepted = f"accepted: longer documents, or a data.seq_len below {self._job.row_tokens - 1}"
                raise DataError("data.val", some, f"the documents have fewer tokens than a row; {accepted}")
            self._rows = np.concatenate(found)
        return self._rows

    def __len__(self) -> int:
        return self._n_batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        n_batches = min(self._n_batches, -(-len(self.rows) // self.world_size))
        shares = torch.arange(len(self.rows)).tensor_split(n_batches * self.world_size)
        for share in shares[self.rank * n_batches : (self.rank + 1) * n_batches]:
            if len(share):
                yield as_batch([self.rows[share.numpy()]])


def as_batch(rows: list[Tokens], pin_memory: bool = False) -> tuple[Tensor, Tensor]:
    """Makes inputs and targets, int64, each (B, T), of rows of T + 1 tokens."""
    n_rows, row_tokens = sum(map(len, rows)), rows[0].shape[1]
    batch = torch.empty((2, n_rows, row_tokens - 1), dtype=torch.int64, pin_memory=pin_memory)
    inputs, targets = batch.numpy()
    done = 0
    for some in rows:
        inputs[done : done + len(some)] = some[:, :-1]
        targets[done : done + len(some)] = some[:, 1:]
        done += len(some)
    return batch[0], batch[1]
