"""Rows: fixed-length pieces of a byte stream, and the endless loader that cuts batches of them for training.

A row of T bytes b0 ... b(T-1) has the inputs [BOS, b0, ..., b(T-2)] and the targets [b0, ..., b(T-1)]: every byte is
predicted once, the first one from nothing. Byte 0, which text does not have, is the begin-of-row marker BOS.
"""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

BOS = 0
Order = Literal["sequential", "shuffled", "folds"]
N_FOLDS, CHUNK_ROWS = 8, 64


def cut_rows(stream: Tensor, starts: Tensor, seq_len: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets of the rows that begin at `starts`, wrapping around at the stream's end.

    Args:
        stream: Bytes, uint8, (n,).
        starts: First byte of each row, (B,).
        seq_len: Row length T.

    Returns:
        Two int64 tensors (B, T).
    """
    targets = stream[(starts[:, None] + torch.arange(seq_len)) % len(stream)].long()
    return targets.roll(1, dims=1).index_fill_(1, torch.tensor(0), BOS), targets


def deal_rows(n_rows: int) -> Tensor:
    """Fold of each row, (n_rows,): pieces of CHUNK_ROWS neighbouring rows are dealt to N_FOLDS folds at random.

    Neighbours are kept together because text repeats itself nearby. The deal depends on nothing but the number of rows.
    """
    n_chunks = -(-n_rows // CHUNK_ROWS)
    dealt = torch.randperm(n_chunks, generator=torch.Generator().manual_seed(0)) % N_FOLDS
    return dealt.repeat_interleave(CHUNK_ROWS)[:n_rows]


class RowLoader:
    """Endless batches of one rank's rows, whose position can be saved.

    All ranks together take consecutive rows: batch k of rank r holds rows (k ranks + r) batch_size and following.
    `sequential` follows the stream without overlap and wraps around at its end, in the middle of a row if need be.
    `shuffled` takes the stream's whole rows in a new random order every epoch.
    `folds` takes one fold of the rows after the other (see deal_rows), both folds and their rows in a new random order
    every epoch; no batch has rows of two folds, so each leaves out a few, or all if they are fewer than a step takes.

    Args:
        stream: Bytes, uint8, (n,), n >= seq_len.
        batch_size: Rows of one batch of one rank.
        seq_len: Row length.
        order: `sequential`, `shuffled` or `folds`.
        seed: Seed of the random orders.
        rank: This rank.
        world_size: Number of ranks.

    Attributes:
        rows_per_epoch: Rows that all ranks together take in an epoch of a random order.
    """

    def __init__(
        self,
        stream: Tensor,
        batch_size: int,
        seq_len: int,
        order: Order = "sequential",
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.stream = stream
        self.seq_len = seq_len
        self.order = order
        self.seed = seed
        self.rows_per_step = batch_size * world_size
        self.own_rows = torch.arange(batch_size) + rank * batch_size
        self.position = 0  # rows that all ranks together have taken
        self._fold_of_row = deal_rows(len(stream) // seq_len) if order == "folds" else None
        self.rows_per_epoch = len(stream) // seq_len
        if self._fold_of_row is not None:
            sizes = torch.bincount(self._fold_of_row)
            self.rows_per_epoch = int((sizes - sizes % self.rows_per_step).sum())
        self._epochs: dict[int, Tensor] = {}

    def __len__(self) -> int:
        # As good as endless. With a length, Lightning fetches each batch when it is due; without one it fetches one
        # ahead, and the position in a checkpoint would be one batch beyond what was trained on.
        return 10**12

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            starts = self._starts(self.position + self.own_rows)
            self.position += self.rows_per_step
            yield cut_rows(self.stream, starts, self.seq_len)

    def state_dict(self) -> dict[str, Any]:
        """Lightning puts this into checkpoints."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a checkpoint's position."""
        self.position = state["position"]
        if self.order == "folds":  # with another batch size batches would have rows of two folds
            self.position -= self.position % self.rows_per_step

    @property
    def fold(self) -> int | None:
        """Fold of the batch that was last taken; None in other orders."""
        if self._fold_of_row is None or self.position == 0:
            return None
        start = self._starts(torch.tensor([self.position - self.rows_per_step]))
        return int(self._fold_of_row[start // self.seq_len])

    def _starts(self, rows: Tensor) -> Tensor:
        if self.order == "sequential":
            return rows * self.seq_len % len(self.stream)
        n_rows = self.rows_per_epoch
        epochs = rows // n_rows
        starts = torch.empty_like(rows)
        for epoch in epochs.unique().tolist():
            inside = epochs == epoch
            starts[inside] = self._permutation(epoch)[rows[inside] % n_rows] * self.seq_len
        return starts

    def _permutation(self, epoch: int) -> Tensor:
        if epoch not in self._epochs:
            # A generator of its own: the order depends on seed and epoch alone, not on what else draws numbers.
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._epochs = {k: v for k, v in self._epochs.items() if k == epoch - 1}
            if self._fold_of_row is None:
                self._epochs[epoch] = torch.randperm(len(self.stream) // self.seq_len, generator=generator)
            else:
                self._epochs[epoch] = torch.cat([*self._shuffled_folds(self._fold_of_row, generator)])
        return self._epochs[epoch]

    def _shuffled_folds(self, fold_of_row: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
        for fold in torch.randperm(N_FOLDS, generator=generator):
            rows = (fold_of_row == fold).nonzero()[:, 0]
            rows = rows[torch.randperm(len(rows), generator=generator)]
            yield rows[: len(rows) // self.rows_per_step * self.rows_per_step]


def eval_shares(n_rows: int, batch_size: int, rank: int, world_size: int) -> tuple[Tensor, ...]:
    """The numbers of a rank's rows, batch by batch, where all ranks together take every row once.

    All ranks get equally many batches, for a collective in the model would otherwise wait for ever; batches differ in
    size by one row at most. Where there are fewer rows than batches, some are empty.
    """
    n_batches = -(-n_rows // (batch_size * world_size))
    shares = torch.arange(n_rows).tensor_split(n_batches * world_size)
    return shares[rank * n_batches : (rank + 1) * n_batches]


class EvalBatches:
    """Every row of a stream once, spread over the ranks (see eval_shares).

    Args:
        stream: Bytes, uint8, (n,), n >= seq_len.
        batch_size: Largest number of rows of a batch.
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
