"""Rows: fixed-length pieces of a byte stream, and the endless loader that cuts training batches from it.

A row of T bytes b0 ... b(T-1) has the inputs [BOS, b0, ..., b(T-2)] and the targets [b0, ..., b(T-1)]: every byte is
predicted once, the first one without context. Byte 0, which does not occur in text, is the begin-of-row marker BOS.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from bytelm.data.orders import ORDERS, OrderName
from bytelm.data.tokenizer import BOS


def cut_rows(stream: Tensor, starts: Tensor, seq_len: int) -> tuple[Tensor, Tensor]:
    """Returns inputs and targets of the rows that begin at `starts`, wrapping around at the stream's end.

    Args:
        stream: Bytes, uint8, (n,).
        starts: First byte of each row, (B,).
        seq_len: Row length T.

    Returns:
        Two int64 tensors (B, T).
    """
    targets = stream[(starts[:, None] + torch.arange(seq_len)) % len(stream)].long()
    return targets.roll(1, dims=1).index_fill_(1, torch.tensor(0), BOS), targets


class RowLoader:
    """Endless batches of one rank's rows; the position can be saved.

    All ranks together take the next rows of an order (orders.py), and rank r uses the r-th part of each batch's rows.
    `batch_size` and `seq_len` can be set between two batches; no row is skipped or taken twice.

    Args:
        stream: Bytes, uint8, (n,), n >= seq_len.
        batch_size: Rows of one batch of one rank.
        seq_len: Row length.
        order: `sequential`, `shuffled` or `folds`.
        seed: Seed of the random orders.
        rank: This rank.
        world_size: Number of ranks.
    """

    def __init__(
        self,
        stream: Tensor,
        batch_size: int,
        seq_len: int,
        order: OrderName = "sequential",
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.stream = stream
        self.batch_size = batch_size
        self.seq_len = seq_len
        self.order = ORDERS[order](len(stream), seq_len, seed)
        self.rank = rank
        self.world_size = world_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            starts = self.order.take(self._rows_per_step(), self.seq_len)
            own = starts[self.rank * self.batch_size : (self.rank + 1) * self.batch_size]
            yield cut_rows(self.stream, own, self.seq_len)

    def state_dict(self) -> dict[str, Any]:
        """Lightning stores this state in checkpoints."""
        return self.order.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes at a checkpoint's position."""
        self.order.load_state_dict(state, self._rows_per_step())

    @property
    def fold(self) -> int | None:
        """Fold of the last batch; None in orders without folds."""
        return self.order.fold

    def _rows_per_step(self) -> int:
        """Rows of one batch of all ranks."""
        return self.batch_size * self.world_size


def eval_shares(n_rows: int, batch_size: int, rank: int, world_size: int) -> tuple[Tensor, ...]:
    """Yields the numbers of a rank's rows, batch by batch; all ranks together take every row once.

    All ranks get the same number of batches; otherwise a collective in the model would wait forever. Batch sizes differ
    by one row at most. If there are fewer rows than batches, some batches are empty.
    """
    n_batches = -(-n_rows // (batch_size * world_size))
    shares = torch.arange(n_rows).tensor_split(n_batches * world_size)
    return shares[rank * n_batches : (rank + 1) * n_batches]


class EvalBatches:
    """Yields every row of a stream once, divided over the ranks (see eval_shares).

    Args:
        stream: Bytes, uint8, (n,), n >= seq_len.
        batch_size: Maximum number of rows of a batch.
        seq_len: Row length.
        rank: This rank.
        world_size: Number of ranks.
    """

    def __init__(self, stream: Tensor, batch_size: int, seq_len: int, rank: int = 0, world_size: int = 1) -> None:
        self.stream = stream
        self.seq_len = seq_len
        self.batches = eval_shares(len(stream) // seq_len, batch_size, rank, world_size)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in self.batches:
            yield cut_rows(self.stream, rows * self.seq_len, self.seq_len)
